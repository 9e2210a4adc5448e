"""The model that ships, its atom types and bonded terms included, as OpenMM runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
import torch

import forcefield_ml
from contenders.interface import Contender, Setting, count
from forcefield_ml import pretrained
from forcefield_ml.deploy.model_file import bundle


class Shipped(Contender):
    """`forcefield_ml.load()`, told the bonds of the workload's System."""

    def __init__(self, setting: Setting):
        torch.set_num_threads(setting.threads)
        model = forcefield_ml.load(device=setting.device)
        self.device = torch.device(setting.device)
        bonds = bonds_of(setting)
        assert model.atom_types is not None
        codes = torch.from_numpy(model.atom_types.codes(setting.species, bonds)).to(self.device)
        self.evaluator = model.evaluator(codes, bonds=bonds.tolist())
        self.box = torch.from_numpy(setting.box).to(self.device)
        _, module, _ = bundle.read(pretrained.path(pretrained.DEFAULT))
        self.about: dict[str, Any] = {
            "versions": {"forcefield-ml": forcefield_ml.__version__, "torch": torch.__version__},
            "n_parameters": count(module.parameters()),
            "cutoff": f"{model.card['neighbours']['cutoff']} nm",
            "n_layers": model.card["neighbours"]["n_layers"],
            "config": model.card["model_config"],
        }

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces as a simulation gets them: neighbours from a list with a skin, network and bonded terms."""
        forces: torch.Tensor = self.evaluator(torch.from_numpy(positions).to(self.device), self.box).forces
        return forces.cpu().numpy()


def bonds_of(setting: Setting) -> np.ndarray:
    """Return the bonds (B, 2) of the workload, those of every copy."""
    system = openmm.XmlSerializer.deserialize(setting.system.read_text(encoding="utf-8"))
    (force,) = (force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))
    one = np.array([force.getBondParameters(i)[:2] for i in range(force.getNumBonds())], dtype=np.int64)
    copies = np.arange(setting.n_copies)[:, None, None] * system.getNumParticles()
    return (copies + one).reshape(-1, 2)


def make(setting: Setting) -> Shipped:
    """Return the contender."""
    return Shipped(setting)
