"""Two models in one System: refused where they share atoms, each counted once where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, context_of, eager_forces, forces_of, make_model, write_model
from openmm import app, unit

import forcefield_ml
from forcefield_ml.deploy.force.openmm_force import choose_backend
from forcefield_ml.deploy.system import mm, present
from forcefield_ml.errors import ConfigError, ForceModeError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")

BACKENDS = ("pythonforce", "torchforce")


def mm_system(molecules: Molecules, forcefield: app.ForceField) -> openmm.System:
    """Return AMBER14 without a cutoff: what is inside a molecule can be computed from the molecule alone."""
    return forcefield.createSystem(
        molecules.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False
    )


def part(molecules: Molecules, atoms: list[int]) -> Molecules:
    """Return some atoms (whole residues) alone, in vacuum."""
    modeller = app.Modeller(molecules.topology, molecules.positions * unit.nanometer)
    modeller.delete([atom for atom in molecules.topology.atoms() if atom.index not in atoms])
    modeller.topology.setPeriodicBoxVectors(None)
    return Molecules(modeller.topology, molecules.positions[atoms], None, list(range(len(atoms))))


@pytest.fixture(scope="module")
def drop(wet: Molecules) -> Molecules:
    """The tripeptide and its water without a box."""
    return part(wet, list(range(len(wet.positions))))._replace(solute=wet.solute)


@pytest.fixture(scope="module")
def water(drop: Molecules) -> list[int]:
    """The atoms of the water molecule nearest to the peptide."""
    waters = [[a.index for a in r.atoms()] for r in drop.topology.residues() if r.name == "HOH"]
    peptide = drop.positions[drop.solute]
    return min(waters, key=lambda w: np.linalg.norm(peptide - drop.positions[w[0]], axis=1).min())


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for mode embedded, of any atoms."""
    return write_model(tmp_path_factory.mktemp("e"), predicts="solute_alone", target_atoms="all")


@pytest.fixture(scope="module")
def correction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for mode correction, of any atoms."""
    return write_model(tmp_path_factory.mktemp("c"), predicts="reference_minus_mm", target_atoms="all")


def add(model: Path, system: openmm.System, drop: Molecules, atoms: list[int], **options: Any) -> openmm.System:
    return forcefield_ml.load(model).add_to_system(system, drop.topology, atoms=atoms, **options)


def test_two_embedded_models(drop: Molecules, water: list[int], forcefield: app.ForceField, embedding: Path) -> None:
    """Each replaces its own inner terms: full MM, minus both molecules' own MM in vacuum, plus both networks alone."""
    peptide = [a.index for a in drop.topology.atoms() if a.residue.name in ("LYS", "ASP", "ALA")]
    full = forces_of(context_of(mm_system(drop, forcefield), drop, "Reference"))
    expected = full.copy()
    for atoms in (peptide, water):
        alone = part(drop, atoms)
        expected[atoms] -= forces_of(context_of(mm_system(alone, forcefield), alone, "Reference"))
        expected[atoms] += eager_forces(make_model("fast"), alone)
    system = mm_system(drop, forcefield)
    for atoms in (peptide, water):
        system = add(embedding, system, drop, atoms, mode="embedded")
    assert [found.atoms for found in present.present(system)] == [tuple(peptide), tuple(water)]
    for made in (system, forcefield_ml.read_system(openmm.XmlSerializer.serialize(system))):
        found = forces_of(context_of(made, drop, "Reference"))
        scale = float(np.sqrt((full**2).sum(1).mean()))
        assert np.abs(found - expected).max() / scale < 1e-5
        assert np.abs(full - expected).max() / scale > 1e-2, "control: MM differs"


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_corrections(
    backend: str, drop: Molecules, water: list[int], forcefield: app.ForceField, correction: Path
) -> None:
    """MM plus the network's force, on each atom once."""
    expected = forces_of(context_of(mm_system(drop, forcefield), drop, "Reference"))
    network = eager_forces(make_model("fast"), drop)
    system = mm_system(drop, forcefield)
    for atoms in (drop.solute[:20], water):
        expected[atoms] += network[atoms]
        add(correction, system, drop, atoms, mode="correction", backend=backend)
    found = forces_of(context_of(system, drop, "Reference"))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4
    # The guard before the first step agrees.
    simulation = app.Simulation(drop.topology, system, openmm.VerletIntegrator(0.0005))
    forcefield_ml.check(simulation)


@pytest.mark.parametrize(
    "backend, stored",
    [("pythonforce", False), ("torchforce", False), ("pythonforce", True)],  # a TorchForce cannot be read from XML
    ids=["pythonforce", "torchforce", "from XML"],
)
def test_shared_atoms_are_refused_by_name(
    backend: str, stored: bool, drop: Molecules, forcefield: app.ForceField, correction: Path
) -> None:
    """The atoms that two models would share are named, also after a System was stored, with either backend."""
    system = mm_system(drop, forcefield)
    add(correction, system, drop, list(range(10)), mode="correction", backend=backend)
    if stored:
        system = forcefield_ml.read_system(openmm.XmlSerializer.serialize(system))
    with pytest.raises(ForceModeError, match=r"acts on 2 of the atoms chosen \(.*LYS351 .*atom 8\), .*atom 9\)\)"):
        add(correction, system, drop, list(range(8, 20)), mode="correction", backend=backend)
    add(correction, system, drop, list(range(10, 20)), mode="correction", backend=backend)  # control


def test_a_shared_atom_is_found_before_the_first_step(
    drop: Molecules, forcefield: app.ForceField, correction: Path
) -> None:
    """Forces that a user added by hand are compared by `check`."""
    model = forcefield_ml.load(correction)
    system = mm_system(drop, forcefield)
    for atoms in ([1, 2, 3], [3, 4]):
        system.addForce(model.create_force(drop.topology, atoms=atoms))
    with pytest.raises(ForceModeError, match="two models that both act on atoms 3;"):
        forcefield_ml.check(app.Simulation(drop.topology, system, openmm.VerletIntegrator(0.0005)))


def test_solute_after_another_model(
    drop: Molecules, water: list[int], deployed: dict[str, Deployed], forcefield: app.ForceField, correction: Path
) -> None:
    """Mode solute first and another model elsewhere afterwards counts each once; the other order says so."""
    expected = forces_of(context_of(mm_system(drop, forcefield), drop, "Reference"))
    network = eager_forces(make_model("fast"), drop)
    expected[drop.solute] = network[drop.solute]
    expected[water] += network[water]
    system = mm_system(drop, forcefield)
    add(deployed["fast"].path, system, drop, drop.solute, mode="solute", mm_platform="Reference")
    add(correction, system, drop, water, mode="correction")
    found = forces_of(context_of(system, drop, "Reference"))
    scale = float(np.sqrt((expected**2).sum(1).mean()))
    assert np.abs(found - expected).max() / scale < 1e-4
    other = mm_system(drop, forcefield)
    add(correction, other, drop, water, mode="correction")
    with pytest.raises(ForceModeError, match="with mode 'solute' first"):
        add(deployed["fast"].path, other, drop, drop.solute, mode="solute")


def pull(state: openmm.State) -> tuple[float, np.ndarray]:
    """Return a force of another package: 3 kJ/mol/nm along x on each of its atoms."""
    forces = np.zeros((len(state.getPositions(asNumpy=True)), 3))
    forces[:, 0] = 3
    return 0.0, forces


def test_forces_of_other_packages(
    drop: Molecules, water: list[int], forcefield: app.ForceField, correction: Path, tmp_path: Path
) -> None:
    """As openmm-ml adds them: with atoms of its own it may stay and counts once; over all atoms it is refused."""
    theirs = openmm.PythonForce(pull)
    theirs.setParticles(water)
    theirs.setName("MLPotential")
    system = mm_system(drop, forcefield)
    expected = forces_of(context_of(system, drop, "Reference"))
    expected[water, 0] += 3
    expected[drop.solute] += eager_forces(make_model("fast"), drop)[drop.solute]
    system.addForce(theirs)
    add(correction, system, drop, drop.solute, mode="correction")
    found = forces_of(context_of(system, drop, "Reference"))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4
    with pytest.raises(ForceModeError, match="'MLPotential' of another package acts on 3 of the atoms"):
        add(
            correction,
            system,
            drop,
            water,
            mode="correction",
        )
    everywhere = mm_system(drop, forcefield)
    everywhere.addForce(openmm.PythonForce(pull))
    for predicts, mode in (("reference_minus_mm", "correction"), ("solute_alone", "embedded"), ("total", "solute")):
        with pytest.raises(ForceModeError, match="of another package, which may act on every atom"):
            add(write_model(tmp_path, predicts=predicts), everywhere, drop, drop.solute, mode=mode)


def test_embedded_keeps_a_force_of_others_elsewhere(
    drop: Molecules, water: list[int], forcefield: app.ForceField, embedding: Path
) -> None:
    """A PythonForce on other atoms is carried into the copy; one that cannot be copied is named."""
    system = mm_system(drop, forcefield)
    theirs = openmm.PythonForce(pull)
    theirs.setParticles(water)
    system.addForce(theirs)
    mixed = add(embedding, system, drop, drop.solute, mode="embedded")
    plain = add(embedding, mm_system(drop, forcefield), drop, drop.solute, mode="embedded")
    difference = forces_of(context_of(mixed, drop, "Reference")) - forces_of(context_of(plain, drop, "Reference"))
    expected = np.zeros_like(difference)
    expected[water, 0] = 3
    assert np.abs(difference - expected).max() < 1e-6
    local = openmm.PythonForce(lambda state: pull(state))
    local.setParticles(water)
    system = mm_system(drop, forcefield)
    system.addForce(local)
    with pytest.raises(ForceModeError, match="cannot be copied"):
        add(embedding, system, drop, drop.solute, mode="embedded")


def test_a_torchforce_cannot_be_copied(
    drop: Molecules, water: list[int], forcefield: app.ForceField, embedding: Path
) -> None:
    """Mode embedded beside a TorchForce is refused; OpenMM would crash (test_torchforce_in_xml)."""
    system = add(embedding, mm_system(drop, forcefield), drop, water, mode="embedded", backend="torchforce")
    with pytest.raises(ForceModeError, match="with a TorchForce in it"):
        add(embedding, system, drop, drop.solute, mode="embedded")


def test_backends_that_are_absent(
    monkeypatch: pytest.MonkeyPatch, dry: Molecules, deployed: dict[str, Deployed]
) -> None:
    """Auto takes TorchForce where OpenMM has no PythonForce, and says what to install where there is neither."""
    from forcefield_ml.deploy.force import openmm_force

    assert forcefield_ml.load(deployed["fast"].path).backend_choice.backend == "pythonforce"
    monkeypatch.delattr(openmm, "PythonForce")
    assert choose_backend().backend == "torchforce" and "no PythonForce" in choose_backend().reason
    force = forcefield_ml.load(deployed["fast"].path).create_force(dry.topology)
    assert type(force).__name__ == "TorchForce"
    with pytest.raises(ConfigError, match=r"no PythonForce.*pip install .openmm>=8\.6\.1"):
        choose_backend("pythonforce")
    monkeypatch.setattr(openmm_force, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"no backend to run a model.*pip install.*pip install"):
        choose_backend()


def test_the_backend_is_logged(dry: Molecules, deployed: dict[str, Deployed], caplog: pytest.LogCaptureFixture) -> None:
    """The log names backend, model and reason."""
    with caplog.at_level("INFO", logger="forcefield_ml"):
        forcefield_ml.load(deployed["fast"].path).create_force(dry.topology)
    assert "pythonforce serves fast.pt: OpenMM" in caplog.text


def test_inner_terms_of_shared_atoms_are_never_guessed(
    drop: Molecules, water: list[int], forcefield: app.ForceField
) -> None:
    """`remove_internal_terms` itself refuses a PythonForce that touches the subset."""
    system = mm_system(drop, forcefield)
    theirs = openmm.PythonForce(pull)
    theirs.setParticles(water)
    system.addForce(theirs)
    mm.remove_internal_terms(system, drop.solute)
    with pytest.raises(ForceModeError, match="PythonForce"):
        mm.remove_internal_terms(system, water)
