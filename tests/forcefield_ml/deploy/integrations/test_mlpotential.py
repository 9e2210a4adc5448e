"""openmm-ml's MLPotential("forcefield-ml"): forces, modes and refusals of DeployedModel; openmm-ml's own tests."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from deploy_helpers import (
    Deployed,
    Molecules,
    context_of,
    eager_forces,
    forces_of,
    make_model,
    molecules,
    solvated,
    write_model,
)
from energy_model import write_energy_model
from openmm import app, unit

import forcefield_ml
from forcefield_ml.errors import BoxError, ConfigError, ForceModeError, ModelFileError, TopologyError

openmmml = pytest.importorskip("openmmml", reason='pip install "forcefield-ml[mlpotential]"')

PLATFORMS = ("Reference", "CPU")
EXACT = 1e-4
"""Relative, float32."""

PME_GRID = 5e-4
"""Relative: where atoms lie on the grid matters this much at an error tolerance of 1e-5."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:this model has forces but no energy"),
    pytest.mark.filterwarnings("ignore:.*constraints among the ML atoms are removed"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the total force on all atoms."""
    return write_model(tmp_path_factory.mktemp("whole"), target_atoms="all")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the forces inside the solute."""
    return write_model(tmp_path_factory.mktemp("alone"), predicts="solute_alone")


@pytest.fixture(scope="module")
def roomy(dry: Molecules, forcefield: app.ForceField) -> Molecules:
    """The tripeptide in a box of more than twice its length."""
    found = solvated(dry, forcefield, "cube", 2.4)
    assert np.ptp(found.positions[found.solute], axis=0).max() < 1.2
    return found


def potential(path: Path, **options: Any) -> Any:
    """Return the MLPotential of a model."""
    return openmmml.MLPotential("forcefield-ml", model=path, **options)


def mm_system(molecules: Molecules, forcefield: app.ForceField, **options: Any) -> openmm.System:
    """Return flexible AMBER14 unless asked otherwise."""
    method = {"nonbondedMethod": app.NoCutoff}
    if molecules.box is not None:
        method = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.8 * unit.nanometer}
    return forcefield.createSystem(
        molecules.topology, **{**method, "constraints": None, "rigidWater": False, **options}
    )


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return |found - expected| / |expected|."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("structure", ["dry", "wet", "triclinic"])
def test_create_system(platform: str, structure: str, whole: Path, request: pytest.FixtureRequest) -> None:
    """Each atom feels the network; box, masses and the remover of centre-of-mass motion are as openmm-ml has them."""
    molecules: Molecules = request.getfixturevalue(structure)
    system = potential(whole).createSystem(molecules.topology)
    assert [type(force).__name__ for force in system.getForces()] == ["PythonForce", "CMMotionRemover"]
    assert system.usesPeriodicBoundaryConditions() == (molecules.box is not None)
    context = context_of(system, molecules, platform)
    if molecules.box is not None:
        assert np.allclose(context.getState().getPeriodicBoxVectors(asNumpy=True)._value, molecules.box)
    expected = eager_forces(make_model("fast"), molecules)
    assert relative(forces_of(context), expected - expected.mean(axis=0)) < EXACT
    kept = potential(whole).createSystem(molecules.topology, remove_net_force=False)
    assert relative(forces_of(context_of(kept, molecules, platform)), expected) < EXACT


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("mixed", [False, True], ids=["system", "mixed"])
def test_periodicity(
    platform: str, mixed: bool, triclinic: Molecules, forcefield: app.ForceField, whole: Path, alone: Path
) -> None:
    """Forces stay when all moves through the box, and when the ML atoms are wrapped one by one, molecules broken.

    The MM terms of water know no periodicity: in the mixed system its molecules are wrapped as wholes.
    """
    if mixed:
        mm = mm_system(triclinic, forcefield, nonbondedCutoff=0.6 * unit.nanometer, ewaldErrorTolerance=1e-5)
        system = potential(alone).createMixedSystem(triclinic.topology, mm, triclinic.solute)
    else:
        system = potential(whole).createSystem(triclinic.topology)
    tolerance = PME_GRID if mixed else EXACT
    context = context_of(system, triclinic, platform)
    expected = forces_of(context)
    assert triclinic.box is not None
    longest = 0.0
    for shift in ([0.7, 0.0, 0.0], [0.3, 1.1, 0.5], [-5.0, 3.3, 9.0]):
        moved = triclinic.positions + np.array(shift)
        context.setPositions(moved)
        assert relative(forces_of(context), expected) < tolerance
        fractions = moved @ np.linalg.inv(triclinic.box)
        if mixed:
            first = [next(a.residue.atoms()).index for a in triclinic.topology.atoms()]
            first[: len(triclinic.solute)] = triclinic.solute
            wrapped = (fractions - np.floor(fractions[first])) @ triclinic.box
        else:
            wrapped = (fractions - np.floor(fractions)) @ triclinic.box
        bonds = [(a.index, b.index) for a, b in triclinic.topology.bonds()]
        longest = max(longest, *(float(np.linalg.norm(wrapped[a] - wrapped[b])) for a, b in bonds))
        context.setPositions(wrapped)
        assert relative(forces_of(context), expected) < tolerance
    assert longest > 1.0, "control: a molecule lay across the boundary"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("structure", ["dry", "roomy"])
def test_mixed_system_is_mode_embedded(
    platform: str, structure: str, forcefield: app.ForceField, alone: Path, request: pytest.FixtureRequest
) -> None:
    """openmm-ml's mechanical embedding and our mode `embedded` give each atom the same force.

    In a box of less than twice the solute they differ: of two atoms farther apart than half the box, openmm-ml takes
    the nearest images' Coulomb force away, ours that between the two.
    """
    molecules: Molecules = request.getfixturevalue(structure)
    system = mm_system(molecules, forcefield)
    before = openmm.XmlSerializer.serialize(system)
    mixed = potential(alone).createMixedSystem(molecules.topology, system, molecules.solute)
    ours = forcefield_ml.load(alone).add_to_system(system, molecules.topology, mode="embedded")
    grouped = potential(alone).createMixedSystem(molecules.topology, system, molecules.solute, forceGroup=5)
    assert [f.getForceGroup() for f in grouped.getForces() if "forcefield_ml" in f.getName()] == [5]
    named = potential(alone).createMixedSystem(molecules.topology, system, molecules.solute, embedding="embedded")
    assert openmm.XmlSerializer.serialize(system) == before
    expected = forces_of(context_of(ours, molecules, platform))
    scale = np.sqrt((expected**2).sum(1).mean())
    for other in (mixed, named):
        found = forces_of(context_of(other, molecules, platform))
        assert np.linalg.norm(found - expected, axis=1).max() < EXACT * scale
    mm = forces_of(context_of(system, molecules, platform))
    assert np.linalg.norm((mm - expected)[molecules.solute], axis=1).min() > 1, "control: the solute feels other forces"


@pytest.mark.parametrize("predicts, embedding", [("total", "solute"), ("reference_minus_mm", "correction")])
def test_our_modes_as_embeddings(
    predicts: str, embedding: str, wet: Molecules, forcefield: app.ForceField, tmp_path: Path
) -> None:
    """The names of our modes are embeddings: the same forces as by add_to_system."""
    path = write_model(tmp_path, predicts=predicts)
    mixed = potential(path).createMixedSystem(
        wet.topology, mm_system(wet, forcefield), wet.solute, embedding=embedding, forceGroup=7
    )
    ours = forcefield_ml.load(path).add_to_system(mm_system(wet, forcefield), wet.topology, mode=embedding)
    context = context_of(mixed, wet, "CPU")
    assert relative(forces_of(context), forces_of(context_of(ours, wet, "CPU"))) < EXACT
    network = forces_of(context, groups={7})
    assert np.count_nonzero(network.any(axis=1)) == len(wet.solute)
    assert set(potential(path).getSupportedEmbeddings()) >= {"mechanical", "solute", "embedded", "correction"}


@pytest.mark.parametrize("embedding", ["mechanical", "embedded"])
@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("kind", [list, iter])
def test_remove_constraints(
    embedding: str, remove: bool, kind: Any, wet: Molecules, forcefield: app.ForceField, alone: Path
) -> None:
    """No constraint is left on the ML atoms, whatever was asked for, and that is said; water keeps its own."""
    system = mm_system(wet, forcefield, constraints=app.HBonds, rigidWater=True)
    with pytest.warns(UserWarning, match="constraints among the ML atoms are removed"):
        mixed = potential(alone).createMixedSystem(
            wet.topology, system, kind(wet.solute), removeConstraints=remove, embedding=embedding
        )
    pairs = [mixed.getConstraintParameters(k)[:2] for k in range(mixed.getNumConstraints())]
    assert pairs and not [pair for pair in pairs if set(wet.solute).intersection(pair)]
    waters = sum(residue.name == "HOH" for residue in wet.topology.residues())
    assert len(pairs) == 3 * waters


def test_nothing_to_remove_is_silent(wet: Molecules, forcefield: app.ForceField, alone: Path) -> None:
    """Flexible solute in rigid water: no warning."""
    system = mm_system(wet, forcefield, rigidWater=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential(alone).createMixedSystem(wet.topology, system, wet.solute)


def test_the_card_decides(
    dry: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed], alone: Path, tmp_path: Path
) -> None:
    """A model that predicts something else is refused, and openmm-ml's name for what it can do is said."""
    solute_only = potential(deployed["fast"].path)
    with pytest.raises(ForceModeError, match="all atoms"):
        solute_only.createSystem(dry.topology)
    system = mm_system(dry, forcefield)
    with pytest.raises(ForceModeError, match=r"Modes for it: .*'solute'.*embedding=MODE"):
        solute_only.createMixedSystem(dry.topology, system, dry.solute)
    with pytest.raises(ForceModeError, match="createMixedSystem"):
        solute_only.createMixedSystem(dry.topology, system, dry.solute, embedding="correction")
    with pytest.raises(ForceModeError, match="mode 'system' needs"):
        potential(alone).createSystem(dry.topology)
    with pytest.raises(ForceModeError, match="card"):
        potential(alone).createMixedSystem(dry.topology, system, dry.solute, embedding="solute")


def test_guards_hold(wet: Molecules, forcefield: app.ForceField, alone: Path, whole: Path) -> None:
    """Hydrogens, elements, residues, bonds cut, barostat, box, foreign forces, a second model: refused as elsewhere."""
    mixed = potential(alone).createMixedSystem
    system = mm_system(wet, forcefield)
    bare = app.Modeller(wet.topology, wet.positions * unit.nanometer)
    bare.delete([atom for atom in wet.topology.atoms() if atom.element.symbol == "H"])
    with pytest.raises(TopologyError, match="hydrogens are missing"):
        potential(whole).createSystem(bare.topology)
    with pytest.raises(TopologyError, match="cuts 1 bonds"):  # openmm-ml would cap it with a link atom
        mixed(wet.topology, system, [a.index for a in wet.topology.atoms() if a.residue.name == "LYS"])
    barostat = mm_system(wet, forcefield)
    barostat.addForce(openmm.MonteCarloBarostat(1, 300))
    with pytest.raises(ForceModeError, match="constant volume"):
        mixed(wet.topology, barostat, wet.solute)
    other_box = mm_system(wet, forcefield)
    other_box.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in 1.1 * wet.box))
    with pytest.raises(BoxError, match="setPeriodicBoxVectors"):
        mixed(wet.topology, other_box, wet.solute)
    born = mm_system(wet, forcefield)
    born.addForce(openmm.CustomGBForce())
    with pytest.raises(ForceModeError, match="CustomGBForce"):  # openmm-ml would leave the ML atoms in it
        mixed(wet.topology, born, wet.solute)
    twice = mixed(wet.topology, system, wet.solute)
    with pytest.raises(ForceModeError, match="a model already"):
        mixed(wet.topology, twice, wet.solute)
    residue = wet.topology.addResidue("LIG", wet.topology.addChain())
    try:
        wet.topology.addAtom("C1", app.Element.getBySymbol("C"), residue)
        with pytest.raises(TopologyError, match="LIG"):
            potential(whole).createSystem(wet.topology)
        allowed = potential(whole).createSystem(wet.topology, allow_residues=["LIG"])
        assert allowed.getNumParticles() == wet.topology.getNumAtoms()
    finally:
        residue._atoms.clear()
        wet.topology._chains.pop()
        wet.topology._numAtoms -= 1
        wet.topology._numResidues -= 1


def test_check_finds_the_model(wet: Molecules, forcefield: app.ForceField, alone: Path) -> None:
    """forcefield_ml.check refuses minimiser and long steps of openmm-ml's systems; a short run goes well."""
    mixed = potential(alone).createMixedSystem(wet.topology, mm_system(wet, forcefield), wet.solute)
    platform = openmm.Platform.getPlatformByName("CPU")
    long = app.Simulation(wet.topology, mixed, openmm.LangevinMiddleIntegrator(300, 1, 0.004), platform)
    long.context.setPositions(wet.positions)
    with pytest.raises(ForceModeError, match="4 fs"):
        forcefield_ml.check(long)
    short = app.Simulation(wet.topology, mixed, openmm.LangevinMiddleIntegrator(300, 1, 0.0002), platform)
    short.context.setPositions(wet.positions)
    with pytest.raises(ForceModeError, match="minimiser"):
        forcefield_ml.check(short).minimizeEnergy()
    short.step(5)
    assert np.isfinite(forces_of(short.context)).all()


def test_interpolation_needs_an_energy(
    dry: Molecules, forcefield: app.ForceField, alone: Path, deployed: dict[str, Deployed]
) -> None:
    """Without an energy, and in the modes that have none, interpolate is refused."""
    system = mm_system(dry, forcefield)
    with pytest.raises(ForceModeError, match="this model has none"):
        potential(alone).createMixedSystem(dry.topology, system, dry.solute, interpolate=True)
    with pytest.raises(ForceModeError, match="interpolate"):
        potential(deployed["fast"].path).createMixedSystem(
            dry.topology, system, dry.solute, interpolate=True, embedding="solute"
        )


@pytest.mark.parametrize("platform", PLATFORMS)
def test_interpolation_with_an_energy(
    platform: str, dry: Molecules, forcefield: app.ForceField, tmp_path: Path
) -> None:
    """With an energy, lambda 0 is MM, lambda 1 the mixed system, and half way half of each, in energy and forces."""
    path = write_energy_model(tmp_path, predicts="solute_alone")
    system = mm_system(dry, forcefield, removeCMMotion=False)
    make = potential(path).createMixedSystem
    context = context_of(make(dry.topology, system, dry.solute, interpolate=True), dry, platform)
    ends = []
    for other in (system, make(dry.topology, system, dry.solute)):
        state = context_of(other, dry, platform).getState(forces=True, energy=True)
        ends.append((state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value))
    assert abs(ends[0][0] - ends[1][0]) > 10
    for mix in (0.0, 0.5, 1.0):
        context.setParameter("lambda_interpolate", mix)
        state = context.getState(forces=True, energy=True)
        energy, forces = (np.asarray((1 - mix) * ends[0][k] + mix * ends[1][k]) for k in (0, 1))
        assert abs(state.getPotentialEnergy()._value - energy) < 1e-4 * abs(energy)
        assert relative(state.getForces(asNumpy=True)._value, forces) < EXACT


def test_virtual_sites(dry: Molecules, alone: Path, whole: Path) -> None:
    """A four-site water is refused where the model would see it, and allowed round a solute that it sees alone."""
    forcefield = app.ForceField("amber14-all.xml", "amber14/tip4pew.xml")
    modeller = app.Modeller(dry.topology, dry.positions * unit.nanometer)
    modeller.addSolvent(forcefield, model="tip4pew", boxSize=openmm.Vec3(1.7, 1.7, 1.7) * unit.nanometer)
    wet = molecules(modeller.topology, modeller.positions, 1.7 * np.eye(3))
    with pytest.raises(TopologyError, match="virtual sites"):
        potential(whole).createSystem(wet.topology)
    system = mm_system(wet, forcefield, rigidWater=True)
    mixed = potential(alone).createMixedSystem(wet.topology, system, wet.solute, embedding="embedded")
    context = context_of(mixed, wet, "Reference")
    mm = context_of(system, wet, "Reference")
    others = np.setdiff1d(np.arange(len(wet.positions)), wet.solute)
    assert relative(forces_of(context)[others], forces_of(mm)[others]) < 1e-9
    alone_forces = eager_forces(make_model("fast"), Molecules(dry.topology, wet.positions[wet.solute], None, []))
    group = [force for force in mixed.getForces() if "forcefield_ml" in force.getName()]
    group[0].setForceGroup(3)
    found = forces_of(context_of(mixed, wet, "Reference"), groups={3})
    assert relative(found[wet.solute], alone_forces) < EXACT


def test_quantities(alone: Path, whole: Path, dry: Molecules) -> None:
    """The topology's box may be a Quantity in any unit, and Vec3, tuples or arrays."""
    topology = dry.topology
    try:
        for box in (
            20.0 * np.eye(3) * unit.angstrom,
            [openmm.Vec3(2, 0, 0), openmm.Vec3(0, 2, 0), openmm.Vec3(0, 0, 2)] * unit.nanometer,
        ):
            topology.setPeriodicBoxVectors(box)
            system = potential(whole).createSystem(topology)
            default = np.array([row.value_in_unit(unit.nanometer) for row in system.getDefaultPeriodicBoxVectors()])
            assert np.allclose(default, 2 * np.eye(3))
            found = forces_of(context_of(system, Molecules(topology, dry.positions, 2 * np.eye(3), []), "Reference"))
            assert np.isfinite(found).all()
    finally:
        topology.setPeriodicBoxVectors(None)


def test_serialised(wet: Molecules, forcefield: app.ForceField, alone: Path) -> None:
    """A mixed system read back from XML gives the same forces."""
    mixed = potential(alone).createMixedSystem(wet.topology, mm_system(wet, forcefield), wet.solute)
    expected = forces_of(context_of(mixed, wet, "Reference"))
    again = openmm.XmlSerializer.clone(mixed)
    assert relative(forces_of(context_of(again, wet, "Reference")), expected) < 1e-6


def test_options(dry: Molecules, forcefield: app.ForceField, whole: Path, alone: Path, tmp_path: Path) -> None:
    """Options that do not exist are refused with the closest that does; the model's name may be a shipped one."""
    with pytest.raises(ConfigError, match=r"needs a model.*amber14-fast"):
        openmmml.MLPotential("forcefield-ml")
    with pytest.raises(ConfigError, match="Did you mean 'model'"):
        openmmml.MLPotential("forcefield-ml", modle=whole)
    with pytest.raises(ModelFileError, match="no model file"):
        potential(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="Did you mean 'backend'"):
        potential(whole).createSystem(dry.topology, backends="torchforce")
    with pytest.raises(ConfigError, match="mm_platfrom"):
        potential(alone).createMixedSystem(
            dry.topology, mm_system(dry, forcefield), dry.solute, embedding="embedded", mm_platfrom="CPU"
        )
    by_name = openmmml.MLPotential("forcefield-ml", model="amber14-fast", device="cpu")
    assert by_name._impl.model.card["architecture"] == "fast"
    torchforce = potential(whole).createSystem(dry.topology, backend="torchforce")
    python = potential(whole).createSystem(dry.topology)
    found = [forces_of(context_of(system, dry, "CPU")) for system in (torchforce, python)]
    assert relative(found[0], found[1]) < EXACT


def run(code: str, environment: dict[str, str]) -> str:
    """Return what a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports(environment: dict[str, str]) -> None:
    """openmm-ml finds the plugin without loading torch; our modules import in any order, and without openmm-ml."""
    code = "import openmmml, sys; print('forcefield-ml' in openmmml.MLPotential._implFactories, 'torch' in sys.modules)"
    assert run(code, environment) == "True False"
    module = "forcefield_ml.deploy.integrations.mlpotential"
    ours = f"import {module}_impl, openmmml; print(openmmml.MLPotential._implFactories.keys())"
    assert "forcefield-ml" in run(ours, environment)
    without = (
        "import sys; sys.modules['openmmml'] = sys.modules['ase'] = None\n"
        f"import forcefield_ml, {module}, forcefield_ml.deploy.model, forcefield_ml.cli\n"
        "try: forcefield_ml.ForcefieldMLCalculator\n"
        "except ImportError as error: print(error)"
    )
    assert 'pip install "forcefield-ml[ase]"' in run(without, environment)


def test_masks(wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed], alone: Path) -> None:
    """Our own embeddings read a mask; where openmm-ml would take it for atoms 0 and 1, it is refused."""
    mask = np.isin(np.arange(len(wet.positions)), wet.solute)
    found = []
    for atoms in (mask, wet.solute):
        mixed = potential(deployed["fast"].path).createMixedSystem(
            wet.topology, mm_system(wet, forcefield), atoms, embedding="solute"
        )
        found.append(forces_of(context_of(mixed, wet, "Reference")))
    assert np.abs(found[0] - found[1]).max() < 1e-6 * np.abs(found[1]).max()
    for atoms in (mask, mask.tolist()):
        with pytest.raises(ForceModeError, match="flatnonzero"):
            potential(alone).createMixedSystem(wet.topology, mm_system(wet, forcefield), atoms)
