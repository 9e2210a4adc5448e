"""The conservative force that OpenMM supplies besides some networks, as a function of a block of atoms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.data import ForceDataset, Sample


def reciprocal_of(
    frames: ForceDataset, sample: Sample, block: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]] | None:
    """Return the reciprocal-space force on a block of atoms as these move; None where a model brings none.

    Parameters
    ----------
    frames
        With the model's target.
    sample
        One of them.
    block
        (n,) numbers of the atoms.
    """
    found = frames.reciprocal()
    if found is None or sample.box is None:
        return None
    import openmm

    from data_pipeline.labels.ewald import RECIPROCAL_TOLERANCE, mesh, reciprocal_force
    from data_pipeline.systems.build import evaluate, make_context

    box = np.asarray(sample.box, dtype=np.float64)
    charges = frames.described(sample.entry.name)["charges"]
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*box)
    for _ in charges:
        system.addParticle(1.0)
    grid = mesh(box, found["alpha"], RECIPROCAL_TOLERANCE)
    force = reciprocal_force(charges, alpha=found["alpha"], grid=grid, width=float(np.diag(box).min()))
    system.addForce(force)
    # double precision: differences over 1e-4 nm are lost in single
    context = make_context(system, openmm.VerletIntegrator(0.001), "Reference")
    everywhere = sample.positions.astype(np.float64)

    def forces(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = everywhere.copy()
        moved[block] = positions
        return np.asarray(evaluate(context, moved, box)[0], dtype=np.float64)[block]

    return forces
