"""Split whole clusters into train, validation and test, and check that nothing leaks from one into another."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.errors import ConfigError
from data_pipeline.schema import SPLITS
from data_pipeline.similarity import find_hits


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


def split(
    clusters: Mapping[str, list[str]],
    *,
    fractions: Mapping[str, float] | None = None,
    counts: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Give every cluster to one split.

    The clusters are shuffled, then dealt largest first, each to the split that lacks most entries; so a family that
    dominates lands in the training set. The result depends on the clusters and the seed, not on their order. With
    at least as many clusters as splits, no split that asks for entries stays empty.

    Parameters
    ----------
    clusters
        Name -> ids.
    fractions
        Split -> share of the entries; they need not add up to 1, only their ratios count. Every entry is used.
    counts
        Split -> number of entries, in place of fractions: clusters are dealt in these ratios, then so many entries
        are drawn at random from each split's clusters, as the paper does; the others are left out.
    seed
        Of the random numbers.

    Returns
    -------
    dict[str, str]
        Id -> one of `data_pipeline.schema.SPLITS`, in order of id.

    Raises
    ------
    ConfigError
        If not exactly one of fractions and counts is given, a split does not exist, a share is negative or all are
        zero, or there are fewer entries than counts ask for.
    """
    if (fractions is None) == (counts is None):
        raise ConfigError("give either fractions or counts for the split, not both and not neither.")
    shares = _shares(fractions if fractions is not None else counts or {})
    total = sum(map(len, clusters.values()))
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
        lacking[target] -= len(clusters[name])
    _fill_empty(dealt, clusters)

    chosen: dict[str, str] = {}
    for target, cluster_names in dealt.items():
        ids = sorted(entry for name in cluster_names for entry in clusters[name])
        if counts is not None:
            ids = _draw(ids, counts[target], target, generator)
        chosen.update(dict.fromkeys(ids, target))
    return dict(sorted(chosen.items()))


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


def _draw(ids: list[str], count: int, target: str, generator: random.Random) -> list[str]:
    if count > len(ids):
        raise ConfigError(
            f"the split asks for {count} {target} entries, but whole clusters leave {len(ids)} there; "
            "ask for fewer, add entries, or give fractions."
        )
    return generator.sample(ids, count)


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
        As `data_pipeline.similarity.find_hits`.

    Raises
    ------
    ConfigError
        As `data_pipeline.similarity.find_hits`, or if an entry of the split has no sequence.
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
