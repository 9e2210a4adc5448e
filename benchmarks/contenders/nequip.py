"""NequIP's smallest preset with random weights: forces as the gradient of an energy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from nequip.data import AtomicDataDict, compute_neighborlist_, from_dict
from nequip.model.nequip_models import PresetNequIPGNNModel
from nequip.utils.global_state import set_global_state

from contenders.interface import CUTOFF, NEIGHBOURS, SPECIES, Batch, Contender, Setting, count

PRESET = "S"
"""Two layers, harmonics to order 1, 128 scalars and 64 vectors."""


class Nequip(Contender):
    """A NequIP network; neighbours by the library's default search."""

    def __init__(self, setting: Setting):
        torch.set_num_threads(setting.threads)
        set_global_state()
        self.device = torch.device(setting.device)
        self.model = PresetNequIPGNNModel(
            preset=PRESET,
            seed=0,
            model_dtype="float32",
            type_names=[f"Z{number}" for number in SPECIES],
            r_max=CUTOFF,
            avg_num_neighbors=NEIGHBOURS,
            per_type_energy_scales=1.0,
            per_type_energy_shifts=0.0,
            compile_mode="eager",
        ).to(self.device)
        self.types, self.box = self._types(setting.species), 10.0 * setting.box
        self.model.eval()
        self.about = {
            "versions": {"nequip": version("nequip"), "torch": torch.__version__, "e3nn": version("e3nn")},
            "n_parameters": count(self.model.parameters()),
            "cutoff": f"{CUTOFF / 10} nm",
            "n_layers": 2,
        }

    def _types(self, species: np.ndarray) -> torch.Tensor:
        place = {number: index for index, number in enumerate(SPECIES)}
        return torch.tensor([place[number] for number in species.tolist()])

    def _graph(self, types: torch.Tensor, positions: np.ndarray, box: np.ndarray | None) -> AtomicDataDict.Type:
        """Return the graph as the model takes it."""
        values = {
            AtomicDataDict.POSITIONS_KEY: torch.from_numpy(10.0 * positions.astype(np.float64)),
            AtomicDataDict.ATOM_TYPE_KEY: types,
            AtomicDataDict.PBC_KEY: box is not None,
        }
        if box is not None:
            values[AtomicDataDict.CELL_KEY] = torch.from_numpy(box)
        graph = compute_neighborlist_(from_dict(values), CUTOFF)
        return AtomicDataDict.to_(graph, self.device)

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces in kJ/mol/nm, were the energy in kJ/mol."""
        found = self.model(self._graph(self.types, positions, self.box))
        return 10.0 * found[AtomicDataDict.FORCE_KEY].detach().cpu().numpy()

    def trainer(self, batch: Batch) -> Callable[[], None]:
        """Return a training step on forces; the graph is made beforehand, as NequIP's data loader does."""
        graph = self._graph(self._types(batch.species), batch.positions, None)
        targets = torch.from_numpy(0.1 * batch.forces).to(self.device)
        self.model.train()
        optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            forces = self.model(dict(graph))[AtomicDataDict.FORCE_KEY]
            (forces - targets).square().mean().backward()
            optimiser.step()
            if targets.is_cuda:
                torch.cuda.synchronize()

        return step


def make(setting: Setting) -> Nequip:
    """Return the contender."""
    return Nequip(setting)
