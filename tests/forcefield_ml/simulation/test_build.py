"""What becomes of a structure file before it is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcefield_ml.simulation.build import _left_out

MIRROR = Path(__file__).parents[3] / "examples/demo/mirror"


@pytest.mark.parametrize(("name", "told"), [("1gua.pdb.gz", "of 2 chains"), ("1ajj.pdb.gz", "CA"), ("1crn.cif.gz", "")])
def test_what_preparation_removes_is_told(name: str, told: str) -> None:
    """Other chains and ligands are named; a file of one bare chain loses nothing."""
    text = _left_out(MIRROR / name)
    assert told in text and bool(text) == bool(told)
