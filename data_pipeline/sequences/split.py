"""Split whole clusters into train, validation and test, and check that nothing leaks from one into another."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import ConfigError
from data_pipeline.schema import SPLITS
from data_pipeline.sequences.similarity import find_hits


@dataclass(frozen=True, order=True)
class Leak:
    """Two entries in different splits whose sequences are alike.

    Parameters
    ----------
    first, second
        Their ids.
    first_split, second_split
        Where they lie.
    identity
        Of their alignment, 0 to 1.
    """

    first: str
    second: str
    first_split: str
    second_split: str
    identity: float


@dataclass(frozen=True)
class Plan:
    """Who may be used in which split, in which order, and how many are wanted.

    Parameters
    ----------
    order
        Split -> ids; all of them are of clusters that belong to this split.
    wanted
        Split -> number of entries.
    """

    order: dict[str, list[str]]
    wanted: dict[str, int]

    def chosen(self, lost: Collection[str] = ()) -> dict[str, str]:
        """Return id -> split, in order of id: of each split the first so many as are wanted.

        Parameters
        ----------
        lost
            Entries that turned out to be of no use; the next in the order take their places.
        """
        usable = {name: [entry for entry in ids if entry not in lost] for name, ids in self.order.items()}
        pairs = ((entry, name) for name, ids in usable.items() for entry in ids[: self.wanted[name]])
        return dict(sorted(pairs))


def split(clusters: Mapping[str, list[str]], **how: Any) -> dict[str, str]:
    """Return id -> split, in order of id; see `plan`, whose arguments these are."""
    return plan(clusters, **how).chosen()


def plan(
    clusters: Mapping[str, list[str]],
    *,
    fractions: Mapping[str, float] | None = None,
    counts: Mapping[str, int] | None = None,
    draw: str = "random",
    limit: int | None = None,
    size_of: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Plan:
    """Give every cluster to one split.

    The clusters are shuffled, then dealt largest first, each to the split that lacks most entries; so a family that
    dominates lands in the training set. The result depends on the clusters and the seed, not on their order. With
    at least as many clusters as splits, no split that asks for entries stays empty.

    Parameters
    ----------
    clusters
        Name -> ids.
    fractions
        Split -> share of the entries; they need not add up to 1, only their ratios count. Every entry is wanted.
    counts
        Split -> number of entries wanted, in place of fractions: clusters are dealt in these ratios, then so many
        entries are drawn from each split's clusters.
    draw
        How they are drawn: ``random`` from all entries, as the paper does; ``even`` over the clusters, so that a
        large family does not crowd out the others.
    limit
        Only so many entries in all, in the ratio of the splits and evenly over clusters. What a smaller limit takes,
        a larger one takes too: a run with a limit is the beginning of the whole one.
    size_of
        Id -> size, where a limit or an even draw is to take small ones first; at random otherwise.
    seed
        Of the random numbers.

    Raises
    ------
    ConfigError
        If not exactly one of fractions and counts is given, a split does not exist, a share is negative or all are
        zero, or there are fewer entries than counts ask for.
    """
    if (fractions is None) == (counts is None):
        raise ConfigError("give either fractions or counts for the split, not both and not neither.")
    shares = _shares(fractions if fractions is not None else counts or {})
    # An even draw takes about one entry of each cluster, so that clusters count alike, whatever their size.
    weight = {name: 1 if draw == "even" else len(ids) for name, ids in clusters.items()}
    total = sum(weight.values())
    wanted = {name: share * total / sum(shares.values()) for name, share in shares.items()}
    generator = random.Random(seed)
    names = sorted(clusters)
    generator.shuffle(names)
    names.sort(key=lambda name: -len(clusters[name]))

    dealt: dict[str, list[str]] = {name: [] for name in wanted}
    lacking = dict(wanted)
    for name in names:
        # max takes the first of equals: train, then validation, then test.
        target = max(lacking, key=lambda split_name: lacking[split_name])
        dealt[target].append(name)
        lacking[target] -= weight[name]
    _fill_empty(dealt, clusters)

    cluster_of = {entry: name for name, ids in clusters.items() for entry in ids}

    def rank(entry: str) -> Any:
        shuffled = hashlib.sha256(f"{seed} {entry}".encode()).digest()  # regardless of which others there are
        return (size_of[entry], entry) if size_of is not None else (0, shuffled)

    order: dict[str, list[str]] = {}
    for target, cluster_names in dealt.items():
        ids = sorted(entry for name in cluster_names for entry in clusters[name])
        if counts is not None and draw == "random":
            ids = generator.sample(ids, len(ids))
            first = _enough(ids, counts[target], target)
            order[target] = _spread(ids[:first], cluster_of, rank) + ids[first:]
        else:
            order[target] = _spread(ids, cluster_of, rank)
    sizes = {name: len(ids) if counts is None else _enough(ids, counts[name], name) for name, ids in order.items()}
    return Plan(order, sizes if limit is None else _within(limit, sizes))


def _enough(ids: list[str], count: int, target: str) -> int:
    if count > len(ids):
        raise ConfigError(
            f"the split asks for {count} {target} entries, but whole clusters leave {len(ids)} there; "
            "ask for fewer, add entries, or give fractions."
        )
    return count


def _within(limit: int, sizes: dict[str, int]) -> dict[str, int]:
    """Share a limit out: every split gets its first entry before any gets its second, then they fill in proportion."""
    turns = [(i > 0, i / size, order, name) for order, (name, size) in enumerate(sizes.items()) for i in range(size)]
    taken = [name for *_, name in sorted(turns)[:limit]]
    return {name: taken.count(name) for name in sizes}


def _spread(ids: list[str], cluster_of: Mapping[str, str], rank: Callable[[str], Any]) -> list[str]:
    """Order ids so that one of each cluster comes first, then a second one of each, and so on."""
    turns: dict[str, int] = {}
    counted: dict[str, int] = {}
    for entry in sorted(ids, key=rank):
        turns[entry] = counted[cluster_of[entry]] = counted.get(cluster_of[entry], -1) + 1
    return sorted(ids, key=lambda entry: (turns[entry], rank(entry)))


def _shares(asked: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(asked) - set(SPLITS))
    if unknown:
        raise ConfigError(f"no split called {', '.join(unknown)}. Allowed: {', '.join(SPLITS)}.")
    if any(value < 0 for value in asked.values()) or not any(asked.values()):
        raise ConfigError(f"the split asks for {dict(asked)}; give no negative share and at least one above 0.")
    return {name: asked[name] for name in SPLITS if asked.get(name, 0) > 0}


def _fill_empty(dealt: dict[str, list[str]], clusters: Mapping[str, list[str]]) -> None:
    """Give each empty split the smallest cluster of the split that has most clusters, as long as one can spare it."""
    for target in dealt:
        donor = max(dealt, key=lambda name: len(dealt[name]))
        if not dealt[target] and len(dealt[donor]) > 1:
            smallest = min(dealt[donor], key=lambda name: (len(clusters[name]), name))
            dealt[donor].remove(smallest)
            dealt[target].append(smallest)


def check_leakage(
    sequences: Mapping[str, str], splits: Mapping[str, str], identity: float = 0.2, method: str = "auto"
) -> list[Leak]:
    """Return the pairs of alike sequences that lie in different splits; none when the split is sound.

    The sequences are compared anew: clusters and how they were made play no part.

    Parameters
    ----------
    sequences
        Id -> one-letter sequence; those without a split are left aside.
    splits
        Id -> split.
    identity
        Smallest identity of two alike sequences, over at least half of the shorter one, 0 to 1.
    method
        As `data_pipeline.sequences.similarity.find_hits`.

    Raises
    ------
    ConfigError
        As `data_pipeline.sequences.similarity.find_hits`, or if an entry of the split has no sequence.
    """
    missing = sorted(set(splits) - set(sequences))
    if missing:
        raise ConfigError(f"no sequence for {', '.join(missing[:5])}, which the split holds; its leakage is unknown.")
    hits, _, _ = find_hits({entry: sequences[entry] for entry in splits}, identity, method)
    return [
        Leak(hit.first, hit.second, splits[hit.first], splits[hit.second], hit.identity)
        for hit in hits
        if splits[hit.first] != splits[hit.second]
    ]
