"""The fast model as TorchScript, the form that is exchanged, with no compiled code of ours in it."""

from __future__ import annotations

import numpy as np
import torch

from contenders.fast import CONFIG
from contenders.interface import Contender, Setting
from contenders.ours import about, network
from forcefield_ml.deploy.model_file.script import DeployableModel


class Scripted(Contender):
    """A scripted `DeployableModel`."""

    warmup = 3

    def __init__(self, setting: Setting):
        torch.set_num_threads(setting.threads)
        self.device = torch.device(setting.device)
        model = network(CONFIG).eval()
        self.about = about(model, model.config, model.capabilities)
        self.module = torch.jit.freeze(torch.jit.script(DeployableModel(model).eval()).to(self.device))
        self.species = torch.from_numpy(setting.species).long().to(self.device)
        self.box = torch.from_numpy(setting.box).float().to(self.device)

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces: search and forward pass, both in the script."""
        with torch.no_grad():
            forces = self.module(self.species, torch.from_numpy(positions).to(self.device), self.box).forces
        return forces.cpu().numpy()


def make(setting: Setting) -> Scripted:
    """Return the contender."""
    return Scripted(setting)
