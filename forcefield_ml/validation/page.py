"""Reports: one page that needs no other file, and the same for machines. The style is in templates/page.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

import forcefield_ml
from forcefield_ml.errors import ConfigError
from forcefield_ml.files import write_whole


def write_page(
    out_dir: Path, package: str, template: str, values: Mapping[str, Any], shown: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write report.html and report.json.

    Parameters
    ----------
    out_dir
        The folder; made where missing.
    package
        Whose folder templates/ holds the template.
    template
        Extends page.html.
    values
        What report.json holds; the template has them by name.
    shown
        What the template has besides, such as pictures.

    Returns
    -------
    html, json
        The files.

    Raises
    ------
    ConfigError
        If one cannot be written.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("forcefield_ml.validation")]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"], environment.filters["pm"] = number, with_error
    html, plain = out_dir / "report.html", out_dir / "report.json"
    page = environment.get_template(template).render(**values, **shown)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {out_dir}: {error.strerror or error}; choose another") from None
    write_whole(html, page.encode("utf-8"))
    write_whole(plain, json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8"))
    return html, plain


def made() -> str:
    """Return by what and when a page is made."""
    return f"forcefield-ml {forcefield_ml.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def number(value: float | None, digits: int = 1) -> str:
    """Return a number for a table, a dash for none.

    Parameters
    ----------
    value
        The number.
    digits
        Decimals.
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def with_error(value: Mapping[str, Any], digits: int) -> str:
    """Return a mean with its standard error for a table.

    Parameters
    ----------
    value
        ``mean`` and ``standard_error``.
    digits
        Decimals.
    """
    error = value["standard_error"]
    return number(value["mean"], digits) + ("" if error is None else f" ± {number(error, digits)}")
