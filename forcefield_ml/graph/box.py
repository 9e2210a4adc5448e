"""Periodic boxes: shape, heights and the smallest box that a cutoff allows. `heights` compiles to TorchScript."""

from typing import List

import torch
from torch import Tensor

from forcefield_ml.errors import BoxError


def heights(box: Tensor) -> Tensor:
    """Return the distances between opposite faces of a triclinic box.

    h_a = V / |b x c|, and so on around.

    Parameters
    ----------
    box
        (3, 3) nm, vectors as rows.

    Returns
    -------
    Tensor
        (3,) nm.
    """
    volume = torch.det(box).abs()
    faces: List[Tensor] = []
    for axis in range(3):
        faces.append(torch.linalg.cross(box[(axis + 1) % 3], box[(axis + 2) % 3]).norm())
    return volume / torch.stack(faces)


def check_box(box: Tensor, cutoff: float) -> None:
    """Refuse a box in which an atom could meet two images of one neighbour.

    Parameters
    ----------
    box
        (3, 3) nm, vectors as rows.
    cutoff
        nm.

    Raises
    ------
    BoxError
        If the box is not three finite, independent vectors, or is lower than twice the cutoff.
    """
    if tuple(box.shape) != (3, 3) or not bool(torch.isfinite(box).all()):
        raise BoxError(f"a periodic box must be three finite vectors as rows, shape (3, 3); got {box.tolist()}")
    smallest = float(heights(box.double()).min())
    if not smallest > 0:
        raise BoxError(f"the box vectors {box.tolist()} span no volume; give three independent vectors in nm")
    if smallest < 2 * cutoff:
        raise BoxError(
            f"the box is {smallest:.3f} nm high at its narrowest, less than twice the cutoff of {cutoff:.3f} nm: "
            f"an atom would meet two images of the same neighbour. Use a box of at least {2 * cutoff:.3f} nm "
            "(more solvent padding) or a model with a shorter cutoff"
        )
