"""TorchMD-NET's TensorNet with random weights, 64 channels and one layer: forces as the gradient of an energy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from torchmdnet.models.model import create_model

from contenders.interface import CUTOFF, Batch, Contender, Setting, count

ARGUMENTS = {
    "model": "tensornet",
    "embedding_dimension": 64,
    "num_layers": 1,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "cutoff_lower": 0.0,
    "cutoff_upper": CUTOFF,
    "max_z": 20,
    "max_num_neighbors": 80,
    "equivariance_invariance_group": "O(3)",
    "static_shapes": False,
    "prior_model": None,
    "atom_filter": -1,
    "derivative": True,
    "output_model": "Scalar",
    "reduce_op": "add",
    "precision": 32,
}
"""As ``torchmd-train`` takes them."""


class TensorNet(Contender):
    """A TensorNet, which finds the neighbours by itself."""

    warmup = 2

    def __init__(self, setting: Setting):
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.device = torch.device(setting.device)
        self.model = create_model(ARGUMENTS).eval().to(self.device)
        self.species = torch.from_numpy(setting.species).long().to(self.device)
        self.box = torch.from_numpy(10.0 * setting.box).float().to(self.device)
        self.about = {
            "versions": {"torchmd-net": version("torchmd-net"), "torch": torch.__version__},
            "n_parameters": count(self.model.parameters()),
            "cutoff": f"{CUTOFF / 10} nm",
            "n_layers": ARGUMENTS["num_layers"],
            "note": "neighbours by the library's default for this model, a comparison of all pairs",
        }

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces in kJ/mol/nm, were the energy in kJ/mol."""
        places = torch.from_numpy(10.0 * positions).to(self.device)
        _, forces = self.model(self.species, places, box=self.box)
        return 10.0 * forces.detach().cpu().numpy()

    def trainer(self, batch: Batch) -> Callable[[], None]:
        """Return a training step on forces, neighbours found on the way."""
        species = torch.from_numpy(batch.species).long().to(self.device)
        targets = torch.from_numpy(0.1 * batch.forces).to(self.device)
        optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.model.train()

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            places = torch.from_numpy(10.0 * batch.positions).to(self.device)
            _, forces = self.model(species, places)
            (forces - targets).square().mean().backward()
            optimiser.step()
            if targets.is_cuda:
                torch.cuda.synchronize()

        return step


def make(setting: Setting) -> TensorNet:
    """Return the contender."""
    return TensorNet(setting)
