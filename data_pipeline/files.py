"""Files that appear complete or not at all."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write; it takes its name when all went well, and else leaves no trace.

    Parameters
    ----------
    path
        The file's name in the end.
    """
    # By chance and not by process: several machines may share the folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path, older_than: float = 0.0) -> None:
    """Remove what `whole` could not, because its process was killed.

    Parameters
    ----------
    folder
        With all folders below it; nobody may be writing there.
    older_than
        Seconds; younger ones stay, for folders where somebody may be writing.
    """
    for path in folder.rglob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process clears up, too
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears complete or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
