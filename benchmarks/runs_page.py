"""Write the numbers of simulations as a Markdown page.

python benchmarks/runs_page.py runs/1ajj runs/1ajj-system -o docs/results/dynamics.md

Each folder is one of `forcefield-ml simulate`, finished or stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import noted_page
import numpy as np

COLUMNS = (
    "run",
    "model",
    "mode",
    "atoms (solute)",
    "steps of",
    "ended",
    "solute K",
    "solvent K",
    "RMSD, nm",
    "ns/day",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(
        "benchmarks/runs_page.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of `forcefield-ml simulate`")
    return noted_page.write(parser, lambda options, command: markdown(options.runs, command), arguments)


def markdown(folders: Sequence[Path], command: str) -> str:
    """Return the page.

    Parameters
    ----------
    folders
        Of the runs.
    command
        What wrote it, for the page's head.
    """
    found = [(folder.name, json.loads((folder / "result.json").read_text(encoding="utf-8"))) for folder in folders]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found[0][1]["versions"].items()))
    lines = [
        "# Dynamics with a direct force",
        "",
        f"Written by `{command}` ({versions}).",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_row(name, result)) + " |" for name, result in found),
        "",
        "Temperatures are means of the second half ± the standard error of five blocks; RMSD is that of the alpha "
        "carbons from the first frame, mean of the second half; ns/day is that of the last part of a resumed run.",
        "",
        "```bash",
        *(_command(result) for _, result in found),
        "```",
    ]
    for name, result in found:
        if result["event"]:
            lines += ["", f"`{name}` was stopped by a guard: {result['event']['reason']}"]
    return "\n".join(lines) + "\n"


def _row(name: str, result: dict[str, Any]) -> list[str]:
    series = result["series"]
    rmsd = result["structure"]["rmsd_nm"]
    return [
        name,
        str(result["model"]["file"] or "AMBER14"),
        result["mode"] + (f", mts {result['mts']}" if result["mts"] > 1 else ""),
        f"{result['atoms']:,} ({result['solute_atoms']:,})",
        f"{result['steps']:,} of {result['timestep_fs']:g} fs"
        + (f", hydrogens of {heavy:g} u" if (heavy := result.get("hydrogen_mass")) else ""),
        result["status"],
        _mean(series["solute_K"]),
        _mean(series["solvent_K"]),
        f"{np.mean(rmsd[len(rmsd) // 2 :]):.3f}" if rmsd else "-",
        f"{result['ns_per_day']:.2f}" if result["ns_per_day"] else "-",
    ]


def _mean(values: Sequence[float]) -> str:
    """Return the mean of the second half and its standard error by blocks."""
    second = np.array(values[len(values) // 2 :])
    if len(second) < 10:
        return f"{second.mean():.0f}" if len(second) else "-"
    blocks = np.array([part.mean() for part in np.array_split(second, 5)])
    return f"{second.mean():.0f} ± {blocks.std(ddof=1) / 5**0.5:.0f}"


def _command(result: dict[str, Any]) -> str:
    config = result["config"]
    words = ["forcefield-ml", "simulate", result["structure_file"], "-o", f"runs/{Path(config['output']).name}"]
    if result["model"]["file"]:
        words += ["--model", result["model"]["file"], "--mode", result["mode"]]
    options = ("steps", "timestep_fs", "temperature", "friction_per_ps", "mts", "padding", "box_shape", "seed")
    names = {"timestep_fs": "timestep", "friction_per_ps": "friction", "box_shape": "box"}
    if config.get("hydrogen_mass"):
        words += ["--hydrogen-mass", f"{config['hydrogen_mass']:g}"]
    for key in options:
        words += [
            f"--{names.get(key, key)}",
            f"{config[key]:g}" if isinstance(config[key], float) else str(config[key]),
        ]
    return shlex.join(words)


if __name__ == "__main__":
    raise SystemExit(main())
