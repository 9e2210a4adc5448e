"""What can go wrong, by kind: every message says what is wrong, the value, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForcefieldMLError(Exception):
    """Base of every error this package raises on purpose; commands print its message without a traceback."""


class ConfigError(ForcefieldMLError):
    """A configuration or command line asks for something that does not exist or cannot work."""


class DatasetError(ForcefieldMLError):
    """A dataset is missing, damaged, of another schema version, or lacks what is asked of it."""


class ModelFileError(ForcefieldMLError):
    """A model.pt is missing, damaged, foreign, of a newer format, or is not the file it should be."""


class SerialisationError(ForcefieldMLError):
    """A stored System or other XML of OpenMM is damaged, or holds something that could run code."""


class TopologyError(ForcefieldMLError):
    """A topology does not suit the model: unknown element, hydrogens missing, no such atoms."""


class BoxError(ForcefieldMLError):
    """A periodic box is malformed or too small for the cutoff."""


class ForceModeError(ForcefieldMLError):
    """What was asked of a force would give wrong physics: the wrong mode, a minimiser or barostat without an energy."""


class ProcessError(ForcefieldMLError):
    """Another of the processes that train together has ended."""


class UnstableError(ForcefieldMLError):
    """A simulation produced forces that are not finite or are absurd."""


class SurroundingsWarning(UserWarning):
    """Atoms are bonded as none that the model was trained on: forces on and around them are guesses."""


def closest(name: str, allowed: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the closest match and all that is allowed.

    Parameters
    ----------
    name
        What was asked for.
    allowed
        The names that exist.
    """
    names = sorted(allowed)
    matches = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {matches[0]!r}?" if matches else ""
    return f"{hint} Allowed: {', '.join(names) or 'none'}."
