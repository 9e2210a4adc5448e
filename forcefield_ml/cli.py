"""`forcefield-ml` and its commands. Each parses, configures, calls once."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from forcefield_ml import pretrained
from forcefield_ml.errors import ConfigError, ForcefieldMLError

app = typer.Typer(
    help="Equivariant networks that predict forces directly, inside OpenMM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Equivariant networks that predict forces directly, inside OpenMM."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; its keys are those of training.config.TrainingConfig")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder of the run, instead of the file's")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="dataset.h5, instead of the file's")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="time budget, instead of the file's")] = None,
    max_batches: Annotated[int | None, typer.Option(help="budget of batches, instead of the file's")] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the file's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Train a model on a dataset, or go on with a run that stopped.

    Writes best.pt (the checkpoint to evaluate and export), last.pt (to go on from), log.csv, events for TensorBoard
    and config.yaml to the output folder. Ctrl-C stops after the batch in hand; the same command goes on. Several
    processes, one for each device: torchrun --nproc-per-node N -m forcefield_ml.cli train CONFIG.
    """
    from forcefield_ml.config import load_config
    from forcefield_ml.training.config import TrainingConfig
    from forcefield_ml.training.loop import train as run
    from forcefield_ml.training.processes import Processes

    settings = load_config(
        TrainingConfig,
        config,
        output=output,
        dataset=dataset,
        max_minutes=max_minutes,
        max_batches=max_batches,
        seed=seed,
    )
    result = run(settings)
    if Processes.here().first:
        typer.echo(json.dumps(result.as_dict(), indent=1) if as_json else result.summary())
    if not result.finished:
        raise typer.Exit(130)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="model.pt or a checkpoint (best.pt)")],
    dataset: Annotated[Path, typer.Argument(help="dataset.h5 of data-pipeline")],
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="write all metrics here; - for the screen")] = None,
    per_atom: Annotated[Path | None, typer.Option(help="write true and predicted forces here, as .npz")] = None,
) -> None:
    """Compare a model's forces with the reference forces of a dataset, and with naive predictors."""
    from forcefield_ml.training.evaluate import evaluate as run
    from forcefield_ml.training.evaluate import table

    result = run(model, dataset, split, per_atom)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(text + "\n", encoding="utf-8")
    typer.echo(text if str(json_file) == "-" else table(result))


@app.command()
def simulate(
    structure: Annotated[Path, typer.Argument(help="PDB or mmCIF file, as deposited or already in water")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the run; an unfinished one is continued")],
    model: Annotated[
        Path | None, typer.Option(help=f"model.pt, or the name of one that ships; {pretrained.DEFAULT} if left out")
    ] = None,
    mm: Annotated[bool, typer.Option("--mm", help="no model: the MM force field alone, to compare with")] = False,
    steps: Annotated[int, typer.Option(help="steps of dynamics in all")] = 2000,
    timestep: Annotated[float, typer.Option(help="fs; without constraints 0.5 is safe, above 2 is refused")] = 1.0,
    hydrogen_mass: Annotated[
        float | None, typer.Option(help="u, taken from the atom each is bonded to; 3 is advised with 1 fs")
    ] = None,
    temperature: Annotated[float, typer.Option(help="K")] = 300.0,
    friction: Annotated[float, typer.Option(help="of the Langevin thermostat, 1/ps")] = 1.0,
    mode: Annotated[
        str | None, typer.Option(help="solute, embedded, correction or system; the card's if left out")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, pythonforce or torchforce")] = "auto",
    start: Annotated[
        str, typer.Option(help="thermal (MM warm-up) or minimised (FIRE with the model's force)")
    ] = "thermal",
    equilibration: Annotated[float, typer.Option(help="ps of MM warm-up")] = 1.0,
    mts: Annotated[
        int,
        typer.Option(help="steps by the model for one kick by MM minus model: at 0.5 fs at most 8, at 1 fs 4"),
    ] = 1,
    reference: Annotated[
        Path | None, typer.Option(help="mode system: model.pt with an energy that kicks with --mts in place of MM")
    ] = None,
    keep_net_force: Annotated[
        bool, typer.Option(help="mode system: do not take the mean force off every atom")
    ] = False,
    log_every: Annotated[
        int | None, typer.Option(help="steps between lines of log.csv and looks of the guards; 10 if left out")
    ] = None,
    frame_every: Annotated[int | None, typer.Option(help="steps between frames; 20 if left out")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="steps between checkpoints, the most a kill can cost; 100 if left out")
    ] = None,
    trajectory: Annotated[str, typer.Option(help="dcd, or xtc: smaller, to 0.001 nm")] = "dcd",
    max_minutes: Annotated[
        float | None, typer.Option(help="stop cleanly after this time, all sessions together")
    ] = None,
    padding: Annotated[float, typer.Option(help="nm of water between the protein and its images")] = 0.8,
    box_shape: Annotated[
        str, typer.Option("--box", help="dodecahedron, octahedron or cube: 71, 77 and 100 % of the water")
    ] = "dodecahedron",
    platform: Annotated[str, typer.Option(help="OpenMM platform")] = "CPU",
    threads: Annotated[int | None, typer.Option(help="of the CPU platform; all if left out")] = None,
    seed: Annotated[int, typer.Option(help="of repair, solvation, velocities and random forces")] = 0,
    deterministic: Annotated[
        bool, typer.Option(help="one thread; after a kill the same command takes the same path, bit for bit")
    ] = False,
    restart: Annotated[bool, typer.Option(help="throw away what the folder holds and start anew")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Simulate a protein in water at constant temperature with a model's force.

    Writes topology.cif, trajectory.dcd (or .xtc), log.csv, checkpoint.npz and result.json to the output folder. The
    same command goes on with a run that was killed. Guards stop a run whose forces or temperatures are absurd.
    """
    from forcefield_ml.config import parse_config
    from forcefield_ml.simulation.config import SimulationConfig
    from forcefield_ml.simulation.run import simulate as run
    from forcefield_ml.simulation.run import summary

    if mm and model is not None:
        raise ConfigError(f"--mm asks for no model, --model for {model}; leave out one of them")
    settings = {
        "structure": structure,
        "model": None if mm else model or Path(pretrained.DEFAULT),
        "output": output,
        "steps": steps,
        "timestep_fs": timestep,
        "hydrogen_mass": hydrogen_mass,
        "temperature": temperature,
        "friction_per_ps": friction,
        "mode": mode,
        "backend": backend,
        "mts": mts,
        "reference": reference,
        "remove_net_force": not keep_net_force,
        "deterministic": deterministic,
        "start": start,
        "equilibration_ps": equilibration,
        "log_every": log_every,
        "frame_every": frame_every,
        "checkpoint_every": checkpoint_every,
        "trajectory": trajectory,
        "max_minutes": max_minutes,
        "padding": padding,
        "box_shape": box_shape,
        "platform": platform,
        "threads": threads,
        "seed": seed,
    }
    result = run(
        parse_config(SimulationConfig, settings, source="simulate"),
        restart=restart,
        message=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps(result, indent=1) if as_json else summary(result, output))


@app.command()
def explore(
    model: Annotated[Path, typer.Argument(help="model.pt, or the name of one that ships")],
    dataset: Annotated[Path, typer.Argument(help="dataset.h5 of data-pipeline; its training entries are walked")],
    output: Annotated[Path, typer.Option("--output", "-o", help="dataset.h5 to write; a killed run goes on")],
    entry: Annotated[list[str] | None, typer.Option(help="walk this entry only; may be repeated")] = None,
    runs: Annotated[int, typer.Option(help="of each entry")] = 1,
    steps: Annotated[int, typer.Option(help="of each run")] = 800,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    temperature: Annotated[float, typer.Option(help="K; above the one of use, so that more is seen")] = 350.0,
    every: Annotated[int, typer.Option(help="steps between frames that are kept in any case")] = 60,
    error: Annotated[float, typer.Option(help="kJ/mol/nm on an atom, above which frames are kept more often")] = 2500.0,
    platform: Annotated[str, typer.Option(help="OpenMM platform of the reference")] = "CPU",
    seed: Annotated[int, typer.Option(help="of starts, velocities and random forces")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Let a model drive the training proteins, and keep the frames it visits with their reference forces.

    Train on them as well (extra_datasets in the training configuration), explore with the new model, and so on:
    that, not a lower error on thermal frames, keeps dynamics from breaking. For models that predict total,
    total_minus_reciprocal or solute_alone; the dataset must hold the part, and the frames carry all that it holds.
    """
    from forcefield_ml.config import parse_config
    from forcefield_ml.simulation.explore import explore as run
    from forcefield_ml.simulation.walk import ExploreConfig

    settings = {
        "model": model,
        "dataset": dataset,
        "output": output,
        "entries": tuple(entry or ()),
        "runs": runs,
        "steps": steps,
        "timestep_fs": timestep,
        "temperature": temperature,
        "every": every,
        "error": error,
        "platform": platform,
        "seed": seed,
    }
    result = run(parse_config(ExploreConfig, settings, source="explore"))
    ended = Counter(row["ended"] for row in result["runs"])
    told = ", ".join(f"{count} {why}" for why, count in ended.most_common())
    typer.echo(
        json.dumps(result, indent=1)
        if as_json
        else f"{result['output']}: {result['frames']} frames of {len(result['runs'])} runs, which ended by: {told}"
    )


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a training run")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write")] = Path("model.pt"),
    head: Annotated[str | None, typer.Option(help="vector or energy, of a checkpoint that holds both")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="JSON of `evaluate --json`, made of this checkpoint, for the card")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="report.json of `validate`, made of this checkpoint or its model.pt, for the card"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the model's card as JSON")] = False,
) -> None:
    """Make model.pt, the file that OpenMM loads, of a checkpoint.

    The file is TorchScript with a card inside; it is read back and compared with the eager model before it takes
    its name. In Python: forcefield_ml.load("model.pt").add_to_system(system, topology).
    """
    from forcefield_ml.data.target import quantity_of
    from forcefield_ml.deploy.model_file import bundle

    written = bundle.export(checkpoint, output, head, evaluation, validation)
    card = bundle.read_card(written)
    if as_json:
        typer.echo(json.dumps(card, indent=1, ensure_ascii=False))
    else:
        typer.echo(
            f"{written}: {card['architecture']}, predicts "
            f"{card['predicts']} {quantity_of(card['predicts']).name}s of {card['target_atoms']} atoms"
            + (" as the gradient of an energy" if card["energy"] else "")
        )


@app.command()
def card(
    model: Annotated[Path, typer.Argument(help="model.pt, or the name of one that ships")] = Path(pretrained.DEFAULT),
    evaluation: Annotated[Path | None, typer.Option(help="JSON of `evaluate --json`, to put into the card")] = None,
    validation: Annotated[Path | None, typer.Option(help="report.json of `validate`, to put into the card")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="model.pt to write with what was put into the card")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the whole card as JSON")] = False,
) -> None:
    """Show what a model is, what it learnt from, its errors and what it is fit for; or put the latter two in.

    What evaluate and validate found is taken only if it was made of the same weights, and not on the training split.
    The network in the file stays what it is, byte for byte; only the card changes.
    """
    from forcefield_ml.deploy.model_file import bundle
    from forcefield_ml.deploy.model_file.describe import show
    from forcefield_ml.errors import ConfigError

    path = pretrained.resolve(model)
    given = evaluation is not None or validation is not None
    if given != (output is not None):
        raise ConfigError(
            "--evaluation and --validation put something into the card of a new file: give its name, -o new.pt"
            if given
            else f"-o {output} without anything to put into the card: give --evaluation eval.json, --validation "
            "report.json or both, or leave out -o to see the card"
        )
    if output is not None:
        bundle.amend(path, output, evaluation, validation)
        path = output
    typer.echo(show(path, as_json))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print the diagnosis as JSON")] = False) -> None:
    """Say what this installation can do, what is missing, and the command that mends it.

    Runs a small model through both kinds of OpenMM force on each CPU platform. Exit code 1 if something that is
    needed is broken.
    """
    from forcefield_ml.deploy.doctor.diagnose import diagnose, report

    diagnosis = diagnose()
    typer.echo(json.dumps(diagnosis, indent=1) if as_json else report(diagnosis))
    if not diagnosis["healthy"]:
        raise typer.Exit(1)


@app.command()
def validate(
    model: Annotated[Path, typer.Argument(help="model.pt or a checkpoint (best.pt)")],
    data: Annotated[
        Path, typer.Argument(metavar="INPUT", help="dataset.h5, or a PDB entry or a trajectory to label and judge on")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for report.html and report.json")],
    split: Annotated[str, typer.Option(help="of the dataset: train, validation or test")] = "test",
    also: Annotated[list[Path] | None, typer.Option(help="another model to compare with; may be repeated")] = None,
    pipeline: Annotated[
        list[Path] | None, typer.Option(help="folder of a data-pipeline run to tell of; may be repeated")
    ] = None,
    simulation: Annotated[
        list[Path] | None, typer.Option(help="folder of a simulation to show; may be repeated")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="simulate the PDB entry for so many steps, too")] = None,
    dynamics: Annotated[
        int | None,
        typer.Option(help="run the PDB entry by the model and by AMBER14 for so many steps each, and compare"),
    ] = None,
    padding: Annotated[float, typer.Option(help="nm of water around the PDB entry in --dynamics")] = 0.8,
    topology: Annotated[Path | None, typer.Option(help="PDB or mmCIF file with the atoms of a trajectory")] = None,
    probes: Annotated[int, typer.Option(help="random vectors for lambda, at least 16; 0 leaves it out")] = 16,
    probed_atoms: Annotated[int, typer.Option(help="most atoms of lambda's block, from the protein's middle")] = 300,
    frames: Annotated[int, typer.Option(help="frames to label of a PDB entry (thermal) or a trajectory")] = 2,
    seed: Annotated[int, typer.Option(help="of preparation, sampling and rotation")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print report.json")] = False,
) -> None:
    """Judge a model against AMBER forces and write one self-contained page.

    The page says for which uses the model is fit. It holds the metrics beside the paper's, the paper's figure 3, errors
    by element, residue, place and protein, the worst atoms, symmetry and lambda and, where asked for, dynamics beside
    AMBER14's, simulations, what the pipeline rejected and why, and other models on the same frames.
    """
    from forcefield_ml.config import parse_config
    from forcefield_ml.validation.validate import ValidationConfig
    from forcefield_ml.validation.validate import validate as run

    settings = {
        "model": model,
        "input": data,
        "output": output,
        "split": split,
        "also": tuple(also or ()),
        "pipelines": tuple(pipeline or ()),
        "simulations": tuple(simulation or ()),
        "steps": steps,
        "dynamics": dynamics,
        "padding": padding,
        "topology": topology,
        "probes": probes,
        "probed_atoms": probed_atoms,
        "frames": frames,
        "seed": seed,
    }
    config = parse_config(ValidationConfig, settings, source="validate")
    html, plain = run(config, message=lambda line: typer.echo(line, err=True))
    typer.echo(plain.read_text(encoding="utf-8") if as_json else f"{html}\n{plain}")


@app.command()
def refine(
    model: Annotated[
        Path, typer.Argument(help="model.pt that predicts refinement, such as rna-refinement, which ships")
    ],
    structure: Annotated[Path, typer.Argument(help="PDB or mmCIF file, plain or .gz: a protein or nucleic acid")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder for refined.pdb (or .cif), report.html and report.json")
    ],
    native: Annotated[
        Path | None, typer.Option(help="the true structure: tells whether the result is nearer; the steps ignore it")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="most steps; 10 if left out, 0 only predicts")] = None,
    fraction: Annotated[
        float | None,
        typer.Option(help="of each vector that a step goes, above 0, at most 1; 0.1 if left out"),
    ] = None,
    max_step: Annotated[
        float | None, typer.Option(help="nm that no atom moves farther in a step, at most 0.2; 0.05 if left out")
    ] = None,
    average: Annotated[int | None, typer.Option(help="last structures whose mean is the result; 1 if left out")] = None,
    patience: Annotated[
        int | None, typer.Option(help="steps without shorter vectors after which it stops; 5 if left out")
    ] = None,
    free_geometry: Annotated[
        bool, typer.Option("--free-geometry", help="do not put bonds, angles and clashes right after each step")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print report.json")] = False,
) -> None:
    """Move a structure towards its native along the vectors that a model predicts.

    It takes small steps, holds bonds and angles at the input's lengths and stops by itself: when the predicted vectors
    no longer get shorter, when clashes or bonds get worse than in the input, or when all steps are done. Hydrogens and
    alternative locations move with their residue; water, ions and ligands stay; names, numbers, B factors and the
    rest of the file stay as they are.

    Without --native nobody knows whether the result is nearer to the truth. With it RMSD, local RMSD and lDDT are told
    before and after, and what became WORSE is said on the screen, in report.json and on the page.
    """
    from forcefield_ml.config import parse_config
    from forcefield_ml.refinement import Settings
    from forcefield_ml.refinement import refine as run

    given = {
        "steps": steps,
        "fraction": fraction,
        "max_step": max_step,
        "average": average,
        "patience": patience,
        "keep_geometry": False if free_geometry else None,
    }
    settings = parse_config(Settings, {key: value for key, value in given.items() if value is not None}, "refine")
    done = run(model, structure, native, settings, device=device, quiet=False)
    files = done.write(output)
    lines = [*done.report["outcome"], *done.report["notes"], *map(str, files.values())]
    typer.echo(files["json"].read_text(encoding="utf-8") if as_json else "\n".join(lines))


def main() -> None:
    """Run the command line; errors this package raises on purpose end as one message and exit code 1."""
    try:
        app()
    except ForcefieldMLError as error:
        print(f"forcefield-ml: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a disk that is full or a file that cannot be written, wherever it strikes
        told = "What was saved is safe: mend it and run the same command again"
        print(f"forcefield-ml: {error}. {told}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":  # python -m forcefield_ml.cli, as torchrun starts it
    main()
