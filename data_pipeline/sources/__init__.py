"""Where entries come from: one interface, one module for each kind of source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import ConfigError
from data_pipeline.sources.ids import normalise_id
from data_pipeline.sources.mirror import Mirror
from data_pipeline.sources.peptides import Peptides
from data_pipeline.sources.rcsb import Rcsb

__all__ = ["KINDS", "Mirror", "Peptides", "Rcsb", "Source", "normalise_id", "open_source"]


class Source(Protocol):
    """A set of entries; whoever reads one does not know whether it is a folder or a server."""

    def ids(self) -> list[str]:
        """Return every entry's id, lower case and sorted."""
        ...

    def ahead(self, ids: Sequence[str]) -> Iterator[str]:
        """Yield these ids one by one, while a source that fetches already fetches the next few."""
        ...

    def path(self, entry_id: str) -> Path:
        """Return a local file with the entry, fetching it first where that is needed; EntryError where it cannot."""
        ...

    def sha256(self, entry_id: str) -> str:
        """Return the SHA-256 of the entry's local file as it lies there, still compressed if it is."""
        ...

    def describe(self) -> str:
        """Return where the entries come from, in one line."""
        ...


KINDS: dict[str, Callable[..., Source]] = {"mirror": Mirror, "rcsb": Rcsb, "peptides": Peptides}
"""Kind of source -> what opens it: a folder and the kind's own options."""


def open_source(kind: str, path: Path | str, **options: Any) -> Source:
    """Open a source of entries.

    Parameters
    ----------
    kind
        A key of `KINDS`; ``mirror`` is a folder of files, ``rcsb`` the Protein Data Bank over the internet,
        ``peptides`` are built.
    path
        The folder of a mirror; of another source, the folder that keeps what was fetched or built.
    options
        Of `rcsb.Rcsb` or `peptides.Peptides`; a mirror has none.

    Raises
    ------
    ConfigError
        If the kind is unknown, or the path does not serve.
    """
    if kind not in KINDS:
        raise ConfigError(f"no source of kind {kind!r}. Allowed: {', '.join(sorted(KINDS))}.")
    return KINDS[kind](Path(path), **options)
