"""Pictures of a datasheet, each an SVG inside a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_pipeline.schema import FORCES, PAPER, SPLITS, Paper

INK, GREY = "#1d2329", "#8a9099"

COLOURS = dict(zip(SPLITS, ("#3b82c4", "#8a9099", "#e07b39"), strict=True))
"""Of the splits, in every picture."""

STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "datasheet",
}

SIZE = (5.0, 3.2)
"""Inches; pictures stand two abreast on a wide screen and fill a phone's width."""


def draw(content: Mapping[str, Any]) -> dict[str, str]:
    """Draw the pictures for which there are numbers.

    Parameters
    ----------
    content
        Of datasheet.json.

    Returns
    -------
    dict
        Name to data URI, some of: ``residues``, ``atoms``, ``force``, ``temperature``, ``rmsd``, ``clusters``,
        ``force_by_element``, ``force_by_residue`` (or what the vector is), ``protein_residues``.
    """
    shown, paper = content["distributions"], PAPER[content["task"]]
    mean = f"mean {paper.symbol} ({paper.unit})"
    proteins, systems = ("proteins", "systems") if content["task"] == FORCES else ("candidates", "candidates")
    drawn = {
        "residues": lambda: _stacked(shown["residues"], "residues", proteins),
        "atoms": lambda: _stacked(shown["atoms"], "atoms", systems),
        paper.name: lambda: _magnitudes(shown[paper.name], paper),
        "temperature": lambda: _temperatures(shown["temperature"]),
        "rmsd": lambda: _stacked(shown["rmsd"], "RMSD to the frame before (nm)", "pairs of frames"),
        "clusters": lambda: _clusters(shown["clusters"]),
        f"{paper.name}_by_element": lambda: _bars(shown[f"{paper.name}_by_element"], mean),
        f"{paper.name}_by_residue": lambda: _bars(shown[f"{paper.name}_by_residue"], mean),
    }
    with matplotlib.rc_context(STYLE):
        pictures = {name: _uri(make()) for name, make in drawn.items() if shown[name]}
        residues = content["composition"]["protein_residues"]
        if residues:
            total = sum(residues.values())
            shares = {name: 100 * residues[name] / total for name in sorted(residues)}
            pictures["protein_residues"] = _uri(_bars(shares, "% of the residues"))
    return pictures


def _axes(size: tuple[float, float] = SIZE) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def _stacked(histogram: Mapping[str, Any], xlabel: str, ylabel: str) -> Figure:
    figure, axes = _axes()
    edges = np.array(histogram["edges"])
    bottom = np.zeros(len(edges) - 1)
    for split, counts in histogram["counts"].items():
        if any(counts):
            axes.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=COLOURS[split], label=split)
            bottom += counts
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(edges[0], edges[-1]), ylim=(0, 1.06 * bottom.max()))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y")
    _legend(figure)
    return figure


def _magnitudes(histogram: Mapping[str, Any], paper: Paper) -> Figure:
    figure, axes = _axes()
    edges = np.array(histogram["edges"])
    for split, counts in histogram["counts"].items():
        if any(counts):
            share = 100 * np.array(counts) / sum(counts)
            axes.stairs(share, edges, color=COLOURS[split], lw=1.6, label=split)
    axes.set(
        xlabel=f"{paper.symbol} ({paper.unit})", ylabel=f"% of the target {paper.name}s", xscale="log", ylim=(0, None)
    )
    axes.grid()
    _legend(figure)
    return figure


def _temperatures(histogram: Mapping[str, Any]) -> Figure:
    figure, axes = _axes()
    edges = np.array(histogram["edges"])
    shades = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.75, len(histogram["counts"])))
    for (kelvin, counts), shade in zip(histogram["counts"].items(), shades, strict=True):
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=shade, alpha=0.6)
        axes.axvline(float(kelvin), color=shade, lw=1.6, ls="--", label=f"thermostat, {kelvin} K")
    axes.set(xlabel="kinetic temperature of a frame (K)", ylabel="frames")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")
    _legend(figure)
    return figure


def _clusters(clusters: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _axes()
    for split in SPLITS:
        mine = [cluster for cluster in clusters if cluster["split"] == split]
        if mine:
            x, y = ([cluster[key] for cluster in mine] for key in ("mean_length", "entries"))
            axes.scatter(x, y, s=34, color=COLOURS[split], alpha=0.65, lw=0, label=split)
    axes.set(xlabel="mean length of its sequences (residues)", ylabel="entries of a cluster")
    axes.set_ylim(0, max(cluster["entries"] for cluster in clusters) + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid()
    _legend(figure)
    return figure


def _bars(values: Mapping[str, float], xlabel: str) -> Figure:
    names = list(values)
    figure, axes = _axes((SIZE[0], 0.21 * len(names) + 0.8))
    axes.barh(range(len(names)), list(values.values()), 0.72, color=COLOURS["train"])
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=xlabel, ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="x")
    return figure


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper right", ncols=3, fontsize=9)


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
