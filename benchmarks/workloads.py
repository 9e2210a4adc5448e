"""What the speed benchmark runs on: a solvated protein and boxes of water, as consecutive frames of real dynamics.

A workload is NAME.npz beside NAME.xml: ``species`` (N,) atomic numbers, ``positions`` (F, N, 3) float32 in nm, frames
1 fs apart, ``box`` (3, 3) in nm with vectors as rows, ``forces`` (N, 3) of the first frame in kJ/mol/nm, and the
serialised OpenMM System that made them. Larger boxes are periodic copies of it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENMM_CPU_THREADS", "1")

from itertools import product
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from data_pipeline.config import LabelConfig
from data_pipeline.files import whole, write_text
from data_pipeline.systems.build import box_of, build_system, evaluate, make_context
from data_pipeline.systems.prepare import Prepared, prepare
from data_pipeline.systems.sample import relax, sample_thermal

ENTRY = Path(__file__).with_name("4pti.pdb.gz")
"""Bovine pancreatic trypsin inhibitor, of the PDB, as deposited."""

PADDING = 0.83
"""nm; with it the protein's cube holds about 14,500 atoms."""

N_FRAMES = 40
"""Frames, 1 fs apart: longer than a neighbour list's skin lasts, so that searches count as often as they come."""

TEMPERATURE = 300.0
"""K."""

CUTOFF = float(LabelConfig.model_fields["cutoff"].default)
"""nm, direct space of the labels."""

EWALD_TOLERANCE = 5e-4
"""OpenMM's default, which simulations use; labels are made with a smaller one."""

MOLECULES_PER_EDGE = 7
"""Water starts on a cubic lattice and melts."""

MOLECULES_PER_VOLUME = 33.3
"""1/nm³, of water at 300 K and 1 bar."""

LONGEST_OVER_SHORTEST = 3
"""Edges of a larger box, at most."""


def protein(folder: Path) -> Path:
    """Return the workload of the solvated protein, made when it is not there.

    Parameters
    ----------
    folder
        Where workloads are kept.
    """
    path = folder / "protein.npz"
    if not path.exists():
        prepared = prepare(ENTRY, folder / "protein.cif", padding=PADDING, box_shape="cube", seed=1)
        _simulate(prepared, path, equilibration=2.0)
    return path


def water(folder: Path, equilibration: float = 10.0) -> Path:
    """Return the workload of a box of 343 flexible waters, 1,029 atoms, made when it is not there.

    Parameters
    ----------
    folder
        Where workloads are kept.
    equilibration
        ps.
    """
    path = folder / f"water_{equilibration:g}ps.npz"
    if not path.exists():
        _simulate(_lattice(), path, equilibration)
    return path


def copies(n_copies: int) -> tuple[int, int, int]:
    """Return how often a cube is repeated along each axis to come nearest to `n_copies` in a box that is not long."""
    edges = range(1, n_copies + 1)
    allowed = [
        (a, b, c)
        for a, b in product(edges, edges)
        if a <= b <= LONGEST_OVER_SHORTEST * a and a * b <= 2 * n_copies
        for c in (n_copies // (a * b), n_copies // (a * b) + 1)
        if b <= c <= LONGEST_OVER_SHORTEST * a
    ]
    return min(allowed, key=lambda edge: (abs(edge[0] * edge[1] * edge[2] - n_copies), edge[2] / edge[0]))


def _lattice() -> Prepared:
    """Return waters on a cubic lattice at the density of water, turned at random."""
    edge = (MOLECULES_PER_EDGE**3 / MOLECULES_PER_VOLUME) ** (1 / 3)
    sites = np.array(list(product(range(MOLECULES_PER_EDGE), repeat=3))) * edge / MOLECULES_PER_EDGE
    half = np.deg2rad(104.52 / 2)
    shape = 0.09572 * np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    turns, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(len(sites), 3, 3)))
    positions = (sites[:, None] + shape @ turns).reshape(-1, 3)
    topology = app.Topology()
    chain = topology.addChain()
    for _site in sites:
        residue = topology.addResidue("HOH", chain)
        oxygen, *hydrogens = (
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("O", "H1", "H2")
        )
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    topology.setPeriodicBoxVectors(np.eye(3) * edge * unit.nanometer)
    return Prepared(topology, positions)


def _simulate(prepared: Prepared, path: Path, equilibration: float) -> None:
    """Heat, then follow unconstrained dynamics step by step; write the workload."""
    path.parent.mkdir(parents=True, exist_ok=True)
    relaxed = relax(prepared, tolerance=300.0)
    start = sample_thermal(prepared, relaxed, n_frames=1, equilibration=equilibration, seed=1).positions[0]
    system = build_system(prepared.topology, cutoff=CUTOFF, ewald_tolerance=EWALD_TOLERANCE)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.001)
    integrator.setRandomNumberSeed(1)
    context = make_context(system, integrator)
    context.setPositions(start.astype(np.float64))
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(50)
    frames = []
    for _ in range(N_FRAMES):
        integrator.step(1)
        state = context.getState(positions=True)
        frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer).astype(np.float32))
    forces, _ = evaluate(context, frames[0], None)
    species = [atom.element.atomic_number for atom in prepared.topology.atoms()]
    residues = [atom.residue.index for atom in prepared.topology.atoms()]
    write_text(path.with_suffix(".xml"), openmm.XmlSerializer.serialize(system))
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            species=np.array(species),
            residues=np.array(residues),
            positions=np.stack(frames),
            box=box_of(context.getState()),
            forces=forces.astype(np.float32),
        )
