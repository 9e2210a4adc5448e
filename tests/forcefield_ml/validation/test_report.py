"""The page: needs no other file, says what the numbers say, and trusts no text from outside."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcefield_ml.training.metrics import grouped, mean_and_error, with_naive
from forcefield_ml.validation.report import Judged, ReportInputs, write_report
from forcefield_ml.validation.uses import beaten, judge
from forcefield_ml.validation.verdict import NEVER, verdict

CARD = {
    "architecture": "tfn",
    "model_config": {"architecture": "tfn", "order": 2},
    "training": {"entries": ["1aaa", "2bbb"], "sequences": {"1aaa": "ACD"}, "n_batches": 1234, "protocol": "thermal"},
    "versions": {"trained": {"torch": "2.9.1"}},
}
SIMULATION: dict[str, Any] = {
    "status": "finished",
    "steps": 40,
    "time_ps": 0.02,
    "timestep_fs": 0.5,
    "atoms": 900,
    "solute_atoms": 50,
    "structure_file": "1fff.pdb",
    "mode": "solute",
    "model": {"file": "small.pt", "sha256": "ab" * 32, "architecture": "fast", "n_batches": 77},
    "temperature": {
        "target": 300.0,
        "solute": {"mean": 290.0, "std": 5.0},
        "solvent": {"mean": 301.0, "std": 2.0},
        "second_half": {"solute": {"mean": 288.0, "std": 4.0}, "solvent": {"mean": 301.0, "std": 2.0}},
    },
    "ns_per_day": 1.5,
    "event": None,
    "warnings": [],
    "structure": {
        "frames": 2,
        "time_ps": [0.0, 0.02],
        "rmsd_nm": [0.0, 0.0123],
        "rg_nm": [0.5, 0.51],
        "rmsd_atoms": "backbone",
    },
    "series": {
        "time_ps": [0.0, 0.02],
        "solute_K": [290.0, 288.0],
        "solvent_K": [300.0, 302.0],
        "max_force_kJ_mol_nm": [4000.0, 5000.0],
    },
    "versions": {"openmm": "8.6.1"},
}
SHEET = {
    "entries": 2,
    "clusters": 2,
    "frames": 2,
    "targets": 900,
    "mean_force": 93.2,
    "zero_predictor": 93.2,
    "mean_magnitude_predictor": 83.9,
}
PIPELINE: dict[str, Any] = {
    "name": "small",
    "seen": 4,
    "kept": 2,
    "left_out": 1,
    "rejections": [
        {
            "entry": "9xxx",
            "stage": "select",
            "status": "rejected",
            "class": "resolution",
            "reason": "<script>alert(1)</script> 3.1 A",
        }
    ],
    "clusters": 2,
    "cluster_method": "python 1",
    "datasets": {
        "minimized": {"datasheet": {"force_field": "amber14-all.xml", "splits": {"all": SHEET}}},
    },
    "versions": {"pdbfixer": "1.12"},
}


def metrics_of(noise: float, magnitudes: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return metrics of the documented form, from forces with a known error, and the forces."""
    random = np.random.default_rng(0)
    target = random.normal(size=(400, 3)) * 500
    predicted = target + noise * random.normal(size=(400, 3)) * 500
    if magnitudes:
        predicted = np.linalg.norm(predicted, axis=1)
    entry, element = np.arange(400) % 2, np.arange(400) % 3
    each = grouped(predicted, target, entry, ["5eee", "6fff"])
    metrics = {
        **with_naive(predicted, target),
        "proteins": {**mean_and_error(each), "each": each},
        "elements": grouped(predicted, target, element, ["H", "C", "N"]),
        "n_frames": 2,
        "n_proteins": 2,
        "split": "test",
        "dataset": {"name": "dataset.h5", "content_sha256": "0", "protocol": "thermal", "force_field": "amber14"},
    }
    arrays = {"target": target, "predicted": predicted, "entry": entry, "atom": np.arange(400) // 2}
    return metrics, {**arrays, "entries": np.array(["5eee", "6fff"])}


def write(folder: Path, noise: float = 0.3, magnitudes: bool = False, **inputs: Any) -> tuple[str, dict[str, Any]]:
    """Write a page and return it with report.json."""
    metrics, arrays = metrics_of(noise, magnitudes)
    np.savez(folder / "atoms.npz", **arrays)
    model = Judged("model.pt", CARD, metrics)
    html, plain = write_report(folder, ReportInputs(model, folder / "atoms.npz", **inputs))
    return html.read_text(encoding="utf-8"), json.loads(plain.read_text(encoding="utf-8"))


class Links(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag and what it loads."""
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset") and value:
                self.loads.append(value)

    def handle_data(self, data: str) -> None:
        """Keep the text, its spaces made one."""
        self.text += " " + " ".join(data.split())


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    """Nothing is loaded from outside the page: only ids within it and inline images; no scripts."""
    page, _ = write(tmp_path, simulations=[SIMULATION], pipelines=[PIPELINE], also=[])
    links = Links()
    links.feed(page)
    assert links.loads and all(load.startswith(("#", "data:image/png;base64,")) for load in links.loads)
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert not re.search(r"url\((?!#)|@import", page)
    assert links.tags.count("svg") == 3 + 1 + 4
    probe = Links()
    probe.feed('<img src="https://example.org/x.png">')
    assert probe.loads == ["https://example.org/x.png"]  # the checker sees what it looks for


def test_page_says_what_is_known(tmp_path: Path) -> None:
    """Ours, naive's and the paper's numbers, errors with their standard error, simulation, rejection and versions."""
    page, plain = write(tmp_path, simulations=[SIMULATION], pipelines=[PIPELINE], commands=["forcefield-ml validate x"])
    links = Links()
    links.feed(page)
    metrics = plain["metrics"]
    for value in (metrics["tensor"], metrics["naive"]["magnitude"], metrics["proteins"]["standard_error"]["tensor"]):
        assert f"{value:,.1f}" in links.text
    for words in (
        "32.8",
        "minimised structures",
        "1,234 batches",
        "small.pt (fast, 77 batches",
        "RMSD 0.012 nm",
        "3.1 A",
        "93.2 meV/Å here (paper 81.5)",
        "ratio is 0.90 (paper 0.98)",
        "torch 2.9.1",
        "forcefield-ml validate x",
    ):
        assert words in links.text, words
    assert "sequences" not in plain["training"]


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    """A reason that holds markup is shown, not run."""
    page, _ = write(tmp_path, pipelines=[PIPELINE])
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_model_of_order_0_has_a_page(tmp_path: Path) -> None:
    """Without vectors there are dashes and one panel, and the verdict says that no simulation can use it."""
    page, plain = write(tmp_path, magnitudes=True)
    assert plain["metrics"]["tensor"] is None and [use["outcome"] for use in plain["uses"]] == ["not fit"] * 3
    assert "forces without a direction" in plain["verdict"][2]
    assert page.count("<svg") == 2


def test_models_are_compared(tmp_path: Path) -> None:
    """Each model has its row with its own numbers."""
    other = metrics_of(0.8)[0]
    _, plain = write(tmp_path, also=[Judged("other.pt", {"model_config": {"architecture": "fast"}}, other)])
    assert [row["name"] for row in plain["also"]] == ["model.pt", "other.pt"]
    assert plain["also"][1]["tensor"] == pytest.approx(other["tensor"])
    assert plain["also"][1]["tensor"] > plain["also"][0]["tensor"]
    assert plain["also"][1]["is"] == "fast"


@pytest.mark.parametrize(("noise", "good"), [(0.1, True), (3.0, False)])
def test_verdict_follows_the_numbers(noise: float, good: bool, tmp_path: Path) -> None:
    """A model that is worse than predicting zero is not praised, and a good one not damned."""
    metrics = metrics_of(noise)[0]
    page, plain = write(tmp_path, noise=noise)
    assert (beaten(metrics)[1] == []) == good == plain["good"]
    assert ('class="verdict good"' in page) == good
    assert ("in tensor, magnitude and angle" in plain["verdict"][1]) == good
    assert (plain["uses"][0]["outcome"] == "fit") == good
    assert plain["verdict"][2].startswith("Single-point use: " + ("fit" if good else "not fit"))


def test_verdict_tells_a_stopped_simulation() -> None:
    """The guard's reason stands at the head of the page."""
    stopped = copy.deepcopy(SIMULATION)
    stopped["event"] = {"step": 30, "reason": "the force on 3 atoms is above 100000", "atoms": [], "kind": "force"}
    metrics = metrics_of(0.3)[0]
    sentences = verdict(CARD, metrics, [SIMULATION, stopped], judge(metrics))
    assert "No guard stopped it" in sentences[-2]
    assert "A guard stopped it at step 30: the force on 3 atoms" in sentences[-1]


def test_only_a_force_without_energy_is_told_so() -> None:
    """What a model with an energy may be used for is not denied to it."""
    metrics = metrics_of(0.1)[0]
    assert NEVER in verdict(CARD, metrics, [], judge(metrics))
    assert NEVER not in verdict({**CARD, "energy": True}, metrics, [], judge(metrics))
    # a checkpoint has no such key, but the settings of its model
    assert NEVER not in verdict({**CARD, "model_config": {"head": "energy"}}, metrics, [], judge(metrics))
    assert NEVER in verdict({**CARD, "model_config": {"head": "vector"}}, metrics, [], judge(metrics))


def test_verdict_tells_of_proteins_that_were_learnt() -> None:
    """At the head of the page, before the uses: whoever reads no further must know."""
    metrics = metrics_of(0.1)[0]
    sentences = {}
    for known in ([], ["1aaa"], [f"{k}abc" for k in range(1, 10)]):
        about = {**metrics, "training": {"sequences_trained_on": known}}
        sentences[len(known)] = verdict(CARD, about, [], judge(metrics))
    assert not any("too good" in line for line in sentences[0])
    assert sentences[1][2] == "It was trained on 1aaa, so these numbers are too good."
    assert "and 4 more, so these" in sentences[9][2] and sentences[9][3].startswith("Single-point use")


def test_full_disk_leaves_the_former_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the new page cannot be written the old one stays whole."""
    from forcefield_ml.errors import ConfigError
    from forcefield_ml.simulation import record

    before, _ = write(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write(tmp_path, noise=0.5)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert not list(tmp_path.glob(".*tmp"))
