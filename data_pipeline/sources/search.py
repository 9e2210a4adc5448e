"""Ask RCSB which entries meet the criteria, and keep the answer so that a resumed run works on the same entries."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.files import write_text
from data_pipeline.sources.http import Client, FetchError
from data_pipeline.sources.ids import is_id, normalise_id

if TYPE_CHECKING:  # curate imports the sources
    from data_pipeline.entries.curate import Criteria

log = logging.getLogger(__name__)

PAGE = 10_000
"""Rows of an answer, the most that RCSB gives."""

ROUNDS = 3
"""Searches after which pages that do not fit together are given up: the archive changes once a week."""


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Parameters
    ----------
    url, query
        Who was asked what.
    date
        When, YYYY-MM-DD.
    sha256
        Of the ids, one a line.
    ids
        As `normalise_id` returns them, sorted.
    """

    url: str
    query: dict[str, Any]
    date: str
    sha256: str
    ids: list[str]


def search_query(criteria: Criteria) -> dict[str, Any]:
    """Return the criteria as RCSB's search understands them.

    Whatever meets the criteria meets the query; the converse need not hold, since every entry is judged once more
    from its own file, and some criteria (gaps, alternative locations, ...) can be judged only there.

    Parameters
    ----------
    criteria
        The limits.

    References
    ----------
    https://search.rcsb.org/structure-search-attributes.html
    """
    # Not selected_polymer_entity_types = "Protein (only)": that leaves out every glycoprotein.
    conditions: list[tuple[str, str, Any]] = [("rcsb_entry_info.polymer_entity_count_protein", "greater_or_equal", 1)]
    if criteria.method is not None:
        conditions.append(("exptl.method", "exact_match", criteria.method.upper()))
    if criteria.max_resolution is not None:
        conditions.append(("rcsb_entry_info.resolution_combined", "less", criteria.max_resolution))
    if criteria.n_chains is not None:
        conditions.append(("rcsb_entry_info.deposited_polymer_entity_instance_count", "equals", criteria.n_chains))
    monomers = "rcsb_entry_info.deposited_polymer_monomer_count"  # of all chains; the criterion is about the first
    if criteria.max_residues is not None and criteria.n_chains == 1:
        conditions.append((monomers, "less", criteria.max_residues))
    if criteria.min_residues is not None:
        conditions.append((monomers, "greater_or_equal", criteria.min_residues))
    return {
        "type": "group",
        "logical_operator": "and",
        "nodes": [
            {
                "type": "terminal",
                "service": "text",
                "parameters": {"attribute": attribute, "operator": operator, "value": value},
            }
            for attribute, operator, value in conditions
        ],
    }


def search(client: Client, url: str, query: dict[str, Any]) -> Answer:
    """Ask for all entries that meet a query, page by page.

    Parameters
    ----------
    client
        Who asks.
    url
        The search service.
    query
        From `search_query`.

    Raises
    ------
    FetchError
        If there is no answer, or its pages do not fit together.
    """
    for _ in range(ROUNDS):
        ids, total = _pages(client, url, query)
        if len(ids) == total:
            listed = sorted(ids)
            return Answer(url, query, datetime.now(UTC).date().isoformat(), _digest(listed), listed)
        log.warning("%s announced %d entries and named %d; asking again", url, total, len(ids))
    raise FetchError("damaged", f"{url} announced {total} entries and named {len(ids)}, {ROUNDS} times; try later.")


def _pages(client: Client, url: str, query: dict[str, Any]) -> tuple[set[str], int]:
    ids: set[str] = set()
    start = total = 0
    while start == 0 or start < total:
        question = {
            "query": query,
            "return_type": "entry",
            "request_options": {
                "paginate": {"start": start, "rows": PAGE},
                "results_content_type": ["experimental"],
                "results_verbosity": "compact",
                "sort": [{"sort_by": "rcsb_entry_container_identifiers.entry_id", "direction": "asc"}],
            },
        }
        answer = client.ask(url, question)
        if answer is None:
            break
        try:
            total = int(answer["total_count"])
            found = [hit if isinstance(hit, str) else hit["identifier"] for hit in answer["result_set"]]
            found = [normalise_id(name) for name in found]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FetchError("damaged", f"{url} gave an answer without {error}; is this RCSB's search?") from error
        strange = [name for name in found if not is_id(name)]
        if strange:
            raise FetchError("damaged", f"{url} named {strange[0]!r}, which is no entry's id.")
        ids.update(found)
        start += PAGE
    return ids, total


def kept_search(client: Client, url: str, query: dict[str, Any], cache: Path, max_age: float | None) -> Answer:
    """Return the kept answer to a query, asking only where there is none, it is damaged or too old.

    Parameters
    ----------
    client, url, query
        As for `search`.
    cache
        The folder that keeps answers, each in a file named after its question.
    max_age
        Days; 0 asks anew, None keeps an answer for ever.

    Raises
    ------
    FetchError
        As `search`.
    """
    question = hashlib.sha256(json.dumps([url, query], sort_keys=True).encode()).hexdigest()
    path = cache / f"search-{question[:12]}.json"
    kept = _read(path)
    if kept is not None and (max_age is None or _age(kept) < max_age):
        log.info("the search of %s is kept in %s: %d entries", kept.date, path, len(kept.ids))
        return kept
    answer = search(client, url, query)
    write_text(path, json.dumps(asdict(answer), indent=1) + "\n")
    log.info("%s found %d entries", url, len(answer.ids))
    return answer


def _read(path: Path) -> Answer | None:
    try:
        answer = Answer(**json.loads(path.read_text(encoding="utf-8")))
        sound = answer.sha256 == _digest(answer.ids) and all(map(is_id, answer.ids)) and _age(answer) >= 0
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        sound = False
    if not sound:
        log.warning("the kept answer %s is damaged; asking again", path)
        return None
    return answer


def _age(answer: Answer) -> float:
    """Return the answer's age in days; an answer from tomorrow is of today, as clocks differ."""
    return max(0, (datetime.now(UTC).date() - date.fromisoformat(answer.date)).days)


def _digest(ids: list[str]) -> str:
    return hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()
