"""Sequences -> clusters: connected components of the pairs that are alike."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.similarity import Hit, find_hits


@dataclass(frozen=True)
class Clusters:
    """Clusters of entries, and how they were found.

    Parameters
    ----------
    clusters
        Name -> sorted ids; a cluster's name is its first id. In order of name.
    method
        What compared the sequences: ``blastp``, ``mmseqs`` or ``python``.
    version
        Its version.
    pairs
        The pairs that are alike, sorted.
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
        As `data_pipeline.similarity.find_hits`.
    """
    pairs, used, version = find_hits(sequences, identity, method)
    return Clusters(components(list(sequences), [(hit.first, hit.second) for hit in pairs]), used, version, pairs)


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
