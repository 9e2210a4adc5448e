"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from forcefield_ml.errors import ConfigError, ForcefieldMLError


def write_whole(path: Path, data: bytes, error_class: type[ForcefieldMLError] = ConfigError) -> None:
    """Write a file in one piece: the new content or, if anything fails, the former.

    Parameters
    ----------
    path
        The file.
    data
        Its content.
    error_class
        Raised when it cannot be written.

    Raises
    ------
    ForcefieldMLError
        Of `error_class`, if it cannot be written (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise error_class(
            f"cannot write {path}: {error.strerror or error}. The former file is untouched; make room or choose "
            "another output folder, then run the same command again."
        ) from None
