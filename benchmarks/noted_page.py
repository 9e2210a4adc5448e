"""The command line that pages of JSON files share: what goes in, where the page goes, and a note for the reader."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def write(
    parser: argparse.ArgumentParser,
    markdown: Callable[[argparse.Namespace, str], str],
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the command line, make a page, write or print it; return the exit code.

    Parameters
    ----------
    parser
        Of what goes in; its `prog` is the script, as the page names it.
    markdown
        Makes the page of the options and the command that made it.
    arguments
        None for those of the command line.
    """
    parser.add_argument("-o", "--output", type=Path, help="Markdown file; printed where none is named")
    parser.add_argument("--note", default="", help="what a reader must know")
    options = parser.parse_args(arguments)
    given = [str(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if "--note" in given:
        given[given.index("--note") + 1] = "..."  # it stands below
    page = markdown(options, shlex.join(["python", parser.prog, *given]))
    if options.note:
        page += f"\n{options.note}\n"
    if options.output is None:
        print(page, end="")
    else:
        options.output.write_text(page, encoding="utf-8")
    return 0
