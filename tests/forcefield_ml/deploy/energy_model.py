"""A model file with an energy: no architecture of the package has one yet, but what is deployed must serve one."""

import json
from pathlib import Path
from typing import Any

import torch
from deploy_helpers import make_model
from torch import Tensor

from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.models.interface import Prediction


class Springs(torch.nn.Module):
    """U = 500 sum_i |r_i - c|^2 kJ/mol/nm^2 with the centroid c, in the form of `script.DeployableModel`."""

    precision: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("precision", torch.zeros(1, dtype=torch.float64))

    def forward(
        self, species: Tensor, positions: Tensor, box: Tensor | None = None, targets: Tensor | None = None
    ) -> Prediction:
        """Predict for all atoms."""
        away = positions - positions.mean(0)
        return Prediction(-1000.0 * away, None, 500.0 * (away * away).sum())


def write_energy_model(folder: Path, **card: Any) -> Path:
    """Write `Springs` with the card of a model that has an energy."""
    about = make_card(make_model("fast"), **card) | {"energy": True, "model_config": {"architecture": "springs"}}
    path = folder / "springs.pt"
    torch.jit.save(torch.jit.script(Springs()), str(path), _extra_files={"card.json": json.dumps(about)})
    return path
