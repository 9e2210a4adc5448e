"""Verify a dataset.h5: schema, every array, the hash, and that no cluster or similar sequence spans two splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.pack import PackedEntry, digest_entry, entry_problems
from data_pipeline.schema import (
    ENTRIES_GROUP,
    ENTRY_ATTRIBUTES,
    FILE_ATTRIBUTES,
    SPLITS,
    SchemaError,
    open_dataset,
)
from data_pipeline.similarity import choose_method
from data_pipeline.split import check_leakage
from data_pipeline.systems import PROTEIN_RESIDUES


@dataclass
class CheckReport:
    """What a check found.

    Parameters
    ----------
    path
        The file.
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
    """

    path: str
    problems: list[str] = field(default_factory=list)
    entries: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    frames: int = 0
    atoms: int = 0
    targets: int = 0
    content_sha256: str = ""
    leakage: str = ""

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems


def read_entries(file: h5py.File, wanted: Collection[str] | None = None) -> Iterator[PackedEntry]:
    """Yield the entries of an open dataset one by one, in order of name, with whatever fields they have.

    Parameters
    ----------
    file
        From `open_dataset`.
    wanted
        Only these fields, of those that an entry has.

    Raises
    ------
    SchemaError
        If an array cannot be read: a checksum fails, or a compression filter is missing.
    """
    entries = file[ENTRIES_GROUP]
    for name in sorted(entries):
        group = entries[name]
        try:
            fields = {key: group[key][()] for key in group if wanted is None or key in wanted}
            attributes = dict(group.attrs)
        except (OSError, RuntimeError, KeyError, AttributeError) as error:
            raise SchemaError(
                f"{file.filename}: entry {name} cannot be read, the file is damaged: {error}. Make it or copy it again."
            ) from error
        yield PackedEntry(name, fields, {key: _plain(value) for key, value in attributes.items()})


def check(path: str | Path, *, leakage: bool = True) -> CheckReport:
    """Verify a dataset, reading it once.

    Parameters
    ----------
    path
        A dataset.h5.
    leakage
        Whether sequences of different splits are compared again, by the method that clustered them.

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
        report.problems += _missing_attributes("the file", file.attrs, FILE_ATTRIBUTES)
        for entry in read_entries(file):
            problems = entry_problems(entry.name, entry.fields)
            problems += _missing_attributes(entry.name, entry.attributes, ENTRY_ATTRIBUTES)
            report.problems += problems
            digest_entry(digest, entry)
            if problems:
                continue
            report.problems += _physics_problems(entry)
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
        stored = str(file.attrs.get("content_sha256", ""))
        config = str(file.attrs.get("config", "{}"))
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
    return report


def _leakage(report: CheckReport, sequences: dict[str, str], splits: dict[str, str], config: str, wanted: bool) -> None:
    if not wanted:
        report.leakage = "not looked for, as asked"
        return
    try:
        settings = json.loads(config).get("split", {})
    except ValueError as error:
        report.problems.append(f"the file's config is no JSON: {error}")
        settings = {}
    identity, method = float(settings.get("identity", 0.2)), str(settings.get("method", "auto"))
    try:
        method = choose_method(method)
    except ConfigError:
        method = choose_method("auto")  # whoever checks need not have the program that clustered
    try:
        leaks = check_leakage(sequences, splits, identity, method)
    except ConfigError as error:
        report.problems.append(f"leakage across the split could not be looked for: {error}")
        return
    report.leakage = f"sequences of different splits compared at {identity:.0%} identity by {method}"
    report.problems += [
        f"{leak.first} ({leak.first_split}) and {leak.second} ({leak.second_split}) are {leak.identity:.0%} identical"
        for leak in leaks
    ]


def _physics_problems(entry: PackedEntry) -> list[str]:
    problems = []
    names = {name.encode() for name in PROTEIN_RESIDUES}
    protein = np.array([residue in names for residue in entry.fields["residue_names"]])
    wrong = int((protein != entry.fields["target_mask"]).sum())
    if wrong:
        problems.append(f"{entry.name}: target_mask differs from the protein's atoms at {wrong} atoms")
    residues = entry.fields["residue_index"]
    if residues[0] != 0 or not np.isin(np.diff(residues), (0, 1)).all():
        problems.append(f"{entry.name}: residue_index does not count up from 0")
    if (entry.fields["species"] == 0).any():
        problems.append(f"{entry.name}: some atoms have no element")
    box = entry.fields["box"]
    if (np.triu(box, 1) != 0).any() or (np.diagonal(box, axis1=1, axis2=2) <= 0).any():
        problems.append(f"{entry.name}: box is not in OpenMM's reduced form (lower triangle, positive diagonal)")
    return problems


def _missing_attributes(owner: str, attributes: Any, declared: tuple[Any, ...]) -> list[str]:
    problems = []
    for one in declared:
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
