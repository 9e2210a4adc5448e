"""A model: a backbone, a head, and what is needed to build both again."""

from typing import Any, Dict, List, Union

import torch
from pydantic import ValidationError
from torch import nn

from forcefield_ml.errors import ConfigError, closest
from forcefield_ml.graph import NeighbourMatrix, NeighbourSearch
from forcefield_ml.models.fast import FastConfig, FastNetwork
from forcefield_ml.models.heads import HEADS
from forcefield_ml.models.interface import Atoms, Capabilities, Prediction
from forcefield_ml.models.tfn import TensorFieldConfig, TensorFieldNetwork

ARCHITECTURES: Dict[str, Any] = {"tfn": TensorFieldNetwork, "fast": FastNetwork}
"""Every architecture by name; one file each. A class gives ``Config`` and ``capabilities(config)``."""

ModelConfig = Union[TensorFieldConfig, FastConfig]


class Model(nn.Module):
    """Predict a vector, or its magnitude, on each atom.

    Parameters
    ----------
    config
        Settings of one of `ARCHITECTURES`.

    Attributes
    ----------
    capabilities : Capabilities
        What tests, guards and the card read.
    config : dict
        Plain values from which `build` makes the same model.
    predicts : str
        ``"forces"`` or ``"magnitude"``.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        architecture = ARCHITECTURES[config.architecture]
        self.backbone = architecture(config)
        self.predicts = "forces" if self.backbone.n_vectors > 0 else "magnitude"
        self.head = HEADS[self.predicts](self.backbone.n_scalars, self.backbone.n_vectors)
        self._capabilities = architecture.capabilities(config)
        self._config = config.model_dump(mode="json")

    @property
    @torch.jit.unused
    def capabilities(self) -> Capabilities:
        """What this model can do and needs."""
        return self._capabilities

    @property
    @torch.jit.unused
    def config(self) -> Dict[str, Any]:
        """The configuration as plain values."""
        return self._config

    def forward(self, atoms: Atoms, neighbours: NeighbourMatrix, layer_sizes: List[int]) -> Prediction:
        """Return the prediction for the first ``layer_sizes[-1]`` atoms.

        Parameters
        ----------
        atoms
            Of all n_0 atoms that a row of the neighbour matrix names.
        neighbours
            At least ``layer_sizes[0]`` rows.
        layer_sizes
            Atoms that each layer is computed for, falling; see `graph.shells`.
        """
        return self.head(self.backbone(atoms, neighbours, layer_sizes))

    @torch.jit.unused
    def search(self) -> NeighbourSearch:
        """Return the neighbour search this model was made for."""
        wanted = self._capabilities
        return NeighbourSearch(wanted.neighbours, n_neighbours=wanted.n_neighbours, cutoff=wanted.cutoff)

    @torch.jit.unused
    def set_scale(self, scale: float) -> None:
        """Set the scale of the output: the root mean square of the targets' components, kJ/mol/nm for forces."""
        self.head.get_buffer("scale").fill_(scale)


def parse_config(config: Union[ModelConfig, Dict[str, Any]]) -> ModelConfig:
    """Return the typed settings of a model.

    Parameters
    ----------
    config
        Typed settings, or a mapping with the key ``architecture`` and any settings that differ from the defaults.

    Raises
    ------
    ConfigError
        If the architecture is unknown or a setting is unknown or out of range.
    """
    if not isinstance(config, dict):
        return config
    name = str(config.get("architecture", ""))
    if name not in ARCHITECTURES:
        raise ConfigError(f"no architecture {name!r}.{closest(name, ARCHITECTURES)} Set model.architecture to one")
    try:
        return ARCHITECTURES[name].Config(**config)
    except ValidationError as error:
        fields = ARCHITECTURES[name].Config.model_fields
        details = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            hint = closest(key, fields) if item["type"] == "extra_forbidden" else ""
            details.append(f"model.{key} = {item['input']!r}: {item['msg']}.{hint}")
        raise ConfigError("; ".join(details)) from None


def build(config: Union[ModelConfig, Dict[str, Any]]) -> Model:
    """Return a model with fresh weights.

    Parameters
    ----------
    config
        As for `parse_config`.

    Raises
    ------
    ConfigError
        As `parse_config`.
    """
    return Model(parse_config(config))
