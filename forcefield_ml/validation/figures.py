"""Plots as SVG for one page: text and axes take the page's text colour, so light and dark both read well."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")

import matplotlib.ticker
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from data_pipeline.schema import Paper
from forcefield_ml.units import FORCE

_INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""

BLUE, ORANGE, GREY = "#3b82c4", "#e07b39", "#8a9099"

STYLE: Any = {
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "path",
}

QUANTILE = 0.995
"""Share of the atoms that a panel shows; the rest lie beyond its axes, and the page says so."""


def figure_3(target: NDArray[Any], predicted: NDArray[Any], quantity: Paper = FORCE) -> dict[str, str]:
    """Draw the panels of the paper's figure 3 or, of displacements, of its figure 5.

    Parameters
    ----------
    target
        (n, 3) true vectors, in their unit inside.
    predicted
        (n, 3) vectors, or (n,) magnitudes, of which there is the first panel only.
    quantity
        What they are.

    Returns
    -------
    dict
        ``magnitudes``, and where vectors have directions ``angles`` and ``angle_magnitude``, to SVG.
    """
    true = np.linalg.norm(target, axis=1) * quantity.factor
    vectors = predicted.ndim == 2
    given = (np.linalg.norm(predicted, axis=1) if vectors else predicted) * quantity.factor
    panels = {"magnitudes": _magnitudes(true, given, quantity.unit)}
    if vectors:
        angle = angles(target, predicted)
    if vectors and np.isfinite(angle).any():
        panels["angles"] = _polar(angle)
        panels["angle_magnitude"] = _angle_against_error(angle, np.abs(given - true), quantity.unit)
    return panels


def angles(target: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    """Return the angle between two sets of vectors, degrees; NaN where either is zero.

    Parameters
    ----------
    target, predicted
        (n, 3), any unit.
    """
    truth, given = np.asarray(target, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    norms = np.linalg.norm(truth, axis=1) * np.linalg.norm(given, axis=1)
    cosine = np.divide((truth * given).sum(axis=1), norms, out=np.full(len(norms), np.nan), where=norms > 0)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _magnitudes(true: NDArray[Any], given: NDArray[Any], unit: str) -> str:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.3, 3.9), layout="constrained")
        top = float(max(np.quantile(true, QUANTILE), np.quantile(given, QUANTILE), 1e-6))
        shades = axes.hexbin(
            true, given, gridsize=45, extent=(0, top, 0, top), bins="log", mincnt=1, cmap="viridis", rasterized=True
        )
        axes.plot([0, top], [0, top], color=ORANGE, lw=1.2, ls="--", label="perfect")
        axes.set(
            xlim=(0, top), ylim=(0, top), xlabel=f"true magnitude ({unit})", ylabel=f"predicted magnitude ({unit})"
        )
        axes.set_aspect("equal")
        axes.legend(loc="upper left")
        _atoms_bar(figure, axes, shades)
        return svg(figure, "magnitudes")


def _polar(angle: NDArray[Any]) -> str:
    with plt.rc_context(STYLE):
        axes: Any
        figure, axes = plt.subplots(figsize=(4.3, 3.0), layout="constrained", subplot_kw={"projection": "polar"})
        edges = np.radians(np.arange(0, 181, 5))
        counts, _ = np.histogram(np.radians(angle[np.isfinite(angle)]), edges)
        share = 100 * counts / max(counts.sum(), 1)
        middle = (edges[1:] + edges[:-1]) / 2
        axes.bar(middle, share, width=np.diff(edges), color=BLUE, edgecolor="none", label="model")
        random = 100 * (np.cos(edges[:-1]) - np.cos(edges[1:])) / 2
        axes.plot(middle, random, color=ORANGE, lw=1.5, ls="--", label="random direction")
        axes.set_thetamin(0)
        axes.set_thetamax(180)
        axes.set_xticks(np.radians([0, 30, 60, 90, 120, 150, 180]))
        axes.set_rlabel_position(0)
        axes.set_ylim(0, max(share.max(), random.max()) * 1.05)
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g %%"))
        axes.tick_params(axis="y", labelsize=8)
        figure.legend(loc="lower center", ncols=2, fontsize=9)
        return svg(figure, "angles")


def _angle_against_error(angle: NDArray[Any], error: NDArray[Any], unit: str) -> str:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.3, 3.9), layout="constrained")
        known = np.isfinite(angle)
        top = float(max(np.quantile(error, QUANTILE), 1e-6))
        shades = axes.hexbin(
            angle[known],
            error[known],
            gridsize=45,
            extent=(0, 180, 0, top),
            bins="log",
            mincnt=1,
            cmap="viridis",
            rasterized=True,
        )
        axes.set(xlim=(0, 180), ylim=(0, top), xlabel="angle (degrees)", ylabel=f"|magnitude error| ({unit})")
        axes.set_xticks(range(0, 181, 30))
        _atoms_bar(figure, axes, shades)
        return svg(figure, "angle-magnitude")


def by_group(groups: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Draw the tensor error (or the magnitude's, where there are no vectors) of groups beside their naive one.

    Parameters
    ----------
    groups
        Name to metrics with ``naive`` and ``n_atoms``.
    label
        What the groups are.

    Returns
    -------
    str
        SVG.
    """
    names = list(groups)
    key = "tensor" if all(groups[name]["tensor"] is not None for name in names) else "magnitude"
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 0.5 * len(names) + 1.3), layout="constrained")
        rows = np.arange(len(names))
        axes.barh(rows - 0.2, [groups[n]["naive"][key] for n in names], 0.38, color=GREY, label="naive")
        axes.barh(rows + 0.2, [groups[n][key] for n in names], 0.38, color=BLUE, label="model")
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.set(xlabel=f"{key} error (meV/Å)", ylabel=label)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper right", ncols=2, fontsize=9)
        return svg(figure, f"by-{label}")


def lines(
    time: Sequence[float],
    series: Mapping[str, Sequence[float]],
    ylabel: str,
    level: float | None = None,
    level_label: str = "",
    name: str = "lines",
    xlabel: str = "time (ps)",
) -> str:
    """Draw series over time, or over something else that goes on.

    Parameters
    ----------
    time
        (n,) ps, or in the unit of `xlabel`.
    series
        Name to (n,) values.
    ylabel
        With its unit.
    level
        A value to mark, such as the thermostat's temperature.
    level_label
        What it is.
    name
        Of the figure, its own on the page.
    xlabel
        With its unit.

    Returns
    -------
    str
        SVG.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 2.9), layout="constrained")
        for (label, values), colour in zip(series.items(), (BLUE, ORANGE, GREY), strict=False):
            axes.plot(time, values, color=colour, lw=1.5, label=label, marker="o" if len(time) < 12 else "", ms=3)
        if level is not None:
            axes.axhline(level, color=GREY, lw=1, ls="--", label=level_label)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=all(isinstance(at, int) for at in time)))
        axes.grid()
        if len(series) > 1 or level is not None:
            figure.legend(loc="outside upper right", ncols=3, fontsize=9)
        return svg(figure, name)


def _atoms_bar(figure: Figure, axes: Any, shades: Any) -> None:
    bar = figure.colorbar(shades, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("atoms")
    bar.outline.set_visible(False)  # type: ignore[operator]


def svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element, its ids unique on the page, its ink the page's."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    prefix = re.sub(r"\W", "", name)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}-", text)
    return re.sub(r'^<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"|^<svg ', _open_svg, text, count=1)


def standalone(element: str) -> str:
    """Return what `svg` made as a file of its own, black on white whatever page shows it."""
    return element.replace('class="plot"', 'style="background:#fff;color:#000"', 1) + "\n"


def _open_svg(match: re.Match[str]) -> str:
    first, second = match.group(1) or "", match.group(2) or ""
    return f'<svg class="plot" role="img" {first}{second}'
