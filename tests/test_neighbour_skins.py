"""The measurement of neighbour skins, run small."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from forcefield_ml.testing import random_liquid


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, which lies outside the packages."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield import_module("neighbour_skins")


def test_a_wider_skin_lasts_longer(benchmark: ModuleType) -> None:
    """Atoms that fly 0.005 nm a step use up a skin of 0.02 nm in two steps, of 0.1 nm in ten."""
    _, positions, box = random_liquid(343, seed=1)
    directions = torch.randn(positions.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flight = 0.005 * directions / directions.norm(dim=1, keepdim=True)
    frames = [positions + step * flight for step in range(40)]
    narrow, wide = (benchmark.measure(frames, box, skin, {"kind": "cutoff", "cutoff": 0.45}) for skin in (0.02, 0.1))
    assert narrow.interval == pytest.approx(2, abs=0.1) and wide.interval == pytest.approx(10, abs=0.1)
    assert narrow.candidates < wide.candidates
    for cost in (narrow, wide):
        assert cost.step == pytest.approx(cost.refresh + cost.rebuild / cost.interval)
        assert cost.refresh > 0 and cost.sizes == [343] * 4


@pytest.mark.slow
def test_the_command(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each skin and list."""
    assert benchmark.main(["--water", "--frames", "12", "--folder", str(tmp_path)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0.")]
    assert len(rows) == len(benchmark.SKINS) * len(benchmark.LISTS)
