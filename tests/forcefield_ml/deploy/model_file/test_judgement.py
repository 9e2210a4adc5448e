"""What evaluate and validate found goes into the card of the model that they judged, and of no other."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import write_dataset, write_refinement_dataset
from deploy_helpers import CONFIGS, make_model, write_model
from typer.testing import CliRunner

import forcefield_ml
from forcefield_ml import models, pretrained
from forcefield_ml.cli import app
from forcefield_ml.deploy.model_file import archive, bundle
from forcefield_ml.deploy.model_file.card import CARD_FILE, make_card
from forcefield_ml.deploy.model_file.describe import describe
from forcefield_ml.deploy.model_file.judgement import REPORT_FORMAT, judgements
from forcefield_ml.errors import ConfigError, ModelFileError
from forcefield_ml.models.fingerprint import weights_sha256
from forcefield_ml.training import checkpoint as checkpoints
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.validation.summary import summary
from forcefield_ml.validation.uses import judge

DYNAMICS: dict[str, Any] = {
    "structure": "1aie.pdb",
    "mode": "solute",
    "settings": {"temperature": 300.0, "timestep_fs": 0.5},
    "multiple_time_stepping": {"refused": None, "inner_steps": 8},
    "nvt": {
        "model": {
            "event": None,
            "length": 1.0,
            "temperature": {
                name: {"mean": 320.0, "standard_error": 4.0, "blocks": 5, "atoms": 9}
                for name in ("protein C", "protein H", "protein N", "protein O", "protein S", "water H", "water O")
            },
        },
        "amber14": {"event": None, "length": 1.0, "temperature": None},
    },
    "nve": {
        "model": {
            "event": None,
            "drift": {"slope": 2.0, "standard_error": 0.1, "over_kinetic_std": 3.0, "kinetic_std": 9.0, "length": 1.0},
            "time": [0.0],
        },
        "multiple_time_stepping": {"event": {"reason": "too hot"}, "drift": None},
    },
}
LAMBDA = {"lambda": 0.0123, "standard_error": 0.0004, "atoms": 300, "probes": 16, "jacobian_norm": 1.0}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model.pt."""
    return write_model(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def evaluation(model_file: Path, dataset_path: Path) -> dict[str, Any]:
    """What evaluate says of it."""
    return evaluate(model_file, dataset_path, quiet=True)


@pytest.fixture(scope="module")
def report(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What of report.json the card is made of."""
    uses = judge(evaluation, LAMBDA, DYNAMICS, "solute")
    return {
        "format": REPORT_FORMAT,
        "made": "now",
        "weights_sha256": evaluation["weights_sha256"],
        "summary": summary(uses, evaluation, LAMBDA, DYNAMICS),
    }


def write_json(path: Path, content: Any) -> Path:
    """Write a file."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def entries(path: Path) -> dict[str, bytes]:
    """Return the files in an archive but for its card."""
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith(CARD_FILE)}


def test_both_go_into_the_card(
    model_file: Path, evaluation: dict[str, Any], report: dict[str, Any], tmp_path: Path
) -> None:
    """The card holds the numbers of both files; the network in the file is byte for byte what it was."""
    files = {
        "evaluation": write_json(tmp_path / "e.json", evaluation),
        "validation": write_json(tmp_path / "r.json", report),
    }
    card = bundle.amend(model_file, tmp_path / "new.pt", **files)
    assert card == bundle.read_card(tmp_path / "new.pt")
    before = bundle.read_card(model_file)
    assert {key: value for key, value in card.items() if key not in ("evaluation", "verdict")} == before
    found = card["evaluation"]
    for key in (
        "tensor",
        "angle",
        "pearson",
        "naive",
        "elements",
        "residues",
        "n_proteins",
        "n_frames",
        "split",
        "dataset",
    ):
        assert found[key] == evaluation[key], key
    assert found["proteins"] == {key: evaluation["proteins"][key] for key in ("mean", "standard_error")}
    assert "each" not in found["proteins"] and found["sequences_trained_on"] == []
    numbers = card["verdict"]["numbers"]
    assert numbers["lambda"] == {key: LAMBDA[key] for key in ("lambda", "standard_error", "atoms", "probes")}
    assert (
        numbers["drift"]["model"]["slope"] == 2.0 and numbers["drift"]["multiple_time_stepping"]["stopped"] == "too hot"
    )
    assert numbers["temperature"]["elements"]["water O"] == {"mean": 320.0, "standard_error": 4.0}
    solute = card["verdict"]["uses"][1]
    assert solute["outcome"] == "not fit" and any("too hot" in why for why in solute["why"])
    assert entries(tmp_path / "new.pt") == entries(model_file)
    positions = np.random.default_rng(0).random((20, 3)) * 0.6
    one, other = (
        forcefield_ml.load(path).forces(positions, species=[1, 6, 7, 8] * 5)
        for path in (model_file, tmp_path / "new.pt")
    )
    assert np.array_equal(one, other) and np.abs(one).max() > 0


def test_a_verdict_added_later_keeps_the_evaluation(
    model_file: Path, evaluation: dict[str, Any], report: dict[str, Any], tmp_path: Path
) -> None:
    """A card grows in two steps as in one, also in place; the weights stay those that the files were made of."""
    path = tmp_path / "model.pt"
    path.write_bytes(model_file.read_bytes())
    bundle.amend(path, path, evaluation=write_json(tmp_path / "e.json", evaluation))
    card = bundle.amend(path, path, validation=write_json(tmp_path / "r.json", report))
    assert {"evaluation", "verdict"} <= card.keys() and sorted(p.name for p in tmp_path.glob("*.pt")) == ["model.pt"]


Change = Callable[[dict[str, Any]], Any]
REFUSED: dict[str, tuple[str, Change, str]] = {
    "other weights": (
        "evaluation",
        lambda e: {**e, "weights_sha256": "ab" * 32},
        "made of another model: of weights abab",
    ),
    "verdict of other weights": ("validation", lambda r: {**r, "weights_sha256": "ab" * 32}, "made of another model"),
    "former version": (
        "evaluation",
        lambda e: {k: e[k] for k in e if k != "weights_sha256"},
        "a former version wrote it",
    ),
    "training split": ("evaluation", lambda e: {**e, "split": "train"}, "of the training split"),
    "verdict on training": (
        "validation",
        lambda r: {**r, "summary": {**r["summary"], "judged_on": {**r["summary"]["judged_on"], "split": "train"}}},
        "of the training split",
    ),
    "no evaluation": ("evaluation", lambda e: {"tensor": 1.0}, "format None, expected 'forcefield-ml-evaluation'"),
    "a report as evaluation": ("evaluation", lambda e: {**e, "format": REPORT_FORMAT}, "forcefield-ml evaluate"),
    "an evaluation as report": (
        "validation",
        lambda r: {**r, "format": "forcefield-ml-evaluation"},
        "forcefield-ml validate",
    ),
    "a list": ("evaluation", lambda e: [1], "format 'list'"),
    "cut": ("evaluation", lambda e: {k: e[k] for k in e if k != "residues"}, "not whole .*residues"),
    "cut report": ("validation", lambda r: {k: r[k] for k in r if k != "summary"}, "not whole .*summary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, evaluation: dict[str, Any], report: dict[str, Any], tmp_path: Path) -> None:
    """What was made of other weights or of training frames, or is no such JSON, is refused, and named."""
    option, change, message = REFUSED[case]
    good = {"evaluation": evaluation, "validation": report}[option]
    files: dict[str, Any] = {"evaluation": None, "validation": None}
    with pytest.raises(ConfigError, match=message) as caught:
        judgements(evaluation["weights_sha256"], **{**files, option: write_json(tmp_path / "bad.json", change(good))})
    assert "bad.json" in str(caught.value)
    assert judgements(evaluation["weights_sha256"], **{**files, option: write_json(tmp_path / "good.json", good)})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """No file, or no JSON: said by name, with the command that makes one."""
    with pytest.raises(ConfigError, match=r"none\.json: No such file.*forcefield-ml evaluate"):
        judgements("ab", tmp_path / "none.json", None)
    (tmp_path / "text.json").write_bytes(b"\xff{")
    with pytest.raises(ConfigError, match="no JSON"):
        judgements("ab", None, tmp_path / "text.json")


def test_export_takes_what_was_made_of_the_checkpoint(dataset_path: Path, tmp_path: Path) -> None:
    """The evaluation of a checkpoint is that of the model.pt exported from it, and the other way round."""
    model = make_model("fast")
    checkpoints.save(tmp_path / "best.pt", checkpoints.Checkpoint(model.config, model.state_dict(), {}))
    of_checkpoint = write_json(tmp_path / "e.json", evaluate(tmp_path / "best.pt", dataset_path, quiet=True))
    out = bundle.export(tmp_path / "best.pt", tmp_path / "model.pt", evaluation=of_checkpoint)
    assert bundle.read_card(out)["evaluation"]["tensor"] == json.loads(of_checkpoint.read_text())["tensor"]
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    checkpoints.save(tmp_path / "next.pt", checkpoints.Checkpoint(model.config, model.state_dict(), {}))
    with pytest.raises(ConfigError, match="made of another model"):
        bundle.export(tmp_path / "next.pt", tmp_path / "next-model.pt", evaluation=of_checkpoint)
    assert not (tmp_path / "next-model.pt").exists()


def test_each_head_has_its_own_weights(tmp_path: Path) -> None:
    """Of a network with two heads each model.pt has the fingerprint of that head's model, and they differ."""
    torch.manual_seed(1)
    both = models.build_for_training({**CONFIGS["fast"], "head": "both"})
    checkpoints.save(tmp_path / "best.pt", checkpoints.Checkpoint(dict(both.config), both.state_dict(), {}))
    found = {}
    for head in ("vector", "energy"):
        card, module, _ = bundle.read(bundle.export(tmp_path / "best.pt", tmp_path / f"{head}.pt", head))
        part = checkpoints.load_model(tmp_path / "best.pt", head)[0]
        assert card["weights_sha256"] == weights_sha256(part.state_dict()) == bundle.weights_of(card, module, head)
        del card["weights_sha256"]  # as in files of former versions: it is computed
        found[head] = bundle.weights_of(card, module, head)
        assert found[head] == weights_sha256(part.state_dict())
    assert found["vector"] != found["energy"]


def test_altered_weights_are_told(model_file: Path, evaluation: dict[str, Any], tmp_path: Path) -> None:
    """A file whose weights are not those of its card is shown by no command and gets nothing into its card."""
    altered = tmp_path / "altered.pt"
    with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(altered, "w") as new:
        for item in old.infolist():
            content = bytearray(old.read(item))
            if "/data/" in item.filename and content:
                content[0] ^= 1  # the last bit of a number
            new.writestr(item.filename, bytes(content))
    with pytest.raises(ModelFileError, match="not those of its card"):
        bundle.amend(altered, tmp_path / "new.pt", evaluation=write_json(tmp_path / "e.json", evaluation))
    result = CliRunner().invoke(app, ["card", str(altered)])
    assert isinstance(result.exception, ModelFileError)


def test_a_network_of_another_version_is_taken_at_its_word(model_file: Path) -> None:
    """Where this version has no such network the card's fingerprint stands, or one of all that the file holds."""
    card, module, _ = bundle.read(model_file)
    card["model_config"] = {"architecture": "of-another-version"}
    assert bundle.weights_of(card, module, "it") == card.pop("weights_sha256")
    assert bundle.weights_of(card, module, "it") == weights_sha256(module.state_dict())


def test_a_new_card_is_checked_like_any(model_file: Path) -> None:
    """The archive is looked over before and after: code is not carried along, a card that is none is not written."""
    data = model_file.read_bytes()
    text = archive.read_archive(data, "model.pt").card
    assert archive.read_archive(archive.replace_card(data, "{}", "model.pt"), "model.pt").card == "{}"
    assert archive.replace_card(data, text, "model.pt") == archive.replace_card(data, text, "model.pt")
    with pytest.raises(ModelFileError, match="damaged"):
        archive.replace_card(data[:-40], text, "model.pt")


def test_a_copy_that_differs_is_not_written(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should another file in the archive not come out as it was, there is no new file."""
    write = zipfile.ZipFile.writestr

    def clumsy(self: zipfile.ZipFile, about: Any, content: Any, *rest: Any) -> None:
        write(
            self, about, content + b"\n" if getattr(about, "filename", about).endswith("/version") else content, *rest
        )

    monkeypatch.setattr(zipfile.ZipFile, "writestr", clumsy)
    with pytest.raises(ModelFileError, match="more than its card"):
        archive.replace_card(model_file.read_bytes(), "{}", "model.pt")


def test_a_card_of_other_weights_is_not_written(tmp_path: Path) -> None:
    """A model is not exported with the card of another."""
    model = make_model("fast")
    with pytest.raises(ModelFileError, match="not those of its card"):
        bundle.write(model, {**make_card(model), "weights_sha256": "ab" * 32}, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("name", pretrained.names())
def test_shipped_models(name: str, tmp_path: Path) -> None:
    """What ships is shown in less than 40 lines, and gets an evaluation with the network untouched."""
    shown = CliRunner().invoke(app, ["card", name])
    assert shown.exit_code == 0 and len(shown.stdout.splitlines()) < 40
    card = json.loads(CliRunner().invoke(app, ["card", name, "--json"]).stdout)
    refinement = card["predicts"] == "refinement"
    elements = "C N O P" if refinement else "H C N O Na S Cl"
    for told in (card["weights_sha256"], card["training"]["dataset_sha256"][:12], "MIT", elements, "cost"):
        assert told in shown.stdout, told
    if refinement:
        dataset = write_refinement_dataset(tmp_path / "dataset.h5", {"1aaa": "test"})
    else:
        dataset = write_dataset(tmp_path / "dataset.h5", {"1aaa": "test"}, parts=True)
    found = evaluate(name, dataset, quiet=True)
    assert found["weights_sha256"] == card["weights_sha256"]
    command = [
        "card",
        name,
        "--evaluation",
        str(write_json(tmp_path / "e.json", found)),
        "-o",
        str(tmp_path / "new.pt"),
    ]
    shown = CliRunner().invoke(app, command)
    assert (
        shown.exit_code == 0
        and f"{found['tensor']:.{2 if refinement else 1}f}" in shown.stdout
        and "by residue" in shown.stdout
    )
    assert entries(tmp_path / "new.pt") == entries(pretrained.path(name))


def test_command_refuses_half_a_request(model_file: Path, tmp_path: Path) -> None:
    """Something for the card without a file to write, or a file without anything to put in: neither does nothing."""
    runner = CliRunner()
    result = runner.invoke(app, ["card", str(model_file), "--evaluation", str(tmp_path / "e.json")])
    assert isinstance(result.exception, ConfigError) and "-o new.pt" in str(result.exception)
    result = runner.invoke(app, ["card", str(model_file), "-o", str(tmp_path / "new.pt")])
    assert isinstance(result.exception, ConfigError) and "--evaluation" in str(result.exception)


def full_card(model_file: Path, evaluation: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Return a card with all that there can be: seven stages, every residue, a verdict."""
    one = evaluation["residues"]["ALA"]
    stage = {
        "datasets": [{"name": f"{name}.h5", "content_sha256": "c" * 64, "n_frames": 900} for name in "abcde"],
        "dataset_sha256": "d" * 64,
        "started_from": "e" * 64,
        "fresh": [],
        "protocol": "thermal",
        "optimiser": "soap",
        "learning_rate": 0.003,
        "seed": 2,
        "n_batches": 7165,
        "seconds": 840.0,
    }
    training = {"entries": [f"{n}abc" for n in range(30)], "force_field": "amber14-all.xml", "stages": [stage] * 7}
    short = {**evaluation, "residues": {f"R{n:02}": one for n in range(26)}, "sequences_trained_on": ["1abc"]}
    return {
        **bundle.read_card(model_file),
        "training": training,
        "evaluation": short,
        "verdict": {"made": "now", **report["summary"]},
    }


def test_the_fullest_card_fits(model_file: Path, evaluation: dict[str, Any], report: dict[str, Any]) -> None:
    """All there can be stays below 40 lines: sums over stages, errors beside naive ones, each use with its reason."""
    text = describe(full_card(model_file, evaluation, report), "full.pt", 123, "MIT")
    lines = text.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 120
    assert "4 earlier stages" in text and "1:38 h of training; 50,155 batches" in text
    assert text.count("R2") == 6 and "trained on 1abc: these numbers are too good" in text
    assert "lambda 0.0123 ± 0.0004; drift by model 2.000 ± 0.100 meV/atom/ps" in " ".join(text.split())
    assert "protein C 320 ± 4" in text
    assert "not fit for NVT of a solute: because" in text and "never for minimisers" in text


def test_a_guards_advice_does_not_fill_the_card(
    model_file: Path, evaluation: dict[str, Any], report: dict[str, Any]
) -> None:
    """A reason as long as a guard's is cut where it turns to whoever runs a simulation; the use and atoms stay."""
    card = full_card(model_file, evaluation, report)
    guard = "; ".join([f"A:PRO{n} CD (atom {n}) with 257517" for n in range(12)]) + ". ADVICE " + "on and on " * 50
    *earlier, last = card["training"]["stages"]
    card["training"]["stages"] = [*earlier, {**last, "fresh": ["129 more atom types", "1504 more kinds of terms"]}]
    card["evaluation"]["residues"] = dict(list(card["evaluation"]["residues"].items())[:20])
    for use in card["verdict"]["uses"][1:]:
        use["why"] = [f"a guard stopped the run: {guard}"]
    text = describe(card, "full.pt", 123, "MIT")
    flat = " ".join(text.split())
    assert len(text.splitlines()) < 40 and "ADVICE" not in text
    assert "because a guard stopped the run: A:PRO0 CD (atom 0) with 257517;" in flat
    assert flat.count("... (--json has all of it)") == 2


def test_peptides_are_no_proteins(model_file: Path, evaluation: dict[str, Any], report: dict[str, Any]) -> None:
    """They are counted apart, by their length; entries without a sequence count as proteins."""
    card = full_card(model_file, evaluation, report)
    card["training"] |= {"entries": ["0000", "0001", "1abc", "2abc"], "sequences": {"0000": "AAI", "0001": "CCK"}}
    assert "2 proteins (1abc, 2abc) and 2 peptides, forces of" in describe(card, "x.pt", 1, "MIT")
    card["training"]["sequences"] |= {"1abc": "A" * 50}
    assert "2 proteins (1abc, 2abc) and 2 peptides, forces of" in describe(card, "x.pt", 1, "MIT")
    card["training"]["entries"] = ["0000", "0001"]
    assert "on    2 peptides, forces of" in describe(card, "x.pt", 1, "MIT")


def test_a_card_of_anybody_steers_no_terminal(
    model_file: Path, evaluation: dict[str, Any], report: dict[str, Any]
) -> None:
    """Control characters are not printed; what is of another form is one error that names the file."""
    card = full_card(model_file, evaluation, report)
    card["training"]["force_field"] = "\x1b[2Jamber\x9b14"
    text = describe(card, "odd.pt", 1, "none")
    assert "amber?14" in text and all(c.isprintable() or c == "\n" for c in text)
    for broken in ({"evaluation": {}}, {"training": {"entries": [1]}}, {"verdict": {"judged_on": None}}):
        with pytest.raises(ModelFileError, match=r"odd\.pt is of another form"):
            describe({**card, **broken}, "odd.pt", 1, "none")
