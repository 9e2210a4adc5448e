"""The functions of positions that bonded terms are made of; an energy is linear in its parameters.

| kind     | functions                | energy of a class I force field                                    |
|----------|--------------------------|--------------------------------------------------------------------|
| bond     | r²/2, -r                 | k (r - r0)²/2 = k r²/2 - k r0 r, and a constant                    |
| angle    | t²/2, -t                 | k (t - t0)²/2, likewise                                            |
| proper   | cos p, ..., cos 4p       | sum of k_n (1 + cos(n p - phase)) with phases of 0 and 180 degrees |
| improper | cos 2p                   | k (1 + cos(2 p - 180 degrees))                                     |

Angles are in radians, lengths in nm. p is the dihedral angle, as OpenMM's PeriodicTorsionForce has it.
"""

from typing import Dict, List, Optional

import torch
from torch import Tensor

N_FUNCTIONS = {"bond": 2, "angle": 2, "proper": 4, "improper": 1}
"""Functions of each kind of term."""


def functions(kind: str, vectors: Tensor) -> Tensor:
    """Return (T, P) the functions of terms.

    Parameters
    ----------
    kind
        One of `terms.KINDS`.
    vectors
        (T, k - 1, 3), from each atom of a term to its next, nm.
    """
    if kind == "bond":
        r = _length(vectors[:, 0]).squeeze(1)
        return torch.stack([0.5 * r * r, -r], dim=1)
    if kind == "angle":
        one, other = -vectors[:, 0], vectors[:, 1]
        angle = torch.acos(_cosine(one, other))
        return torch.stack([0.5 * angle * angle, -angle], dim=1)
    c = _dihedral(vectors)[0]
    double = 2 * c * c - 1
    if kind == "improper":
        return double.unsqueeze(1)
    return torch.stack([c, double, c * (2 * double - 1), 2 * double * double - 1], dim=1)


def slopes(kind: str, vectors: Tensor) -> Tensor:
    """Return (T, P, k, 3) the gradients of the functions with respect to each atom of a term.

    Parameters
    ----------
    kind, vectors
        As for `functions`.
    """
    if kind == "bond":
        v = vectors[:, 0]
        each = torch.stack([v, -v / _length(v)], dim=1)
        return torch.stack([-each, each], dim=2)
    if kind == "angle":
        one, other = -vectors[:, 0], vectors[:, 1]
        r, s = _length(one), _length(other)
        cosine = _cosine(one, other)
        c = cosine.unsqueeze(1)
        sine = (1 - c * c).sqrt()
        first = (one / r * c - other / s) / (r * sine)
        last = (other / s * c - one / r) / (s * sine)
        turn = torch.stack([first, -(first + last), last], dim=1)
        angle = torch.acos(cosine)[:, None, None]
        return torch.stack([angle * turn, -turn], dim=1)
    c, s, turn = _dihedral(vectors)
    if kind == "improper":
        each = (-4 * s * c).unsqueeze(1)
    else:
        each = torch.stack([-s, -4 * s * c, -3 * s * (4 * c * c - 1), -16 * s * c * (2 * c * c - 1)], dim=1)
    return each[:, :, None, None] * turn.unsqueeze(1)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1, keepdim=True).sqrt()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return (T,) the cosine between vectors, never 1: at 0 and 180 degrees an angle's gradient has no direction."""
    limit = 1 - 5e-8
    return ((one * other).sum(1) / (_length(one) * _length(other)).squeeze(1)).clamp(-limit, limit)


def _dihedral(vectors: Tensor) -> List[Tensor]:
    """Return cosine (T,) and sine (T,) of dihedral angles, and the gradient (T, 4, 3) of the angle.

    Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), which has no singularity at 0 and 180 degrees.
    """
    f, g, h = -vectors[:, 0], -vectors[:, 1], vectors[:, 2]
    a, b = torch.linalg.cross(f, g, dim=1), torch.linalg.cross(h, g, dim=1)
    # three atoms in a line have no dihedral angle: no force there rather than an infinite one
    a2, b2 = a.square().sum(1, keepdim=True).clamp_min(1e-12), b.square().sum(1, keepdim=True).clamp_min(1e-12)
    length = _length(g)
    size = (a2 * b2).sqrt()
    c = (a * b).sum(1, keepdim=True) / size
    s = (torch.linalg.cross(b, a, dim=1) * g).sum(1, keepdim=True) / (size * length)
    first, last = -length / a2 * a, length / b2 * b
    shared = (f * g).sum(1, keepdim=True) / (a2 * length) * a - (h * g).sum(1, keepdim=True) / (b2 * length) * b
    turn = torch.stack([first, shared - first, -shared - last, last], dim=1)
    return [c.squeeze(1), s.squeeze(1), turn]


def term_vectors(atoms: Tensor, positions: Tensor, box: Optional[Tensor]) -> Tensor:
    """Return (T, k - 1, 3) the vectors from each atom of a term to its next, the shortest where there is a box.

    Parameters
    ----------
    atoms
        (T, k).
    positions
        (N, 3) nm.
    box
        (3, 3) nm, rows as OpenMM has them, or None.
    """
    vectors = positions[atoms[:, 1:]] - positions[atoms[:, :-1]]
    if box is None:
        return vectors
    for row in (2, 1, 0):
        vectors = vectors - torch.round(vectors[:, :, row : row + 1] / box[row, row]).detach() * box[row]
    return vectors


def bonded_energy(
    atoms: Dict[str, Tensor], values: Dict[str, Tensor], positions: Tensor, box: Optional[Tensor]
) -> Tensor:
    """Return the energy, () in kJ/mol, up to a constant.

    Parameters
    ----------
    atoms
        Kind to (T, k) indices.
    values
        Kind to (T, P) parameters, kJ/mol over what the functions are in.
    positions, box
        As for `term_vectors`.
    """
    energy = torch.zeros([], dtype=positions.dtype, device=positions.device)
    for kind in atoms.keys():
        energy = energy + (functions(kind, term_vectors(atoms[kind], positions, box)) * values[kind]).sum()
    return energy


def bonded_forces(
    atoms: Dict[str, Tensor], values: Dict[str, Tensor], positions: Tensor, box: Optional[Tensor]
) -> Tensor:
    """Return (N, 3) the forces, kJ/mol/nm: minus the gradient of `bonded_energy`.

    Parameters
    ----------
    atoms, values, positions, box
        As for `bonded_energy`.
    """
    forces = torch.zeros_like(positions)
    for kind in atoms.keys():
        each = slopes(kind, term_vectors(atoms[kind], positions, box))
        pulls = (values[kind][:, :, None, None] * each).sum(1)
        forces = forces.index_add(0, atoms[kind].reshape(-1), -pulls.reshape(-1, 3))
    return forces
