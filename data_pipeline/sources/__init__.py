"""Where entries come from: one interface, one module for each kind of source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import ConfigError
from data_pipeline.sources.mirror import Mirror, normalise_id

__all__ = ["KINDS", "Mirror", "Source", "normalise_id", "open_source"]


class Source(Protocol):
    """A set of entries; whoever reads one does not know whether it is a folder or a server."""

    def ids(self) -> list[str]:
        """Return every entry's id, lower case and sorted."""
        ...

    def path(self, entry_id: str) -> Path:
        """Return a local file with the entry, fetching it first where that is needed."""
        ...

    def sha256(self, entry_id: str) -> str:
        """Return the SHA-256 of the entry's local file as it lies there, still compressed if it is."""
        ...


KINDS: dict[str, Callable[[Path], Source]] = {"mirror": Mirror}
"""Kind of source -> what opens it; a live source joins by a line here."""


def open_source(kind: str, path: Path | str) -> Source:
    """Open a source of entries.

    Parameters
    ----------
    kind
        A key of `KINDS`; ``mirror`` is a folder of files.
    path
        The folder of a mirror; of a source that fetches, the folder that keeps what was fetched.

    Raises
    ------
    ConfigError
        If the kind is unknown, or the path does not serve.
    """
    if kind not in KINDS:
        raise ConfigError(f"no source of kind {kind!r}. Allowed: {', '.join(sorted(KINDS))}.")
    return KINDS[kind](Path(path))
