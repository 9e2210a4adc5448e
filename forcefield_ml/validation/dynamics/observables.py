"""What is read off a trajectory: temperatures, geometry of the protein, water around water. Errors are of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import app

from data_pipeline.systems.residues import is_water
from forcefield_ml.deploy.guards.stability import kinetic_temperature
from forcefield_ml.simulation.structure import measured, solute_alone
from forcefield_ml.validation.dynamics.blocks import BLOCKS, block_mean

BINS = 60

MOST_WATERS = 400
"""Waters whose bonds are measured, and from which others are counted; all count as neighbours."""


def temperatures(
    topology: app.Topology, velocities: NDArray[Any], masses: NDArray[np.float64], solute: NDArray[np.bool_]
) -> dict[str, dict[str, Any]]:
    """Return the kinetic temperature of each element, protein and water apart.

    Ions and whatever else is neither are left out.

    Parameters
    ----------
    topology
        Of all atoms.
    velocities
        (F, N, 3) nm/ps.
    masses
        (N,) u.
    solute
        (N,) bool, the protein's atoms.

    Returns
    -------
    dict
        Names such as "protein C" and "water O" to ``mean``, ``standard_error`` (K), ``blocks`` and ``atoms``.
    """
    water = np.array([is_water(atom.residue.name) for atom in topology.atoms()])
    symbols = np.array([atom.element.symbol for atom in topology.atoms()])
    found = {}
    for group, members in (("protein", solute), ("water", water & ~solute)):
        for symbol in np.unique(symbols[members]):
            chosen = np.flatnonzero(members & (symbols == symbol))
            series = [kinetic_temperature(frame[chosen], masses[chosen]) for frame in velocities]
            found[f"{group} {symbol}"] = {**block_mean(series), "atoms": len(chosen)}
    return found


def geometry(
    topology: app.Topology, positions: NDArray[Any], solute: NDArray[np.bool_], interval: float
) -> dict[str, Any]:
    """Return distributions of bonds and angles, phi and psi, RMSD and radius of gyration.

    Parameters
    ----------
    topology
        Of all atoms.
    positions
        (F, N, 3) nm, molecules whole; the first is the start, from which RMSD is measured and which counts in nothing
        but the series.
    solute
        (N,) bool, the protein's atoms.
    interval
        ps between frames.

    Returns
    -------
    dict
        ``bonds`` (nm) and ``angles`` (degrees): group to ``mean`` and ``std``, each with its block error, and
        ``centres``, ``density`` of a histogram; ``phi``, ``psi``: (F - 1, R) degrees; ``rmsd``, ``rg`` (nm): mean and
        error; ``structure``: the series.
    """
    import mdtraj

    kinds = _bonds_and_angles(topology, solute)
    protein, after = solute_alone(topology, positions, solute), positions[1:]
    structure = measured(protein, interval)
    return {
        "bonds": {name: _distribution(_lengths(after, members)) for name, members in kinds["bonds"].items()},
        "angles": {name: _distribution(_angles(after, members)) for name, members in kinds["angles"].items()},
        "phi": np.degrees(mdtraj.compute_phi(protein[1:], periodic=False)[1]).tolist(),
        "psi": np.degrees(mdtraj.compute_psi(protein[1:], periodic=False)[1]).tolist(),
        "rmsd": block_mean(structure["rmsd_nm"][1:]),
        "rg": block_mean(structure["rg_nm"][1:]),
        "structure": structure,
    }


def water_structure(
    topology: app.Topology, positions: NDArray[Any], box: NDArray[Any], seed: int = 0, n_bins: int = BINS
) -> dict[str, Any] | None:
    """Return the radial distribution of water's oxygens around each other.

    Parameters
    ----------
    topology
        Of all atoms.
    positions
        (F, N, 3) nm.
    box
        (3, 3) nm.
    seed
        Of the choice of `MOST_WATERS`.
    n_bins
        Of the histogram.

    Returns
    -------
    dict or None
        ``r`` (nm), ``g``, ``standard_error`` (lists), ``peak_r``, ``peak_g`` (mean and error); None for fewer than
        two waters.
    """
    import mdtraj

    names = [(atom.element.symbol, is_water(atom.residue.name)) for atom in topology.atoms()]
    oxygens = np.array([i for i, (symbol, water) in enumerate(names) if water and symbol == "O"])
    if len(oxygens) < 2:
        return None
    chosen = np.random.default_rng(seed).permutation(oxygens)[:MOST_WATERS]
    pairs = np.array([(i, j) for i in chosen for j in oxygens if i != j])
    frames = mdtraj.Trajectory(positions, mdtraj.Topology.from_openmm(topology))
    frames.unitcell_vectors = np.broadcast_to(box, (len(positions), 3, 3)).copy()
    largest = min(1.0, 0.5 * float(np.diag(box).min()))
    blocks = []
    for block in np.array_split(np.arange(len(positions)), min(BLOCKS, len(positions))):
        radii, found = mdtraj.compute_rdf(frames[block], pairs, r_range=(0.2, largest), n_bins=n_bins)
        blocks.append(found)
    each = np.array(blocks)
    peak = int(each.mean(axis=0).argmax())
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.zeros(n_bins)
    return {
        "r": radii.tolist(),
        "g": each.mean(axis=0).tolist(),
        "standard_error": error.tolist(),
        "peak_r": float(radii[peak]),
        "peak_g": {"mean": float(each[:, peak].mean()), "standard_error": float(error[peak])},
    }


def circular_difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float | None:
    """Return how far mean directions over time differ, averaged over angles: degrees; None where there are none.

    Parameters
    ----------
    ours, theirs
        (F, R) degrees; F may differ.
    """
    if not ours.size or not theirs.size:
        return None

    def mean(angles: NDArray[Any]) -> NDArray[np.complex128]:
        return np.exp(1j * np.radians(angles)).mean(axis=0)

    return float(np.degrees(np.abs(np.angle(mean(ours) * mean(theirs).conj()))).mean())


def _bonds_and_angles(topology: app.Topology, solute: NDArray[np.bool_]) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Return the atoms of bonds (b, 2) and angles (a, 3), middle atom second, by kind."""
    hydrogen = np.array([atom.element.symbol == "H" for atom in topology.atoms()])
    water = np.flatnonzero([is_water(residue.name) for residue in topology.residues()])
    counted = set(water[:MOST_WATERS].tolist())
    bonds: dict[str, list[tuple[int, ...]]] = {}
    partners: dict[int, list[int]] = {}
    for first, second in topology.bonds():
        i, j = first.index, second.index
        if solute[i] and solute[j]:
            name = "protein X-H" if hydrogen[i] or hydrogen[j] else "protein heavy"
        elif first.residue.index in counted:
            name = "water O-H"
        else:
            continue
        bonds.setdefault(name, []).append((i, j))
        partners.setdefault(i, []).append(j)
        partners.setdefault(j, []).append(i)
    angles: dict[str, list[tuple[int, ...]]] = {}
    for middle, ends in partners.items():
        for at, first_end in enumerate(ends):
            for last_end in ends[at + 1 :]:
                heavy = not hydrogen[first_end] and not hydrogen[last_end]
                name = ("protein heavy" if heavy else "protein with H") if solute[middle] else "water H-O-H"
                angles.setdefault(name, []).append((first_end, middle, last_end))
    both = {"bonds": bonds, "angles": angles}
    return {kind: {name: np.array(rows) for name, rows in sorted(named.items())} for kind, named in both.items()}


def _lengths(positions: NDArray[Any], members: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.linalg.norm(positions[:, members[:, 1]] - positions[:, members[:, 0]], axis=-1).astype(np.float64)


def _angles(positions: NDArray[Any], members: NDArray[np.int64]) -> NDArray[np.float64]:
    first, last = (positions[:, members[:, end]] - positions[:, members[:, 1]] for end in (0, 2))
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(last, axis=-1)
    return np.degrees(np.arccos(np.clip((first * last).sum(axis=-1) / norms, -1, 1))).astype(np.float64)


def _distribution(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return moments with block errors, and a histogram, of (F, n) values.

    ``std`` is the spread in time about each bond's own mean: what differs between kinds of bonds is no motion.
    """
    density, edges = np.histogram(values, BINS, density=True)
    variance = block_mean((values - values.mean(axis=0)) ** 2)
    spread = float(np.sqrt(variance["mean"]))
    error = variance["standard_error"]
    return {
        "mean": block_mean(values),
        "std": {
            "mean": spread,
            "standard_error": None if error is None or not spread else error / (2 * spread),
            "blocks": variance["blocks"],
        },
        "centres": ((edges[1:] + edges[:-1]) / 2).tolist(),
        "density": density.tolist(),
        "count": values.shape[1],
    }
