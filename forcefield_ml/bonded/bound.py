"""The bonded terms of one system as a module: positions in, forces out; in Python and in TorchScript."""

from typing import Any, Dict, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forcefield_ml.bonded.geometry import bonded_energy, bonded_forces
from forcefield_ml.bonded.module import table_of
from forcefield_ml.bonded.table import Parameters
from forcefield_ml.models.interface import Prediction


class BoundTerms(nn.Module):
    """Bonded terms with their parameters, of the atoms that a model sees.

    Parameters
    ----------
    parameters
        Of `BondedTable.parameters`; None for no terms.

    Attributes
    ----------
    n_terms : int
        Their number.
    """

    atoms_bond: Tensor
    atoms_angle: Tensor
    atoms_proper: Tensor
    atoms_improper: Tensor
    values_bond: Tensor
    values_angle: Tensor
    values_proper: Tensor
    values_improper: Tensor
    n_terms: int

    def __init__(self, parameters: Optional[Parameters] = None):
        super().__init__()
        parameters = Parameters.none() if parameters is None else parameters
        for kind, atoms in parameters.atoms.items():
            self.register_buffer(f"atoms_{kind}", torch.from_numpy(atoms))
            self.register_buffer(f"values_{kind}", torch.from_numpy(parameters.values[kind]))
        self.n_terms = sum(len(atoms) for atoms in parameters.atoms.values())

    def _atoms(self) -> Dict[str, Tensor]:
        return {
            "bond": self.atoms_bond,
            "angle": self.atoms_angle,
            "proper": self.atoms_proper,
            "improper": self.atoms_improper,
        }

    def _values(self) -> Dict[str, Tensor]:
        return {
            "bond": self.values_bond,
            "angle": self.values_angle,
            "proper": self.values_proper,
            "improper": self.values_improper,
        }

    def energy(self, positions: Tensor, box: Optional[Tensor] = None) -> Tensor:
        """Return the energy () in kJ/mol, float64, up to a constant; positions and box as of `forward`."""
        return bonded_energy(self._atoms(), self._values(), positions.double(), _double(box))

    def forward(self, positions: Tensor, box: Optional[Tensor] = None) -> Tensor:
        """Return the forces (N, 3) in kJ/mol/nm, float64.

        Parameters
        ----------
        positions
            (N, 3) nm.
        box
            (3, 3) nm, vectors as rows; None where there is no periodicity.
        """
        return bonded_forces(self._atoms(), self._values(), positions.double(), _double(box))

    @torch.jit.export
    def complete(
        self, prediction: Prediction, positions: Tensor, box: Optional[Tensor], targets: Optional[Tensor]
    ) -> Prediction:
        """Return what a network predicts with these terms added.

        Parameters
        ----------
        prediction
            Of the network; rows are the targets in ascending order of atom.
        positions, box
            As for `forward`.
        targets
            (N,) bool; None for all atoms.
        """
        forces, energy = prediction.forces, prediction.energy
        if self.n_terms == 0 or forces is None:
            return prediction
        own = self.forward(positions, box)
        if targets is not None:
            own = own[targets]
        if energy is not None:
            energy = energy + self.energy(positions, box)
        return Prediction(forces + own.to(forces.dtype), prediction.magnitude, energy)


def _double(box: Optional[Tensor]) -> Optional[Tensor]:
    return None if box is None else box.double()


def bound_terms(
    module: nn.Module, species: NDArray[Any], bonds: NDArray[Any], targets: NDArray[np.bool_] | None = None
) -> BoundTerms:
    """Return the bonded terms that a model, compiled or not, brings for some molecules; of no terms if it has none.

    Parameters
    ----------
    module
        The model.
    species, bonds, targets
        As for `BondedTable.parameters`.
    """
    table = table_of(module)
    return BoundTerms(None if table is None else table.parameters(species, bonds, targets))
