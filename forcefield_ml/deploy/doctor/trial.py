"""Try a small model on one backend and some platforms, in a process of its own: what crashes there crashes alone.

``python -m forcefield_ml.deploy.doctor.trial pythonforce Reference CPU`` prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
"""Largest relative difference to the eager forces; platforms of single precision stay below 1e-6."""

SECONDS = 300
"""After which a platform that does not answer is given up; the first use of a GPU compiles for a minute."""


def run_apart(backend: str, platforms: list[str]) -> dict[str, Any]:
    """Return the relative error of forces by platform, or an error's message under ``"error"``.

    Parameters
    ----------
    backend
        "pythonforce" or "torchforce".
    platforms
        Names of OpenMM's platforms.
    """
    command = [sys.executable, "-m", "forcefield_ml.deploy.doctor.trial", backend, *platforms]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    if done.returncode < 0:
        return {"error": f"the process that tried it crashed (signal {-done.returncode})"}
    return {"error": (done.stderr.strip().splitlines() or ["nothing was said"])[-1]}


def relative_errors(backend: str, platforms: list[str]) -> dict[str, float]:
    """Return how far the forces of a methane-like cluster are from the eager ones (L2, relative), by platform.

    Parameters
    ----------
    backend, platforms
        As of `run_apart`.
    """
    import numpy as np
    import openmm
    import torch
    from openmm import app

    from forcefield_ml import models
    from forcefield_ml.deploy.model import load
    from forcefield_ml.deploy.model_file import bundle
    from forcefield_ml.deploy.model_file.card import make_card
    from forcefield_ml.deploy.model_file.script import DeployableModel

    config = {"architecture": "fast", "n_channels": 4, "n_layers": 2, "n_basis": 4, "n_units": 4, "n_first_units": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build(config).eval()
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    positions = np.array([[0, 0, 0], [0.11, 0, 0], [0, 0.12, 0], [0, 0, 0.13], [0.2, 0.1, 0.05]])
    for i, symbol in enumerate(("C", "H", "H", "H", "O")):
        topology.addAtom(f"{symbol}{i}", app.Element.getBySymbol(symbol), residue)
    errors = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this model needs no energy
        deployed = load(bundle.write(model, make_card(model, target_atoms="all"), Path(folder) / "model.pt"))
        species = torch.tensor([atom.element.atomic_number for atom in topology.atoms()])
        with torch.no_grad():
            expected = DeployableModel(model)(species, torch.tensor(positions, dtype=torch.float32)).forces.numpy()
        for name in platforms:
            system = deployed.create_system(topology, backend=backend, allow_residues=["MOL"], remove_net_force=False)
            platform = openmm.Platform.getPlatformByName(name)
            context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
            context.setPositions(positions)
            found = context.getState(forces=True).getForces(asNumpy=True)._value
            errors[name] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return errors


def main() -> None:
    """Print `relative_errors` of the command line's backend and platforms, or what went wrong, as JSON."""
    try:
        answer: dict[str, Any] = dict(relative_errors(sys.argv[1], sys.argv[2:]))
    except Exception as error:  # whatever fails is the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
