"""report.html, one page that needs no other file, and report.json, the same for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from forcefield_ml.data import ForceDataset
from forcefield_ml.deploy.model_file.judgement import REPORT_FORMAT
from forcefield_ml.validation import figures, paper
from forcefield_ml.validation.dynamics import plots as dynamics_plots
from forcefield_ml.validation.forces import Detail, PerAtomForces, in_detail, read_forces
from forcefield_ml.validation.page import made, write_page
from forcefield_ml.validation.summary import summary
from forcefield_ml.validation.uses import FIT, judge
from forcefield_ml.validation.verdict import describe_model, verdict

METRICS = (
    ("tensor", "Tensor", "meV/Å", 1),
    ("magnitude", "Magnitude", "meV/Å", 1),
    ("angle", "Angle", "degrees", 1),
    ("relative", "Relative", "", 3),
    ("pearson", "Pearson of magnitudes", "", 3),
)
"""Key, name, unit and decimals of the metrics shown."""


@dataclass(frozen=True)
class Judged:
    """A model and how it did.

    Parameters
    ----------
    name
        Of its file.
    card
        Its card, or what its checkpoint holds.
    metrics
        Of `training.evaluate.evaluate`.
    """

    name: str
    card: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """Everything a page is made of; what is not given is left out.

    Parameters
    ----------
    model
        The model the page is about.
    per_atom
        .npz with true and predicted forces, as `evaluate` writes it.
    also
        Models to compare with.
    symmetry
        Of `symmetry.symmetry`.
    pipelines
        summary.json of each pipeline run.
    simulations
        result.json of each simulation.
    commands
        Lines that make it all again.
    frames
        The dataset that the forces per atom belong to: tells names of atoms and residues.
    dynamics
        Of `dynamics.compare`.
    """

    model: Judged
    per_atom: Path | None = None
    also: Sequence[Judged] = ()
    symmetry: Mapping[str, Any] | None = None
    pipelines: Sequence[Mapping[str, Any]] = ()
    simulations: Sequence[Mapping[str, Any]] = ()
    commands: Sequence[str] = field(default_factory=list)
    frames: ForceDataset | None = None
    dynamics: Mapping[str, Any] | None = None


def write_report(out_dir: Path, inputs: ReportInputs) -> tuple[Path, Path]:
    """Write report.html and report.json.

    Parameters
    ----------
    out_dir
        The folder; made where missing.
    inputs
        What to show.

    Returns
    -------
    html, json
        The files.

    Raises
    ------
    ConfigError
        If a file cannot be read or written.
    """
    forces = None if inputs.per_atom is None else read_forces(inputs.per_atom)
    detail = None if forces is None or inputs.frames is None else in_detail(forces, inputs.frames)
    values = content(inputs, detail)
    shown = {"plots": plots(inputs, forces, detail), "metric_rows": METRICS}
    return write_page(out_dir, "forcefield_ml.validation", "report.html", values, shown)


def content(inputs: ReportInputs, detail: Detail | None) -> dict[str, Any]:
    """Return what report.json holds.

    Parameters
    ----------
    inputs
        What to show.
    detail
        Classes of atoms and the worst ones.
    """
    card, metrics = inputs.model.card, inputs.model.metrics
    training = dict(card.get("training", {}))
    training.pop("sequences", None)
    probed = inputs.symmetry.get("lambda") if inputs.symmetry else None
    uses = judge(metrics, probed, inputs.dynamics, card.get("target_atoms"))
    minimised = [p for p in inputs.pipelines if "minimized" in p["datasets"]]
    return {
        "format": REPORT_FORMAT,
        "made": made(),
        "weights_sha256": metrics.get("weights_sha256"),
        "verdict": verdict(card, metrics, inputs.simulations, uses),
        "uses": [use.plain() for use in uses],
        "summary": summary(uses, metrics, probed, inputs.dynamics),
        "good": uses[0].outcome == FIT and not any(result["event"] for result in inputs.simulations),
        "model": {"name": inputs.model.name, "is": describe_model(card), "config": card.get("model_config", {})},
        "training": training,
        "metrics": dict(metrics),
        "classes": detail.classes if detail else {},
        "worst": detail.worst if detail else [],
        "paper": {"table_1": paper.TABLE_1, "note": paper.NOTE},
        "also": [_compared(judged) for judged in (inputs.model, *inputs.also)] if inputs.also else [],
        "symmetry": dict(inputs.symmetry) if inputs.symmetry else None,
        "dynamics": dict(inputs.dynamics) if inputs.dynamics else None,
        "minimised": [_minimised(p) for p in minimised],
        "pipelines": [dict(p) for p in inputs.pipelines],
        "simulations": [dict(s) for s in inputs.simulations],
        "versions": _versions(inputs),
        "commands": list(inputs.commands),
    }


def plots(inputs: ReportInputs, forces: PerAtomForces | None, detail: Detail | None) -> dict[str, Any]:
    """Return the figures as SVG, by name.

    Parameters
    ----------
    inputs
        What to show.
    forces
        Per atom.
    detail
        Classes of atoms and the worst ones.
    """
    drawn: dict[str, Any] = {"figure_3": {}, "elements": Markup(""), "residues": "", "structures": {}, "dynamics": {}}
    drawn["simulations"] = []
    # Markup: our own SVG; matplotlib draws text as paths, so none from outside is ever markup.
    if forces is not None:
        found = figures.figure_3(forces.target, forces.predicted)
        drawn["figure_3"] = {name: Markup(svg) for name, svg in found.items()}
    if detail is not None:
        drawn["residues"] = Markup(figures.by_group(detail.classes["residue"], "residue"))
        drawn["structures"] = {name: Markup(svg) for name, svg in detail.pictures.items()}
    if inputs.dynamics is not None:
        drawn["dynamics"] = {title: Markup(svg) for title, svg in dynamics_plots.drawn(inputs.dynamics).items()}
    if inputs.model.metrics["elements"]:
        drawn["elements"] = Markup(figures.by_group(inputs.model.metrics["elements"], "element"))
    for index, result in enumerate(inputs.simulations):
        drawn["simulations"].append(_simulation_plots(result, index))
    return drawn


def _simulation_plots(result: Mapping[str, Any], index: int) -> dict[str, Markup]:
    series, structure = result["series"], result["structure"]
    drawn = {}
    if len(series["time_ps"]) > 1:
        drawn["Kinetic temperature"] = figures.lines(
            series["time_ps"],
            {"solute": series["solute_K"], "solvent": series["solvent_K"]},
            "temperature (K)",
            level=result["temperature"]["target"],
            level_label="thermostat",
            name=f"temperature{index}",
        )
        drawn["Largest force on an atom"] = figures.lines(
            series["time_ps"],
            {"largest": series["max_force_kJ_mol_nm"]},
            "force (kJ/mol/nm)",
            name=f"force{index}",
        )
    if structure["frames"] > 1:
        drawn[f"RMSD to the start, {structure['rmsd_atoms']}"] = figures.lines(
            structure["time_ps"], {"RMSD": structure["rmsd_nm"]}, "RMSD (nm)", name=f"rmsd{index}"
        )
        drawn["Radius of gyration"] = figures.lines(
            structure["time_ps"], {"Rg": structure["rg_nm"]}, "Rg (nm)", name=f"rg{index}"
        )
    return {title: Markup(svg) for title, svg in drawn.items()}


def _compared(judged: Judged) -> dict[str, Any]:
    training = judged.card.get("training", {})
    return {
        "name": judged.name,
        "is": describe_model(judged.card),
        "n_batches": training.get("n_batches"),
        **{key: judged.metrics[key] for key, *_ in METRICS},
    }


def _minimised(summary: Mapping[str, Any]) -> dict[str, Any]:
    sheet = summary["datasets"]["minimized"]["datasheet"]["splits"]["all"]
    zero, mean = sheet["zero_predictor"], sheet["mean_magnitude_predictor"]
    return {
        "name": summary["name"],
        "entries": sheet["entries"],
        "zero_predictor": zero,
        "mean_magnitude_predictor": mean,
        "ratio": mean / zero if zero else None,
        "paper_zero_predictor": paper.ZERO_PREDICTOR,
        "paper_mean_magnitude_predictor": paper.MEAN_MAGNITUDE_PREDICTOR,
        "paper_ratio": paper.MEAN_MAGNITUDE_PREDICTOR / paper.ZERO_PREDICTOR,
    }


def _versions(inputs: ReportInputs) -> dict[str, dict[str, str]]:
    from forcefield_ml.versions import package_versions

    found = {"this page": package_versions(("torch", "openmm", "numpy", "matplotlib", "mdtraj"))}
    trained = inputs.model.card.get("versions", {})
    found["model"] = trained.get("trained") or {k: v for k, v in trained.items() if isinstance(v, str)}
    for pipeline in inputs.pipelines:
        found[f"data {pipeline['name']}"] = dict(pipeline["versions"])
    for result in inputs.simulations:
        found[f"simulation {result['structure_file']}"] = dict(result["versions"])
    return found
