"""What result.json says of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from data_pipeline.systems.prepare import Prepared
from forcefield_ml.deploy.force.openmm_force import choose_backend
from forcefield_ml.deploy.guards.stability import Event
from forcefield_ml.simulation.build import Simulated
from forcefield_ml.simulation.config import SimulationConfig
from forcefield_ml.simulation.record import Snapshot, read_log
from forcefield_ml.simulation.structure import structure_series
from forcefield_ml.simulation.trajectory import name_of
from forcefield_ml.versions import package_versions

FORMAT = "forcefield-ml-simulation"
PACKAGES = ("torch", "openmm", "openmmtorch", "pdbfixer", "mdtraj", "numpy")


def describe_run(
    config: SimulationConfig,
    resolved: dict[str, Any],
    prepared: Prepared,
    simulated: Simulated,
    *,
    status: str,
    event: Event | None,
    last: Snapshot,
    speed: float | None,
    fire: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return everything a reader needs to know of a run, its log and its structure's series included.

    Parameters
    ----------
    config, resolved
        Settings, and the same with hashes as config.json holds them.
    prepared, simulated
        What was simulated.
    status
        "finished", "time_limit", "interrupted" or "unstable".
    event
        What a guard saw.
    last
        The last good state.
    speed
        ns/day of this session.
    fire
        What FIRE did, if it ran.

    Returns
    -------
    dict
        Plain values, ready for JSON.
    """
    log = read_log(config.output)
    training = simulated.card.get("training", {})
    half = len(log["step"]) // 2
    structure: dict[str, Any] = structure_series(
        prepared.topology,
        config.output / name_of(config.trajectory),
        simulated.solute,
        config.frame_every * config.timestep_fs * 1e-3,
    )
    return {
        "format": FORMAT,
        "status": status,
        "steps": last.step,
        "time_ps": last.step * config.timestep_fs * 1e-3,
        "timestep_fs": config.timestep_fs,
        "hydrogen_mass": config.hydrogen_mass,
        "atoms": len(simulated.solute),
        "solute_atoms": int(simulated.solute.sum()),
        "structure_file": config.structure.name,
        "mode": simulated.mode,
        "mts": config.mts,
        "net_force_removed": simulated.net_force_removed,
        "backend": choose_backend(config.backend).backend if config.model else None,
        "platform": config.platform,
        "model": {
            "file": config.model.name if config.model else None,
            "sha256": resolved["model_sha256"],
            "architecture": simulated.card.get("architecture"),
            "n_batches": training.get("n_batches"),
            "trained_on": training.get("entries"),
        },
        "temperature": {
            "target": config.temperature,
            "solute": _mean(log["solute_K"]),
            "solvent": _mean(log["solvent_K"]),
            "second_half": {"solute": _mean(log["solute_K"][half:]), "solvent": _mean(log["solvent_K"][half:])},
        },
        "max_force_kJ_mol_nm": max(log["max_force_kJ_mol_nm"], default=None),
        "ns_per_day": speed,
        "seconds": last.seconds,
        "event": asdict(event) if event else None,
        "fire": fire,
        "structure": structure,
        "series": log,
        "config": resolved,
        "versions": package_versions(PACKAGES),
    }


def _mean(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))} if values else {}
