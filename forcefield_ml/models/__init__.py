"""Architectures, heads and the model made of them; `build` makes one from its settings."""

from forcefield_ml.models.interface import Atoms, Capabilities, Features, Prediction
from forcefield_ml.models.model import (
    ARCHITECTURES,
    Model,
    ModelConfig,
    TwoHeads,
    build,
    build_for_training,
    parse_config,
)

__all__ = [
    "ARCHITECTURES",
    "Atoms",
    "Capabilities",
    "Features",
    "Model",
    "ModelConfig",
    "Prediction",
    "TwoHeads",
    "build",
    "build_for_training",
    "parse_config",
]
