"""A MACE of the size of MACE-OFF-small with random weights: forces as the gradient of an energy."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import mace  # noqa: F401  before e3nn 0.4.4, which cannot read its own constants under torch >= 2.6 without it
import numpy as np
import torch
from e3nn import o3
from mace import data, modules
from mace.tools import torch_geometric
from mace.tools.utils import AtomicNumberTable

from contenders.interface import CUTOFF, NEIGHBOURS, SPECIES, Batch, Contender, Setting, count

CHANNELS = 96
"""Invariant channels of MACE-OFF-small; harmonics to order 3, correlation 3, two layers."""


class Mace(Contender):
    """A ScaleShiftMACE; neighbours by matscipy, as its data classes find them."""

    def __init__(self, setting: Setting):
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        self.device = torch.device(setting.device)
        self.table = AtomicNumberTable(list(SPECIES))
        self.model = modules.ScaleShiftMACE(
            r_max=CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=len(SPECIES),
            hidden_irreps=o3.Irreps(f"{CHANNELS}x0e"),
            MLP_irreps=o3.Irreps("16x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(len(SPECIES)),
            avg_num_neighbors=NEIGHBOURS,
            atomic_numbers=list(SPECIES),
            correlation=3,
            radial_type="bessel",
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        ).to(self.device)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)  # as MACE's own calculator does: forces need no gradient of the weights
        self.species, self.box = setting.species, 10.0 * setting.box
        self.about = {
            "versions": {"mace-torch": version("mace-torch"), "torch": torch.__version__, "e3nn": version("e3nn")},
            "n_parameters": count(self.model.parameters()),
            "cutoff": f"{CUTOFF / 10} nm",
            "n_layers": 2,
        }

    def _graph(self, species: np.ndarray, positions: np.ndarray, box: np.ndarray | None) -> dict[str, Any]:
        """Return the graph as the model takes it."""
        config = data.Configuration(
            atomic_numbers=species,
            positions=10.0 * positions.astype(np.float64),
            properties={},
            property_weights={},
            cell=np.zeros((3, 3)) if box is None else box.copy(),
            pbc=(box is not None,) * 3,
        )
        graph = data.AtomicData.from_config(config, z_table=self.table, cutoff=CUTOFF)
        return torch_geometric.Batch.from_data_list([graph]).to(self.device).to_dict()

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces in kJ/mol/nm, were the energy in kJ/mol."""
        found = self.model(self._graph(self.species, positions, self.box), compute_force=True)
        return 10.0 * found["forces"].detach().cpu().numpy()

    def trainer(self, batch: Batch) -> Callable[[], None]:
        """Return a training step on forces; the graph is made beforehand, as MACE's data loader does."""
        graph = self._graph(batch.species, batch.positions, None)
        targets = torch.from_numpy(0.1 * batch.forces).to(self.device)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            forces = self.model(dict(graph), training=True, compute_force=True)["forces"]
            (forces - targets).square().mean().backward()
            optimiser.step()
            if targets.is_cuda:
                torch.cuda.synchronize()

        return step


def make(setting: Setting) -> Mace:
    """Return the contender."""
    return Mace(setting)
