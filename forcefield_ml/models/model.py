"""A model: a backbone, a head, and what is needed to build both again."""

from dataclasses import replace
from typing import Any, Dict, Final, List, Tuple, Union

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from forcefield_ml import kernels
from forcefield_ml.bonded.module import Bonded, TermBatch
from forcefield_ml.errors import ConfigError, closest
from forcefield_ml.graph import NeighbourMatrix, NeighbourSearch
from forcefield_ml.models.fast import FastConfig, FastNetwork
from forcefield_ml.models.heads import HEADS
from forcefield_ml.models.interface import Atoms, Capabilities, Prediction
from forcefield_ml.models.tfn import TensorFieldConfig, TensorFieldNetwork
from forcefield_ml.nn.normalisation import EquivariantNorm

ARCHITECTURES: Dict[str, Any] = {"tfn": TensorFieldNetwork, "fast": FastNetwork}
"""Every architecture by name; one file each. A class gives ``Config`` and ``capabilities(config)``."""

ModelConfig = Union[TensorFieldConfig, FastConfig]


class Model(nn.Module):
    """Predict a vector, or its magnitude, on each atom; directly, or as minus the gradient of an energy.

    Parameters
    ----------
    config
        Settings of one of `ARCHITECTURES`, with one head.
    backbone, bonded
        Of another model, to share; None makes one.

    Attributes
    ----------
    capabilities : Capabilities
        What tests, guards and the card read.
    config : dict
        Plain values from which `build` makes the same model.
    predicts : str
        ``"forces"``, ``"magnitude"``, or ``"energy"``: forces that are the gradient of one.

    Raises
    ------
    ConfigError
        If an energy is asked of an architecture whose prediction is not smooth.
    """

    conservative: Final[bool]
    n_layers: int

    def __init__(self, config: ModelConfig, backbone: Any = None, bonded: "Bonded | None" = None):
        super().__init__()
        architecture = ARCHITECTURES[config.architecture]
        capabilities = architecture.capabilities(config)
        self.n_layers = capabilities.n_layers
        self.conservative = config.head == "energy"
        if self.conservative:
            _require_smooth(config, capabilities)
            capabilities = replace(capabilities, n_layers=2 * capabilities.n_layers)
        self.backbone = architecture(config) if backbone is None else backbone
        direct = "forces" if self.backbone.n_vectors > 0 else "magnitude"
        self.predicts = "energy" if self.conservative else direct
        self.head = HEADS[self.predicts](self.backbone.n_scalars, self.backbone.n_vectors)
        if self.conservative:
            for part in self.backbone.modules():
                if isinstance(part, EquivariantNorm):
                    part.constant = True
        self.bonded = (bonded or Bonded()) if config.bonded else None
        self._capabilities = capabilities
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

    @property
    @torch.jit.unused
    def parts(self) -> "Dict[str, Model]":
        """The models that are trained together, by their head: here this one alone."""
        return {self._config["head"]: self}

    def forward(self, atoms: Atoms, neighbours: NeighbourMatrix, layer_sizes: List[int]) -> Prediction:
        """Return the prediction for the first ``layer_sizes[-1]`` atoms; the energy is that of all that they move.

        For a whole system that is its energy, for a part of one it has no meaning.

        Parameters
        ----------
        atoms
            Of all n_0 atoms that a row of the neighbour matrix names.
        neighbours
            At least ``layer_sizes[0]`` rows.
        layer_sizes
            Atoms that each layer is computed for, falling; see `graph.shells`. Of more entries than there are hops the
            last ones count.
        """
        if self.conservative:
            return self._differentiate(atoms, neighbours, layer_sizes)
        return self.head(self.backbone(atoms, neighbours, layer_sizes[-self.n_layers :]))

    def _differentiate(self, atoms: Atoms, neighbours: NeighbourMatrix, layer_sizes: List[int]) -> Prediction:
        """Return energy and forces; where no gradient is recorded outside, they are plain numbers."""
        recorded = torch.is_grad_enabled()
        vectors = neighbours.vectors
        wanted = vectors.requires_grad  # second derivatives, which the kernels do not have
        if not wanted:
            vectors = vectors.detach().requires_grad_(True)
        pairs = NeighbourMatrix(neighbours.indices, vectors, neighbours.mask)
        if torch.jit.is_scripting():  # TorchScript does not know enable_grad
            torch.set_grad_enabled(True)
            energy, slope = self._slope(atoms, pairs, layer_sizes, recorded)
            torch.set_grad_enabled(recorded)
        else:
            by_kernels = kernels.plain_form() if wanted and recorded else kernels.slopes(recorded)
            with torch.enable_grad(), by_kernels:
                energy, slope = self._slope(atoms, pairs, layer_sizes, recorded)
        # r_ij = r_j - r_i: j is pulled by -dE/dr_ij, i by the opposite
        own = nn.functional.pad(slope.sum(1), [0, 0, 0, atoms.species.shape[0] - slope.shape[0]])
        forces = own.index_add(0, neighbours.indices.reshape(-1), -slope.reshape(-1, 3))
        return Prediction(forces[: layer_sizes[-1]], None, energy)

    def _slope(
        self, atoms: Atoms, pairs: NeighbourMatrix, layer_sizes: List[int], recorded: bool
    ) -> Tuple[Tensor, Tensor]:
        """Return the energy () and its derivatives (n_rows, K, 3) by the vectors of the pairs."""
        energy = self.head(self.backbone(atoms, pairs, layer_sizes[: self.n_layers])).energy
        assert energy is not None
        slope = torch.autograd.grad([energy], [pairs.vectors], create_graph=recorded)[0]
        assert slope is not None
        return energy if recorded else energy.detach(), slope

    @torch.jit.unused
    def whole(self, prediction: Prediction, terms: "TermBatch | None") -> Prediction:
        """Return what `forward` gives with the forces of bonded terms added.

        Parameters
        ----------
        prediction
            Of the network alone.
        terms
            That move its atoms; None for a model without such terms.
        """
        if terms is None or prediction.forces is None:
            return prediction
        assert self.bonded is not None
        # bonded forces are ten times what the network gives: bfloat16 has too few digits for them
        dtype = torch.promote_types(prediction.forces.dtype, torch.float32)
        own = self.bonded(terms, prediction.forces.shape[0])
        return prediction._replace(forces=prediction.forces.to(dtype) + own.to(dtype))

    @torch.jit.unused
    def search(self) -> NeighbourSearch:
        """Return the neighbour search this model was made for."""
        wanted = self._capabilities
        return NeighbourSearch(wanted.neighbours, n_neighbours=wanted.n_neighbours, cutoff=wanted.cutoff)

    @torch.jit.unused
    def set_scale(self, scale: float) -> None:
        """Set the scale of the output: the root mean square of the targets' components, kJ/mol/nm for forces."""
        self.head.get_buffer("scale").fill_(scale)


class TwoHeads(nn.Module):
    """A direct model and a conservative one on the same backbone, to be trained together.

    For use they are two models (`parts`): the direct one costs what it costs alone.

    Parameters
    ----------
    config
        Settings of one of `ARCHITECTURES`, with ``head`` both.

    Raises
    ------
    ConfigError
        As `Model`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.vector = Model(config.model_copy(update={"head": "vector"}))
        self.energy = Model(config.model_copy(update={"head": "energy"}), self.vector.backbone, self.vector.bonded)
        self.config = config.model_dump(mode="json")

    @property
    def capabilities(self) -> Capabilities:
        """What the conservative model needs, which is more."""
        return self.energy.capabilities

    @property
    def predicts(self) -> str:
        """Both are judged as vectors."""
        return "forces"

    @property
    def parts(self) -> Dict[str, Model]:
        """The models by their head."""
        return {"vector": self.vector, "energy": self.energy}

    def search(self) -> NeighbourSearch:
        """Return the neighbour search that both were made for."""
        return self.energy.search()

    def set_scale(self, scale: float) -> None:
        """Set the scale of both; see `Model.set_scale`."""
        for part in self.parts.values():
            part.set_scale(scale)


def _require_smooth(config: ModelConfig, capabilities: Capabilities) -> None:
    if not capabilities.smooth:
        smooth = [name for name in ARCHITECTURES if name != config.architecture]
        raise ConfigError(
            f"model.head = {config.head!r} needs a network that changes smoothly as atoms enter and leave, for its "
            f"energy would jump otherwise; {config.architecture!r} sees the nearest atoms by number. Choose "
            f"model.architecture: {' or '.join(smooth)}, or head: vector"
        )


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
        As for `parse_config`, with one head.

    Raises
    ------
    ConfigError
        As `parse_config`, or if the architecture has no such head.
    """
    parsed = parse_config(config)
    if parsed.head == "both":
        raise ConfigError("model.head = 'both' is two models, for training alone; take head: vector or energy of it")
    return Model(parsed)


def build_for_training(config: Union[ModelConfig, Dict[str, Any]]) -> Union[Model, TwoHeads]:
    """Return what is trained together: a model as of `build`, or two on one backbone where ``head`` is both."""
    parsed = parse_config(config)
    return TwoHeads(parsed) if parsed.head == "both" else build(parsed)
