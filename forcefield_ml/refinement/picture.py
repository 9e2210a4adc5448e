"""The paper's figure 4 for one structure: its chain with the vectors of its atoms, predicted and true."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from data_pipeline.refinement.structure import Structure
from forcefield_ml.units import ANGSTROM
from forcefield_ml.validation import figures
from forcefield_ml.validation.forces.picture import scale_bar, seen_flat, shade, view

TRACE = (b"C4'", b"CA")
"""The atom of a nucleotide or an amino acid through which its chain is drawn."""

MAX_LINK = 1.2
"""nm; atoms of the trace farther apart are not joined: residues between them are missing."""

_HEIGHT = (2.2, 6.4)
"""Inches that a picture can be high, without its scale bar; its width is 6.4."""


def trace_of(structure: Structure, positions: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return the atoms of the trace, a stretch without a gap each.

    Parameters
    ----------
    structure
        The atoms.
    positions
        (N, 3) nm.
    """
    atoms = np.flatnonzero(np.isin(structure.atom_names, TRACE) & np.isin(structure.species, (6,)))
    _, first = np.unique(structure.residue_index[atoms], return_index=True)
    atoms = atoms[first]
    step = np.linalg.norm(np.diff(positions[atoms], axis=0), axis=1)
    broken = (np.diff(structure.chain_index[atoms]) != 0) | (step > MAX_LINK)
    return [np.asarray(part) for part in np.split(atoms, np.flatnonzero(broken) + 1) if len(part)]


def vector_field(
    structure: Structure,
    positions: NDArray[np.float64],
    vectors: NDArray[np.float64],
    colour: str,
    name: str,
    ghost: NDArray[np.float64] | None = None,
) -> str:
    """Draw a chain and an arrow for each atom, in its true length, along the axis in which the structure is thinnest.

    Parameters
    ----------
    structure
        The atoms.
    positions
        (N, 3) nm.
    vectors
        (N, 3) nm.
    colour
        Of the arrows.
    name
        Of the figure, its own on the page.
    ghost
        (N, 3) nm, positions of another chain behind it, such as the native's; rows of NaN are left out.

    Returns
    -------
    str
        SVG.
    """
    turned = view(positions)
    flat, arrows = seen_flat(positions), vectors @ turned
    depth = shade(flat[:, 2])
    with plt.rc_context(figures.STYLE):
        figure, axes = _canvas(flat)
        if ghost is not None:
            behind = (ghost - positions.mean(axis=0)) @ turned
            for part in trace_of(structure, positions):
                axes.plot(behind[part, 0], behind[part, 1], color=figures.ORANGE, lw=2.2, alpha=0.45, zorder=1)
        _chain(axes, structure, positions, flat, depth)
        ends = flat[:, :2] + arrows[:, :2]
        visible = np.linalg.norm(vectors, axis=1) > 0.1 * ANGSTROM
        if visible.any():
            axes.quiver(
                *flat[visible, :2].T,
                *arrows[visible, :2].T,
                angles="xy",
                scale_units="xy",
                scale=1,
                units="inches",
                width=0.011,
                headwidth=3.6,
                headlength=4.2,
                headaxislength=3.8,
                minlength=0,
                color=colour,
                alpha=0.2 + 0.7 * depth[visible],
                zorder=3,
            )
        both = np.concatenate([flat[:, :2], ends])
        axes.update_datalim(both)
        axes.autoscale_view()
        axes.set_aspect("equal")
        axes.set_axis_off()
        scale_bar(axes, flat)
        return figures.svg(figure, name)


def _canvas(flat: NDArray[np.float64]) -> tuple[Any, Any]:
    wide, high = np.ptp(flat[:, :2], axis=0)
    height = float(np.clip(6.4 * high / max(wide, 1e-9), *_HEIGHT))
    return plt.subplots(figsize=(6.4, height + 0.4), layout="constrained")


def _chain(
    axes: Any,
    structure: Structure,
    positions: NDArray[np.float64],
    flat: NDArray[np.float64],
    depth: NDArray[np.float64],
) -> None:
    for part in trace_of(structure, positions):
        pairs = np.stack([part[:-1], part[1:]], axis=1)
        lines = LineCollection(list(flat[pairs][:, :, :2]), colors=figures.GREY, linewidths=3.4, capstyle="round")
        lines.set_alpha(list(depth[pairs].mean(axis=1)) if len(pairs) else None)
        lines.set_zorder(2)
        axes.add_collection(lines)


def along_chain(
    structure: Structure, predicted: NDArray[np.float64], true: NDArray[np.float64] | None, name: str
) -> str:
    """Draw the mean length of a residue's vectors over the residues.

    Parameters
    ----------
    structure
        The atoms.
    predicted
        (N,) lengths in Å.
    true
        The same of the true vectors, NaN for atoms without one; None where they are not known.
    name
        Of the figure, its own on the page.

    Returns
    -------
    str
        SVG.
    """
    residue = structure.residue_index
    shown = {"predicted": _by_residue(predicted, residue)}
    if true is not None:
        shown["true"] = _by_residue(true, residue)
    _, first = np.unique(residue, return_index=True)
    starts = np.flatnonzero(np.diff(structure.chain_index[first])) + 1
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 2.9), layout="constrained")
        for (label, values), colour in zip(shown.items(), (figures.BLUE, figures.ORANGE), strict=False):
            axes.step(np.arange(1, len(values) + 1), values, where="mid", color=colour, lw=1.5, label=label)
        for start in starts.tolist():
            axes.axvline(start + 0.5, color=figures.GREY, lw=1, ls="--")
        axes.set(xlabel="residue, counted over all chains", ylabel="mean |v| (Å)", ylim=(0, None))
        axes.margins(x=0.01)
        axes.grid()
        figure.legend(loc="outside upper right", ncols=2, fontsize=9)
        return figures.svg(figure, name)


def _by_residue(values: NDArray[np.float64], residue: NDArray[Any]) -> NDArray[np.float64]:
    known = np.isfinite(values)
    count = np.bincount(residue[known], minlength=int(residue.max()) + 1)
    total = np.bincount(residue[known], weights=values[known], minlength=len(count))
    return np.asarray(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))
