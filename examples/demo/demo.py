"""The whole house in one command: PDB entries -> AMBER14 forces -> networks -> OpenMM simulation -> report.

Every step is a command that a user could type; it is printed before it runs. A step that is done is not done again:
run the demo a second time and it reuses everything; stop it and it goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
SHIPPED = "amber14-fast"
"""The model that simulates; it was trained on no protein of the clusters of those that the demo holds out."""


@dataclass(frozen=True)
class Size:
    """What the demo spends.

    Attributes
    ----------
    limit
        Options of ``data-pipeline run`` that choose how many proteins.
    paper_minutes, fast_minutes
        Training time of the two networks.
    steps
        Of the simulation, 1 fs each.
    probed_atoms
        On which lambda is measured.
    """

    limit: tuple[str, ...]
    paper_minutes: float
    fast_minutes: float
    steps: int
    probed_atoms: int


FULL = Size(limit=(), paper_minutes=1.5, fast_minutes=2.0, steps=400, probed_atoms=300)
SHORT = Size(limit=("--limit", "4"), paper_minutes=0.2, fast_minutes=0.4, steps=20, probed_atoms=60)


def steps(out: Path, size: Size) -> list[tuple[str, list[str]]]:
    """Return title and command line of each step.

    Parameters
    ----------
    out
        Folder of the demo.
    size
        What it may spend.
    """
    pipeline, learning = str(BIN / "data-pipeline"), str(BIN / "forcefield-ml")
    thermal, minimized = out / "thermal", out / "minimized"
    dataset = str(thermal / "dataset.h5")
    fast, paper = out / "fast", out / "paper"

    def train(recipe: str, folder: Path, minutes: float) -> list[str]:
        options = ["--dataset", dataset, "-o", str(folder), "--max-minutes", str(minutes)]
        return [learning, "train", str(HERE / recipe), *options]

    run = ["--steps", str(size.steps), "--timestep", "1", "--equilibration", "0.2", "--mode", "solute"]
    seen = ["--also", str(out / "paper.pt"), "--also", SHIPPED, "--simulation", str(out / "simulation")]
    seen += ["--pipeline", str(thermal), "--pipeline", str(minimized), "--probed-atoms", str(size.probed_atoms)]
    return [
        (
            "Select, split, prepare, sample at 300 K and label",
            [pipeline, "run", str(HERE / "data_thermal.yaml"), "-o", str(thermal), *size.limit],
        ),
        (
            "Two proteins by the paper's protocol: minimised",
            [pipeline, "run", str(HERE / "data_minimized.yaml"), "-o", str(minimized)],
        ),
        ("Verify the data set", [pipeline, "check", dataset]),
        ("Train the paper's network", train("train_tfn.yaml", paper, size.paper_minutes)),
        ("Train the fast network", train("train_fast.yaml", fast, size.fast_minutes)),
        ("Export the paper's network", [learning, "export", str(paper / "best.pt"), "-o", str(out / "paper.pt")]),
        ("Export the fast network", [learning, "export", str(fast / "best.pt"), "-o", str(out / "fast.pt")]),
        (
            "Simulate a held-out protein in water with the model that ships: minutes of training give no stable force",
            [learning, "simulate", "@held-out", "--model", SHIPPED, "-o", str(out / "simulation"), *run],
        ),
        (
            "Judge the networks and write the report",
            [learning, "validate", str(out / "fast.pt"), dataset, "-o", str(out / "report"), *seen],
        ),
    ]


def held_out(thermal: Path) -> Path:
    """Return the prepared system of the test protein with the fewest atoms.

    Parameters
    ----------
    thermal
        Run folder of the pipeline.
    """
    split = json.loads((thermal / "split.json").read_text())
    entries = split.get("entries", split)
    prepared = [thermal / "prepared" / f"{entry}.cif" for entry, part in entries.items() if part == "test"]
    return min((path for path in prepared if path.exists()), key=lambda path: (path.stat().st_size, path.name))


def main() -> int:
    """Run every step; return 0, or the exit code of the step that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    parser.add_argument("--short", action="store_true", help="less of everything, for continuous integration")
    options = parser.parse_args()
    out: Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    todo = steps(out, SHORT if options.short else FULL)
    for number, (title, command) in enumerate(todo, start=1):
        command = [str(held_out(out / "thermal")) if part == "@held-out" else part for part in command]
        shown = shlex.join([Path(command[0]).name, *command[1:]])
        print(f"\n[{number}/{len(todo)}] {title}\n    $ {shown}", flush=True)
        code = subprocess.run(command, check=False).returncode
        if code != 0 and (out / "simulation" / "result.json").is_file() and command[1] == "simulate":
            print("A guard stopped the run; the report shows how far it came. The demo goes on.", flush=True)
        elif code != 0:
            print(f"\nStep {number} ({title}) ended with exit code {code}; the message is above. Run again to go on.")
            return code
    print(summary(out, time.monotonic() - began))
    return 0


def summary(out: Path, seconds: float) -> str:
    """Return the ten lines at the end.

    Parameters
    ----------
    out
        Folder of the demo.
    seconds
        It took.
    """

    def read(*parts: str) -> Any:
        return json.loads(out.joinpath(*parts).read_text(encoding="utf-8"))

    thermal, minimised = read("thermal", "summary.json"), read("minimized", "summary.json")
    report = read("report", "report.json")
    splits = thermal["datasets"]["thermal"]["datasheet"]["splits"]
    small = minimised["datasets"]["minimized"]["datasheet"]["splits"]["all"]
    fast, paper, shipped = report["also"]
    naive, run = report["metrics"]["naive"], report["simulations"][0]
    solute = run["temperature"]["second_half"].get("solute", {"mean": float("nan")})
    rejected = ", ".join(f"{key.removeprefix('select: ')} {count}" for key, count in thermal["rejected"].items())
    sizes = "/".join(str(splits[name]["entries"]) for name in ("train", "validation", "test"))
    lines = [
        f"selected   {thermal['seen']} entries seen, {thermal['kept']} used; rejected: {rejected}",
        f"split      {sizes} proteins (train/validation/test) by {thermal['cluster_method']}, no leak at 20 % identity",
        f"thermal    {splits['all']['frames']} frames at 300 K, mean |F| {splits['all']['mean_force']:.0f} meV/Å",
        f"minimised  2 proteins: zero predictor {small['zero_predictor']:.1f} meV/Å (paper 81.5), mean magnitude"
        f" {small['mean_magnitude_predictor']:.1f} (79.9)",
        f"naive      on held-out thermal frames: tensor {naive['tensor']:.0f}, magnitude {naive['magnitude']:.0f} meV/Å"
        ", angle 90°",
        *(
            f"{name:10} {row['is']}, {row['n_batches']} batches: tensor {row['tensor']:.0f}, magnitude"
            f" {row['magnitude']:.0f} meV/Å, angle {row['angle']:.0f}°, relative {row['relative']:.2f}"
            for name, row in (("paper", paper), ("fast", fast), ("shipped", shipped))
        ),
        f"simulated  {run['structure_file']} with {Path(run['model']['file']).stem}: {run['steps']} steps of"
        f" {run['timestep_fs']} fs, {run['status']}, solute at {solute['mean']:.0f} K",
        f"report     {(out / 'report' / 'report.html').resolve()} ({seconds / 60:.1f} minutes)",
    ]
    return "\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
