"""Every example of examples/README.md, run small."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gemmi
import numpy as np
import pytest
import yaml
from command_lines import parse
from scipy.spatial.transform import Rotation

from data_pipeline.config import PipelineConfig, load_config
from data_pipeline.dataset.check import check as check_dataset
from data_pipeline.entries import curate
from data_pipeline.entries.facts import inspect
from data_pipeline.errors import EntryError
from data_pipeline.sequences.cluster import cluster
from data_pipeline.sequences.split import check_leakage, split
from data_pipeline.sources import open_source
from forcefield_ml import pretrained
from forcefield_ml.config import load_config as load_learning_config
from forcefield_ml.data.joined import LONGEST_PEPTIDE
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.loop import train

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DEMO = EXAMPLES / "demo"
FRAGMENT = ROOT / "tests/forcefield_ml/deploy/data/1aie_351_353.pdb"

MIRROR_BYTES = 3_000_000
"""That a clone may carry for the demo."""


def run(command: list[Any], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with its output kept."""
    words = [str(word) for word in command]
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


def test_table_names_every_example() -> None:
    """The table of examples and the folder hold the same."""
    named = set(re.findall(r"^\|.*\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}


def test_add_ml_force(regenerated: Path, model_file: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The script minimises and runs a system of the pipeline's to the last step, at a finite temperature."""
    structure = min((regenerated / "prepared").glob("*.cif"), key=lambda path: path.stat().st_size)
    done = run(
        [sys.executable, EXAMPLES / "add_ml_force.py", structure, "--model", model_file, "--steps", 10],
        environment,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 11))
    assert all(0 < float(row[1]) < 5000 for row in rows)  # K; three batches teach little


def test_regenerated_data_is_sound(regenerated: Path) -> None:
    """The recipe makes a data set that passes `check`, with frames in every split and what was rejected told."""
    report = check_dataset(regenerated / "dataset.h5")
    assert report.ok, report.problems
    summary = json.loads((regenerated / "summary.json").read_text())
    splits = summary["datasets"]["thermal"]["datasheet"]["splits"]
    assert [splits[name]["frames"] for name in ("train", "validation", "test")] == [1, 1, 1]
    assert sum(summary["rejected"].values()) + sum(summary["failed"].values()) == 10  # as the mirror's README says
    assert summary["left_out"] == 11


def test_finetune(regenerated: Path, tmp_path: Path) -> None:
    """The example's settings are the shipped model's, and it begins with what that has learnt."""
    small = {"dataset": regenerated / "dataset.h5", "output": tmp_path, "max_batches": 1, "validation_frames": 1}
    settings = yaml.safe_load((EXAMPLES / "finetune.yaml").read_text()) | small
    metrics = train(TrainingConfig(**settings), quiet=True).metrics
    assert metrics["relative"] < 0.1 * metrics["naive"]["relative"]


def test_recipe_says_what_its_comment_says(small_recipe: dict[str, Any]) -> None:
    """As it stands the recipe loads and asks for the paper's 100, 50 and 50 proteins by the paper's criteria.

    The copy that the tests run differs from it in size alone.
    """
    path = EXAMPLES / "regenerate_data.yaml"
    config = load_config(path)
    assert config.split.counts == {"train": 100, "validation": 50, "test": 50}
    assert config.sample.protocols == ("minimized", "thermal")
    criteria = (config.select.n_chains, config.select.max_residues, config.select.max_resolution, config.split.identity)
    assert criteria == (1, 200, 2.5, 0.2)
    small = PipelineConfig.model_validate(small_recipe)
    smaller: dict[str, Any] = {
        "source": True,
        "select": {"limit", "prefer"},
        "split": {"method", "train", "validation", "test"},
        "prepare": {"padding"},
        "sample": {"protocol", "n_frames", "equilibration", "relax_tolerance"},
        "workers": True,
    }
    assert config.model_dump(exclude=smaller) == small.model_dump(exclude=smaller)


def test_validate_against_amber(
    regenerated: Path, model_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The script leaves a report on the entry and one on the test split, each against AMBER14 forces."""
    script = EXAMPLES / "validate_against_amber.sh"
    command = [script, model_file, FRAGMENT, regenerated / "dataset.h5", "judged", "--frames", 1]
    done = run(command, environment, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("entry", "dataset"):
        folder = tmp_path / "judged" / name
        assert (folder / "report.html").read_text().startswith("<!doctype html>")
        metrics = json.loads((folder / "report.json").read_text())["metrics"]
        assert metrics["dataset"]["force_field"].startswith("amber14-all.xml")
        # Forces of a protein at 300 K: what predicting zero gets wrong.
        assert 500 < metrics["naive"]["tensor"] < 3000
        assert math.isfinite(metrics["tensor"])


def test_validate_script_tells_its_usage(environment: dict[str, str], tmp_path: Path) -> None:
    """Without its arguments the script explains them and ends with 2; where a command fails, so does the script."""
    script = EXAMPLES / "validate_against_amber.sh"
    done = run([script], environment, tmp_path)
    assert done.returncode == 2 and "usage:" in done.stderr and "DATASET" in done.stderr
    done = run([script, "no.pt", "no.pdb", "no.h5", "out"], environment, tmp_path)
    assert done.returncode == 1 and "no.pdb" in done.stderr and not (tmp_path / "out").exists()


def test_numbers_of_a_run_are_those_of_its_summary(
    regenerated: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The page names its command, every rejection and the data set's own mean force."""
    page = tmp_path / "numbers.md"
    done = run([sys.executable, ROOT / "benchmarks/run_numbers.py", regenerated, "-o", page], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    summary = json.loads((regenerated / "summary.json").read_text())
    assert "| all | 3 | 3 |" in text and "python benchmarks/run_numbers.py" in text
    for reason, count in summary["rejected"].items():
        assert f"| {reason} | {count} |" in text
    everything = summary["datasets"]["thermal"]["datasheet"]["splits"]["all"]
    assert f"| {everything['mean_force']:.1f} |" in text
    assert len(text.split("## Entries")[1].split()) >= 6


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The demo's script as a module."""
    spec = importlib.util.spec_from_file_location("forcefield_ml_demo", DEMO / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", ["FULL", "SHORT"])
def test_demo_steps_fit_together(size: str, demo: ModuleType, tmp_path: Path) -> None:
    """Each step is a command line that exists, reads bundled files or what an earlier step writes, and writes anew."""
    written: list[Path] = []
    for title, command in demo.steps(tmp_path, getattr(demo, size)):
        assert Path(command[0]).is_file(), command[0]
        values = parse(command)
        output = values.pop("output", None)
        for value in values.values():
            for path in value if isinstance(value, list | tuple) else [value]:
                if isinstance(path, Path) and path.is_relative_to(tmp_path):
                    assert any(path.is_relative_to(earlier) for earlier in written), f"{title}: who writes {path}?"
                elif isinstance(path, Path) and path != Path("@held-out"):
                    assert pretrained.resolve(path).is_file(), f"{title}: there is no {path}"
        if output is not None:
            assert output not in written, f"{title}: {output} is written twice"
            written.append(output)
    assert tmp_path / "report" in written


def test_shipped_model_has_not_seen_what_the_demo_holds_out(demo: ModuleType) -> None:
    """No protein it was trained on is 20 % identical with one that the demo holds out; with others one is."""
    learnt = bundle.read_card(pretrained.path(demo.SHIPPED))["training"]["sequences"]
    trained = {f"trained_{name}": own for name, own in learnt.items() if len(own) > LONGEST_PEPTIDE}
    assert len(trained) > 5
    config = load_config(DEMO / "data_thermal.yaml")
    source = open_source("mirror", DEMO / "mirror")
    kept = {}
    for entry in source.ids():
        with contextlib.suppress(EntryError):
            facts = inspect(source.path(entry))
            if curate.judge(facts).keep:
                kept[entry] = facts
    sequences = {entry: facts.sequence for entry, facts in kept.items()}
    chosen = split(
        cluster(sequences, config.split.identity, "python").clusters,
        fractions=config.split.fractions,
        draw=config.split.draw,
        limit=config.select.limit,
        size_of={entry: facts.n_residues for entry, facts in kept.items()},
        seed=config.seed,
    )

    def shared(name: str) -> list[str]:
        ours = {entry: sequences[entry] for entry, part in chosen.items() if part == name}
        assert ours
        parts = dict.fromkeys(trained, "train") | dict.fromkeys(ours, "test")
        return [leak.first for leak in check_leakage({**trained, **ours}, parts, method="python")]

    assert sorted(entry for entry, part in chosen.items() if part == "test") == ["1a8o", "1ajj"]
    assert shared("test") == []
    assert shared("train") != []


def test_wrong_command_lines_are_refused() -> None:
    """What the tests rely on: unknown commands, options and values, and missing arguments do not parse."""
    with pytest.raises(LookupError, match="no command verify"):
        parse(["data-pipeline", "verify"])
    for words, told in (
        (["forcefield-ml", "train", "recipe.yaml", "--minutes", "3"], "No such option"),
        (["forcefield-ml", "train", "recipe.yaml", "--max-minutes", "three"], "valid number"),
        (["forcefield-ml", "validate", "model.pt", "-o", "out"], "Missing"),
    ):
        with pytest.raises(Exception, match=told):
            parse(words)


def test_demo_takes_the_smallest_held_out_protein(demo: ModuleType, regenerated: Path) -> None:
    """The protein that is simulated is a prepared one of the test split."""
    split = json.loads((regenerated / "split.json").read_text())
    chosen = demo.held_out(regenerated)
    assert chosen.is_file() and split[chosen.stem] == "test"


def test_demo_configurations_load(demo: ModuleType) -> None:
    """Bundled configurations load strictly, data come from the bundled mirror, and there is a test protein in each."""
    paths = sorted(DEMO.glob("*.yaml"))
    kinds = [path.name.split("_")[0] for path in paths]
    assert kinds == ["data", "data", "train", "train"]
    for path, kind in zip(paths, kinds, strict=True):
        if kind == "train":
            load_learning_config(TrainingConfig, path)
            continue
        config = load_config(path)
        assert Path(config.source.path) == DEMO / "mirror"
        assert config.split.test > 0
        assert set(config.select.ids or ()) <= set(open_source("mirror", config.source.path).ids())
    assert {yaml.safe_load(path.read_text())["model"]["architecture"] for path in paths[2:]} == {"fast", "tfn"}


def test_bundled_mirror_is_small() -> None:
    """The demo's entries: 16 to 24 of them, under 3 MB, each listed with its origin."""
    ids = open_source("mirror", DEMO / "mirror").ids()
    assert 16 <= len(ids) <= 24
    files = list((DEMO / "mirror").iterdir())
    assert sum(path.stat().st_size for path in files) < MIRROR_BYTES
    text = (DEMO / "mirror/README.md").read_text()
    origins = set(re.findall(r"^\| (\w{4}\.(?:pdb|cif)\.gz) \|", text, re.MULTILINE))
    assert origins == {path.name for path in files} - {"README.md"}


def test_refine_candidate(environment: dict[str, str], tmp_path: Path) -> None:
    """The README's command brings a test puzzle's candidate nearer to its native, in the files' own coordinates."""
    folder = EXAMPLES / "refine_candidate"
    text = (folder / "README.md").read_text()
    (command,) = re.findall(r"^forcefield-ml refine .*$", text, re.MULTILINE)
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in command.split("  #")[0].split()]
    done = run([Path(sys.executable).with_name(words[0]), *words[1:]], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "refined/report.json").read_text())
    read = {
        name: gemmi.read_structure(str(path))
        for name, path in {
            "native": folder / "native.pdb.gz",
            "before": folder / "candidate.pdb.gz",
            "after": tmp_path / "refined/refined.pdb",
        }.items()
    }
    places = {name: heavy(structure) for name, structure in read.items()}
    assert places["before"].keys() == places["after"].keys() and len(places["before"]) == 1444 + 1
    shared = [key for key in places["native"] if key in places["before"]]
    assert report["matched"]["matched"] == len(shared) == 1444
    for name in ("before", "after"):
        own, native = (np.array([places[one][key] for key in shared]) for one in (name, "native"))
        rotation, _ = Rotation.align_vectors(native - native.mean(axis=0), own - own.mean(axis=0))
        apart = rotation.apply(own - own.mean(axis=0)) - (native - native.mean(axis=0))
        assert report[name]["rmsd"] == pytest.approx(np.sqrt((apart**2).sum(axis=1).mean()), abs=2e-3)
    assert report["after"]["rmsd"] < report["before"]["rmsd"]
    assert report["after"]["local_rmsd"] < report["before"]["local_rmsd"]
    assert report["outcome"][1] in text  # the README has the sentence that the command prints
    assert "<svg" in (tmp_path / "refined/report.html").read_text()


def heavy(structure: gemmi.Structure) -> dict[tuple[int, str, str], list[float]]:
    """Return the places of atoms that are no hydrogens by number of the chain, residue and name."""
    return {
        (k, str(residue.seqid), atom.name): atom.pos.tolist()
        for k, chain in enumerate(structure[0])
        for residue in chain
        for atom in residue
        if not atom.is_hydrogen()
    }
