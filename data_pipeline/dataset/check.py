"""Verify a dataset.h5: schema, every array, hashes, config, split and leakage, and labels computed again if asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import ValidationError

from data_pipeline.config import CONFIGS, PipelineConfig, SplitConfig
from data_pipeline.dataset.check_entry import entry_findings
from data_pipeline.dataset.pack import PackedEntry, digest_entry, digest_header, entry_problems
from data_pipeline.dataset.recompute import TOLERANCE, Recomputed, choose
from data_pipeline.dataset.recompute import recompute as recompute_labels
from data_pipeline.errors import ConfigError, PipelineError
from data_pipeline.refinement.check import pair_findings, recompute_vectors
from data_pipeline.refinement.config import RefinementConfig
from data_pipeline.refinement.pairs import shared_chains
from data_pipeline.schema import (
    ENTRIES_GROUP,
    ENTRY_ATTRIBUTES,
    ENTRY_FIELDS,
    FILE_ATTRIBUTES,
    FORCES,
    PAPER,
    REFINEMENT,
    SPLITS,
    SchemaError,
    declared,
    open_dataset,
    task_of,
)
from data_pipeline.sequences.similarity import choose_method
from data_pipeline.sequences.split import check_leakage
from data_pipeline.versions import versions

AnyConfig = PipelineConfig | RefinementConfig


@dataclass
class CheckReport:
    """What a check found.

    Parameters
    ----------
    path
        The file.
    task
        Of the file.
    problems
        One sentence each; empty for a good file.
    entries
        Entries by split.
    frames, atoms, targets
        Totals: frames, atoms summed over entries, target atoms summed over entries.
    content_sha256
        As computed from the content.
    leakage
        How leakage was looked for, or why it was not.
    dropped_copies
        Displaced copies that were left out, over all entries.
    recomputed
        What was labelled again.
    """

    path: str
    task: str = FORCES
    problems: list[str] = field(default_factory=list)
    entries: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    frames: int = 0
    atoms: int = 0
    targets: int = 0
    content_sha256: str = ""
    leakage: str = ""
    dropped_copies: int = 0
    recomputed: list[Recomputed] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems

    @property
    def worst(self) -> tuple[float, str]:
        """Largest error of what was labelled again, and where it is."""
        errors = [(error, f"{one.entry}, {name}") for one in self.recomputed for name, error in one.errors.items()]
        return max(errors, default=(0.0, ""))


def read_entries(
    file: h5py.File, wanted: Collection[str] | None = None, only: Collection[str] | None = None
) -> Iterator[PackedEntry]:
    """Yield the entries of an open dataset one by one, in order of name, with whatever fields they have.

    Parameters
    ----------
    file
        From `open_dataset`.
    wanted
        Only these fields, of those that an entry has.
    only
        Only these entries.

    Raises
    ------
    SchemaError
        If an array cannot be read: a checksum fails, or a compression filter is missing.
    """
    entries = file[ENTRIES_GROUP]
    for name in sorted(entries if only is None else only):
        group = entries[name]
        try:
            fields = {key: group[key][()] for key in group if wanted is None or key in wanted}
            attributes = dict(group.attrs)
        except (OSError, RuntimeError, KeyError, AttributeError) as error:
            raise SchemaError(
                f"{file.filename}: entry {name} cannot be read, the file is damaged: {error}. Make it or copy it again."
            ) from error
        yield PackedEntry(name, fields, {key: _plain(value) for key, value in attributes.items()})


def check(path: str | Path, *, leakage: bool = True, recompute: int = 0) -> CheckReport:
    """Verify a dataset, reading it once.

    Parameters
    ----------
    path
        A dataset.h5.
    leakage
        Whether sequences of different splits are compared again, by the method that clustered them.
    recompute
        So many entries, chosen by the content's hash, get a frame of theirs labelled again.

    Raises
    ------
    SchemaError
        Where the file cannot be read as a dataset at all; anything less is a problem in the report.
    """
    report = CheckReport(str(path))
    digest = hashlib.sha256()
    splits: dict[str, str] = {}
    sequences: dict[str, str] = {}
    clusters: dict[str, set[str]] = {}
    with open_dataset(path) as file:
        header = {key: _plain(value) for key, value in file.attrs.items()}
        report.task = task_of(file)
        config = _header(report, header)
        for entry in read_entries(file):
            problems = entry_problems(entry.name, entry.fields, report.task)
            problems += _missing_attributes(entry.name, entry.attributes, declared(ENTRY_ATTRIBUTES, report.task))
            problems += _wrong_units(entry.name, file[ENTRIES_GROUP][entry.name])
            report.problems += problems
            digest_entry(digest, entry)
            if problems:
                continue
            report.problems += _findings(entry, config, report.task)
            split = str(entry.attributes["split"])
            if split not in SPLITS:
                report.problems.append(f"{entry.name}: split is {split!r}. Allowed: {', '.join(SPLITS)}.")
                continue
            splits[entry.name] = split
            sequences[entry.name] = str(entry.attributes["sequence"])
            clusters.setdefault(str(entry.attributes["cluster"]), set()).add(split)
            report.entries[split] += 1
            report.frames += len(entry.fields["positions"])
            report.atoms += len(entry.fields["species"])
            report.targets += int(entry.fields["target_mask"].sum())
            report.dropped_copies += int(entry.attributes.get("dropped_copies", 0))
    stored = str(header.get("content_sha256", ""))
    report.content_sha256 = digest.hexdigest()
    if stored != report.content_sha256:
        report.problems.append(
            f"the content's SHA-256 is {report.content_sha256[:16]}..., the file says {stored[:16]}...: it was "
            "changed after it was packed"
        )
    if not report.entries or not any(report.entries.values()):
        report.problems.append("there is no valid entry")
    for name, found in sorted(clusters.items()):
        if len(found) > 1:
            report.problems.append(f"cluster {name} lies in several splits: {', '.join(sorted(found))}")
    _leakage(report, sequences, splits, config, leakage)
    if recompute:
        _recompute(report, list(splits), config, recompute)
    return report


def _findings(entry: PackedEntry, config: AnyConfig | None, task: str) -> list[str]:
    if task == REFINEMENT:
        return pair_findings(entry, config if isinstance(config, RefinementConfig) else None)
    return entry_findings(entry, config if isinstance(config, PipelineConfig) else None)


def _header(report: CheckReport, header: dict[str, Any]) -> AnyConfig | None:
    """Check the attributes of the file and return its configuration, if it has one."""
    missing = _missing_attributes("the file", header, declared(FILE_ATTRIBUTES, report.task))
    report.problems += missing
    if missing:
        return None
    if header.get("header_sha256", digest := digest_header(header)) != digest:
        report.problems.append("an attribute of the file was changed after it was packed: header_sha256 differs")
    try:
        known = json.loads(header["versions"])
        absent = sorted(set(versions()) - set(known))
    except (ValueError, TypeError) as error:
        report.problems.append(f"the file's versions are no JSON: {error}")
    else:
        report.problems += [f"the file's versions lack {', '.join(absent)}"] if absent else []
    try:
        config = CONFIGS[report.task].model_validate_json(header["config"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        report.problems.append(f"the file's config is not valid: {where}: {first['msg']}")
        return None
    if isinstance(config, RefinementConfig):
        return config
    if header["protocol"] not in config.sample.protocols and "origin" not in header:
        report.problems.append(
            f"protocol is {header['protocol']!r}, the config has {', '.join(config.sample.protocols)}"
        )
    if header["force_field"] != config.label.reference.name:
        report.problems.append(f"force_field is {header['force_field']}, the config has {config.label.reference.name}")
    return config


def _leakage(
    report: CheckReport,
    sequences: dict[str, str],
    splits: dict[str, str],
    config: AnyConfig | None,
    wanted: bool,
) -> None:
    if not wanted:
        report.leakage = "not looked for, as asked"
        return
    if report.task == REFINEMENT:
        report.leakage = "chains of different splits compared as they are"
        report.problems += shared_chains(sequences, splits)
        return
    settings = config.split if isinstance(config, PipelineConfig) else SplitConfig()
    try:
        method = choose_method(settings.method)
    except ConfigError:
        method = choose_method("auto")  # whoever checks need not have the program that clustered
    try:
        leaks = check_leakage(sequences, splits, settings.identity, method)
    except ConfigError as error:
        report.problems.append(f"leakage across the split could not be looked for: {error}")
        return
    report.leakage = f"sequences of different splits compared at {settings.identity:.0%} identity by {method}"
    report.problems += [
        f"{leak.first} ({leak.first_split}) and {leak.second} ({leak.second_split}) are {leak.identity:.0%} identical"
        for leak in leaks
    ]


def _recompute(report: CheckReport, names: list[str], config: AnyConfig | None, count: int) -> None:
    if config is None:
        report.problems.append("labels could not be computed again without a valid config")
        return
    chosen = choose(names, report.content_sha256, count)
    with open_dataset(report.path) as file:
        for entry in read_entries(file, only=chosen):
            try:
                again = (
                    recompute_vectors(entry, config)
                    if isinstance(config, RefinementConfig)
                    else recompute_labels(entry, config.label, report.content_sha256)
                )
                report.recomputed.append(again)
            except PipelineError as error:
                report.problems.append(f"{entry.name}: labels could not be computed again: {error}")
    report.problems += [
        f"{one.entry}: {name} of frame {one.frame} differ from those computed again by {error:.1e} "
        f"({PAPER[report.task].deviation}); allowed {TOLERANCE:.0e}"
        for one in report.recomputed
        for name, error in one.errors.items()
        if not error <= TOLERANCE
    ]


def _wrong_units(owner: str, group: h5py.Group) -> list[str]:
    problems = []
    for one in ENTRY_FIELDS:
        found = group[one.name].attrs.get("unit", "") if one.name in group else one.unit
        if found != one.unit:
            problems.append(f"{owner}: {one.name} is in {found or 'no unit'}, not {one.unit or 'no unit'}")
    return problems


def _missing_attributes(owner: str, attributes: Any, table: tuple[Any, ...]) -> list[str]:
    problems = []
    for one in table:
        if one.name not in attributes:
            if one.required:
                problems.append(f"{owner}: attribute {one.name} is missing")
            continue
        shape = np.shape(attributes[one.name])
        if one.dtype == "str" and not isinstance(attributes[one.name], str):
            problems.append(f"{owner}: attribute {one.name} is not text")
        elif shape != tuple(int(n) for n in one.shape):
            problems.append(f"{owner}: attribute {one.name} has shape {shape}, not {one.shape}")
    return problems


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
