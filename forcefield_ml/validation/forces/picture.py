"""A protein's chain, seen along its shortest axis, with some atoms marked: SVG, no viewer and no network needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from forcefield_ml.validation import figures
from forcefield_ml.validation.forces.groups import BACKBONE, ProteinAtoms

NAMED = 8
"""Marked atoms that get a label; more would cover each other."""

CHAIN = BACKBONE & {"N", "CA", "C"}


def structure(atoms: ProteinAtoms, marked: list[int], errors: list[float], ranks: list[int], name: str) -> str:
    """Draw the backbone as a line, residues of marked atoms as sticks and marked atoms as discs that grow with error.

    Nearer parts are darker. The view is along the axis in which the protein is thinnest.

    Parameters
    ----------
    atoms
        Of the protein.
    marked
        Places of atoms in it, worst first.
    errors
        Of each, any unit.
    ranks
        Of each among all, for its label.
    name
        Of the figure, its own on the page.

    Returns
    -------
    str
        SVG.
    """
    flat = seen_flat(atoms.positions)
    depth = shade(flat[:, 2])
    bonds, residue = atoms.bonds, atoms.residue_number
    chain = np.isin(atoms.name, list(CHAIN))
    heavy = atoms.species > 1
    shown = np.isin(residue, residue[marked])
    backbone = bonds[chain[bonds].all(axis=1)]
    marks = np.zeros(len(residue), dtype=bool)
    marks[marked] = True
    visible = shown & (heavy | marks)
    sticks = bonds[visible[bonds].all(axis=1)]
    with plt.rc_context(figures.STYLE):
        wide, high = np.ptp(flat[:, :2], axis=0)
        height = float(np.clip(6.4 * high / max(wide, 1e-9), 2.2, 6.0))
        figure, axes = plt.subplots(figsize=(6.4, height + 0.6), layout="constrained")
        for pairs, colour, width in ((backbone, figures.GREY, 3.0), (sticks, figures.BLUE, 1.3)):
            lines = LineCollection(list(flat[pairs][:, :, :2]), colors=colour, linewidths=width, capstyle="round")
            lines.set_alpha(list(depth[pairs].mean(axis=1)) if len(pairs) else None)
            axes.add_collection(lines)
        size = 30 + 170 * np.asarray(errors) / max(max(errors, default=1.0), 1e-12)
        axes.scatter(
            flat[marked, 0], flat[marked, 1], s=size, color=figures.ORANGE, alpha=0.85, zorder=3, edgecolors="none"
        )
        middle = flat[:, :2].mean(axis=0)
        for count, (rank, place) in enumerate(list(zip(ranks, marked, strict=True))[:NAMED]):
            away = flat[place, :2] - middle
            away = away / max(float(np.linalg.norm(away)), 1e-9)
            axes.annotate(
                f"{rank} {atoms.label(place)}",
                (flat[place, 0], flat[place, 1]),
                xytext=tuple((12 + 10 * (count % 2)) * away),  # two neighbours are seldom at the same distance
                textcoords="offset points",
                ha="left" if away[0] >= 0 else "right",
                va="center",
                fontsize=9,
            )
        axes.set_aspect("equal")
        axes.margins(0.15)
        axes.autoscale_view()
        axes.set_axis_off()
        scale_bar(axes, flat)
        return figures.svg(figure, name)


def seen_flat(positions: NDArray[Any]) -> NDArray[np.float64]:
    """Return positions (n, 3) with the longest axis first and the shortest, along which one looks, last."""
    return (np.asarray(positions, dtype=np.float64) - positions.mean(axis=0)) @ view(positions)


def view(positions: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rotation (3, 3) that `seen_flat` applies to rows; of vectors it needs no more."""
    centred = np.asarray(positions, dtype=np.float64) - positions.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    axes[2] *= np.sign(np.linalg.det(axes)) or 1.0  # a mirrored protein would be another one
    return np.asarray(axes.T)


def shade(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the opacity of atoms, nearer ones being darker; depth (n,) grows towards the eye."""
    span = max(float(np.ptp(depth)), 1e-9)
    return 0.3 + 0.7 * (depth - depth.min()) / span


def scale_bar(axes: Any, flat: NDArray[np.float64]) -> None:
    """Draw a bar of 0.5 nm below atoms (n, 3), as `seen_flat` gives them."""
    left, low = flat[:, 0].min(), flat[:, 1].min() - 0.12 * max(float(np.ptp(flat[:, 1])), 0.2)
    axes.plot([left, left + 0.5], [low, low], color=figures.GREY, lw=2)
    axes.annotate("0.5 nm", (left, low), xytext=(0, -3), textcoords="offset points", va="top", fontsize=9)
