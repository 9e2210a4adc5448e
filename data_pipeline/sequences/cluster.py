"""Sequences -> clusters: connected components of the pairs that are alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from data_pipeline.sequences.similarity import INSTALL, Hit, can_compare, find_hits
from data_pipeline.sources.clusters import ClusterFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clusters:
    """Clusters of entries, and how they were found.

    Parameters
    ----------
    clusters
        Name -> sorted ids; a cluster's name is its first id. In order of name.
    method
        What compared the sequences: ``blastp``, ``mmseqs`` or ``python``; or ``rcsb``.
    version
        Its version.
    pairs
        The pairs that the comparison found alike, sorted.
    """

    clusters: dict[str, list[str]]
    method: str
    version: str
    pairs: list[Hit]


def cluster(sequences: dict[str, str], identity: float = 0.2, method: str = "auto") -> Clusters:
    """Put every sequence into one cluster: any two that are alike share theirs, and so do their like.

    Parameters
    ----------
    sequences
        Id -> one-letter sequence.
    identity
        Smallest identity of two alike sequences, over at least half of the shorter one, 0 to 1.
    method
        ``blastp`` (the paper's), ``mmseqs``, ``python`` (few sequences), or ``auto``.

    Raises
    ------
    ConfigError
        As `data_pipeline.sequences.similarity.find_hits`.
    """
    pairs, used, version = find_hits(sequences, identity, method)
    return Clusters(components(list(sequences), [(hit.first, hit.second) for hit in pairs]), used, version, pairs)


def cluster_by_file(
    sequences: dict[str, str], entities: Mapping[str, str], file: ClusterFile, identity: float
) -> Clusters:
    """Put together what RCSB's clusters put together, and what a comparison of the sequences finds alike besides.

    The comparison finds the relatives of entries that the file does not hold, and pairs that RCSB's criterion (its
    coverage, or the representative that a cluster grew around) keeps apart: without it the check for leakage, which
    compares sequences, could find what the clusters split. Where nothing is installed that can compare so many
    sequences, the file alone decides, an entry that it does not hold is a cluster of its own, and `Clusters.version`
    says so.

    Parameters
    ----------
    sequences
        Id -> one-letter sequence.
    entities
        Id -> the protein's entity id, empty where it is not known.
    file
        RCSB's clusters at this identity.
    identity
        As for `cluster`.

    Raises
    ------
    ConfigError
        If the file is not one of clusters, or as `data_pipeline.sequences.similarity.find_hits`.
    """
    groups = file.groups(entities)
    held = sum(map(len, groups))
    version = f"{file.version}, holds {held} of {len(sequences)} entries"
    pairs: list[Hit] = []
    if can_compare(len(sequences)):
        pairs, used, used_version = find_hits(sequences, identity)
        version += f"; compared by {used} {used_version}"
    else:
        version += f"; sequences NOT compared: {INSTALL}"
        log.warning("clusters are RCSB's alone: %s", version)
    edges = [pair for group in groups for pair in pairwise(group)] + [(hit.first, hit.second) for hit in pairs]
    return Clusters(components(list(sequences), edges), "rcsb", version, pairs)


def components(names: list[str], pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the connected components of a graph, each under the name of its first member.

    Parameters
    ----------
    names
        All nodes.
    pairs
        Edges between them.
    """
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for pair in pairs:
        first, second = sorted(map(root, pair))
        parent[second] = first
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(root(name), []).append(name)
    return found
