"""How well a model turns and renumbers its forces with the atoms, and how far they are from balancing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forcefield_ml.bonded.bound import BoundTerms, bound_terms
from forcefield_ml.data import Sample
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.script import DeployableModel
from forcefield_ml.models.interface import Prediction
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


class Probed:
    """The forces on a block of target atoms as a function of where these atoms are; all others stay.

    Called with positions (n, 3) nm, float64, it returns forces (n, 3) kJ/mol/nm and can be differentiated twice.

    Parameters
    ----------
    module
        Of `load_module`; it is brought to double precision.
    sample
        A frame of a dataset.
    most
        Most atoms of the block: where there are more targets, those nearest to their middle.
    """

    def __init__(self, module: torch.nn.Module, sample: Sample, most: int | None = None):
        self._module = module.double()
        self._species = torch.from_numpy(sample.entry.codes)
        self._all = torch.from_numpy(np.ascontiguousarray(sample.positions, dtype=np.float64))
        self._box = None if sample.box is None else torch.from_numpy(np.asarray(sample.box, dtype=np.float64))
        block = np.flatnonzero(sample.entry.target_mask)
        if most is not None and len(block) > most:
            places = sample.positions[block].astype(np.float64)
            distance = np.linalg.norm(places - places.mean(axis=0), axis=1)
            block = np.sort(block[np.argsort(distance, kind="stable")[:most]])
        self.block: NDArray[np.int64] = block
        self._rows = torch.from_numpy(block)
        self._targets = torch.zeros(len(self._species), dtype=torch.bool)
        self._targets[self._rows] = True
        self.positions = self._all[self._rows]
        self._terms = bound_terms(module, sample.entry.species, sample.entry.bonds, self._targets.numpy())

    def __call__(self, positions: Tensor) -> Tensor:
        """Return the forces (n, 3)."""
        everywhere = self._all.index_put((self._rows,), positions)
        found = Prediction(*self._module(self._species, everywhere, self._box, self._targets))
        forces = self._terms.complete(found, everywhere, self._box, self._targets).forces
        assert forces is not None
        return forces


def symmetry(module: torch.nn.Module, sample: Sample, seed: int = 0) -> dict[str, Any] | None:
    """Return how far forces are from turning and being renumbered with the atoms, and from summing to zero.

    rotation_error = |F(R x) - R F(x)| / |F(x)| over the target atoms, R a random rotation with a reflection, the
    box left out (it would have to turn too); permutation_error likewise with the atoms in another order, in their
    box; net_force = |sum F_i| / sum |F_i| and net_torque = |sum r_i x F_i| / sum |r_i| |F_i|, r_i from the middle of
    the target atoms, in their box.

    Parameters
    ----------
    module
        Of `load_module`.
    sample
        A frame of a dataset.
    seed
        Of the rotation and of the order.

    Returns
    -------
    dict or None
        The four, ``reference_net_force``, ``reference_net_torque``, ``entry``, ``atoms``; None for a model that
        predicts no vectors.
    """
    species = torch.from_numpy(sample.entry.codes)
    targets = torch.from_numpy(sample.entry.target_mask)
    positions = torch.from_numpy(np.ascontiguousarray(sample.positions, dtype=np.float64))
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    rotation = -rotation * torch.det(rotation)  # one determinant for every seed: -1
    order = torch.randperm(len(species), generator=generator)
    box = None if sample.box is None else torch.from_numpy(np.asarray(sample.box, dtype=np.float64))
    rank = torch.argsort(order)
    terms = bound_terms(module, sample.entry.species, sample.entry.bonds)
    others = bound_terms(module, sample.entry.species[order.numpy()], rank.numpy()[sample.entry.bonds])
    with torch.no_grad():
        inside = _forces(module, terms, species, positions, box, targets)
        if inside is None:
            return None
        straight = _forces(module, terms, species, positions, None, targets)
        turned = _forces(module, terms, species, positions @ rotation.T, None, targets)
        shuffled = _forces(module, others, species[order], positions[order], box, targets[order])
    assert straight is not None and turned is not None and shuffled is not None
    # rows of the answers belong to the targets in ascending order of atom, in either numbering
    row = torch.cumsum(targets, 0) - 1
    renumbered = inside[row[order[targets[order]]]]
    mask = sample.entry.target_mask
    places, reference = sample.positions[mask].astype(np.float64), sample.forces[mask].astype(np.float64)
    return {
        "entry": sample.entry.name,
        "atoms": int(targets.sum()),
        "rotation_error": float((turned - straight @ rotation.T).norm() / straight.norm()),
        "permutation_error": float((shuffled - renumbered).norm() / inside.norm()),
        "net_force": _net(inside.numpy()),
        "reference_net_force": _net(reference),
        "net_torque": _torque(places, inside.numpy()),
        "reference_net_torque": _torque(places, reference),
    }


def _forces(
    module: torch.nn.Module,
    terms: BoundTerms,
    species: Tensor,
    positions: Tensor,
    box: Tensor | None,
    targets: Tensor,
) -> Tensor | None:
    """Return the forces (n, 3), float64, on the targets; None of a model that predicts no vectors."""
    found = terms.complete(Prediction(*module(species, positions, box, targets)), positions, box, targets).forces
    return None if found is None else found.double()


def _net(forces: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(forces.sum(axis=0)) / np.linalg.norm(forces, axis=1).sum())


def _torque(positions: NDArray[np.float64], forces: NDArray[np.float64]) -> float:
    arms = positions - positions.mean(axis=0)
    most = (np.linalg.norm(arms, axis=1) * np.linalg.norm(forces, axis=1)).sum()
    return float(np.linalg.norm(np.cross(arms, forces).sum(axis=0)) / most)
