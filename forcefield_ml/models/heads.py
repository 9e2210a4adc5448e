"""From the backbone's features to a prediction. Shared by all architectures."""

from typing import Any, Dict, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from forcefield_ml.models.interface import Features, Prediction

BOND = 0.1
"""nm. Energies change by about a force times that."""


class HeadConfig(BaseModel):
    """What every architecture's settings begin with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: Literal["vector", "energy", "both"] = Field(
        "vector",
        description="vector: forces directly; energy: forces as minus the gradient of an energy, for an architecture "
        "that is smooth; both: one of each on one backbone, trained together and exported apart",
    )
    bonded: bool = Field(
        False,
        description="bonded terms beside the network: fitted first, then trained with it; see forcefield_ml.bonded",
    )


class VectorHead(nn.Module):
    """The paper's direct force: a linear mix of the vectors on each atom.

    F_i = s sum_c w_c v_i,c, with s the root mean square force component of the training data.
    """

    predicts = "forces"
    scale: Tensor

    def __init__(self, n_scalars: int, n_vectors: int):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(n_vectors) * n_vectors**-0.5)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Features) -> Prediction:
        """Return forces (n, 3) in kJ/mol/nm."""
        forces = torch.matmul(features.vectors, self.weights) * self.scale
        return Prediction(forces, None, None)


class MagnitudeHead(nn.Module):
    """The paper's order 0: the norm of the force alone, which no simulation can use.

    |F_i| = s softplus(sum_c w_c s_i,c + b).
    """

    predicts = "magnitude"
    scale: Tensor

    def __init__(self, n_scalars: int, n_vectors: int):
        super().__init__()
        self.linear = nn.Linear(n_scalars, 1)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Features) -> Prediction:
        """Return magnitudes (n,) in kJ/mol/nm."""
        magnitude = nn.functional.softplus(self.linear(features.scalars)[:, 0]) * self.scale
        return Prediction(None, magnitude, None)


class EnergyHead(nn.Module):
    """An energy of each atom, of which the model's forces are minus the gradient.

    E = s b sum_i sum_c w_c silu(sum_c' W_cc' s_i,c' + b_c), with b the length of a `BOND`. A constant would have no
    gradient, so there is none: energies of different molecules cannot be compared.
    """

    predicts = "energy"
    scale: Tensor

    def __init__(self, n_scalars: int, n_vectors: int):
        super().__init__()
        self.length = BOND
        self.hidden = nn.Linear(n_scalars, n_scalars)
        self.weights = nn.Parameter(torch.randn(n_scalars) * n_scalars**-0.5)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Features) -> Prediction:
        """Return the energy () of all atoms given, float64, in kJ/mol; no forces yet."""
        each = torch.matmul(nn.functional.silu(self.hidden(features.scalars)), self.weights)
        return Prediction(None, None, (each * (self.length * self.scale)).to(torch.float64).sum())


HEADS: Dict[str, Any] = {head.predicts: head for head in (VectorHead, MagnitudeHead, EnergyHead)}
