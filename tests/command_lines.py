"""Command lines of both programs, parsed and not run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer

PROGRAMS = ("data-pipeline", "forcefield-ml")


def commands(program: str) -> dict[str, Any]:
    """Return the commands of a program by name."""
    from data_pipeline.cli import app as data_pipeline
    from forcefield_ml.cli import app as forcefield_ml

    group: Any = typer.main.get_command(dict(zip(PROGRAMS, (data_pipeline, forcefield_ml), strict=True))[program])
    return dict(group.commands)


def parse(words: list[str]) -> dict[str, Any]:
    """Return the parameters of a command line; what the program would refuse raises its usage error."""
    program, name, *arguments = words
    there = commands(Path(program).name)
    if name not in there:
        raise LookupError(f"{program} has no command {name}, but {', '.join(there)}")
    return dict(there[name].make_context(name, arguments).params)


def named_in(text: str) -> list[list[str]]:
    """Return every command line of the two programs that stands in backticks or alone on a line."""
    program = "|".join(PROGRAMS)
    found = re.findall(rf"`((?:{program})\b[^`\n]*)`|^[ #]*((?:{program}) [a-z][^\n]*)$", text, re.MULTILINE)
    lines = [(quoted or alone).split(" #")[0] for quoted, alone in found]
    return [[word.strip("[]") for word in shlex.split(line) if word != "..."] for line in lines]
