"""Water, ions and boxes, measured from the coordinates."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from openmm import app, unit
from scipy.spatial.distance import cdist

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import EntryError
from data_pipeline.systems.box import box_vectors
from data_pipeline.systems.build import box_width, protein_mask
from data_pipeline.systems.prepare import prepare
from data_pipeline.systems.repair import repair
from data_pipeline.systems.solvate import solvate

SHAPES = ("brick", "cube", "dodecahedron", "octahedron")


@pytest.fixture(scope="module")
def protein(mirror: Path) -> tuple[app.Topology, np.ndarray]:
    return repair(mirror / "1crn.pdb.gz", seed=1)


def _nearest_copy(positions: np.ndarray, box: np.ndarray) -> float:
    """Least distance in nm between the atoms and those of any copy, over the 124 nearest."""
    shifts = [np.array(n) @ box for n in product(range(-2, 3), repeat=3) if any(n)]
    return min(float(cdist(positions, positions + shift).min()) for shift in shifts)


def _box(topology: app.Topology) -> np.ndarray:
    return np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))


@pytest.mark.parametrize("shape", SHAPES)
def test_copies_are_as_far_apart_as_asked(protein: tuple[app.Topology, np.ndarray], shape: str) -> None:
    """No copy comes nearer than the padding, in a reduced box that holds the cutoff twice; 1.5 nm less is too small."""
    heavy = protein[1][::2]
    for padding in (0.6, 1.2):
        box = box_vectors(heavy, padding, box_shape=shape)  # type: ignore[arg-type]
        assert _nearest_copy(heavy, box) >= padding - 1e-9
        assert _nearest_copy(heavy, box * (1 - 1.5 / box[0, 0])) < padding, "the box would do no smaller than this"
        assert (np.triu(box, 1) == 0).all() and box_width(box) >= 1.8
        half = np.diag(box) / 2
        assert abs(box[1, 0]) <= half[0] and abs(box[2, 0]) <= half[0] and abs(box[2, 1]) <= half[1] + 1e-12


def test_volumes_have_the_ratios_of_geometry(protein: tuple[app.Topology, np.ndarray]) -> None:
    """For the same padding a rhombic dodecahedron has 1/√2 of a cube's volume, a truncated octahedron 4√3/9."""
    volumes = [np.linalg.det(box_vectors(protein[1], 0.8, box_shape=shape)) for shape in SHAPES[1:]]  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(volumes) / volumes[0], [1, 2**-0.5, 4 * 3**0.5 / 9], rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_box_is_full_of_water(protein: tuple[app.Topology, np.ndarray], shape: str) -> None:
    """Mass over volume is that of protein at 1.35 and water at 1.0 g/ml; no two waters lie on each other."""
    topology, positions = solvate(*protein, padding=0.7, box_shape=shape, seed=1)  # type: ignore[arg-type]
    mass = sum(atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms())
    inside = sum(a.element.mass.value_in_unit(unit.dalton) for a in protein[0].atoms())
    expected = mass / (inside / 1.35 + (mass - inside) / 1.0)
    assert mass * 1.66054e-3 / np.linalg.det(_box(topology)) == pytest.approx(expected, rel=0.02)
    oxygen = positions[[a.residue.name == "HOH" and a.name == "O" for a in topology.atoms()]]
    images = [oxygen + np.array(n) @ _box(topology) for n in product(range(-1, 2), repeat=3)]
    distances = cdist(oxygen, np.concatenate(images))
    assert np.sort(distances, axis=1)[:, 1].min() > 0.15
    others = cdist(oxygen, protein[1] @ np.linalg.lstsq(protein[1], positions[protein_mask(topology)], rcond=None)[0])
    assert others.min() > 0.07


def test_a_brick_only_turns_the_protein(protein: tuple[app.Topology, np.ndarray]) -> None:
    """Distances and hands stay, less water is needed than for any round box, and the copies stay away."""
    boxes = {}
    for shape in ("brick", "dodecahedron"):
        topology, positions = solvate(*protein, padding=0.8, box_shape=shape, seed=1)  # type: ignore[arg-type]
        inside = positions[protein_mask(topology)]
        boxes[shape] = np.linalg.det(_box(topology))
        assert _nearest_copy(inside, _box(topology)) >= 0.8 - 1e-5
        before, after = protein[1] - protein[1].mean(axis=0), inside - inside.mean(axis=0)
        u, _, v = np.linalg.svd(before.T @ after)
        assert np.linalg.det(u @ v) == pytest.approx(1), "a rotation, not a mirror"
        np.testing.assert_allclose(before @ u @ v, after, atol=1e-6)
    assert boxes["brick"] < 0.6 * boxes["dodecahedron"]


def test_ions_neutralise_and_give_the_ionic_strength(mirror: Path) -> None:
    """1pga has a charge of -4, so there are four more sodium than chloride, and 0.15 mol/l of both when asked."""
    topology, positions = repair(mirror / "1pga.pdb.gz", seed=1)
    names = [residue.name for residue in topology.residues()]
    charge = sum({"ARG": 1, "LYS": 1, "ASP": -1, "GLU": -1}.get(name, 0) for name in names)
    assert charge == -4
    for strength in (0.0, 0.15):
        solvated, _ = solvate(topology, positions, padding=0.6, ionic_strength=strength, box_shape="brick", seed=1)
        count = {name: sum(r.name == name for r in solvated.residues()) for name in ("HOH", "NA", "CL")}
        waters = sum(count.values())  # an ion takes the place of one
        pairs = round((waters - 4) * strength / 55.4)
        assert (count["NA"], count["CL"]) == (pairs + 4, pairs)
        assert (pairs > 0) == (strength > 0)


def test_small_peptide_gets_a_box_for_the_cutoff(mirror: Path) -> None:
    """Thirteen residues with little padding get a box that PME can use, in place of a failure afterwards."""
    _, positions = repair(mirror / "1a1p.pdb.gz", seed=1)
    for shape in SHAPES:
        box = box_vectors(positions, 0.1, box_shape=shape, cutoff=1.1)  # type: ignore[arg-type]
        assert box_width(box) >= 2.2


def test_huge_box_is_refused_before_it_is_built(mirror: Path, tmp_path: Path) -> None:
    """The message gives the number of atoms that would be there and the limit."""
    with pytest.raises(EntryError, match=r"about \d+ atoms; prepare.max_atoms allows 20000") as caught:
        prepare(mirror / "1crn.pdb.gz", tmp_path / "x.cif", padding=8.0, max_atoms=20_000)
    assert caught.value.kind == "too_large"


def test_number_of_atoms_is_foretold(protein: tuple[app.Topology, np.ndarray]) -> None:
    """What max_atoms is compared with is within a tenth of what is built."""
    topology, _ = solvate(*protein, padding=0.8, box_shape="octahedron", seed=1)
    n_atoms = topology.getNumAtoms()
    for limit, refused in ((0.9, True), (1.15, False)):
        if refused:
            with pytest.raises(EntryError):
                solvate(*protein, padding=0.8, box_shape="octahedron", max_atoms=int(limit * n_atoms), seed=1)
        else:
            solvate(*protein, padding=0.8, box_shape="octahedron", max_atoms=int(limit * n_atoms), seed=1)


def test_more_salt_than_water_is_an_entry_error(protein: tuple[app.Topology, np.ndarray]) -> None:
    """Ions that find no place are a failure of the entry, not of the run."""
    with pytest.raises(EntryError) as caught:
        solvate(*protein, padding=0.3, ionic_strength=60.0, box_shape="brick", seed=1)
    assert caught.value.kind == "solvent"


def test_same_bytes_in_a_fresh_process(mirror: Path, crambin_file: Path, tmp_path: Path) -> None:
    """Another process, with another hash seed for sets, writes the same file."""
    code = (
        "import sys; from data_pipeline.systems.prepare import prepare; "
        "prepare(sys.argv[1], sys.argv[2], padding=0.7, box_shape='dodecahedron', seed=5)"
    )
    out = tmp_path / "fresh.cif"
    command = [sys.executable, "-c", code, str(mirror / "1crn.pdb.gz"), str(out)]
    root = Path(__file__).parents[3]
    subprocess.run(command, check=True, cwd=root, env={"PYTHONHASHSEED": "77", "PYTHONPATH": str(root), "PATH": ""})
    assert out.read_bytes() == crambin_file.read_bytes()


def test_options_are_refused_with_the_closest_match() -> None:
    """Neutral ends give the reason; the field's own range is kept."""
    with pytest.raises(ValueError, match="no templates of neutral ends"):
        PrepareConfig(termini="neutral")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="less than or equal to 5"):
        PrepareConfig(ionic_strength=60)
