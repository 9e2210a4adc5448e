"""Figures of the runs by a model and by AMBER14."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from forcefield_ml.validation import figures
from forcefield_ml.validation.dynamics.compare import AMBER, ML, MTS
from forcefield_ml.validation.uses import TEMPERATURE_SHARE

COLOURS = {ML: figures.BLUE, AMBER: figures.ORANGE, MTS: figures.GREY}
LABELS = {ML: "model", AMBER: "AMBER14", MTS: "multiple time stepping"}


def drawn(dynamics: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures, title to SVG.

    Parameters
    ----------
    dynamics
        Of `compare.compare`.
    """
    target = dynamics["settings"]["temperature"]
    runs = {name: run for name, run in dynamics["nvt"].items() if run["temperature"]}
    found = {"Kinetic plus AMBER14's potential energy at constant energy, meV per atom": _drift(dynamics)}
    if runs:
        found["Temperature by element, with three standard errors"] = _temperatures(runs, target)
        for kind, unit in (("bonds", "nm"), ("angles", "degrees")):
            found[f"{kind.capitalize()} of the protein and of water"] = _distributions(runs, kind, unit)
        found["phi and psi, all residues and frames"] = _ramachandran(runs)
        found["RMSD to the start"] = _series(runs, "rmsd_nm", "RMSD (nm)")
        found["Radius of gyration"] = _series(runs, "rg_nm", "Rg (nm)")
        if all(run["water"] for run in runs.values()):
            found["Water, oxygen around oxygen"] = _water(runs)
    return found


def _drift(dynamics: Mapping[str, Any]) -> str:
    from forcefield_ml.units import KJ_PER_MOL_IN_MEV

    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 3.1), layout="constrained")
        for name, run in dynamics["nve"].items():
            if run and run["time"]:
                total = np.array(run["total"]) * KJ_PER_MOL_IN_MEV / dynamics["atoms"]
                axes.plot(run["time"], total, color=COLOURS[name], lw=1.5, label=LABELS[name])
        axes.set(xlabel="time (ps)", ylabel="energy (meV/atom)")
        return _finished(figure, axes, "drift")


def _temperatures(runs: Mapping[str, Any], target: float) -> str:
    with plt.rc_context(figures.STYLE):
        names = list(next(iter(runs.values()))["temperature"])
        figure, axes = plt.subplots(figsize=(5.4, 0.42 * len(names) + 1.4), layout="constrained")
        axes.axvspan(target * (1 - TEMPERATURE_SHARE), target * (1 + TEMPERATURE_SHARE), color=figures.GREY, alpha=0.2)
        axes.axvline(target, color=figures.GREY, lw=1, ls="--")
        for shift, (name, run) in zip((-0.13, 0.13), runs.items(), strict=False):
            rows = np.arange(len(names)) + shift
            means = [run["temperature"][each]["mean"] for each in names]
            errors = [3 * (run["temperature"][each]["standard_error"] or 0) for each in names]
            axes.errorbar(means, rows, xerr=errors, fmt="o", ms=4, color=COLOURS[name], label=LABELS[name])
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="temperature (K)")
        return _finished(figure, axes, "temperatures")


def _distributions(runs: Mapping[str, Any], kind: str, unit: str) -> str:
    with plt.rc_context(figures.STYLE):
        groups = list(next(iter(runs.values()))["geometry"][kind])
        figure, panels = plt.subplots(
            1, len(groups), figsize=(2.4 * len(groups), 2.9), layout="constrained", squeeze=False
        )
        for axes, group in zip(panels[0], groups, strict=True):
            for name, run in runs.items():
                values = run["geometry"][kind][group]
                axes.plot(values["centres"], values["density"], color=COLOURS[name], lw=1.3, label=LABELS[name])
            axes.set(xlabel=unit, yticks=[], title=group)
            axes.title.set_fontsize(9)
        return _finished(figure, panels[0][0], kind)


def _ramachandran(runs: Mapping[str, Any]) -> str:
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(4.4, 4.0), layout="constrained")
        for name, run in runs.items():
            phi, psi = (np.array(run["geometry"][angle]) for angle in ("phi", "psi"))
            if phi.size and psi.size:
                # residue i has its phi at i - 1 in the list, the first residue has none
                axes.scatter(
                    phi[:, : phi.shape[1] - 1] if phi.shape[1] > 1 else phi[:, :0],
                    psi[:, 1:],
                    s=5,
                    color=COLOURS[name],
                    alpha=0.5,
                    edgecolors="none",
                    label=LABELS[name],
                    rasterized=True,
                )
        axes.set(xlim=(-180, 180), ylim=(-180, 180), xlabel="phi (degrees)", ylabel="psi (degrees)")
        axes.set_xticks(range(-180, 181, 90))
        axes.set_yticks(range(-180, 181, 90))
        axes.set_aspect("equal")
        return _finished(figure, axes, "ramachandran")


def _series(runs: Mapping[str, Any], key: str, label: str) -> str:
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 2.9), layout="constrained")
        for name, run in runs.items():
            structure = run["geometry"]["structure"]
            axes.plot(structure["time_ps"], structure[key], color=COLOURS[name], lw=1.5, label=LABELS[name])
        axes.set(xlabel="time (ps)", ylabel=label)
        return _finished(figure, axes, key)


def _water(runs: Mapping[str, Any]) -> str:
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 3.1), layout="constrained")
        for name, run in runs.items():
            r, g, error = (np.array(run["water"][key]) for key in ("r", "g", "standard_error"))
            axes.plot(r, g, color=COLOURS[name], lw=1.5, label=LABELS[name])
            axes.fill_between(r, g - error, g + error, color=COLOURS[name], alpha=0.25, lw=0)
        axes.set(xlabel="distance (nm)", ylabel="g(r)")
        return _finished(figure, axes, "water")


def _finished(figure: Any, axes: Any, name: str) -> str:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=9)
    return figures.svg(figure, f"dynamics-{name}")
