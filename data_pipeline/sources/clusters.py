"""RCSB's own clusters of sequences: one cluster a line, its members named ENTRY_ENTITY, models among them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.errors import ConfigError
from data_pipeline.files import write_text
from data_pipeline.ledger import sha256
from data_pipeline.sources.http import Client, Damaged, Download
from data_pipeline.sources.ids import normalise_id

log = logging.getLogger(__name__)

IDENTITIES = (0.3, 0.4, 0.5, 0.7, 0.9, 0.95, 1.0)
"""Identities at which RCSB clusters."""

MAX_BYTES = 1 << 30
"""Largest file that is fetched; the one at 30 % names every protein of the archive and of its models."""


def clusters_url(identity: float) -> str:
    """Return where RCSB keeps its clusters.

    Parameters
    ----------
    identity
        One of `IDENTITIES`.
    """
    return f"https://cdn.rcsb.org/resources/sequence/clusters/clusters-by-entity-{round(100 * identity)}.txt"


@dataclass(frozen=True)
class ClusterFile:
    """A file of clusters.

    Parameters
    ----------
    path
        Where it lies.
    version
        Its name, date where known, and hash.
    """

    path: Path
    version: str

    def groups(self, entities: Mapping[str, str]) -> list[list[str]]:
        """Return the entries of each cluster that holds one of these, in the file's order.

        Parameters
        ----------
        entities
            Entry's id -> the protein's entity id, empty where it is not known.

        Raises
        ------
        ConfigError
            If this is no file of clusters.
        """
        wanted = {f"{entry}_{entity}": entry for entry, entity in entities.items() if entity}
        found = []
        for words in _lines(self.path):
            names = (word.rpartition("_") for word in words)
            members = [f"{normalise_id(entry)}_{entity}" for entry, _, entity in names]
            group = sorted({wanted[name] for name in members if name in wanted})
            if group:
                found.append(group)
        return found


def open_clusters(where: str, folder: Path, client: Client) -> ClusterFile:
    """Return a file of clusters, fetching it once where it is named by its address.

    Parameters
    ----------
    where
        A path, or an address that begins with http.
    folder
        Keeps what is fetched, with a note of where and when it is from; remove both for a newer one.
    client
        Who fetches.

    Raises
    ------
    ConfigError
        If there is no such file.
    FetchError
        If it cannot be fetched.
    """
    if not where.startswith(("http://", "https://")):
        path = Path(where)
        if not path.is_file():
            raise ConfigError(
                f"no file of clusters at {path}; give its path or address in split.cluster_file, or leave it out."
            )
        return ClusterFile(path, f"{path.name}, sha256 {sha256(path)[:16]}")
    path = folder / where.rsplit("/", 1)[-1]
    note = path.with_name(path.name + ".json")
    kept = _kept(path, note, where)
    if kept is None:
        log.info("fetching %s", where)
        kept = client.download(where, path, MAX_BYTES, _verify)
        write_text(note, json.dumps(asdict(kept), indent=1) + "\n")
    return ClusterFile(path, f"{path.name} of {kept.date}, sha256 {kept.sha256[:16]}")


def _kept(path: Path, note: Path, url: str) -> Download | None:
    try:
        kept = Download(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return kept if kept.url == url and path.is_file() and sha256(path) == kept.sha256 else None


def _verify(path: Path) -> None:
    try:
        n_clusters = sum(1 for _ in _lines(path))
    except ConfigError as error:
        raise Damaged(str(error)) from error
    if not n_clusters:
        raise Damaged("it names no cluster")


def _lines(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            words = line.split()
            for word in words:
                entry, _, entity = word.rpartition("_")
                if not entry or not entity.isdigit():
                    raise ConfigError(
                        f"{path}, line {number}: {word[:40]!r} is no member of a cluster, which is called "
                        "ENTRY_ENTITY (1UBQ_1); give a file such as RCSB's clusters-by-entity-30.txt."
                    )
            if words:
                yield words
