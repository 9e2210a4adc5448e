"""What a validation reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_trajectory_leaves_stdout_to_json(tmp_path: Path) -> None:
    """MDTraj's reader of DCD files prints from C, buffered until the process ends where stdout is a pipe."""
    frames = mdtraj.Trajectory(np.zeros((2, 1, 3), dtype=np.float32), None)
    frames.save_dcd(str(tmp_path / "run.dcd"))
    program = "\n".join(
        (
            "import sys, mdtraj",
            "from forcefield_ml.validation.inputs import _nothing_printed_by_c",
            "with {}mdtraj.open(sys.argv[1]) as file:",
            "    count = len(file)",
            "print(count)",
        )
    )
    for quiet, lines in (("_nothing_printed_by_c(), ", 1), ("", 3)):
        command = [sys.executable, "-c", program.format(quiet), str(tmp_path / "run.dcd")]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert len(told.splitlines()) == lines and "2" in told.splitlines(), told
