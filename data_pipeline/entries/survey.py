"""What the criteria say of every entry of a source, and how far a second opinion agrees; nothing is prepared."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.config import SelectConfig
from data_pipeline.entries.curate import CRITERIA, Verdict
from data_pipeline.entries.facts import EntryFacts
from data_pipeline.entries.selection import select
from data_pipeline.errors import ConfigError
from data_pipeline.ledger import OK, Record
from data_pipeline.sources import Source, normalise_id

QUALIFIES = {"yes": True, "no": False}
"""What the column ``qualifies`` of a second opinion may say."""


@dataclass(frozen=True)
class Survey:
    """The verdict on every entry.

    Parameters
    ----------
    verdicts
        Id -> verdict; the criterion of a file that could not be read is the kind of its error.
    facts
        Id -> facts, of the entries that are kept.
    """

    verdicts: dict[str, Verdict]
    facts: dict[str, EntryFacts]

    def rejected(self) -> dict[str, int]:
        """Return the number of rejected entries by the first criterion or the kind of error, in falling order."""
        return dict(Counter(v.criterion for v in self.verdicts.values() if not v.keep).most_common())

    def as_json(self) -> dict[str, Any]:
        """Return counts, and each entry's verdict and, if it is kept, its facts."""
        return {
            "seen": len(self.verdicts),
            "kept": len(self.facts),
            "rejected": self.rejected(),
            "entries": {
                entry: {**asdict(verdict), "facts": asdict(self.facts[entry]) if verdict.keep else None}
                for entry, verdict in self.verdicts.items()
            },
        }


@dataclass(frozen=True)
class Difference:
    """An entry of which two opinions differ.

    Parameters
    ----------
    entry
        Its id.
    keep
        Whether the criteria keep it; the other opinion is the opposite.
    criterion, reason
        Why the criteria do not; empty where they do.
    their_reason
        Why the other opinion does not; empty where it does or does not say.
    """

    entry: str
    keep: bool
    criterion: str
    reason: str
    their_reason: str


@dataclass(frozen=True)
class Comparison:
    """Two opinions on the entries of a source.

    Parameters
    ----------
    both_keep, both_reject
        Number of entries on which they agree.
    differences
        The others, in order of id.
    only_here, only_there
        Ids that only one of them knows.
    """

    both_keep: int
    both_reject: int
    differences: list[Difference]
    only_here: list[str]
    only_there: list[str]


def survey(source: Source, settings: SelectConfig) -> Survey:
    """Judge every entry of a source by the criteria; a limit on their number does not count.

    Parameters
    ----------
    source
        Where entries come from.
    settings
        Criteria and ids.

    Raises
    ------
    ConfigError
        As `selection.select`.
    """
    records: list[Record] = []
    selection = select(source, settings, records.append)
    verdicts = {r.entry: Verdict(r.status == OK, r.reason, r.error_class) for r in records}
    return Survey(dict(sorted(verdicts.items())), selection.kept)


def is_criterion(name: str) -> bool:
    """Tell a criterion from the kind of error that a file gave."""
    return name in CRITERIA


def compare(result: Survey, path: str | Path) -> Comparison:
    """Compare with a second opinion.

    Parameters
    ----------
    result
        From `survey`.
    path
        A table, columns parted by tabs: ``id``, ``qualifies`` (yes or no) and, if there, ``reason``.

    Raises
    ------
    ConfigError
        If the file cannot be read, lacks a column, or says yes and no of one entry.
    """
    theirs = _read_opinions(Path(path))
    shared = sorted(set(theirs) & set(result.verdicts))
    differences = []
    agreed: Counter[bool] = Counter()
    for entry in shared:
        ours, (keep, reason) = result.verdicts[entry], theirs[entry]
        if ours.keep == keep:
            agreed[keep] += 1
        else:
            differences.append(Difference(entry, ours.keep, ours.criterion, ours.reason, "" if keep else reason))
    only_here, only_there = sorted(set(result.verdicts) - set(theirs)), sorted(set(theirs) - set(result.verdicts))
    return Comparison(agreed[True], agreed[False], differences, only_here, only_there)


def _read_opinions(path: Path) -> dict[str, tuple[bool, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from error
    opinions: dict[str, tuple[bool, str]] = {}
    for number, row in enumerate(rows, start=2):
        if row.get("id") is None or row.get("qualifies") not in QUALIFIES:
            raise ConfigError(
                f"{path}, line {number}: columns id and qualifies (yes or no), parted by tabs, are needed; "
                f"found {dict(row)}"
            )
        entry = normalise_id(row["id"])
        opinion = QUALIFIES[row["qualifies"]], row.get("reason") or ""
        if opinions.setdefault(entry, opinion)[0] != opinion[0]:
            raise ConfigError(f"{path}, line {number}: yes and no are said of {entry}; keep one of its rows")
    if not opinions:
        raise ConfigError(f"{path} holds no opinion; give a table with the columns id and qualifies")
    return opinions
