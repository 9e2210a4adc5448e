"""A model.pt as the field of vectors that `steps.walk` follows."""

from __future__ import annotations

from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.refinement.structure import Structure
from forcefield_ml.deploy.model import DeployedModel
from forcefield_ml.errors import ForcefieldMLError, ForceModeError, TopologyError
from forcefield_ml.refinement.steps import VectorField

PREDICTS = "refinement"
"""What the card of a model must say."""

SHOWN = 5
"""Atoms that a message names."""


def field_of(model: DeployedModel, structure: Structure) -> VectorField:
    """Return a model's vectors for the atoms of a structure.

    Parameters
    ----------
    model
        Of `forcefield_ml.load`.
    structure
        The atoms.

    Returns
    -------
    callable
        From positions (N, 3) nm to vectors (N, 3) nm.

    Raises
    ------
    ForceModeError
        If the model predicts something else.
    TopologyError
        If the model does not know an element of the structure.
    """
    predicts = model.card["predicts"]
    if predicts != PREDICTS:
        raise ForceModeError(
            f"{model.path} predicts {predicts!r}, which are forces and no displacements; refine needs a model whose "
            f"card says {PREDICTS!r}. Train one on a dataset of that task (target: {PREDICTS}) and export it"
        )
    check_elements(model.card["species"], structure)
    types, bonds = model.atom_types, structure.bonds.astype(np.int64)
    codes = structure.species.astype(np.int64) if types is None else types.codes(structure.species, bonds)
    evaluate = model.evaluator(torch.tensor(codes, device=model.device), None, bonds.tolist())

    def predict(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        vectors = evaluate(torch.tensor(positions, device=model.device), None).forces
        if vectors is None:
            raise ForcefieldMLError(f"the model {model.path} returned no vectors")
        return vectors.cpu().numpy().astype(np.float64)

    return predict


def check_elements(known: Any, structure: Structure) -> None:
    """Refuse a structure with atoms of an element that the model does not know.

    Leaving them out would show the model holes where atoms are.

    Parameters
    ----------
    known
        Atomic numbers.
    structure
        The atoms.

    Raises
    ------
    TopologyError
        If there are any; names them.
    """
    strange = np.flatnonzero(~np.isin(structure.species, list(known)))
    if not len(strange):
        return
    elements = sorted({gemmi.Element(int(structure.species[atom])).name for atom in strange})
    named = ", ".join(structure.label(int(atom)) for atom in strange[:SHOWN])
    more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
    raise TopologyError(
        f"the model does not know the element {', '.join(elements)} of {named}{more}; it was trained on "
        f"{', '.join(gemmi.Element(int(number)).name for number in known)}. Replace these residues (selenomethionine "
        "by methionine, say) or take them out of the file, or train a model on structures that have them"
    )
