"""Checkpoints: read back as written, and refused when they are not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forcefield_ml import models
from forcefield_ml.errors import ModelFileError
from forcefield_ml.training import checkpoint as files

TINY = {"architecture": "tfn", "order": 1, "channels": [4, 2, 1], "n_neighbours": 8, "n_basis": 4, "n_units": 3}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    model = models.build(TINY)
    model.set_scale(123.0)
    path = tmp_path / "best.pt"
    training = {"entries": ["1abc"], "sequences": {"1abc": "ACD"}, "n_batches": 5, "recipe": {"delta": 10.0}}
    files.save(path, files.Checkpoint(model.config, model.state_dict(), training, {"tensor": 1.5}))
    return path, model


def test_round_trip(saved):
    """Weights, scale and card come back exactly; torch's own safe reader reads the file."""
    path, model = saved
    loaded, checkpoint = files.load_model(path)
    assert not loaded.training and loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert checkpoint.training["sequences"] == {"1abc": "ACD"} and checkpoint.metrics == {"tensor": 1.5}
    assert checkpoint.versions["torch"] == torch.__version__ and checkpoint.resume is None
    assert isinstance(torch.load(path, weights_only=True), dict)


@pytest.mark.parametrize("keep", [0, 10, 2000, -1])
def test_damaged_file_is_refused(saved, keep):
    """A file cut anywhere is refused with a message, not a traceback of torch."""
    path, _ = saved
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(ModelFileError, match=r"best\.pt"):
        files.load(path)


def test_foreign_files_are_refused(tmp_path: Path, saved):
    """Missing, TorchScript, other dict, code in a pickle, newer format, other weights: each says what it is."""
    path, model = saved
    with pytest.raises(ModelFileError, match="no checkpoint"):
        files.load(tmp_path / "none.pt")
    script = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    with pytest.raises(ModelFileError, match="TorchScript"):
        files.load(script)
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(ModelFileError, match="format None"):
        files.load(other)
    torch.save(torch.nn.Linear(2, 2), other)
    with pytest.raises(ModelFileError, match="no checkpoint of this"):
        files.load(other)
    values = torch.load(path, weights_only=True)
    torch.save(values | {"format_version": 99}, other)
    with pytest.raises(ModelFileError, match="format 99"):
        files.load(other)
    del values["training"]
    torch.save(values, other)
    with pytest.raises(ModelFileError, match="training"):
        files.load(other)
    files.save(other, files.Checkpoint(model.config, {"head.scale": torch.ones(())}, {}))
    with pytest.raises(ModelFileError, match="do not fit"):
        files.load_model(other)


def test_failed_write_keeps_the_former_file(saved, monkeypatch):
    """When the disk is full the former checkpoint stays whole and no debris is left."""
    path, model = saved
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelFileError, match="No space left"):
        files.save(path, files.Checkpoint(model.config, {}, {}))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
