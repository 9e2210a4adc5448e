"""The paper's network in plain e3nn, with the weights of `paper`: what a library user would write."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch

from contenders.interface import Batch, Contender, Setting
from contenders.ours import about, network, train_step
from contenders.paper import CONFIG
from forcefield_ml.testing.e3nn_network import PlainTensorFieldNetwork, edge_list


class PlainE3nn(Contender):
    """`PlainTensorFieldNetwork` on a list of edges, which is searched at every step."""

    warmup = 2

    def __init__(self, setting: Setting):
        torch.set_num_threads(setting.threads)
        self.device = torch.device(setting.device)
        model = network(CONFIG).eval()
        self.search = model.search()
        self.network = PlainTensorFieldNetwork.from_model(model).eval().to(self.device)
        self.species = torch.from_numpy(setting.species).long().to(self.device)
        self.box = torch.from_numpy(setting.box).float().to(self.device)
        self.about = about(self.network, model.config, model.capabilities)
        self.about["versions"]["e3nn"] = version("e3nn")

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces: search and forward pass."""
        with torch.no_grad():
            edge_index, vectors = edge_list(self.search(torch.from_numpy(positions).to(self.device), self.box))
            return self.network(self.species, edge_index, vectors).cpu().numpy()

    def trainer(self, batch: Batch) -> Callable[[], None]:
        """Return a training step; neighbours are found beforehand."""
        species = torch.from_numpy(batch.species).long().to(self.device)
        edge_index, vectors = edge_list(self.search(torch.from_numpy(batch.positions).to(self.device), None))
        self.network.train()
        targets = torch.from_numpy(batch.forces).to(self.device)
        return train_step(self.network, lambda: self.network(species, edge_index, vectors), targets)


def make(setting: Setting) -> PlainE3nn:
    """Return the contender."""
    return PlainE3nn(setting)
