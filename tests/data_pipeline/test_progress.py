from __future__ import annotations

import io

import pytest
from rich.console import Console

from data_pipeline.ledger import FAILED, OK, REJECTED, Record
from data_pipeline.progress import show_progress

RECORDS = [
    Record("1abc", "prepare", OK, seconds=1.0),
    Record("2abc", "prepare", REJECTED, "a gap [sic]", "gap"),
    Record("3abc", "prepare", FAILED, "boom", "ValueError"),
]


@pytest.mark.parametrize("terminal", [True, False])
def test_counts_of_kept_lost_and_reused_are_shown(terminal: bool) -> None:
    """On a terminal and in a log a stage says how many it kept, lost and found done, and each loss with its reason."""
    out = io.StringIO()
    with show_progress(Console(file=out, force_terminal=terminal, width=160)) as progress:
        progress.begin("prepare", 8, 5)
        for record in RECORDS:
            progress.advance(record)
        progress.end()
    text = out.getvalue()
    assert "1 kept, 2 lost, 5 done before" in text
    assert "2abc rejected" in text and "a gap [sic]" in text and "boom" in text
    assert "8/8" in text
