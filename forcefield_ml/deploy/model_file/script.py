"""The modules that are compiled to TorchScript: the whole model, and the model bound to a topology for TorchForce."""

from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from forcefield_ml.bonded.bound import BoundTerms
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.graph.search import whole
from forcefield_ml.graph.shells import shells
from forcefield_ml.models.interface import Atoms, Prediction
from forcefield_ml.models.model import Model


def forces_complaint(forces: Tensor, rows: Tensor, labels: List[str], max_force: float) -> str:
    """Return what is wrong with a model's forces, naming the atoms; empty where nothing is.

    Parameters
    ----------
    forces
        (n, 3) kJ/mol/nm.
    rows
        (n,) int64, the place of each atom in `labels`.
    labels
        Names of the atoms the model sees.
    max_force
        kJ/mol/nm, above which a force is absurd.
    """
    norms = forces.square().sum(1).sqrt()
    if bool((norms <= max_force).all()):  # False for NaN, too
        return ""
    infinite = ~torch.isfinite(norms)
    broken = bool(infinite.any())
    bad = torch.nonzero(infinite if broken else norms > max_force).flatten()
    if not broken:
        bad = bad[torch.argsort(norms[bad], descending=True)]
    names: List[str] = []
    for k in range(min(int(bad.shape[0]), 5)):
        value = "" if broken else " with " + str(int(norms[bad[k]]))
        names.append(labels[int(rows[bad[k]])] + value)
    if int(bad.shape[0]) > 5:
        names.append(str(int(bad.shape[0]) - 5) + " more")
    count = "1 atom" if int(bad.shape[0]) == 1 else str(int(bad.shape[0])) + " atoms"
    what = "are not finite on " + count if broken else "are above " + str(int(max_force)) + " kJ/mol/nm on " + count
    return (
        "the model's forces "
        + what
        + ": "
        + ", ".join(names)
        + ". The structure has left what the model knows: start from one minimised with the MM force field, shorten "
        "the time step, or go back to an earlier frame"
    )


def positions_complaint(positions: Tensor, labels: List[str]) -> str:
    """Return which positions, (n, 3) in the order of `labels`, are not finite; empty where all are."""
    if bool(torch.isfinite(positions.sum())):  # NaN and infinities stay in a sum
        return ""
    bad = torch.nonzero(~torch.isfinite(positions).all(1)).flatten()
    names: List[str] = []
    for k in range(min(int(bad.shape[0]), 5)):
        names.append(labels[int(bad[k])])
    if int(bad.shape[0]) > 5:
        names.append(str(int(bad.shape[0]) - 5) + " more")
    return (
        "positions are not finite: "
        + ", ".join(names)
        + ". The step before tore the structure apart: shorten the time step, or start from one that was minimised"
    )


class DeployableModel(nn.Module):
    """A model with its neighbour search: species, positions and box in, prediction out.

    Vectors between atoms are formed in the precision of the positions that come in, then rounded to the model's
    own: an atom far from the origin loses nothing.

    Parameters
    ----------
    model
        Eager, of `models.build`. The forces of the bonded terms that some bring are not in the prediction: they belong
        to a topology (`BoundForce`).
    """

    precision: Tensor

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.search = model.search()
        self.n_layers = model.capabilities.n_layers
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        self.register_buffer("precision", torch.zeros(1, dtype=dtype))

    def forward(
        self, species: Tensor, positions: Tensor, box: Optional[Tensor] = None, targets: Optional[Tensor] = None
    ) -> Prediction:
        """Predict for the targets.

        Parameters
        ----------
        species
            (N,) int64, atomic numbers.
        positions
            (N, 3) nm.
        box
            (3, 3) nm, vectors as rows; None where there is no periodicity.
        targets
            (N,) bool, the atoms to predict; None for all.

        Returns
        -------
        Prediction
            Rows are the targets, in ascending order of atom.
        """
        found = self.search(positions, box)
        neighbours = NeighbourMatrix(found.indices, found.vectors.to(self.precision.dtype), found.mask)
        if targets is None:
            sizes = whole(positions.shape[0], self.n_layers)
            return self.model(Atoms(species), neighbours, sizes)
        order, inner, sizes = shells(neighbours, targets, self.n_layers)
        return self.model(Atoms(species[order]), inner, sizes)


class BoundForce(nn.Module):
    """A loaded model bound to species, atom subset and box, with the signature that TorchForce calls.

    Parameters
    ----------
    model
        Loaded from model.pt.
    terms
        The bonded terms that it brings for these atoms.
    species
        (n,) int64, of the atoms that the model sees.
    inputs
        (n,) int64, their indices among all particles, ascending.
    targets
        (n,) bool, those whose forces are returned; all other forces are zero.
    box
        (3, 3) nm as bound, None where there is no periodicity.
    box_may_change
        Whether the forces are the gradient of an energy, so that it is returned and a barostat is allowed.
    labels
        (n,) names of the atoms for messages.
    tolerance
        nm, by which a box entry may differ from `box`.
    max_force
        kJ/mol/nm, above which a force is absurd.
    remove_net_force
        Take the mean force off every target.
    """

    species: Tensor
    inputs: Tensor
    targets: Tensor
    rows: Tensor
    box: Tensor

    def __init__(
        self,
        model: torch.jit.ScriptModule,
        terms: BoundTerms,
        species: Tensor,
        inputs: Tensor,
        targets: Tensor,
        box: Optional[Tensor],
        box_may_change: bool,
        labels: List[str],
        tolerance: float,
        max_force: float,
        remove_net_force: bool,
    ):
        super().__init__()
        self.model = model
        self.terms = terms
        self.remove_net_force = remove_net_force
        self.register_buffer("species", species)
        self.register_buffer("inputs", inputs)
        self.register_buffer("targets", targets)
        self.register_buffer("rows", inputs[targets])
        self.register_buffer("box", torch.zeros(3, 3, dtype=torch.float64) if box is None else box)
        self.periodic = box is not None
        self.box_may_change = box_may_change
        self.labels: List[str] = labels
        self.tolerance = tolerance
        self.max_force = max_force

    def forward(self, positions: Tensor, boxvectors: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Return energy () kJ/mol and forces (N, 3) kJ/mol/nm on all particles, zero on all but the targets."""
        box: Optional[Tensor] = None
        if self.periodic:
            if boxvectors is None:
                raise ValueError("the model is bound to a periodic box, but OpenMM passed none")
            box = boxvectors
            if not self.box_may_change:
                change = float((boxvectors.to(torch.float64) - self.box).abs().max())
                if not change <= self.tolerance:
                    raise ValueError(
                        "the periodic box differs by " + str(change) + " nm from the one the model was bound to, and "
                        "the model has no energy, so no barostat can act on it: run at constant volume, or bind the "
                        "model again to a topology with the box you want"
                    )
        seen = positions[self.inputs]
        complaint = positions_complaint(seen, self.labels)
        if len(complaint) > 0:
            raise ValueError(complaint)
        with torch.no_grad():  # forces come out of the model, by gradient too; TorchForce would record them for nothing
            prediction = self.model(self.species, seen, box, self.targets)
            prediction = self.terms.complete(prediction, seen, box, self.targets)
        found = prediction.forces
        if found is None:
            raise ValueError("the model returned no forces")
        complaint = forces_complaint(found, torch.nonzero(self.targets).flatten(), self.labels, self.max_force)
        if len(complaint) > 0:
            raise ValueError(complaint)
        if self.remove_net_force:
            found = found.to(torch.float64)
            found = found - found.mean(0)
        forces = torch.zeros(positions.shape[0], 3, dtype=positions.dtype, device=positions.device)
        forces[self.rows] = found.to(positions.dtype)
        energy = torch.zeros([], dtype=positions.dtype, device=positions.device)
        predicted = prediction.energy
        if predicted is not None and self.box_may_change:
            energy = predicted.to(positions.dtype)
        return energy, forces.contiguous()
