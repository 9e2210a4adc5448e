"""What goes into a model and what comes out.

A model is a backbone, which yields scalars and vectors on atoms, and a head, which makes the prediction of them.
Both run on a dense `NeighbourMatrix`. ``layer_sizes`` lets a caller that wants the forces on some atoms only
leave out what those forces do not depend on: atoms are ordered so that layer l's output is needed for the first
``layer_sizes[l]`` atoms alone (`graph.shells` makes that order). For a whole system every entry is N.

A force that is the gradient of an energy depends on atoms twice as far: the energies of all atoms within L layers of
an atom feel it move, and each sees L layers further. Its model has 2 L entries; the backbone runs on the first L.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional, Tuple

from torch import Tensor


@dataclass(frozen=True)
class Capabilities:
    """What an architecture, as configured, can do and needs; tests and guards read it.

    Attributes
    ----------
    neighbours
        ``"nearest"`` or ``"cutoff"``.
    n_layers
        Hops over neighbours that a prediction depends on, which is the length of ``layer_sizes``: the message passing
        layers, of a model with an energy twice as many.
    n_neighbours
        K of a nearest graph, else 0.
    cutoff
        nm of a cutoff graph, else 0.
    parity
        ``"O3"`` if the prediction respects reflections, ``"SO3"`` if only rotations.
    smooth
        True if the prediction changes smoothly as atoms enter and leave the neighbourhood.
    max_order
        Largest tensor order inside.
    elements
        Atomic numbers it accepts.
    """

    neighbours: str
    n_layers: int
    n_neighbours: int
    cutoff: float
    parity: str
    smooth: bool
    max_order: int
    elements: Tuple[int, ...]


class Atoms(NamedTuple):
    """What a model knows of the atoms besides where they are.

    Attributes
    ----------
    species
        (N,) int64, atomic numbers; for a model of atom types their codes (`nn.atom_types.CODE_STEP`).
    """

    species: Tensor


class Features(NamedTuple):
    """What a backbone yields for the first n atoms.

    Attributes
    ----------
    scalars
        (n, C), invariant.
    vectors
        (n, 3, C'), equivariant, components x, y, z; C' = 0 for a backbone of order 0.
    """

    scalars: Tensor
    vectors: Tensor


class Prediction(NamedTuple):
    """What a head predicts for the first n atoms; what it does not predict is None.

    Attributes
    ----------
    forces
        (n, 3), kJ/mol/nm.
    magnitude
        (n,), kJ/mol/nm: the norm of the force alone (the paper's order 0).
    energy
        (), kJ/mol.
    """

    forces: Optional[Tensor]  # TorchScript reads Optional[...], not X | None
    magnitude: Optional[Tensor]
    energy: Optional[Tensor]
