"""How well a model turns its forces with the atoms, and how far they are from balancing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forcefield_ml.data import Sample
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.script import DeployableModel
from forcefield_ml.training import checkpoint as files


def load_module(path: Path) -> torch.nn.Module:
    """Return a model with its neighbour search, called with species, positions, box and targets.

    Parameters
    ----------
    path
        A checkpoint or a model.pt.

    Raises
    ------
    ModelFileError
        If it is neither.
    """
    if files.is_torchscript(path):
        return bundle.read(path)[1]
    model, _ = files.load_model(path)
    return DeployableModel(model).eval()  # type: ignore[arg-type]


def symmetry(module: torch.nn.Module, sample: Sample, seed: int = 0) -> dict[str, Any] | None:
    """Return how far forces are from turning with the atoms, and how far they are from summing to zero.

    rotation_error = |F(R x) - R F(x)| / |F(x)| over the target atoms, R a random rotation with a reflection, the
    box left out (it would have to turn too); net_force = |sum F_i| / sum |F_i| over the target atoms in their box.

    Parameters
    ----------
    module
        Of `load_module`.
    sample
        A frame of a dataset.
    seed
        Of the rotation.

    Returns
    -------
    dict or None
        ``rotation_error``, ``net_force``, ``reference_net_force``, ``entry``, ``atoms``; None for a model that
        predicts no vectors.
    """
    species = torch.from_numpy(sample.entry.species.astype(np.int64))
    targets = torch.from_numpy(sample.entry.target_mask)
    positions = torch.from_numpy(np.ascontiguousarray(sample.positions, dtype=np.float64))
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    rotation = -rotation * torch.det(rotation)  # one determinant for every seed: -1
    box = None if sample.box is None else torch.from_numpy(np.asarray(sample.box, dtype=np.float64))
    with torch.no_grad():
        inside = module(species, positions, box, targets).forces
        if inside is None:
            return None
        straight = module(species, positions, None, targets).forces.double()
        turned = module(species, positions @ rotation.T, None, targets).forces.double()
    return {
        "entry": sample.entry.name,
        "atoms": int(targets.sum()),
        "rotation_error": float((turned - straight @ rotation.T).norm() / straight.norm()),
        "net_force": _net(inside.double().numpy()),
        "reference_net_force": _net(sample.forces[sample.entry.target_mask].astype(np.float64)),
    }


def _net(forces: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(forces.sum(axis=0)) / np.linalg.norm(forces, axis=1).sum())
