"""benchmarks/runs_page.py: a page of simulations, from their result.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_page_of_a_finished_and_a_stopped_run(tmp_path: Path) -> None:
    """Means are of the second half, by hand; a stopped run tells why; the command can be typed."""
    result = {
        "status": "finished",
        "steps": 40,
        "timestep_fs": 0.5,
        "atoms": 5564,
        "solute_atoms": 513,
        "structure_file": "1ajj.pdb.gz",
        "mode": "solute",
        "mts": 1,
        "model": {"file": "model.pt"},
        "ns_per_day": 1.234,
        "event": None,
        "structure": {"frames": 4, "rmsd_nm": [0.0, 0.1, 0.2, 0.3]},
        "series": {"solute_K": [900.0] * 10 + [300.0, 310.0] * 5, "solvent_K": [300.0] * 20},
        "config": {
            **{"output": "/elsewhere/first", "steps": 40, "timestep_fs": 0.5, "temperature": 300.0},
            **{"friction_per_ps": 1.0, "mts": 1, "padding": 0.8, "box_shape": "dodecahedron", "seed": 0},
        },
        "versions": {"torch": "2.9"},
    }
    stopped = {**result, "status": "unstable", "event": {"reason": "too hot: 1,200 K"}}
    for name, content in (("first", result), ("second", stopped)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(content))
    page = tmp_path / "page.md"
    script = [sys.executable, str(ROOT / "benchmarks/runs_page.py")]
    subprocess.run([*script, str(tmp_path / "first"), str(tmp_path / "second"), "-o", str(page)], check=True)
    text = page.read_text()
    assert (
        "| first | model.pt | solute | 5,564 (513) | 40 of 0.5 fs | finished | 305 ± 0 | 300 ± 0 | 0.250 | 1.23 |"
        in text
    )
    assert "`second` was stopped by a guard: too hot: 1,200 K" in text
    assert "--mode solute --steps 40 --timestep 0.5 --temperature 300 --friction 1 --mts 1" in text
