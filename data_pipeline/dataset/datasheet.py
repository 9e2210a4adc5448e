"""A dataset described: what it is, from where, under which licence, its numbers and their pictures.

After Gebru et al., Datasheets for Datasets, arXiv:1803.09010, and much shorter.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.config import CONFIGS
from data_pipeline.dataset.check import read_entries
from data_pipeline.dataset.tally import Tally
from data_pipeline.errors import ConfigError
from data_pipeline.files import write_text
from data_pipeline.schema import (
    ENTRY_FIELDS,
    FORCES,
    PAPER,
    REFINEMENT,
    SCHEMA_VERSION,
    SPLITS,
    SchemaError,
    open_dataset,
    task_of,
)

FORMAT = "forcefield-ml-datasheet"

SUMMARY = "summary.json"
"""What a run leaves of its numbers."""

NUMBERS = ("task", "protocol", "force_field", "content_sha256", "splits")
"""The part of the description that `datasheet` returns, as far as a task has it."""

PDB_ID = re.compile(r"([1-9][a-z0-9]{3}|pdb_[a-z0-9]{8})", re.IGNORECASE)

LICENCE = {"name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
"""Of the structures that forces are made from; those of refinement are of whoever predicted them."""

ORIGINS = {
    "archive": "Entries of the Protein Data Bank are in the public domain; the wwPDB asks to cite those who deposited "
    "them.",
    "peptides": "The peptides were built for this data set; no deposited structure stands behind them.",
}
"""What stands behind the entries; see ``source.kind`` of the configuration."""

DISPLACED = ("displacement", "target_mask")
"""What `tally.target_magnitudes` reads besides the vectors."""


WORDS: dict[str, dict[str, Any]] = {
    FORCES: {
        "entries": "proteins",
        "entry": "protein",
        "clusters": "sequence clusters",
        "marked": "on protein atoms",
        "targets": "the protein's",
        "frame": "Positions and box, and the force on every atom, of one protein with water and ions. The positions "
        "are rounded to float32 first and labelled then, with every bond flexible.",
        "zero": "zero force, |F<sub>p</sub> − F|",
        "mean": "mean magnitude, ||F<sub>p</sub>| − |F||",
        "nothing": "no force",
        "besides": "Besides the proteins",
        "sections": ("source", "select", "split", "prepare", "sample", "label", "pack"),
    },
    REFINEMENT: {
        "entries": "candidates",
        "entry": "candidate",
        "clusters": "natives",
        "marked": "on atoms with a partner",
        "targets": "those with a partner in the native",
        "frame": "Positions of one candidate structure and of its native, and the vector of every atom that both have. "
        "The positions are rounded to float32 first and the vectors computed then.",
        "zero": "zero, |v<sub>p</sub> − v|",
        "mean": "mean magnitude, ||v<sub>p</sub>| − |v||",
        "nothing": "no move",
        "besides": "Residues without a vector on their first atom",
        "sections": ("source", "match", "vectors", "pack"),
    },
}
"""Task -> what the page calls things."""


def datasheet(path: str | Path) -> dict[str, Any]:
    """Summarise a dataset in numbers.

    Parameters
    ----------
    path
        A dataset.h5.

    Returns
    -------
    ``task``, ``protocol``, ``force_field`` (of forces), ``content_sha256`` and, under ``splits`` by split and ``all``:
    ``entries``, ``clusters``, ``residues``, ``frames`` (as sampled), ``displaced`` (frames with displaced
    atoms, which no number below counts), ``atoms``, ``targets`` (per frame, summed over entries), ``mean_force``,
    ``rms_force`` and ``max_force`` over target atoms (of refinement ``mean_displacement`` and so on), and the naive
    errors ``zero_predictor`` (tensor) and ``mean_magnitude_predictor`` (magnitude), all in the unit of `schema.PAPER`,
    null for an empty split.

    Raises
    ------
    SchemaError
        As `open_dataset`, and where the entries are not those of a sound dataset.
    """
    return _numbers(describe(path))


def write_datasheet(
    path: str | Path, folder: str | Path | None = None, summary: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write datasheet.html, one page that needs no other file, and datasheet.json, the same for machines.

    The same dataset and summary give the same bytes.

    Parameters
    ----------
    path
        A dataset.h5.
    folder
        Where to; beside the dataset if not given.
    summary
        Of the run, as in summary.json: what was rejected and what failed.

    Returns
    -------
    The same as `datasheet`.

    Raises
    ------
    SchemaError
        As `datasheet`.
    ConfigError
        If the summary is of another dataset, or none.
    """
    path = Path(path)
    folder = path.parent if folder is None else Path(folder)
    content = describe(path, summary)
    page = _page(content)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("datasheet.html", page), ("datasheet.json", json.dumps(content, indent=1, ensure_ascii=False))):
        write_text(folder / name, text + "\n")
    return _numbers(content)


def find_summary(path: str | Path) -> dict[str, Any] | None:
    """Read the summary.json of the run that made a dataset, beside the file or in the folder above.

    Parameters
    ----------
    path
        A dataset.h5.

    Returns
    -------
    None where there is no summary, or only one of other data.

    Raises
    ------
    SchemaError
        As `open_dataset`.
    """
    with open_dataset(path) as file:
        digest = str(file.attrs.get("content_sha256", ""))
    folder = Path(path).resolve().parent
    for candidate in (folder / SUMMARY, folder.parent / SUMMARY):
        if candidate.is_file():
            summary = read_summary(candidate)
            if digest in json.dumps(summary):
                return summary
    return None


def read_summary(path: str | Path) -> dict[str, Any]:
    """Read a run's summary.json.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the summary {path}: {error}; give the summary.json of the run") from error
    if not isinstance(summary, dict):
        raise ConfigError(f"{path} is no summary of a run: it holds {type(summary).__name__}")
    return summary


def describe(path: str | Path, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what datasheet.json holds, read one entry at a time.

    Parameters
    ----------
    path
        A dataset.h5.
    summary
        Of the run.

    Raises
    ------
    SchemaError, ConfigError
        As `write_datasheet`.
    """
    with open_dataset(path) as file:
        task = task_of(file)
        tally = Tally(task)
        told = ("protocol", "force_field", "content_sha256") if task == FORCES else ("protocol", "content_sha256")
        attributes = {name: str(file.attrs[name]) for name in told if name in file.attrs}
        if len(attributes) < len(told):
            raise SchemaError(f"{path} lacks attributes; run `data-pipeline check` on it to see what is wrong")
        config, versions = (_json_object(file.attrs.get(name, "{}")) for name in ("config", "versions"))
        try:
            tally.add(read_entries(file))
            tally.deviations(read_entries(file, (PAPER[task].field, *DISPLACED)))
        except (KeyError, IndexError, ValueError) as error:
            if isinstance(error, SchemaError):
                raise
            raise SchemaError(f"{path} is no sound dataset: {error!r}; run `data-pipeline check` on it") from error
    present = [field for field in ENTRY_FIELDS if field.name in tally.fields]
    return {
        "format": FORMAT,
        "task": task,
        **attributes,
        "splits": tally.splits(),
        "name": str(config.get("name") or Path(path).stem),
        "dataset": Path(path).name,
        "schema_version": SCHEMA_VERSION,
        "licence": {**LICENCE, "of": _origin(config)} if task == FORCES else None,
        "settings": {name: values for name, values in config.items() if isinstance(values, dict)},
        "config": config,
        "versions": versions,
        "frame": [{"name": f.name, "shape": "×".join(f.shape), "unit": f.unit, "meaning": f.meaning} for f in present],
        "spread": tally.spread(),
        "distributions": tally.distributions(),
        "composition": tally.composition(),
        "losses": None if summary is None else _losses(summary, attributes["content_sha256"]),
        "limits": (
            limits(config, attributes["protocol"], attributes["force_field"])
            if task == FORCES
            else [*REFINEMENT_LIMITS]
        ),
        "entries": tally.entries,
    }


def _origin(config: dict[str, Any]) -> str:
    source = config.get("source")
    kind = source.get("kind") if isinstance(source, dict) else None
    return ORIGINS["peptides" if kind == "peptides" else "archive"]


REFINEMENT_LIMITS = (
    "A vector tells where an atom lies once the native's surroundings are superposed on its own: errors that a larger "
    "part of the molecule shares, such as a domain turned as a whole, are not in it.",
    "The native is one experimental structure; what moves in solution, or was held by the crystal, counts as true.",
    "Atoms without a partner in the native (unresolved residues, residues changed to crystallise) are seen and have no "
    "vector. Hydrogens, water, ions and ligands are left out.",
    "Of strands that are alike those are paired that come in the same place in both files; no exchange was tried.",
    "A molecule that is in one split is in no other; molecules that are merely alike are the table's affair.",
    "How good candidates are depends on who made them; a model learns the errors of these programs.",
)
"""What data of refinement do not hold."""


def limits(config: Mapping[str, Any], protocol: str, force_field: str) -> list[str]:
    """Return what the data do not hold, in sentences.

    Parameters
    ----------
    config
        The resolved configuration, as the file holds it.
    protocol
        ``thermal`` or ``minimized``.
    force_field
        What gave the labels, as the file's attribute.
    """
    prepare, sample = _section(config, "prepare"), _section(config, "sample")
    told = [
        f"Labels are forces of {force_field.replace(',', ', ')}: a model is at best as good as that.",
        "Proteins are what crystallises; some families have many entries in the Protein Data Bank. Clusters keep alike "
        "sequences in one split and say nothing of alike folds.",
        f"Residues are protonated by the pH{_given(prepare.get('ph'))} and their own standard pKa; their neighbours, "
        "and what the crystal says of hydrogens, do not count.",
        "Ligands, cofactors, metal ions and other chains are removed, also where they hold the protein together. "
        "Modified residues become their standard parents, and of alternative locations the most occupied is taken.",
        f"Gaps inside the chain of up to {prepare.get('max_gap', 'some')} residues are modelled, not observed; missing "
        f"ends are {'modelled too' if prepare.get('add_missing_ends') else 'left out, so some termini are not real'}.",
        "Forces on atoms of water and ions are in the file but no targets.",
    ]
    if not prepare.get("keep_water"):
        told.append("Water of the crystal is removed and set anew.")
    if protocol == "thermal":
        told.append(
            f"Snapshots are taken some ps from the crystal structure ({sample.get('equilibration', '?')} ps before "
            f"the first, {sample.get('interval', '?')} ps between two): thermal motion around it, no change of fold. "
            "Constant volume, at the density that solvation gave."
        )
    elif protocol == "minimized":
        told.append(
            "One minimised structure of each protein, with most forces near zero: they teach nothing of thermal motion "
            "and do not serve dynamics."
        )
    return told


def _numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: content[key] for key in NUMBERS if key in content}


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    values = config.get(name)
    return values if isinstance(values, dict) else {}


def _given(value: Any) -> str:
    return "" if value is None else f" of {value}"


def _json_object(text: Any) -> dict[str, Any]:
    try:
        values = json.loads(str(text))
    except ValueError as error:
        raise SchemaError(f"the file's configuration or versions are no JSON: {error}; make it again") from error
    return values if isinstance(values, dict) else {}


def _losses(summary: Mapping[str, Any], content_sha256: str) -> dict[str, Any]:
    try:
        text = json.dumps(summary)
        if "content_sha256" in text and content_sha256 not in text:
            raise ConfigError(
                f"the summary is of other data than this, whose content is {content_sha256[:16]}...; give the "
                "summary.json of the run that made it"
            )
        counts = {key: int(summary[key]) for key in ("seen", "kept", "left_out")}
        counted = {str(k): int(n) for k, n in summary.get("counts", {}).items()}
        lost = {key: {str(k): int(n) for k, n in summary[key].items()} for key in ("rejected", "failed")}
        reasons = Counter((str(r["stage"]), str(r["class"]), str(r["status"])) for r in summary["rejections"])
        examples: dict[tuple[str, ...], str] = {}
        for row in summary["rejections"]:
            key = (str(row["stage"]), str(row["class"]), str(row["status"]))
            examples.setdefault(key, f"{row['entry']}: {row['reason']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the summary is none of a run: {error!r}; give the run's summary.json") from error
    classes = [
        {"stage": stage, "class": name, "status": status, "entries": n, "example": examples[stage, name, status]}
        for (stage, name, status), n in reasons.most_common()
    ]
    return {**counts, **lost, "counts": counted, "classes": classes}


def _page(content: Mapping[str, Any]) -> str:
    # Here, since drawing takes a second to load and few commands draw.
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    from data_pipeline.dataset.figures import draw

    environment = Environment(
        loader=PackageLoader("data_pipeline.dataset"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["link"] = entry_link
    template = environment.get_template("datasheet.html")
    config = yaml.safe_dump(content["config"], sort_keys=False, allow_unicode=True, default_flow_style=None)
    return template.render(
        **content,
        words=WORDS[content["task"]],
        paper=PAPER[content["task"]],
        splits_shown=(*SPLITS, "all"),
        yaml=config,
        explain=lambda section, key: _meaning(content["task"], section, key),
        plots=draw(content),
    )


def number(value: float | None, digits: int = 0) -> str:
    """Return a number for a table, a dash for none.

    Parameters
    ----------
    value
        The number.
    digits
        Decimals.
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def entry_link(name: str) -> str:
    """Return the address of a PDB entry's page at the RCSB; empty for a name that is no PDB id."""
    return f"https://www.rcsb.org/structure/{name.upper()}" if PDB_ID.fullmatch(name) else ""


def _meaning(task: str, section: str, key: str) -> str:
    """Return what a setting means, as the configuration's declaration says."""
    declared = CONFIGS[task].model_fields.get(section)
    model = getattr(declared, "annotation", None)
    fields = getattr(model, "model_fields", {})
    return (fields[key].description or "") if key in fields else ""
