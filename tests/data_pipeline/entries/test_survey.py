"""The survey of a source agrees with a run's own selection, and says where a second opinion differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from data_pipeline.cli import app
from data_pipeline.config import SelectConfig
from data_pipeline.entries.selection import select
from data_pipeline.entries.survey import Survey, compare, survey
from data_pipeline.errors import ConfigError
from data_pipeline.sources import open_source


@pytest.fixture(scope="module")
def result(mirror: Path) -> Survey:
    return survey(open_source("mirror", mirror), SelectConfig(limit=2))


def table(folder: Path, result: Survey, **changes: str) -> Path:
    """Write the survey's own verdicts as a second opinion, but for some ids; `-` leaves one out."""
    said = {entry: "yes" if verdict.keep else "no" for entry, verdict in result.verdicts.items()} | changes
    rows = [f"{entry}\tpdb\t{opinion}\tbecause" for entry, opinion in said.items() if opinion != "-"]
    path = folder / "index.tsv"
    path.write_text("\n".join(["id\tformat\tqualifies\treason", *rows]) + "\n")
    return path


def test_every_entry_is_judged_and_limits_play_no_part(result: Survey, mirror: Path) -> None:
    """The survey keeps what a run without limit selects, and counts every other entry under one reason."""
    selected = select(open_source("mirror", mirror), SelectConfig(), lambda record: None)
    assert result.facts == selected.kept
    assert len(result.verdicts) == selected.n_seen == len(result.facts) + sum(result.rejected().values())
    assert result.rejected() == {
        "method": 3, "resolution": 2, "single_chain": 2, "length": 1, "protein": 1, "truncated": 1
    }  # fmt: skip


def test_agreement_is_complete_with_itself_and_differences_are_found(result: Survey, tmp_path: Path) -> None:
    """Its own verdicts give no difference; each changed row gives one, with both reasons; unknown ids are listed."""
    same = compare(result, table(tmp_path, result))
    assert (same.both_keep, same.both_reject, same.differences) == (14, 10, [])
    other = compare(result, table(tmp_path, result, **{"1crn": "no", "1qys": "yes", "1shg": "-", "9xyz": "yes"}))
    assert (other.both_keep, other.both_reject) == (12, 9)
    assert (other.only_here, other.only_there) == (["1shg"], ["9xyz"])
    crambin, top7 = other.differences
    assert (crambin.entry, crambin.keep, crambin.their_reason) == ("1crn", True, "because")
    assert (top7.entry, top7.keep, top7.criterion, top7.their_reason) == ("1qys", False, "resolution", "")
    assert "2.5 Å" in top7.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id\tgood\n1crn\tyes\n", "line 2: columns id and qualifies"),
        ("id\tqualifies\n1crn\tperhaps\n", "line 2: columns id and qualifies"),
        ("id\tqualifies\n1crn\tyes\n1CRN\tno\n", "yes and no are said of 1crn"),
        ("id\tqualifies\n", "holds no opinion"),
        (None, "cannot read"),
    ],
)
def test_a_bad_table_is_refused(result: Survey, tmp_path: Path, text: str | None, words: str) -> None:
    """A table that is no opinion is an error with the line, not an agreement."""
    path = tmp_path / "index.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        compare(result, path)


def test_command_tells_numbers_verdicts_and_differences(result: Survey, mirror: Path, tmp_path: Path) -> None:
    """The table for people and the JSON for programs say the same; nothing kept is an error."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"name": "x", "source": {"path": str(mirror)}}))
    index = table(tmp_path, result, **{"1crn": "no"})
    words = ["select", str(config), "--compare", str(index), "-o", str(tmp_path / "out.json")]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "24 entries seen" in shown.output and "file: truncated" in shown.output
    assert "1crn: kept here, rejected there (because)" in shown.output
    told = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    report = json.loads(told.output)
    assert report == json.loads((tmp_path / "out.json").read_text())
    assert (report["seen"], report["kept"], report["comparison"]["both_keep"]) == (24, 14, 13)
    assert report["entries"]["1crn"]["facts"]["n_disulfides"] == 3
    assert report["entries"]["1mqe"]["criterion"] == "length" and report["entries"]["1mqe"]["facts"] is None
    config.write_text(yaml.safe_dump({"name": "x", "source": {"path": str(mirror)}, "select": {"max_residues": 2}}))
    assert CliRunner().invoke(app, ["select", str(config)]).exit_code == 1
