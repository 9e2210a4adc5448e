"""report.html and report.json of a refinement, and the structure beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from forcefield_ml.errors import ConfigError
from forcefield_ml.refinement import picture
from forcefield_ml.refinement.outcome import QUANTITIES
from forcefield_ml.units import ANGSTROM
from forcefield_ml.validation import figures
from forcefield_ml.validation.page import write_page

if TYPE_CHECKING:
    from forcefield_ml.refinement.refine import Refinement


def write_report(folder: Path, done: Refinement) -> dict[str, Path]:
    """Write what `refine.Refinement.write` says.

    Parameters
    ----------
    folder
        Made where missing.
    done
        The refinement.
    """
    structure = folder / f"refined{done.file.suffix}"
    _check_folder(folder, structure, done.file.path)
    shown = {"plots": plots(done), "quantities": QUANTITIES}
    html, plain = write_page(folder, "forcefield_ml.refinement", "refinement.html", done.report, shown)
    done.file.write(structure, done.positions - done.file.start)
    return {"structure": structure, "json": plain, "html": html}


def _check_folder(folder: Path, structure: Path, source: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; -o takes a folder, for the structure and its report")
    if structure.exists() and structure.samefile(source):
        raise ConfigError(f"{structure} is the input, which is never written over; choose another folder")


def plots(done: Refinement) -> dict[str, Any]:
    """Return the pictures of the page as SVG, by name.

    Parameters
    ----------
    done
        The refinement.
    """
    known, start, vectors = done.file.structure, done.file.start, done.walk.vectors
    true = None if done.native is None else done.native.vectors(start)
    drawn: dict[str, str] = {"predicted": picture.vector_field(known, start, vectors, figures.BLUE, "predicted")}
    true_length = None
    if done.native is not None and true is not None:
        drawn["true"] = picture.vector_field(known, start, true, figures.ORANGE, "true")
        ghost = np.where(done.native.has_partner[:, None], done.native.onto(start), np.nan)
        drawn["global"] = picture.vector_field(known, start, np.zeros_like(start), figures.BLUE, "global", ghost)
        true_length = np.where(done.native.has_partner, np.linalg.norm(true, axis=1), np.nan) / ANGSTROM
    length = np.linalg.norm(vectors, axis=1) / ANGSTROM
    drawn["chain"] = picture.along_chain(known, length, true_length, "chain")
    rows = done.report["steps"]
    if len(rows) > 1:
        drawn["steps"] = _over_steps(rows, {"predicted": "predicted", "to_go": "true"}, "mean |v| (Å)", "steps")
        drawn["geometry"] = _over_steps(rows, {"clashes": "clashes"}, "clashes", "geometry")
        for name in ("lddt", "rmsd", "local_rmsd"):
            quantity = QUANTITIES[name]
            label = f"{quantity.name}{f' ({quantity.unit})' if quantity.unit else ''}"
            drawn[name] = _over_steps(rows, {name: quantity.name}, label, name)
    # Markup: our own SVG; matplotlib draws text as paths, so none from outside is ever markup.
    return {name: Markup(svg) for name, svg in drawn.items() if svg}


def _over_steps(rows: list[dict[str, Any]], series: dict[str, str], ylabel: str, name: str) -> str:
    """Return a plot of what the rows have of some values, nothing if they have none."""
    found = {
        label: [np.nan if row[key] is None else row[key] for row in rows]
        for key, label in series.items()
        if key in rows[0]
    }
    return figures.lines([row["step"] for row in rows], found, ylabel, name=name, xlabel="step") if found else ""
