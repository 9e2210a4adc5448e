"""Periodic boxes that keep a protein away from its copies."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import numpy as np
from scipy.spatial import ConvexHull

from data_pipeline.systems.build import box_width

BoxShape = Literal["brick", "cube", "dodecahedron", "octahedron"]
"""brick: around the protein as it lies, turned to need least water, for runs too short for it to turn; the others:
around a sphere that holds the protein, which may then turn as it likes."""

UNIT_BOXES = {
    "cube": np.eye(3),
    "dodecahedron": np.array([[1, 0, 0], [0, 1, 0], [1 / 2, 1 / 2, sqrt(2) / 2]]),
    "octahedron": np.array([[1, 0, 0], [1 / 3, 2 * sqrt(2) / 3, 0], [-1 / 3, sqrt(2) / 3, sqrt(6) / 3]]),
}
"""Reduced box vectors as rows for a distance of 1 between nearest copies."""

_N_ORIENTATIONS = 2000

_MARGIN = 1e-3
"""Relative widening of a box that is made just wide enough for a cutoff, for rounding in files."""


def box_vectors(positions: np.ndarray, padding: float, *, box_shape: BoxShape, cutoff: float = 0.9) -> np.ndarray:
    """Return reduced box vectors as rows, (3, 3) in nm, that keep a protein away from its copies.

    Parameters
    ----------
    positions
        (N, 3) in nm.
    padding
        nm between the protein and each of its copies; the box is at least twice as wide.
    box_shape
        See `BoxShape`.
    cutoff
        nm; the box is at least twice as wide.
    """
    smallest = 2 * max(padding, cutoff * (1 + _MARGIN))
    if box_shape == "brick":
        return np.diag(np.maximum(np.ptp(positions, axis=0) + padding, smallest))
    unit_box = UNIT_BOXES[box_shape]
    centre = (positions.min(axis=0) + positions.max(axis=0)) / 2
    width = 2 * np.linalg.norm(positions - centre, axis=1).max() + padding
    return max(float(width), smallest / box_width(unit_box)) * unit_box


def best_orientation(positions: np.ndarray, padding: float) -> np.ndarray:
    """Return the rotation (3, 3), to be applied from the right, that needs the smallest brick of many at random."""
    q, r = np.linalg.qr(np.random.default_rng(0).normal(size=(_N_ORIENTATIONS, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    rotations = q * np.sign(np.linalg.det(q))[:, None, None]  # in three dimensions -1 turns a mirror into a rotation
    corners = positions[ConvexHull(positions).vertices]
    widths = np.ptp(corners @ rotations, axis=1) + padding
    return rotations[int(np.argmin(widths.prod(axis=1)))]
