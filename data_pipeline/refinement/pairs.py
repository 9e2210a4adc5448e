"""Which candidate belongs to which native and split: read from a table."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import ConfigError
from data_pipeline.refinement.config import PairsConfig

CLUSTER_COLUMNS = ("cluster", "puzzle")
"""Names that the column of the cluster may have."""

SUFFIXES = (".gz", ".pdb", ".ent", ".cif")

MIN_SHARED = 10
"""Residues of a chain that must not be in two splits; shorter ones, such as a primer, tell nothing."""


@dataclass(frozen=True)
class Pair:
    """A candidate and its native.

    Parameters
    ----------
    entry
        Id of the candidate.
    cluster
        Of all candidates of this native.
    split
        One of `schema.SPLITS`.
    candidate, native
        Files, which need not be there.
    """

    entry: str
    cluster: str
    split: str
    candidate: Path
    native: Path


def read_pairs(source: PairsConfig) -> tuple[list[Pair], int]:
    """Read a table of pairs.

    Parameters
    ----------
    source
        The configuration; its path is absolute.

    Returns
    -------
    pairs : list of Pair
        In order of id.
    left_out : int
        Rows of splits that the configuration does not name.

    Raises
    ------
    ConfigError
        If the table cannot be read, lacks a column, names an id twice or puts a cluster into two splits, or no row is
        of the configuration's splits.
    """
    path = Path(source.path)
    rows = _rows(path)
    pairs: dict[str, Pair] = {}
    left_out: list[str] = []
    split_of: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        called = _text(row, "split")
        if not called:
            raise ConfigError(f"{where} has no split; the table needs a column split, such as train, validation, test")
        if called not in source.splits:
            left_out.append(called)
            continue
        for pair in _pairs_of(row, path.parent, source.splits[called], where):
            if pair.entry in pairs:
                raise ConfigError(f"{where}: {pair.entry} is there already; give each row an entry of its own")
            if split_of.setdefault(pair.cluster, pair.split) != pair.split:
                raise ConfigError(
                    f"{where}: {pair.cluster} is in {split_of[pair.cluster]} and in {pair.split}; all candidates of "
                    "one native belong to one split"
                )
            pairs[pair.entry] = pair
    if not pairs:
        found = ", ".join(sorted(set(left_out))) or "no rows"
        raise ConfigError(
            f"{path} has no candidate of the splits {', '.join(source.splits)}; it has {found}. Name them under "
            "source.splits, or see that the folders hold candidates"
        )
    return [pairs[entry] for entry in sorted(pairs)], len(left_out)


def spread(pairs: Iterable[Pair], limit: int | None) -> list[Pair]:
    """Return so many pairs, the clusters in turn, in order of id; all of them where there is no limit."""
    queues: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        queues[pair.cluster].append(pair)
    ranked = [(rank, pair) for queue in queues.values() for rank, pair in enumerate(queue)]
    chosen = sorted(ranked, key=lambda one: (one[0], one[1].entry))[:limit]
    return sorted((pair for _, pair in chosen), key=lambda pair: pair.entry)


def shared_chains(sequences: Mapping[str, str], splits: Mapping[str, str]) -> list[str]:
    """Return pairs of entries of different splits of which one has a chain that contains a chain of the other.

    Parameters
    ----------
    sequences
        Id -> one-letter sequence, chains parted by /.
    splits
        Id -> split.

    Returns
    -------
    list of str
        One sentence for each pair of different sequences, naming an entry of each.
    """
    first: dict[tuple[str, str], str] = {}
    for entry in sorted(sequences):
        for chain in sequences[entry].split("/"):
            if len(chain) >= MIN_SHARED:
                first.setdefault((chain, splits[entry]), entry)
    return [
        f"{one} ({split}) and {other} ({other_split}) share a chain of {min(len(a), len(b))} residues"
        for ((a, split), one), ((b, other_split), other) in combinations(first.items(), 2)
        if split != other_split and (a in b or b in a)
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".yaml", ".yml"):
            rows = yaml.safe_load(text)
        else:
            rows = list(csv.DictReader(text.splitlines(), delimiter="," if path.suffix == ".csv" else "\t"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, csv.Error) as error:
        raise ConfigError(f"cannot read the table of pairs {path}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(
            f"{path} is no table of pairs; give rows with split, candidate and native, or split and cluster"
        )
    return rows


def _pairs_of(row: dict[str, Any], folder: Path, split: str, where: str) -> list[Pair]:
    cluster = next((text for name in CLUSTER_COLUMNS if (text := _text(row, name))), "")
    candidate, native = _text(row, "candidate"), _text(row, "native")
    if candidate and native:
        cluster = cluster or stem(Path(native))
        entry = _text(row, "entry") or f"{cluster}-{stem(Path(candidate))}"
        return [Pair(_safe(entry), cluster, split, _absolute(folder, candidate), _absolute(folder, native))]
    if candidate or native or not cluster:
        raise ConfigError(
            f"{where} names {'a candidate' if candidate else 'a native' if native else 'no structure'}; give both "
            f"candidate and native, or {' or '.join(CLUSTER_COLUMNS)} alone, a folder beside the table with native.* "
            "and candidates/"
        )
    own = _absolute(folder, cluster)
    natives = _structures(own, "native")
    if len(natives) != 1:
        raise ConfigError(f"{where}: {own} has {len(natives)} files native.*, it must have one")
    files = _structures(own / "candidates")
    return [Pair(_safe(f"{cluster}-{stem(file)}"), cluster, split, file, natives[0]) for file in files]


def stem(path: Path) -> str:
    """Return the name of a structure's file without its endings."""
    name = path.name
    while Path(name).suffix.lower() in SUFFIXES:
        name = name[: -len(Path(name).suffix)]
    return name


def _structures(folder: Path, name: str | None = None) -> list[Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.suffix.lower() in SUFFIXES and (name is None or stem(file).lower() == name)]


def _safe(entry: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", entry)


def _absolute(folder: Path, text: str) -> Path:
    return (folder / Path(text).expanduser()).resolve()


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value).strip()
