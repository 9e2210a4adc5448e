"""Every platform that is here, in each of its precisions: the same forces from both backends."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, bare_system, context_of, eager_forces, forces_of, write_model
from openmm import app, unit
from test_fresh_process import fresh

import forcefield_ml
from forcefield_ml.deploy.force import plugin_repair
from forcefield_ml.deploy.force.plugin_repair import refusal
from forcefield_ml.errors import ForceModeError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")

TOLERANCE = {"": 1e-4, "double": 1e-4, "mixed": 1e-4, "single": 1e-4}
"""Largest relative difference (L2) from the eager float32 network, by precision; "" for platforms that have one.

The network itself is float32 everywhere. Positions are given in float32, so that single precision loses nothing.
"""

GPU = ("OpenCL", "CUDA", "HIP")
BACKENDS = ("pythonforce", "torchforce")

EVERYWHERE = """
import json, sys, warnings
import numpy as np
{imports}
import forcefield_ml, openmm
from openmm import app
from forcefield_ml.deploy.force.plugin_repair import refusal
warnings.simplefilter("ignore")
path, structure, out = sys.argv[1:]
cif = app.PDBxFile(structure)
model = forcefield_ml.load(path)
forces = {{}}
for backend in ("torchforce", "pythonforce"):
    system = openmm.System()
    for atom in cif.topology.atoms():
        system.addParticle(atom.element.mass)
    system.setDefaultPeriodicBoxVectors(*cif.topology.getPeriodicBoxVectors())
    system.addForce(model.create_force(cif.topology, backend=backend))
    for i in range(openmm.Platform.getNumPlatforms()):
        platform = openmm.Platform.getPlatform(i)
        if backend == "torchforce" and refusal(platform.getName()):
            continue
        has = "Precision" in platform.getPropertyNames()
        for precision in ("single", "mixed", "double") if has else ("",):
            options = {{"Precision": precision}} if has else {{}}
            context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, options)
            context.setPositions(cif.positions)
            name = f"{{backend}} {{platform.getName()}} {{precision}}"
            forces[name] = context.getState(forces=True).getForces(asNumpy=True)._value
np.savez(out, **forces)
"""


def gpu(name: str, backend: str = "pythonforce") -> openmm.Platform:
    """Return a platform, or skip the test with the reason."""
    if backend == "torchforce" and refusal(name):
        pytest.skip(refusal(name))
    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if name not in names:
        pytest.skip(f"OpenMM has no {name} platform here")
    system = openmm.System()
    system.addParticle(1)
    platform = openmm.Platform.getPlatformByName(name)
    try:
        openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    except openmm.OpenMMException as error:
        pytest.skip(f"the {name} platform has no device here: {error}")
    return platform


@pytest.mark.parametrize("imports", ["import openmm, torch", "import torch, openmm", "import openmm"])
def test_platforms_precisions_and_import_orders(
    imports: str, wet: Molecules, deployed: dict[str, Deployed], tmp_path: Path
) -> None:
    """Whichever of torch and openmm came first, both backends give the eager forces on every platform and precision."""
    structure = tmp_path / "wet.cif"
    with open(structure, "w") as file:
        app.PDBxFile.writeFile(wet.topology, wet.positions * unit.nanometer, file, keepIds=True)
    read = app.PDBxFile(str(structure))
    positions = np.array(read.positions.value_in_unit(unit.nanometer))
    box = np.array(read.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    expected = eager_forces(deployed["tfn"].eager, Molecules(read.topology, positions, box, wet.solute))
    expected[np.setdiff1d(np.arange(len(expected)), wet.solute)] = 0
    fresh(EVERYWHERE.format(imports=imports), str(deployed["tfn"].path), str(structure), str(tmp_path / "forces.npz"))
    found = np.load(tmp_path / "forces.npz")
    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    combinations = [
        (name, backend) for name in names for backend in BACKENDS if backend == BACKENDS[0] or not refusal(name)
    ]
    assert len(found.files) == sum(3 if name in GPU else 1 for name, _ in combinations)
    for name in found.files:
        error = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
        print(name, error, file=sys.stderr)
        assert error < TOLERANCE[name.split(" ")[2]], (name, error)
        assert np.linalg.norm(np.roll(found[name], 1, 0) - expected) > 0.1 * np.linalg.norm(expected), "control: order"


@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GPU)
def test_far_from_the_origin_on_a_gpu(
    name: str, backend: str, precision: str, wet: Molecules, deployed: dict[str, Deployed]
) -> None:
    """Whole molecules that diffused some boxes away feel what they felt at home, to the precision of positions there.

    A position 10 nm away has 5e-7 nm in single precision, where forces change by 1e-3 within 1e-5 nm at most.
    """
    platform = gpu(name, backend)
    system = bare_system(wet)
    system.addForce(forcefield_ml.load(deployed["fast"].path).create_force(wet.topology, backend=backend))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, {"Precision": precision})
    context.setPositions(wet.positions)
    expected = forces_of(context)
    for boxes in (6, -5):
        context.setPositions(wet.positions + boxes * wet.box[0])
        error = np.linalg.norm(forces_of(context) - expected) / np.linalg.norm(expected)
        print(name, backend, precision, boxes, error, file=sys.stderr)
        assert error < {"single": 1e-3, "mixed": 1e-3, "double": 1e-4}[precision]


@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GPU)
def test_atoms_that_a_gpu_reorders(
    name: str, backend: str, precision: str, wet: Molecules, forcefield: app.ForceField, tmp_path: Path
) -> None:
    """GPU platforms sort atoms by place every 250 steps; after 300 the forces are still those of the right atoms.

    Compared with the Reference platform at the same positions.
    """
    platform = gpu(name, backend)
    system = forcefield.createSystem(
        wet.topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.8, constraints=None, rigidWater=False
    )
    quiet = context_of(system, wet, "CPU")  # the minimiser crashes with some OpenCL implementations
    openmm.LocalEnergyMinimizer.minimize(quiet, 100, 50)
    start = quiet.getState(positions=True).getPositions(asNumpy=True)
    model = forcefield_ml.load(write_model(tmp_path, predicts="reference_minus_mm"))
    model.add_to_system(system, wet.topology, mode="correction", backend=backend)
    for force in system.getForces():
        force.setForceGroup(1 if force.getName().startswith("forcefield_ml:") else 0)
    integrator = openmm.LangevinMiddleIntegrator(300, 50, 0.0002)
    context = openmm.Context(system, integrator, platform, {"Precision": precision})
    context.setPositions(start)
    integrator.step(300)
    unsorted = np.arange(system.getNumParticles(), dtype=np.int32).tobytes()  # a checkpoint holds the order
    assert unsorted not in context.createCheckpoint(), "control: atoms were reordered"
    state = context.getState(positions=True)
    reference = context_of(system, wet, "Reference")
    reference.setPositions(state.getPositions(asNumpy=True))
    expected, found = forces_of(reference, groups={1}), forces_of(context, groups={1})
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(name, backend, precision, error, file=sys.stderr)
    assert error < 1e-3
    assert np.linalg.norm(expected[wet.solute], axis=1).min() > 0.1


DIES = """
import sys, warnings
warnings.simplefilter("ignore")
import forcefield_ml, openmm
from openmm import app
topology = app.Topology()
residue = topology.addResidue("MOL", topology.addChain())
system = openmm.System()
atoms = [topology.addAtom(name, app.Element.getBySymbol(name), residue) for name in "OHH"]
for hydrogen in atoms[1:]:
    topology.addBond(atoms[0], hydrogen)
for _ in atoms:
    system.addParticle(16.0)
system.addForce(forcefield_ml.load("amber14-fast").create_force(topology, atoms=[0], backend="torchforce",
    allow_residues=["MOL"]))
platform = openmm.Platform.getPlatformByName("OpenCL")
simulation = app.Simulation(topology, system, openmm.VerletIntegrator(0.0005), platform)
simulation.context.setPositions([(0, 0, 0), (0.1, 0, 0), (0, 0.1, 0)])
print("made", flush=True)
{check}
simulation.context.getState(forces=True)
print("alive")
"""


@pytest.mark.parametrize("check", [False, True], ids=["without check", "with check"])
def test_torchforce_on_opencl(check: bool) -> None:
    """It ends the process, which `check` prevents. Once it lives, `plugin_repair.refusal` can go."""
    gpu("OpenCL")
    if not refusal("OpenCL"):
        pytest.skip("this OpenMM has what the OpenCL kernels of TorchForce need")
    code = DIES.format(check="forcefield_ml.check(simulation)" if check else "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "made" in done.stdout and "alive" not in done.stdout and done.returncode != 0
    assert ("ends the process on the OpenCL platform" if check else "symbol lookup error") in done.stderr


def test_torchforce_is_refused_where_it_would_end_the_process(
    dry: Molecules, deployed: dict[str, Deployed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` asks for the platform of the Context, and only where a TorchForce is; Reference and CPU are sound."""
    assert not refusal("Reference") and not refusal("CPU")
    monkeypatch.setattr("forcefield_ml.deploy.guards.check.refusal", lambda platform: f"not on {platform}")
    for backend in BACKENDS:
        system = bare_system(dry)
        system.addForce(forcefield_ml.load(deployed["fast"].path).create_force(dry.topology, backend=backend))
        platform = openmm.Platform.getPlatformByName("Reference")
        simulation = app.Simulation(dry.topology, system, openmm.VerletIntegrator(0.0005), platform)
        if backend == "torchforce":
            with pytest.raises(ForceModeError, match="not on Reference"):
                forcefield_ml.check(simulation)
        else:
            forcefield_ml.check(simulation)


def test_what_opencl_needs_is_looked_up() -> None:
    """The answer follows from what the library exports: with a symbol that it has, OpenCL would be allowed."""
    library = ctypes.CDLL(str(plugin_repair.plugins_folder().parent / "libOpenMM.so"))
    assert bool(refusal("OpenCL")) == (not hasattr(library, plugin_repair.OPENCL_NEEDS))
