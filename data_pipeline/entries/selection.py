"""Which entries of a source are used: the criteria first, then, if asked, one per cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.config import SelectConfig
from data_pipeline.entries.curate import judge
from data_pipeline.entries.facts import EntryFacts, inspect
from data_pipeline.errors import EntryError
from data_pipeline.ledger import OK, REJECTED, Record
from data_pipeline.sources import Source


@dataclass(frozen=True)
class Selection:
    """The entries that are used.

    Parameters
    ----------
    kept
        Id -> facts, in order of id.
    paths, sha256
        Id -> the entry's file and its hash.
    n_seen
        Entries that were looked at.
    n_left_out
        Entries that met the criteria but were not needed, by limit or cluster.
    """

    kept: dict[str, EntryFacts]
    paths: dict[str, Path]
    sha256: dict[str, str]
    n_seen: int
    n_left_out: int = 0

    def keep(self, ids: set[str]) -> Selection:
        """Return the selection with only these entries kept."""
        kept = {name: facts for name, facts in self.kept.items() if name in ids}
        left_out = self.n_left_out + len(self.kept) - len(kept)
        return Selection(kept, self.paths, self.sha256, self.n_seen, left_out)

    def as_json(self) -> dict[str, Any]:
        """Return what selection.json holds."""
        return {
            "seen": self.n_seen,
            "left_out": self.n_left_out,
            "kept": {
                name: {**asdict(facts), "file": self.paths[name].name, "sha256": self.sha256[name]}
                for name, facts in self.kept.items()
            },
        }


def select(source: Source, settings: SelectConfig, record: Callable[[Record], None]) -> Selection:
    """Judge every entry of a source by the criteria.

    Parameters
    ----------
    source
        Where entries come from.
    settings
        Criteria and ids.
    record
        Told what became of each entry.

    Raises
    ------
    ConfigError
        If the list of ids cannot be read.
    PipelineError
        If a server does not answer.
    """
    wanted = settings.wanted()
    ids = source.ids() if wanted is None else wanted
    kept: dict[str, EntryFacts] = {}
    paths: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    for entry in source.ahead(ids):
        try:
            path = source.path(entry)
            facts = inspect(path)
        except EntryError as error:
            record(Record(entry, "select", REJECTED, str(error), error.kind))
            continue
        verdict = judge(facts, settings.criteria())
        if not verdict.keep:
            record(Record(entry, "select", REJECTED, verdict.reason, verdict.criterion))
            continue
        kept[entry], paths[entry], hashes[entry] = facts, path, source.sha256(entry)
        record(Record(entry, "select", OK))
    return Selection(kept, paths, hashes, len(ids))


def best_of_clusters(selection: Selection, clusters: dict[str, list[str]]) -> Selection:
    """Keep the best resolved entry of each cluster, whole ones before those with gaps or modified residues.

    Parameters
    ----------
    selection
        From `select`.
    clusters
        Name -> ids.
    """

    def rank(entry: str) -> tuple[bool, float, str]:
        facts = selection.kept[entry]
        whole = facts.n_internal_missing == 0 and not facts.modified
        return not whole, facts.resolution or 99.0, entry

    return selection.keep({min(members, key=rank) for members in clusters.values()})
