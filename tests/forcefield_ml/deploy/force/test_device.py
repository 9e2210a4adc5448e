"""Devices and precisions that are not there or do not fit are told, with what to install."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from deploy_helpers import Molecules, bare_system, context_of, forces_of, make_model

import forcefield_ml
from forcefield_ml.deploy.force import device
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ConfigError, ModelFileError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, cuda: str | None) -> None:
    """Let torch see so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto takes CUDA where it is; a device that is not there is refused with the reason that torch gives."""
    gpus(monkeypatch, 2, "12.8")
    assert device.choose_device() == "cuda" and device.choose_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match=r"'cuda:2'. Allowed: auto, cpu, cuda, cuda:0, cuda:1$"):
        device.choose_device("cuda:2")
    gpus(monkeypatch, 0, "12.8")
    assert device.choose_device() == "cpu"
    with pytest.raises(ConfigError, match=r"built for CUDA 12.8 but sees no device.*nvidia-smi"):
        device.choose_device("cuda")
    gpus(monkeypatch, 0, None)
    with pytest.raises(ConfigError, match=r"built for the CPU alone.*pip install \"torch===2"):
        device.choose_device("cuda")
    with pytest.raises(ConfigError, match="Allowed: auto, cpu"):
        device.choose_device("mps")


def test_model_and_openmm_on_different_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA torch beside OpenMM on the CPU, and the reverse, are told with the command that mends it; a pair is not."""
    gpus(monkeypatch, 1, "12.8")
    names = ["Reference", "CPU"]
    monkeypatch.setattr(openmm.Platform, "getNumPlatforms", lambda: len(names))
    monkeypatch.setattr(openmm.Platform, "getPlatform", lambda i: type("P", (), {"getName": lambda self: names[i]})())
    assert 'pip install "openmm[cuda12]>=8.6.1"' in device.mismatch("CPU", "cuda")
    names.append("CUDA")
    assert "getPlatformByName('CUDA')" in device.mismatch("Reference", "cuda:0")
    assert "device='cuda'" in device.mismatch("CUDA", "cpu")
    for platform, where in (("CUDA", "cuda"), ("OpenCL", "cuda"), ("CPU", "cpu"), ("Reference", "cpu")):
        assert device.mismatch(platform, where) == ""
    gpus(monkeypatch, 0, None)
    assert "built for the CPU alone" in device.mismatch("CUDA", "cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights of half precision do not get into OpenMM."""
    model = make_model("fast").to(dtype)
    path = tmp_path / "half.pt"
    with pytest.raises(ModelFileError, match="float16, too coarse"):
        bundle.write(model, make_card(model), path)
    # as another program may have written it
    scripted = torch.jit.script(bundle.DeployableModel(model).eval())
    torch.jit.save(scripted, str(path), _extra_files={"card.json": json.dumps(make_card(model))})
    with pytest.raises(ModelFileError, match=r"half\.pt are .*float16"):
        forcefield_ml.load(path)


def test_double_precision_works(dry: Molecules, tmp_path: Path) -> None:
    """Weights in float64 give, in OpenMM, the eager forces to more digits than float32 has."""
    model = make_model("fast").double()
    deployed = forcefield_ml.load(bundle.write(model, make_card(model), tmp_path / "double.pt"))
    species = torch.tensor([atom.element.atomic_number for atom in dry.topology.atoms()])
    expected = bundle.DeployableModel(model)(species, torch.tensor(dry.positions)).forces.detach().numpy()
    for backend in ("pythonforce", "torchforce"):
        system = bare_system(dry)
        system.addForce(deployed.create_force(dry.topology, backend=backend))
        found = forces_of(context_of(system, dry, "Reference"))
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-9
