"""`refine`: a model and a structure in, a moved structure and what came of it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.deploy.model import DeployedModel, load
from forcefield_ml.progress import ProgressLine
from forcefield_ml.refinement import scores
from forcefield_ml.refinement.geometry import CLASH, Geometry
from forcefield_ml.refinement.outcome import compared, outcome, verdict
from forcefield_ml.refinement.predictor import field_of
from forcefield_ml.refinement.scores import Native
from forcefield_ml.refinement.steps import REASONS, Settings, Step, VectorField, Walk, in_words, walk
from forcefield_ml.refinement.structure_file import StructureFile, read_structure_file
from forcefield_ml.units import ANGSTROM
from forcefield_ml.validation.page import made
from forcefield_ml.versions import package_versions

FORMAT = "forcefield-ml-refinement-1"
"""Value of ``format`` in report.json."""


@dataclass(frozen=True)
class Refinement:
    """What `refine` returns.

    Attributes
    ----------
    file : StructureFile
        What was read.
    walk : Walk
        Positions, vectors and steps.
    native : Native
        None where none was given.
    report : dict
        What report.json holds, lengths in Å: ``outcome`` (in sentences), ``better``, ``worse`` (names of what changed
        so), ``before`` and ``after`` (scores, ``bond_rms``, ``worst_bond``, ``clashes``), ``steps``, ``stopped``,
        ``matched``, ``notes``, ``settings``.
    """

    file: StructureFile
    walk: Walk
    native: Native | None
    report: dict[str, Any]

    @property
    def positions(self) -> NDArray[np.float64]:
        """(N, 3) nm, of the atoms that the model sees, moved."""
        return self.walk.positions

    def write(self, folder: Path | str) -> dict[str, Path]:
        """Write refined.pdb (or .cif, as the input), report.json and report.html.

        Parameters
        ----------
        folder
            Made where missing.

        Returns
        -------
        dict
            ``structure``, ``json`` and ``html``: the files.

        Raises
        ------
        ConfigError
            If a file cannot be written.
        """
        from forcefield_ml.refinement.report import write_report

        return write_report(Path(folder), self)


def refine(
    model: DeployedModel | Path | str | VectorField,
    structure: Path | str,
    native: Path | str | None = None,
    settings: Settings | None = None,
    *,
    device: str = "auto",
    quiet: bool = True,
) -> Refinement:
    """Move a structure along the vectors that a model predicts.

    Parameters
    ----------
    model
        A model.pt that predicts refinement, what `forcefield_ml.load` made of it, or any function from positions
        (N, 3) nm of the atoms that count (`data_pipeline.refinement.structure`) to vectors (N, 3) nm.
    structure
        PDB or mmCIF, plain or gzipped.
    native
        The same of the true structure; with it the report says whether the structure came nearer. The steps do not
        know it.
    settings
        How to move; None takes the defaults.
    device
        As for `forcefield_ml.load`.
    quiet
        Show no progress.

    Returns
    -------
    Refinement
        Nothing is written until its `write` is called.

    Raises
    ------
    TopologyError
        If a file cannot be read, no atoms match, or the model does not know an element.
    ForceModeError
        If the model predicts something else.
    UnstableError
        If a predicted vector is not finite.
    ModelFileError, ConfigError
        As `forcefield_ml.load`.
    """
    settings = settings or Settings()
    file = read_structure_file(structure)
    known = file.structure
    truth, matched = (None, None) if native is None else scores.find_native(known, native)
    loaded = load(model, device) if isinstance(model, str | Path) else model
    predict = field_of(loaded, known) if isinstance(loaded, DeployedModel) else loaded
    names = [name.decode() for name in known.atom_names.tolist()]
    geometry = Geometry(file.start, known.species, names, known.residue_index.astype(np.int64), file.staying)
    with ProgressLine("refine", quiet=quiet) as line:

        def show(step: Step) -> None:
            line.show(step.number / max(settings.steps, 1), f"step {step.number}: {in_words(step)}")

        done = walk(predict, file.start, geometry, settings, show)
        trace = [_row(step, truth) for step in done.trace]
    before, after = (_measured(geometry, at, truth, file) for at in (file.start, done.positions))
    moved = np.linalg.norm(done.positions - file.start, axis=1) / ANGSTROM
    report = {
        "format": FORMAT,
        "made": made(),
        "structure": str(file.path),
        "native": None if native is None else str(native),
        "model": _named(loaded),
        "atoms": len(file.start),
        "matched": matched,
        "settings": settings.model_dump(),
        "stopped": done.stopped,
        "why": REASONS[done.stopped],
        "taken": done.taken,
        **compared(before, after),
        "before": before,
        "after": after,
        "steps": trace,
        "moved": {"mean": float(moved.mean()), "largest": float(moved.max())},
        "clash_distance": CLASH / ANGSTROM,
        "notes": file.notes(),
        "versions": package_versions(("torch", "numpy", "scipy", "gemmi")),
    }
    report["verdict"] = verdict(report)
    report["outcome"] = outcome(report)
    return Refinement(file, done, truth, report)


def _measured(
    geometry: Geometry, positions: NDArray[np.float64], native: Native | None, file: StructureFile
) -> dict[str, Any]:
    """Return what is compared before and after, lengths in Å."""
    covalent = geometry.covalent(positions)
    worst = covalent.worst_bond
    found: dict[str, Any] = {
        "clashes": geometry.clashes(positions),
        "bonds": covalent.bonds,
        "bond_rms": covalent.rms / ANGSTROM,
        "bond_worst": covalent.worst / ANGSTROM,
        "bond_worst_atoms": None if worst is None else [file.structure.label(atom) for atom in worst],
    }
    return found | (scores.in_angstrom(native.scores(positions)) if native else {})


def _row(step: Step, native: Native | None) -> dict[str, Any]:
    """Return a structure on the way as the report has it, lengths in Å."""
    found: dict[str, Any] = {
        "step": step.number,
        "predicted": None if step.predicted is None else step.predicted / ANGSTROM,
        "moved": step.moved / ANGSTROM,
        "bond_rms": step.bond_rms / ANGSTROM,
        "clashes": step.clashes,
    }
    return found | (scores.in_angstrom(native.scores(step.positions)) if native else {})


def _named(model: Any) -> dict[str, str]:
    """Return what the report says of a model."""
    if isinstance(model, DeployedModel):
        return {"file": str(model.path), "sha256": model.sha256}
    return {"file": f"a function, {getattr(model, '__name__', type(model).__name__)}"}
