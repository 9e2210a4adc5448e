"""model.pt: what is written is read back; what is damaged, foreign, newer or changed is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy_helpers import Deployed, make_model

import forcefield_ml
from forcefield_ml import models
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import CARD_FILE, KEYS, make_card
from forcefield_ml.errors import ForcefieldMLError, ForceModeError, ModelFileError
from forcefield_ml.training import checkpoint as checkpoints


def test_card_survives(tmp_path: Path) -> None:
    """Export of a checkpoint keeps what the checkpoint knows, and every key is there."""
    model = make_model("fast")
    training = {"entries": ["1aie"], "sequences": {"1aie": "EYFT"}, "n_batches": 7, "dataset_sha256": "ab", "seed": 3}
    checkpoints.save(
        tmp_path / "best.pt",
        checkpoints.Checkpoint(model.config, model.state_dict(), training, metrics={"tensor": 1.5}),
    )
    out = bundle.export(tmp_path / "best.pt", tmp_path / "model.pt")
    loaded = forcefield_ml.load(out)
    assert set(loaded.card) == {*KEYS, "weights_sha256"}
    assert loaded.card == bundle.read_card(out)
    assert loaded.card["training"] == training and loaded.card["metrics"] == {"tensor": 1.5}
    assert loaded.card["predicts"] == "total" and loaded.card["target_atoms"] == "solute"
    assert loaded.card["neighbours"]["cutoff"] == model.capabilities.cutoff
    assert not loaded.has_energy
    assert models.build(loaded.card["model_config"]).config == model.config
    positions = np.random.default_rng(0).random((12, 3)) * 0.5
    expected = make_model("fast")
    found = loaded.forces(positions, species=[1, 6, 8] * 4)
    direct = bundle.DeployableModel(expected)(torch.tensor([1, 6, 8] * 4), torch.tensor(positions)).forces
    assert np.allclose(found, direct.detach().numpy(), rtol=1e-4, atol=1e-2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "model.pt"]


def test_order_0_is_not_exported(tmp_path: Path) -> None:
    """A model of magnitudes cannot act in OpenMM: the error says where it can be judged."""
    model = models.build({"architecture": "tfn", "order": 0, "channels": (4, 1)})
    checkpoints.save(tmp_path / "best.pt", checkpoints.Checkpoint(model.config, model.state_dict(), {}))
    with pytest.raises(ForceModeError, match="evaluate"):
        bundle.export(tmp_path / "best.pt", tmp_path / "model.pt")


def test_a_file_that_differs_from_the_eager_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what was written computes something else, export fails and the file that was there stays."""
    model = make_model("fast")
    out = tmp_path / "model.pt"
    out.write_bytes(b"former")
    script = torch.jit.script

    def wrong(module: Any) -> Any:
        other = make_model("fast")
        other.set_scale(1.001 * float(other.head.scale))
        return script(bundle.DeployableModel(other).eval())

    monkeypatch.setattr(torch.jit, "script", wrong)
    with pytest.raises(ModelFileError, match="differs from the eager one"):
        bundle.write(model, make_card(model), out)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"] and out.read_bytes() == b"former"


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """Copy a model.pt with another card; `change` gets the card and returns what to write."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith(CARD_FILE):
                data = change(json.loads(data))
            if data is not None:
                new.writestr(item.filename, data)
    return target


def edited(**changes: Any) -> Any:
    """Return a change that sets keys of the card."""
    return lambda card: json.dumps({**card, **changes}).encode()


def bad_files(good: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Return bad files by kind, each with what the message must say."""
    data = good.read_bytes()
    files: dict[str, tuple[Path, str]] = {"missing": (folder / "none.pt", "no model file")}

    def put(kind: str, content: bytes, message: str) -> None:
        (folder / f"{kind}.pt").write_bytes(content)
        files[kind] = (folder / f"{kind}.pt", message)

    put("empty", b"", "0 bytes")
    put("cut", data[: len(data) // 2], "cut short")
    flipped = bytearray(data)
    for place in range(len(data) // 3, len(data) // 3 + 100):  # longer than the padding between two files of a zip
        flipped[place] ^= 0xFF
    put("flipped", bytes(flipped), "damaged")
    put("text", b"not a model", "no TorchScript")
    put("pickle", pickle.dumps({"format": "forcefield-ml-model"}), "no TorchScript")
    torch.save({"a": torch.zeros(2)}, folder / "checkpoint.pt")
    files["checkpoint"] = (folder / "checkpoint.pt", "checkpoint")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / "foreign.pt"))
    files["foreign"] = (folder / "foreign.pt", "without a card")
    for kind, change, message in (
        ("newer", edited(format_version=99), "newer release: update"),
        ("other", edited(format="someone-elses"), "not a model of this program"),
        ("nojson", lambda card: b"{", "not JSON"),
        ("lacking", lambda card: json.dumps({k: v for k, v in card.items() if k != "species"}).encode(), "'species'"),
        ("mistyped", edited(energy="yes"), "energy"),
        ("unknown", edited(predicts="totl"), "Did you mean 'total'"),
        ("judged", edited(evaluation="excellent"), "evaluation = 'excellent', expected dict"),
    ):
        files[kind] = (rewrite(good, folder / f"{kind}.pt", change), message)
    return files


def test_bad_files(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Each kind of bad file is refused by a ModelFileError that names the file and the fault."""
    for kind, (path, message) in bad_files(deployed["fast"].path, tmp_path).items():
        with pytest.raises(ModelFileError, match=message) as caught:
            forcefield_ml.load(path)
        assert path.name in str(caught.value), kind
    unchanged = rewrite(deployed["fast"].path, tmp_path / "same.pt", lambda card: json.dumps(card).encode())
    forcefield_ml.load(unchanged)  # control: rewriting alone does no harm


def test_a_damaged_byte_anywhere_is_refused(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Wherever in the file a byte is wrong, it is a ModelFileError or does no harm; never another exception."""
    good = deployed["fast"].path.read_bytes()
    refused = 0
    for place in range(7, len(good), max(1, len(good) // 60)):
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        path = tmp_path / "damaged.pt"
        path.write_bytes(damaged)
        try:
            forcefield_ml.load(path)
        except ModelFileError:
            refused += 1
    assert refused > 20


def test_loading_runs_no_pickle(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """A pickle with a payload in the place of the model's data is refused and not run."""
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    pickle.loads(pickle.dumps(Payload()))
    assert marker.exists(), "control: the payload works where pickle is used"
    marker.unlink()
    target = tmp_path / "evil.pt"
    with zipfile.ZipFile(deployed["fast"].path) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            evil = item.filename.endswith("/data.pkl")
            new.writestr(item.filename, pickle.dumps(Payload(), 2) if evil else old.read(item))
    with pytest.raises(ModelFileError):
        forcefield_ml.load(target)
    assert not marker.exists()


def test_another_file_in_its_place(deployed: dict[str, Deployed]) -> None:
    """A hash that is asked for must be the file's."""
    model = forcefield_ml.load(deployed["fast"].path)
    bundle.read(deployed["fast"].path, model.sha256)
    with pytest.raises(ModelFileError, match="SHA-256"):
        bundle.read(deployed["tfn"].path, model.sha256)


def test_unwritable_output(tmp_path: Path) -> None:
    """An output folder that does not exist gives an error that says so."""
    model = make_model("fast")
    with pytest.raises(ForcefieldMLError, match="folder exists"):
        bundle.write(model, make_card(model), tmp_path / "nowhere" / "model.pt")
