"""What can go wrong on the way from an entry to a dataset.

Every message says what is wrong, the value, what is allowed and what to do next.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error this package raises on purpose; commands print its message without a traceback."""


class ConfigError(PipelineError):
    """A configuration or command line asks for something that does not exist or cannot work."""


class EntryError(PipelineError):
    """One entry cannot be used; it is recorded and the other entries go on.

    Parameters
    ----------
    kind
        A short name that reports group by: ``unreadable``, ``empty``, ``html``, ``truncated``, ...
    message
        What is wrong with the entry and what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message
