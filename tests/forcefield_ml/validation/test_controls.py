"""Negative controls on real forces: a trained model passes what it can, random weights and swapped elements nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
import torch

from forcefield_ml import models, pretrained
from forcefield_ml.config import parse_config
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ConfigError
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.validation.uses import judge
from forcefield_ml.validation.validate import ValidationConfig, validate

FRAGMENT = Path(__file__).parents[1] / "deploy" / "data" / "1aie_351_353.pdb"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def report(model: Path, data: Path, output: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Return the page and report.json of a validation."""
    values = {"model": model, "input": data, "output": output, **changes}
    html, plain = validate(parse_config(ValidationConfig, values), lambda line: None)
    return html, json.loads(plain.read_text())


def outcomes(found: dict[str, Any]) -> list[str]:
    """Return what became of the three uses."""
    return [use["outcome"] for use in found["uses"]]


def rebuilt(elements: list[int] | None, trained: bool, path: Path) -> Path:
    """Return a model.pt of the shipped network, its elements in another order, or with random weights."""
    card, module, _ = bundle.read(pretrained.path("amber14-fast"))
    config = dict(card["model_config"])
    config["elements"] = elements or config["elements"]
    torch.manual_seed(0)
    model = models.build(config).eval()
    state = {name.removeprefix("model."): value for name, value in module.state_dict().items()}
    if trained:
        own = model.state_dict()
        kept = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
        assert set(kept) == set(own), "every weight is the shipped one's"
        model.load_state_dict(kept)
    else:
        model.set_scale(float(state["head.scale"]))
    return bundle.write(model, make_card(model), path)


def test_shipped_model_is_fit_for_single_points(shipped: tuple[Path, dict[str, Any]]) -> None:
    """The positive control: it follows the forces and is nearly conservative; of a whole system no run was made."""
    found = shipped[1]
    assert outcomes(found)[0] == "fit" and outcomes(found)[2] == "not shown"
    assert 1e-4 < found["symmetry"]["lambda"]["lambda"] < 0.03
    assert found["symmetry"]["permutation_error"] < 1e-5 and found["symmetry"]["rotation_error"] < 1e-5


def test_rebuilt_model_is_the_shipped_one(shipped: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """With the same elements and weights nothing changes: what the next test changes is what matters."""
    again = evaluate(rebuilt(None, True, tmp_path / "same.pt"), shipped[0].parent / "input.h5", "test", quiet=True)
    assert again["tensor"] == pytest.approx(shipped[1]["metrics"]["tensor"], rel=1e-4)


@pytest.mark.parametrize("control", ["random weights", "swapped elements"])
def test_bad_models_fail_all_three(control: str, shipped: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Neither is fit for anything, and it is said why."""
    card = bundle.read(pretrained.path("amber14-fast"))[0]
    first, second, *rest = card["model_config"]["elements"]
    model = rebuilt([second, first, *rest], control == "swapped elements", tmp_path / "bad.pt")
    uses = judge(evaluate(model, shipped[0].parent / "input.h5", "test", quiet=True))
    assert [use.outcome for use in uses] == ["not fit"] * 3
    assert all("relative error" in use.sentence for use in uses)


def test_classes_and_worst_atoms_add_up(shipped: tuple[Path, dict[str, Any]]) -> None:
    """Every class holds all 94 atoms, means weighted by atoms give the whole's, and the worst are named once each."""
    found = shipped[1]
    assert set(found["classes"]) == {"residue", "part", "charge", "place", "end"}
    for rows in found["classes"].values():
        counts = [row["n_atoms"] for row in rows.values()]
        assert sum(counts) == found["metrics"]["n_atoms"] == 94
        mean = np.average([row["tensor"] for row in rows.values()], weights=counts)
        assert mean == pytest.approx(found["metrics"]["tensor"])
    # charged termini, aspartate and lysine: nothing is neutral, and nothing of three residues is buried
    assert set(found["classes"]["residue"]) == {"LYS", "ASP", "ALA"}
    assert set(found["classes"]["charge"]) == {"charged"} and set(found["classes"]["place"]) == {"exposed"}
    errors = [row["error"] for row in found["worst"]]
    assert len({row["atom"] for row in found["worst"]}) == 20 and errors == sorted(errors, reverse=True)
    assert all(re.fullmatch(r"(LYS1|ASP2|ALA3):\w+", row["atom"]) for row in found["worst"])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_browser_shows_the_page(shipped: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A real browser loads the page without a word of complaint, lays all figures out and paints them."""
    import matplotlib.image

    assert CHROMIUM is not None
    picture = tmp_path / "page.png"
    probe = tmp_path / "probe.html"
    script = """<script>addEventListener("load", () => { const sizes = [...document.querySelectorAll("svg.plot")].map(
      s => s.getBoundingClientRect()); document.title = JSON.stringify({n: sizes.length,
      least: Math.min(...sizes.map(s => Math.min(s.width, s.height))), wide: document.documentElement.scrollWidth,
      text: document.body.innerText.includes("Single-point use: fit")}); });</script>"""
    probe.write_text(shipped[0].read_text().replace("</body>", script + "</body>"))
    options = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    window = "--window-size=1000,4000"
    shot = subprocess.run(
        [*options, window, "--enable-logging=stderr", f"--screenshot={picture}", shipped[0].as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in shot.stderr
    dumped = subprocess.run(
        [*options, window, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120
    )
    title = re.search(r"<title>(\{.*?\})</title>", dumped.stdout)
    assert title is not None, dumped.stderr
    found = json.loads(title[1])
    assert found["n"] == shipped[0].read_text().count('<svg class="plot"') >= 6
    assert found["least"] > 100 and found["wide"] <= 1000 and found["text"]
    pixels = matplotlib.image.imread(picture)[..., :3]
    coloured = np.ptp(pixels, axis=-1) > 0.3
    assert 0.001 < coloured.mean() < 0.5, "figures in colour on a page that is mostly not"


@pytest.fixture(scope="module")
def trajectory(shipped: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The frames of the shipped model's page as trajectories of five frames, and their topology."""
    import h5py

    folder = tmp_path_factory.mktemp("trajectory")
    topology = shipped[0].parent / "input.cif"
    with h5py.File(shipped[0].parent / "input.h5") as file:
        group = next(iter(file["entries"].values()))
        positions, box = group["positions"][:], group["box"][:]
    order = [0, 1, 0, 1, 1]
    frames = mdtraj.Trajectory(positions[order], mdtraj.load(str(topology)).topology)
    frames.unitcell_vectors = box[order]
    found = {"topology": topology}
    for ending in ("dcd", "xtc"):
        found[ending] = folder / f"run.{ending}"
        frames.save(str(found[ending]))
    return found


@pytest.mark.parametrize("ending", [pytest.param("dcd", marks=pytest.mark.slow), "xtc"])
def test_trajectory_is_labelled_and_judged(
    ending: str, shipped: tuple[Path, dict[str, Any]], trajectory: dict[str, Path], tmp_path: Path
) -> None:
    """Its last frame gets the forces that the same frame had; an xtc rounds positions to 0.001 nm, which is felt."""
    import h5py

    found = report(
        pretrained.path("amber14-fast"),
        trajectory[ending],
        tmp_path,
        topology=trajectory["topology"],
        frames=1,
        probes=0,
    )[1]
    assert found["metrics"]["n_frames"] == 1 and "--topology" in found["commands"][-1]
    with h5py.File(tmp_path / "input.h5") as new, h5py.File(shipped[0].parent / "input.h5") as old:
        ours, theirs = (next(iter(file["entries"].values()))["forces"][-1] for file in (new, old))
    error = np.linalg.norm(ours - theirs, axis=1).mean() / np.linalg.norm(theirs, axis=1).mean()
    assert error < {"dcd": 1e-3, "xtc": 0.2}[ending]


def test_trajectory_needs_its_topology(trajectory: dict[str, Path], tmp_path: Path) -> None:
    """None, and one of other atoms, are told apart."""
    model = pretrained.path("amber14-fast")
    with pytest.raises(ConfigError, match="--topology"):
        report(model, trajectory["dcd"], tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read with the \d+ atoms of .*1aie_351_353\.pdb"):
        report(model, trajectory["dcd"], tmp_path, topology=FRAGMENT)
    with pytest.raises(ConfigError, match="needs a structure"):
        report(model, trajectory["dcd"], tmp_path, topology=trajectory["topology"], dynamics=50)
