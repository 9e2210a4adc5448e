"""Add an ML force to an OpenMM simulation: three lines more than any OpenMM script has.

    python examples/add_ml_force.py protein_in_water.cif --steps 200

The protein's atoms then feel the network alone, the water full AMBER14 (mode "solute"). The structure must hold
hydrogens, water and a box: `data-pipeline run` leaves such files in its folder prepared/.
"""

from __future__ import annotations

import argparse
import sys

import openmm
from openmm import app, unit

import forcefield_ml
from forcefield_ml.simulation.fire import minimise

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("structure", help="a solvated protein with hydrogens, mmCIF")
parser.add_argument("--model", default="amber14-fast", help="one that ships, or a model.pt of `forcefield-ml export`")
parser.add_argument("--steps", type=int, default=200, help="of 0.5 fs (default: 200)")
options = parser.parse_args()

structure = app.PDBxFile(options.structure)
topology = structure.topology
forcefield = app.ForceField("amber14-all.xml", "amber14/tip3pfb.xml")
# flexible bonds: the network was trained on forces that include them
system = forcefield.createSystem(
    topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, constraints=None, rigidWater=False
)

model = forcefield_ml.load(options.model)
system = model.add_to_system(system, topology, mode="solute")

integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(structure.positions)
forcefield_ml.check(simulation)  # refuses what has no meaning without an energy: barostats, for one
minimise(simulation, tolerance=500.0, max_steps=100)  # FIRE: needs forces only
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
simulation.reporters.append(
    app.StateDataReporter(sys.stdout, max(1, options.steps // 10), step=True, temperature=True, speed=True)
)
simulation.step(options.steps)
