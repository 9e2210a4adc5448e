from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from data_pipeline.config import PipelineConfig, dump_config, load_config
from data_pipeline.errors import ConfigError, EntryError, PipelineError
from data_pipeline.labels.label import Labels, label
from data_pipeline.labels.potential import Potential
from data_pipeline.ledger import Record
from data_pipeline.run import run
from data_pipeline.systems.build import FORCE_FIELDS, protein_mask, require_point_charges
from data_pipeline.systems.prepare import Prepared
from data_pipeline.systems.sample import Frames, relax, sample_thermal
from data_pipeline.tasks import Tasks
from data_pipeline.versions import versions

TOLERANCE = 1e-4
"""mean |dF| / mean |F| between a label and an independent computation on the Reference platform."""

MINIMAL = "name: x\nsource: {path: entries}\n"


def _forces(system: openmm.System, positions: np.ndarray, box: np.ndarray) -> np.ndarray:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPeriodicBoxVectors(*box.astype(float))
    context.setPositions(positions.astype(float))
    forces = context.getState(getForces=True).getForces(asNumpy=True)
    return np.array(forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected, axis=-1).mean() / np.linalg.norm(expected, axis=-1).mean())


DIRECT = {
    "amber14": ("amber14-all.xml", "amber14/tip3pfb.xml"),
    "amber19": ("amber19-all.xml", "amber19/tip3pfb.xml"),
    "charmm36": ("charmm36.xml", "charmm36/water.xml"),
    "amoeba2018": ("amoeba2018.xml",),
}
"""Written out again: the names must mean these files."""


NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "amoeba2018" else ()) for name in FORCE_FIELDS]
"""AMOEBA's Context takes some 10 s to make, whatever the size: OpenMM differentiates its expressions then."""


@pytest.fixture(scope="module")
def by_name(
    tripeptide: Prepared, tripeptide_frames: Frames, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Labels]:
    """Return a function from the name of a force field in a config to labels; each is made once."""
    path = tmp_path_factory.mktemp("names") / "config.yaml"

    @cache
    def labels(name: str) -> Labels:
        path.write_text(MINIMAL + f"label: {{force_field: {name}, cutoff: 0.6}}")
        files = load_config(path).label.force_field
        return label(
            tripeptide.topology, tripeptide_frames.positions, tripeptide_frames.box, force_field_files=files, cutoff=0.6
        )

    return labels


@pytest.mark.parametrize("name", NAMES)
def test_each_name_labels_what_prepare_makes(
    tripeptide: Prepared, tripeptide_frames: Frames, by_name: Callable[[str], Labels], name: str
) -> None:
    """By its name in a config, each force field gives the forces of its files by plain OpenMM calls, on water too.

    The system was prepared with AMBER14. The alpha of the comparison is another one, and its mesh is finer.
    """
    labels = by_name(name)
    system = app.ForceField(*DIRECT[name]).createSystem(
        tripeptide.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.6, constraints=None, rigidWater=False
    )
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce | openmm.AmoebaMultipoleForce):
            force.setPMEParameters(6.0, 64, 64, 64)
        if isinstance(force, openmm.AmoebaMultipoleForce):
            force.setMutualInducedTargetEpsilon(1e-6)
    expected = _forces(system, tripeptide_frames.positions[0], tripeptide_frames.box[0])
    water = ~protein_mask(tripeptide.topology)
    assert _difference(labels.forces[0], expected) < TOLERANCE
    assert _difference(labels.forces[0][water], expected[water]) < TOLERANCE
    assert labels.pme_alpha == pytest.approx(np.sqrt(-np.log(2e-5)) / 0.6, rel=1e-6) and (labels.pme_grid > 20).all()
    assert abs(labels.charges.sum()) < 1e-4 and np.abs(labels.charges).max() > 0.3


def test_the_documentation_loads(tmp_path: Path) -> None:
    """Each piece of configuration in docs/labels.md is valid."""
    text = (Path(__file__).parents[3] / "docs" / "labels.md").read_text(encoding="utf-8")
    pieces = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "forcefields").mkdir()
    (tmp_path / "forcefields" / "own.xml").write_text("<ForceField/>")
    for piece in pieces:
        (tmp_path / "config.yaml").write_text(MINIMAL + piece)
        load_config(tmp_path / "config.yaml")
    assert len(pieces) == 4


def test_force_fields_differ(tripeptide: Prepared, by_name: Callable[[str], Labels]) -> None:
    """No two names give the same forces on the protein: none falls back on another."""
    mask = protein_mask(tripeptide.topology)
    for name, other in combinations(("amber14", "amber19", "charmm36"), 2):
        assert _difference(by_name(name).forces[0][mask], by_name(other).forces[0][mask]) > 0.002, (name, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amber19", "charmm36", "amoeba2018"])
def test_a_protein_prepared_with_amber_takes_every_force_field(crambin: Prepared, name: str) -> None:
    """Crambin has three disulfides and both termini: every residue finds its template, forces stay thermal."""
    frames = sample_thermal(crambin, relax(crambin, tolerance=100.0), n_frames=1, equilibration=0.4, seed=2)
    labels = label(crambin.topology, frames.positions, frames.box, force_field_files=FORCE_FIELDS[name])
    mean = np.linalg.norm(labels.forces[0, protein_mask(crambin.topology)], axis=-1).mean()
    assert 900 < mean < 3000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("force_field: amber91", r"no force field 'amber91'\. Did you mean 'amber19'\?"),
        ("force_field: [amber14/tip3pbf.xml]", r"Did you mean 'amber14/tip3pfb.xml'\?"),
        ("mm_force_field: amoeba2081", r"Did you mean 'amoeba2018'\?"),
        ("parts: [grups]", "label.parts.0: .*'groups'.*got 'grups'"),
        ("potential: {name: mace, option: {}}", "label.potential.option: no such key. Did you mean 'options'"),
        ("force_field: 3", "label.force_field: .*got 3"),
    ],
)
def test_unknown_names_get_the_closest_match(tmp_path: Path, text: str, words: str) -> None:
    """A misspelt force field, part or key is an error of the configuration that proposes what was meant."""
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + f"label: {{{text}}}")
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_a_users_own_file_is_found_beside_the_config(
    tmp_path: Path, tripeptide: Prepared, tripeptide_frames: Frames
) -> None:
    """A path is relative to the config, the resolved copy names it from anywhere, and its parameters are used."""
    text = (Path(app.__file__).parent / "data" / "tip3p.xml").read_text()
    assert 'charge="-0.834"' in text
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "water.xml").write_text(text.replace("-0.834", "-0.8").replace("0.417", "0.4"))
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "label: {force_field: [amber99sbildn.xml, own/water.xml]}")
    config = load_config(path)
    assert config.label.force_field == ["amber99sbildn.xml", str(tmp_path / "own" / "water.xml")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run" / "config.yaml") == config
    labels = label(
        tripeptide.topology,
        tripeptide_frames.positions,
        tripeptide_frames.box,
        force_field_files=config.label.force_field,
        cutoff=0.6,
    )
    names = [atom.residue.name for atom in tripeptide.topology.atoms()]
    assert labels.charges[names.index("HOH")] == np.float32(-0.8)


def test_files_that_do_not_go_together_are_an_error_of_the_entry(
    tripeptide: Prepared, tripeptide_frames: Frames
) -> None:
    """CHARMM's own check of versions is told, not raised as RuntimeError."""
    files = ("charmm36.xml", "amber14/tip3pfb.xml")
    with pytest.raises(EntryError) as caught:
        label(
            tripeptide.topology, tripeptide_frames.positions, tripeptide_frames.box, force_field_files=files, cutoff=0.6
        )
    assert caught.value.kind in ("force_field", "no_template")


@pytest.mark.parametrize("name", ["amber14", "amber19", "charmm36"])
def test_force_fields_that_can_move_atoms(name: str) -> None:
    """Those with fixed charges can add solvent."""
    require_point_charges(FORCE_FIELDS[name])


def test_a_force_field_that_cannot_add_solvent_is_refused_before_a_run(tmp_path: Path) -> None:
    """AMOEBA labels what another force field samples; without one, every entry would fail while it is prepared."""
    (tmp_path / "entries").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "label: {force_field: amoeba2018}")
    with pytest.raises(ConfigError, match=r"amoeba2018.xml has no NonbondedForce.*Set sample.force_field"):
        run(load_config(path), tmp_path / "run")
    path.write_text(MINIMAL + "label: {force_field: amoeba2018}\nsample: {force_field: amber14}")
    with pytest.raises(PipelineError, match="no entry in"):
        run(load_config(path), tmp_path / "run")


class Springs:
    """A potential for the tests: every atom is tied to its neighbours in the list of bonds by a cubic spring."""

    @staticmethod
    def register(name: str) -> None:
        """Make openmm-ml know it by this name."""
        openmmml = pytest.importorskip("openmmml.mlpotential")

        class Impl(openmmml.MLPotentialImpl):
            def __init__(self, strength: float) -> None:
                self.strength = strength

            def addForces(self, topology, system, atoms, forceGroup, length=0.1):
                bonds = np.array([(a.index, b.index) for a, b in topology.bonds()])

                def compute(state):
                    forces, energy = springs(state.getPositions(asNumpy=True)._value, bonds, self.strength, length)
                    return energy * unit.kilojoule_per_mole, forces * unit.kilojoule_per_mole / unit.nanometer

                force = openmm.PythonForce(compute)
                force.setForceGroup(forceGroup)
                force.setUsesPeriodicBoundaryConditions(topology.getPeriodicBoxVectors() is not None)
                system.addForce(force)

        class Factory(openmmml.MLPotentialImplFactory):
            def createImpl(self, name, strength=1.0, **args):
                return Impl(strength)

        openmmml.MLPotential.registerImplFactory(name, Factory())


def springs(positions: np.ndarray, bonds: np.ndarray, strength: float, length: float) -> tuple[np.ndarray, float]:
    """E = strength sum |r - length|^3 and its forces."""
    vectors = positions[bonds[:, 1]] - positions[bonds[:, 0]]
    distances = np.linalg.norm(vectors, axis=1)
    stretch = distances - length
    pull = (3 * strength * stretch * np.abs(stretch) / distances)[:, None] * vectors
    forces = np.zeros_like(positions)
    np.add.at(forces, bonds[:, 0], pull)
    np.add.at(forces, bonds[:, 1], -pull)
    return forces, float(strength * (np.abs(stretch) ** 3).sum())


def test_a_potential_of_openmmml_is_a_reference(tripeptide: Prepared, tripeptide_frames: Frames) -> None:
    """Its options reach it; total, solute and difference to MM are what an independent computation says.

    Charges come from the MM force field then, and there is no PME.
    """
    Springs.register("springs")
    potential = Potential("springs", {"strength": 4e5}, {"length": 0.11})
    topology, positions = tripeptide.topology, tripeptide_frames.positions[0].astype(float)
    labels = label(
        topology,
        tripeptide_frames.positions,
        tripeptide_frames.box,
        potential=potential,
        cutoff=0.6,
        wanted=("groups", "solute", "minus_mm"),
    )
    bonds = np.array([(a.index, b.index) for a, b in topology.bonds()])
    expected, energy = springs(positions, bonds, 4e5, 0.11)
    assert _difference(labels.forces[0], expected) < 1e-6
    assert labels.energy[0] == pytest.approx(energy, rel=1e-9)
    assert labels.pme_alpha == 0 and not labels.pme_grid.any()
    assert labels.parts["group_names"].tolist() == [b"PythonForce"]

    mask = protein_mask(topology)
    inside, energy = springs(positions, bonds[mask[bonds].all(axis=1)], 4e5, 0.11)
    assert _difference(labels.parts["forces_solute"][0][mask], inside[mask]) < 1e-6
    assert labels.parts["energy_solute"][0] == pytest.approx(energy, rel=1e-9)

    amber = label(topology, tripeptide_frames.positions, tripeptide_frames.box, cutoff=0.6)
    assert (labels.charges == amber.charges).all()
    assert _difference(labels.parts["forces_minus_mm"] + amber.forces, labels.forces) < 1e-5


def test_a_missing_potential_or_package_is_said(
    tripeptide: Prepared, tripeptide_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown name gets the closest match, and without openmm-ml the message says what to install."""
    pytest.importorskip("openmmml")
    with pytest.raises(ConfigError, match=r"no potential 'ani2'\. Did you mean 'ani2x'"):
        label(tripeptide.topology, tripeptide_frames.positions, tripeptide_frames.box, potential=Potential("ani2"))
    monkeypatch.setitem(sys.modules, "openmmml", None)
    with pytest.raises(ConfigError, match=r"pip install 'forcefield-ml\[mlpotential\]'"):
        label(tripeptide.topology, tripeptide_frames.positions, tripeptide_frames.box, potential=Potential("ani2x"))


def test_a_config_with_a_potential_does_not_load_openmmml(tmp_path: Path) -> None:
    """Reading a config stays cheap: neither openmm-ml nor torch is imported until labels are made."""
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL + "label: {potential: {name: mace-off23-small, options: {}}}")
    code = (
        "import sys; from data_pipeline.config import load_config; c = load_config(sys.argv[1]); "
        "assert c.label.reference.name == 'openmm-ml:mace-off23-small'; "
        "assert not {'torch', 'openmmml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_a_changed_force_field_file_makes_labels_anew(tmp_path: Path) -> None:
    """The resume key of a label depends on what a user's own file holds, whether it labels or is subtracted."""
    own = tmp_path / "own.xml"
    record = Record("1abc", "sample", "ok", output="x", output_sha256="0")
    for key in ("force_field", "mm_force_field"):
        config = PipelineConfig.model_validate(
            {"name": "x", "source": {"path": "entries"}, "label": {key: ["amber14-all.xml", str(own)]}}
        )
        keys = []
        for text in ("<ForceField/>", "<ForceField> </ForceField>", "<ForceField/>"):
            own.write_text(text)
            tasks = Tasks(config, tmp_path, versions()).label("thermal", {"1abc": record}, {"1abc": record})
            keys.append(tasks[0].key)
        assert keys[0] == keys[2] != keys[1]
