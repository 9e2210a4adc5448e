"""The commands on a page are those that made it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from command_lines import parse

from forcefield_ml.config import parse_config
from forcefield_ml.simulation.config import SimulationConfig
from forcefield_ml.validation.commands import commands, simulate_command
from forcefield_ml.validation.validate import ValidationConfig

NAMES = {"timestep": "timestep_fs", "friction": "friction_per_ps", "equilibration": "equilibration_ps"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "m.pt", "mode": "system", "mts": 8, "timestep_fs": 0.5, "reference": "e.pt", "friction_per_ps": 0.1},
        {
            "model": "m.pt",
            "hydrogen_mass": 3.0,
            "mode": "system",
            "remove_net_force": False,
            "deterministic": True,
            "trajectory": "xtc",
        },
        {"log_every": 20, "frame_every": 40, "checkpoint_every": 200, "platform": "Reference", "threads": 2},
    ],
)
def test_simulate_again(changes: dict[str, Any]) -> None:
    """Parsed by the program, the command has every setting of the run that can be given there."""
    config = parse_config(SimulationConfig, {"structure": "a b.pdb", "output": "run", "seed": 3, **changes})
    given = parse(shlex.split(simulate_command(config.model_dump(mode="json"))))
    given["remove_net_force"] = not given.pop("keep_net_force")
    if given.pop("mm"):
        given["model"] = None
    again = {NAMES.get(name, name): value for name, value in given.items() if value is not None}
    for name in ("restart", "as_json"):
        again.pop(name)
    assert parse_config(SimulationConfig, again) == config


def test_validate_again(tmp_path: Path) -> None:
    """The last command is that of the page, with all that is not left at its default."""
    changes = {"dynamics": 400, "padding": 1.0, "probes": 32, "probed_atoms": 100, "frames": 8, "seed": 5}
    config = parse_config(ValidationConfig, {"model": "m.pt", "input": "a.pdb", "output": tmp_path, **changes})
    given = parse(shlex.split(commands(config, [])[-1]))
    assert {name: given[name] for name in changes} == changes and given["steps"] is None
