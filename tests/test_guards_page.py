"""docs/guards.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_guard_has_its_test() -> None:
    """Every row of the table names a test, and each test named is there."""
    page = (ROOT / "docs/guards.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| trap")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"(test_\w+\.py)::(test_\w+)", row)
        assert named, row
        for file, name in named:
            (path,) = (ROOT / "tests/forcefield_ml/deploy").rglob(file)
            source = path.read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), (file, name)
