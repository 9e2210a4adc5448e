"""Periodic boxes that keep a protein away from its copies."""

from __future__ import annotations

from itertools import product
from math import gcd, sqrt
from typing import Literal

import numpy as np

from data_pipeline.systems import box_width

BoxShape = Literal["cube", "dodecahedron", "octahedron"]
BoxFit = Literal["sphere", "protein"]
"""What padding is counted from. sphere: the sphere around the protein, which may then turn as it likes; protein: the
protein as it lies, turned to need the smallest box, for runs too short for it to turn."""

UNIT_BOXES = {
    "cube": np.eye(3),
    "dodecahedron": np.array([[1, 0, 0], [0, 1, 0], [1 / 2, 1 / 2, sqrt(2) / 2]]),
    "octahedron": np.array([[1, 0, 0], [1 / 3, 2 * sqrt(2) / 3, 0], [-1 / 3, sqrt(2) / 3, sqrt(6) / 3]]),
}
"""Reduced box vectors as rows for a distance of 1 between nearest copies."""

_N_ORIENTATIONS = 200

_MARGIN = 1e-3
"""Relative widening of a box that is made just wide enough for a cutoff, for rounding in files."""


def box_vectors(
    positions: np.ndarray, padding: float, *, box_shape: BoxShape, box_fit: BoxFit = "sphere", cutoff: float = 0.9
) -> np.ndarray:
    """Return reduced box vectors as rows, (3, 3) in nm, that keep a protein away from its copies.

    Parameters
    ----------
    positions
        (N, 3) in nm.
    padding
        nm between the protein and each of its copies; the box is at least twice as wide.
    box_shape
        One of `UNIT_BOXES`.
    box_fit
        See `BoxFit`. For ``"protein"``, two parallel planes `padding` apart separate the protein from every copy.
    cutoff
        nm; the box is at least twice as wide.
    """
    unit_box = UNIT_BOXES[box_shape]
    if box_fit == "sphere":
        centre = (positions.min(axis=0) + positions.max(axis=0)) / 2
        width = 2 * np.linalg.norm(positions - centre, axis=1).max() + padding
    else:
        width = _width_between_planes(positions, padding, unit_box, np.eye(3)[None])[0]
    smallest = 2 * cutoff / box_width(unit_box) * (1 + _MARGIN)
    return max(float(width), 2 * padding, smallest) * unit_box


def best_orientation(positions: np.ndarray, padding: float, box_shape: BoxShape) -> np.ndarray:
    """Return the rotation (3, 3), to be applied from the right, that needs the smallest box of many at random."""
    q, r = np.linalg.qr(np.random.default_rng(0).normal(size=(_N_ORIENTATIONS, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    rotations = q * np.sign(np.linalg.det(q))[:, None, None]  # in three dimensions -1 turns a mirror into a rotation
    return rotations[int(np.argmin(_width_between_planes(positions, padding, UNIT_BOXES[box_shape], rotations)))]


def _width_between_planes(
    positions: np.ndarray, padding: float, unit_box: np.ndarray, rotations: np.ndarray
) -> np.ndarray:
    """Return for each of (R, 3, 3) rotations the distance of nearest copies that leaves the padding, (R,) in nm."""
    steps = [n for n in product(range(-2, 3), repeat=3) if n > (0, 0, 0) and gcd(*n) == 1]
    lattice = np.array(steps) @ unit_box
    lengths = np.linalg.norm(lattice, axis=1)
    directions = lattice / lengths[:, None]
    return np.array(
        [np.max((np.ptp(positions @ (rotation @ directions.T), axis=0) + padding) / lengths) for rotation in rotations]
    )
