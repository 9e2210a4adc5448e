from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from data_pipeline.cli import app
from data_pipeline.config import PipelineConfig, entry_seed
from data_pipeline.dataset.check import check
from data_pipeline.dataset.pack import PackedEntry, pack
from data_pipeline.dataset.recompute import TOLERANCE, choose, topology_of
from data_pipeline.labels.label import describe, label
from data_pipeline.labels.parts import PARTS
from data_pipeline.systems.prepare import Prepared
from data_pipeline.systems.sample import Frames
from data_pipeline.versions import versions
from forcefield_ml.data import ForceDataset

NAME = "1ttc"


def _config(**settings: Any) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "t",
            "source": {"path": "x"},
            "split": {"method": "python"},
            "label": {"cutoff": 0.6, "parts": PARTS, "mm_force_field": ["amber99sbildn.xml", "tip3p.xml"], **settings},
        }
    )


def _write(path: Path, prepared: Prepared, frames: Frames, config: PipelineConfig) -> Path:
    settings = config.label
    labels = label(
        prepared.topology,
        frames.positions,
        frames.box,
        force_field_files=settings.force_field,
        mm_force_field_files=settings.mm_force_field,
        cutoff=settings.cutoff,
        wanted=settings.parts,
    )
    arrays = {
        **describe(prepared.topology),
        "charges": labels.charges,
        "positions": frames.positions,
        "box": frames.box,
        "forces": labels.forces,
        "energy": labels.energy,
        **labels.parts,
    }
    fields = {key: value for key, value in arrays.items() if not key.startswith("reciprocal_")}
    attributes = {
        "split": "train",
        "cluster": "c",
        "sequence": "TTCCPSIV",
        "source_file": "x",
        "source_sha256": "0" * 64,
        "seed": entry_seed(0, NAME),
        "pme_alpha": labels.pme_alpha,
        "pme_grid": labels.pme_grid,
        **{key: value for key, value in arrays.items() if key not in fields},
    }
    header = {
        "protocol": "thermal",
        "force_field": settings.reference.name,
        "config": config.model_dump_json(),
        "versions": json.dumps(versions()),
    }
    pack([PackedEntry(NAME, fields, attributes)], path, header)
    return path


@pytest.fixture(scope="module")
def good(tripeptide: Prepared, tripeptide_frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One entry with every kind of label."""
    return _write(tmp_path_factory.mktemp("good") / "dataset.h5", tripeptide, tripeptide_frames, _config())


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(good, tmp_path / "dataset.h5"))


def test_labels_computed_again_agree(good: Path) -> None:
    """Every kind of label comes out alike on the Reference platform, with another alpha, from the file alone."""
    report = check(good, recompute=5)
    assert report.ok, report.problems
    (one,) = report.recomputed
    fields = {"forces", "forces_by_group", "forces_reciprocal", "forces_solute", "forces_minus_mm"}
    assert set(one.errors) == fields | {"energy", "energy_solute"}
    assert report.worst[0] == max(one.errors.values()) < TOLERANCE


def test_without_being_asked_nothing_is_computed(good: Path) -> None:
    """A check that is not asked to compute reads and compares."""
    assert check(good).recomputed == []


def _swap_atoms(name: str) -> Callable[[h5py.Group], None]:
    """Swap the forces of two carbons: sums, norms, units and shapes stay as they were."""

    def change(entry: h5py.Group) -> None:
        values, (i, j) = entry[name][:], np.flatnonzero(entry["species"][:] == 6)[:2]
        values[..., [i, j], :] = values[..., [j, i], :]
        entry[name][...] = values

    return change


def _between_groups(entry: h5py.Group) -> None:
    values = entry["forces_by_group"][:]
    values[:, 0] += 0.1 * values[:, 1]
    values[:, 1] *= 0.9
    entry["forces_by_group"][...] = values


def _scale(name: str, factor: float) -> Callable[[h5py.Group], None]:
    def change(entry: h5py.Group) -> None:
        entry[name][...] = entry[name][:] * factor

    return change


def _swap_charges(entry: h5py.Group) -> None:
    charges = entry["charges"][:]
    charges[[0, 1]] = charges[[1, 0]]
    entry["charges"][...] = charges


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_swap_atoms("forces"), "forces"),
        (_swap_atoms("forces_reciprocal"), "forces_reciprocal"),
        (_swap_atoms("forces_solute"), "forces_solute"),
        (_swap_atoms("forces_minus_mm"), "forces_minus_mm"),
        (_between_groups, "forces_by_group"),
        (_scale("forces", 1.001), "forces"),
        (_scale("energy", 1.01), "energy"),
        (_scale("energy_solute", 1.01), "energy_solute"),
        (_swap_charges, "forces_reciprocal"),
        (_swap_atoms("positions"), "forces"),
    ],
)
def test_a_damaged_label_is_found_by_computing_it(copy: Path, change: Callable[[h5py.Group], None], field: str) -> None:
    """Damage that no sum rule sees is named with its field, whatever the hash says."""
    with h5py.File(copy, "r+") as file:
        change(file["entries"][NAME])
    problems = check(copy, recompute=1).problems
    assert any(re.search(rf"^{NAME}: {field} of frame \d differ from those computed again", p) for p in problems), (
        problems
    )


def _outside_the_solute(entry: h5py.Group) -> None:
    entry["forces_solute"][0, -1] = 1.0


def _twice(entry: h5py.Group) -> None:
    names = entry["group_names"][:]
    names[1] = names[0]
    entry["group_names"][...] = names


def _drop(*names: str) -> Callable[[h5py.Group], None]:
    def change(entry: h5py.Group) -> None:
        for name in names:
            del entry[name]

    return change


def _attribute(name: str, value: Any) -> Callable[[h5py.Group], None]:
    def change(entry: h5py.Group) -> None:
        if value is None:
            del entry.attrs[name]
        else:
            entry.attrs[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_scale("forces_by_group", 1.01), "forces_by_group do not sum to forces: .* is 1.0e-02"),
        (_twice, "group_names has a name twice"),
        (_outside_the_solute, "forces_solute acts on atoms outside the solute"),
        (_drop("forces_minus_mm"), "the fields of minus_mm are missing"),
        (_drop("energy_solute"), r"the fields of solute are \['forces_solute'\]"),
        (_attribute("reciprocal_alpha", None), "lacks reciprocal_alpha"),
        (_attribute("reciprocal_alpha", 4.0), "reciprocal_alpha is 4.0, label.reciprocal_alpha is 4.5"),
        (_attribute("reciprocal_grid", np.array([40, 40, 40], "i4")), r"reciprocal_grid is \[40, 40, 40\]"),
        (_attribute("sequence", "CTTV"), "residue 3 of 3, C, does not follow"),
    ],
)
def test_check_sees_what_contradicts_itself(copy: Path, change: Callable[[h5py.Group], None], message: str) -> None:
    """Sum rules, names and attributes of the parts are checked without computing anything."""
    with h5py.File(copy, "r+") as file:
        change(file["entries"][NAME])
    problems = check(copy).problems
    assert any(re.search(f"^{NAME}: .*({message})", problem) for problem in problems), problems


def test_a_force_field_that_is_gone_is_told(copy: Path) -> None:
    """Where labels cannot be computed again the report says why, and the check fails."""
    with h5py.File(copy, "r+") as file:
        config = json.loads(file.attrs["config"])
        config["label"]["force_field"] = ["/nowhere/own.xml"]
        file.attrs["config"] = json.dumps(config)
    problems = check(copy, recompute=1).problems
    assert any("labels could not be computed again: OpenMM cannot load" in problem for problem in problems), problems


def test_topology_comes_back_from_the_arrays(good: Path, tripeptide: Prepared) -> None:
    """Atoms, residues, elements, bonds and box are those that the labels were made from."""
    with h5py.File(good) as file:
        fields = {name: values[()] for name, values in file["entries"][NAME].items()}
    found, expected = topology_of(fields), tripeptide.topology

    def facts(topology: Any) -> tuple[Any, ...]:
        atoms = [(a.name, a.residue.name, a.residue.index, a.element.symbol) for a in topology.atoms()]
        return atoms, [(a.index, b.index) for a, b in topology.bonds()]

    assert facts(found) == facts(expected)
    assert np.allclose(found.getPeriodicBoxVectors()._value, expected.getPeriodicBoxVectors()._value, atol=1e-6)


def test_the_content_chooses_what_is_computed() -> None:
    """The choice depends on names and hash only, not on order; another hash chooses others."""
    names = [f"{number:04d}" for number in range(50)]
    first = choose(names, "a", 5)
    assert first == choose(names[::-1], "a", 5) and len(set(first)) == 5
    assert first != choose(names, "b", 5)
    assert choose(names[:3], "a", 5) == names[:3]


def test_command_reports_the_worst(good: Path, copy: Path) -> None:
    """`check --recompute` prints the worst error and exits with 0, or with 1 when one is too large."""
    result = CliRunner().invoke(app, ["check", str(good), "--recompute", "1"])
    assert result.exit_code == 0, result.output
    assert re.search(r"1 entries labelled again .*: worst mean \|dF\| / mean \|F\| \d\.\de-\d\d \(1ttc", result.output)
    with h5py.File(copy, "r+") as file:
        _swap_atoms("forces")(file["entries"][NAME])
    assert CliRunner().invoke(app, ["check", str(copy), "--recompute", "1"]).exit_code == 1


def test_the_learning_side_ignores_the_parts(good: Path) -> None:
    """A reader that knows nothing of the optional fields reads the same frames."""
    dataset = ForceDataset(good, "train")
    with h5py.File(good) as file:
        stored = file["entries"][NAME]
        assert {"forces_by_group", "forces_reciprocal"} <= set(stored)
        assert len(dataset) == 2
        assert (dataset[1].forces == stored["forces"][1]).all() and (
            dataset[1].positions == stored["positions"][1]
        ).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["charmm36", "amoeba2018"])
def test_other_force_fields_come_out_alike(
    tripeptide: Prepared, tripeptide_frames: Frames, tmp_path: Path, name: str
) -> None:
    """Labels by CHARMM36 and AMOEBA 2018, with every part, agree with their recomputation as well."""
    path = _write(tmp_path / "dataset.h5", tripeptide, tripeptide_frames, _config(force_field=name))
    report = check(path, recompute=1)
    assert report.ok and report.worst[0] < TOLERANCE, report.problems
