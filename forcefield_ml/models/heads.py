"""From the backbone's features to a prediction. Shared by all architectures."""

from typing import Any, Dict

import torch
from torch import Tensor, nn

from forcefield_ml.models.interface import Features, Prediction


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


HEADS: Dict[str, Any] = {head.predicts: head for head in (VectorHead, MagnitudeHead)}
