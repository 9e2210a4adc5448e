"""The commands that a page names, so that anybody can make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forcefield_ml.validation.validate import ValidationConfig

_ALWAYS = {
    "model": "model",
    "steps": "steps",
    "timestep": "timestep_fs",
    "temperature": "temperature",
    "start": "start",
    "equilibration": "equilibration_ps",
    "padding": "padding",
    "seed": "seed",
}
"""Options of simulate that its command names in any case, to the settings that they are: defaults change."""

_ELSE = {
    "friction": "friction_per_ps",
    **{
        name.replace("_", "-"): name
        for name in (
            "hydrogen_mass",
            "mode",
            "backend",
            "mts",
            "reference",
            "deterministic",
            "log_every",
            "frame_every",
            "checkpoint_every",
            "trajectory",
            "max_minutes",
            "platform",
            "threads",
        )
    },
}
"""Those that it names where they are not left at their defaults."""


def commands(config: ValidationConfig, simulations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines that make a page and what it shows once more.

    Parameters
    ----------
    config
        Of the page.
    simulations
        result.json of each simulation on it.
    """
    lines = [shlex.join(["data-pipeline", "run", str(p / "config.yaml"), "-o", str(p)]) for p in config.pipelines]
    for model in (config.model, *config.also):
        recipe = model.parent / "config.yaml"
        if recipe.is_file():
            lines.append(shlex.join(["forcefield-ml", "train", str(recipe)]))
    lines += [simulate_command(result["config"]) for result in simulations]
    parts = ["forcefield-ml", "validate", str(config.model), str(config.input), "-o", str(config.output)]
    for option, paths in (
        ("--also", config.also),
        ("--pipeline", config.pipelines),
        ("--simulation", config.simulations),
    ):
        for path in paths:
            parts += [option, str(path)]
    for name in ("split", "steps", "dynamics", "padding", "topology", "probes", "probed_atoms", "frames", "seed"):
        value = getattr(config, name)
        if value != type(config).model_fields[name].default:
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return [*lines, shlex.join(parts)]


def simulate_command(settings: Mapping[str, Any]) -> str:
    """Return the command of a simulation.

    Parameters
    ----------
    settings
        Of `SimulationConfig`, as config.json holds them; those that a former version did not have had their defaults.
    """
    from forcefield_ml.simulation.config import SimulationConfig

    parts = ["forcefield-ml", "simulate", str(settings["structure"]), "-o", str(settings["output"])]
    fields = SimulationConfig.model_fields
    for option, key in {**_ALWAYS, **_ELSE}.items():
        value = settings.get(key)
        if value is None or (option in _ELSE and value == fields[key].default):
            continue
        parts += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    if settings.get("model") is None:
        parts.append("--mm")
    if not settings.get("remove_net_force", True):
        parts.append("--keep-net-force")
    return shlex.join(parts)
