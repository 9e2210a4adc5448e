"""A model on one system: positions in, forces out, step after step."""

from __future__ import annotations

import torch
from torch import Tensor

from forcefield_ml.bonded.bound import BoundTerms
from forcefield_ml.errors import ConfigError
from forcefield_ml.graph import NeighbourList, NeighbourMatrix
from forcefield_ml.models.interface import Atoms, Prediction
from forcefield_ml.models.model import Model


class Evaluator:
    """Evaluate a model along a trajectory of one system; the same forces as `script.DeployableModel` gives.

    Neighbours are searched anew only when atoms have moved far (`graph.NeighbourList`); shapes stay the same from
    step to step. On the CPU in float32 the compiled kernels serve, see `kernels`.

    Parameters
    ----------
    model
        Eager, of `models.build`, in eval mode; on the device where it shall run.
    species
        (N,) int64, atomic numbers.
    targets
        (N,) bool, the atoms to predict; None for all.
    skin
        nm, of the neighbour list; None takes its default.
    terms
        The bonded terms that the model brings for these atoms (`bonded.bound.bound_terms`); None for no terms.

    Raises
    ------
    ConfigError
        If the model's weights are neither float32 nor float64, or it is in training mode.

    Attributes
    ----------
    neighbour_list : NeighbourList
        Its statistics tell how often neighbours were searched, and what that took.
    """

    def __init__(
        self,
        model: Model,
        species: Tensor,
        targets: Tensor | None = None,
        skin: float | None = None,
        terms: BoundTerms | None = None,
    ):
        can = model.capabilities
        dtype = next(model.parameters()).dtype
        if model.training:
            raise ConfigError(
                "the model is in training mode: its forces would depend on all atoms, and change it; call model.eval()"
            )
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"the model's weights are {dtype}; a force needs torch.float32 (fast) or torch.float64: model.float()"
            )
        self.neighbour_list = NeighbourList(
            can.neighbours, can.n_neighbours, can.cutoff, can.n_layers, skin=skin, targets=targets, dtype=dtype
        )
        if model.bonded is not None and terms is None:
            raise ConfigError(
                "the model brings bonded terms, which species do not tell: its network alone would give forces without "
                "them. Pass terms=forcefield_ml.bonded.bound.bound_terms(model, species, bonds)"
            )
        self._model, self._species, self._targets = model, species, targets
        self._terms = BoundTerms() if terms is None else terms
        self._atoms: Atoms | None = None
        self._searches = 0

    def __call__(self, positions: Tensor, box: Tensor | None = None) -> Prediction:
        """Return the prediction; its rows are the targets in ascending order of atom.

        Parameters
        ----------
        positions
            (N, 3) nm, float64 for full precision; need not lie inside the box.
        box
            (3, 3) nm, vectors as rows; None where there is no periodicity.

        Raises
        ------
        ValueError
            If positions are not finite or not as many as species, or the box is lower than twice the cutoff.
        """
        if len(positions) != len(self._species):
            raise ValueError(f"there are positions of {len(positions)} atoms, but the species of {len(self._species)}")
        with torch.no_grad():
            found = self.neighbour_list(positions, box)
            if self._atoms is None or self._searches != self.neighbour_list.statistics.rebuilds:
                self._atoms = Atoms(self._species[found.order])
                self._searches = self.neighbour_list.statistics.rebuilds
            prediction = self._model(self._atoms, NeighbourMatrix(*found.neighbours), found.layer_sizes)
            prediction = Prediction(
                None if prediction.forces is None else prediction.forces[found.ascending],
                None if prediction.magnitude is None else prediction.magnitude[found.ascending],
                prediction.energy,
            )
            return self._terms.complete(prediction, positions, box, self._targets)
