"""What a validation reads."""

from __future__ import annotations

import mdtraj
import numpy as np
import pytest
from openmm import app, unit

from data_pipeline.systems.box import UNIT_BOXES
from forcefield_ml.validation.inputs import _reduced


@pytest.mark.parametrize("shape", UNIT_BOXES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_boxes_of_a_trajectory_suit_openmm(shape: str, sign: float) -> None:
    """Of every width, by lengths and angles as a DCD keeps them: OpenMM takes them, and the lattice is the same."""
    vectors = np.linspace(2.0, 9.0, 400)[:, None, None] * UNIT_BOXES[shape] * [[1.0] * 3, [1.0] * 3, [sign, sign, 1.0]]
    told = mdtraj.Trajectory(np.zeros((len(vectors), 1, 3)), None)
    told.unitcell_vectors = vectors
    told.unitcell_lengths = told.unitcell_lengths.astype(np.float32)
    told.unitcell_angles = told.unitcell_angles.astype(np.float32)
    for box, before in zip(_reduced(told.unitcell_vectors).astype(np.float32), vectors, strict=True):
        app.Topology().setPeriodicBoxVectors(box.astype(float) * unit.nanometer)
        steps = box @ np.linalg.inv(before)
        np.testing.assert_allclose(steps, steps.round(), atol=1e-5)
        assert abs(round(float(np.linalg.det(steps)))) == 1
