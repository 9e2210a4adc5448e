"""The OpenMM forces against the eager model: platforms, backends, boxes, precision, guards in the callable."""

from __future__ import annotations

import pickletools
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from deploy_helpers import (
    Deployed,
    Molecules,
    bare_system,
    context_of,
    eager_forces,
    forces_of,
    make_model,
    write_model,
)

import forcefield_ml
from forcefield_ml.deploy.force import openmm_force
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.deploy.force.openmm_force import choose_backend
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ConfigError
from forcefield_ml.graph import NeighbourList

EXACT = 1e-4
"""L2 over the system, relative, float32: the export's promise."""

PLATFORMS = ("Reference", "CPU")
BACKENDS = ("pythonforce", "torchforce")

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return |found - expected| / |expected|."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def with_model(path: Path, molecules: Molecules, backend: str, platform: str = "Reference") -> openmm.Context:
    """Return a Context in which the model acts alone."""
    system = bare_system(molecules)
    system.addForce(forcefield_ml.load(path).create_force(molecules.topology, backend=backend))
    return context_of(system, molecules, platform)


@pytest.mark.parametrize("name", ["fast", "tfn"])
@pytest.mark.parametrize("structure", ["dry", "wet", "triclinic"])
def test_deployed_equals_eager(
    name: str, structure: str, deployed: dict[str, Deployed], request: pytest.FixtureRequest
) -> None:
    """On every platform and backend solute atoms feel the eager model's forces, repeatedly, and others nothing."""
    molecules: Molecules = request.getfixturevalue(structure)
    expected = eager_forces(deployed[name].eager, molecules)
    others = np.setdiff1d(np.arange(len(expected)), molecules.solute)
    expected[others] = 0
    assert np.linalg.norm(expected[molecules.solute], axis=1).min() > 0.1
    for platform in PLATFORMS:
        for backend in BACKENDS:
            context = with_model(deployed[name].path, molecules, backend, platform)
            for _ in range(3):  # the TorchScript optimiser changes what runs after the first calls
                found = forces_of(context)
                assert relative(found, expected) < EXACT, (platform, backend)
                assert not found[others].any()
            context.setPositions(molecules.positions * 1.01)
            assert relative(forces_of(context), expected) > 10 * EXACT, "negative control: other positions"


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_the_origin(backend: str, wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """Atoms that diffused 40 boxes away keep the accuracy of those in the first."""
    context = with_model(deployed["fast"].path, wet, backend)
    expected = forces_of(context)
    context.setPositions(wet.positions + 40 * wet.box[0])
    assert relative(forces_of(context), expected) < EXACT


def test_all_atoms_model(wet: Molecules, tmp_path: Path) -> None:
    """A model trained on all atoms acts on all atoms by default, in mode system and by create_force."""
    path = write_model(tmp_path, target_atoms="all")
    model = forcefield_ml.load(path)
    expected = eager_forces(make_model("fast"), wet)
    for backend in BACKENDS:
        system = model.create_system(wet.topology, backend=backend, remove_net_force=False)
        assert relative(forces_of(context_of(system, wet, "Reference")), expected) < EXACT
        assert sorted(force.getName() for force in system.getForces()) == ["CMMotionRemover", openmm_force.NO_ENERGY]


def test_forces_without_openmm(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """DeployedModel.forces gives the eager forces, for the atoms that the card names or some of them."""
    model = forcefield_ml.load(deployed["fast"].path)
    expected = eager_forces(deployed["fast"].eager, wet)
    solute = model.forces(wet.positions, wet.box, topology=wet.topology)
    assert solute.shape == (len(wet.solute), 3) and relative(solute, expected[wet.solute]) < EXACT
    species = [atom.element.atomic_number for atom in wet.topology.atoms()]
    assert relative(model.forces(wet.positions, wet.box, species=np.array(species)), expected) < EXACT
    some = model.forces(wet.positions, wet.box, topology=wet.topology, atoms=[30, 3])
    assert relative(some, expected[[3, 30]]) < EXACT
    with pytest.raises(ConfigError, match="species"):
        model.forces(wet.positions, wet.box)


def test_other_atoms(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """A chosen subset feels the model, in the right rows; the rest of the solute does not."""
    expected = eager_forces(deployed["fast"].eager, wet)
    chosen = [wet.solute[-1], wet.solute[2]]
    for backend in BACKENDS:
        system = bare_system(wet)
        model = forcefield_ml.load(deployed["fast"].path)
        system.addForce(model.create_force(wet.topology, atoms=chosen, backend=backend))
        found = forces_of(context_of(system, wet, "Reference"))
        assert relative(found[chosen], expected[chosen]) < EXACT
        assert np.count_nonzero(found.any(axis=1)) == 2


def test_two_models_in_one_process(dry: Molecules, deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Two TorchForces of files of the same name do not share a module (openmm-torch #98, #130)."""
    forces = []
    for name in ("fast", "tfn"):
        (tmp_path / name).mkdir()
        path = shutil.copy(deployed[name].path, tmp_path / name / "model.pt")
        context = with_model(Path(path), dry, "torchforce")
        forces.append((context, eager_forces(deployed[name].eager, dry)))
    for context, expected in forces:
        assert relative(forces_of(context), expected) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_box_must_not_change(backend: str, wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """Without an energy a change of the box raises; the bound box works before and after."""
    context = with_model(deployed["fast"].path, wet, backend)
    before = forces_of(context)
    context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in wet.box * 1.001))
    with pytest.raises(openmm.OpenMMException, match="box differs by"):
        forces_of(context)
    context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in wet.box))
    assert relative(forces_of(context), before) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_nan_names_the_atoms(backend: str, platform: str, dry: Molecules, tmp_path: Path) -> None:
    """Forces that are not finite raise and name atoms, on platforms that would integrate on silently."""
    model = make_model("fast")
    path = bundle.write(model, make_card(model), tmp_path / "model.pt")
    model.head.weights.data.fill_(float("nan"))
    scripted = tmp_path / "nan.pt"
    card = bundle.read_card(path)
    eager = bundle.DeployableModel(model).eval()
    import json

    torch.jit.save(torch.jit.script(eager), str(scripted), _extra_files={"card.json": json.dumps(card)})
    with pytest.raises(openmm.OpenMMException, match=r"not finite on .*:LYS351 N \(atom 0\)"):
        forces_of(with_model(scripted, dry, backend, platform))


def test_pickle_holds_plain_data(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """The pickle in a System XML names our callable and no other global but the pickle protocol's own."""
    force = forcefield_ml.load(deployed["fast"].path).create_force(wet.topology, backend="pythonforce")
    (stored,) = [
        v for v in ElementTree.fromstring(openmm.XmlSerializer.serialize(force)).attrib.values() if len(v) > 999
    ]
    names: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(bytes.fromhex(stored)):
        if opcode.name == "GLOBAL":
            names.add(str(argument))
        if opcode.name == "STACK_GLOBAL":
            names.add(" ".join(strings[-2:]))
        if isinstance(argument, str):
            strings.append(argument)
    assert names <= {
        "forcefield_ml.deploy.force.openmm_force ModelCallable",
        "copyreg _reconstructor",
        "copyreg __newobj__",
        "builtins object",
        "__builtin__ object",
        "copy_reg _reconstructor",
    }, names


def test_xml_round_trip_verifies_the_model(wet: Molecules, deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """A System read back from XML gives the same forces, and refuses another model.pt in the place of its own."""
    path = Path(shutil.copy(deployed["fast"].path, tmp_path / "model.pt"))
    system = bare_system(wet)
    system.addForce(forcefield_ml.load(path).create_force(wet.topology, backend="pythonforce"))
    expected = forces_of(context_of(system, wet, "Reference"))
    text = openmm.XmlSerializer.serialize(system)
    again = openmm.XmlSerializer.deserialize(text)
    assert relative(forces_of(context_of(again, wet, "Reference")), expected) < 1e-6
    shutil.copy(deployed["tfn"].path, path)
    bundle.read_cached.cache_clear()  # as in a fresh process
    with pytest.raises(openmm.OpenMMException, match="not the model that this force was made with"):
        forces_of(context_of(openmm.XmlSerializer.deserialize(text), wet, "Reference"))


def test_one_warning_about_the_energy(dry: Molecules, deployed: dict[str, Deployed]) -> None:
    """The first evaluation says that minimisers have nothing to go by, the second is quiet."""
    context = with_model(deployed["fast"].path, dry, "pythonforce")
    with pytest.warns(UserWarning, match="no energy"):
        forces_of(context)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        context.setPositions(dry.positions)
        forces_of(context)


def test_backend_choice() -> None:
    """Auto gives a readable reason; an unknown backend gets the closest match."""
    choice = choose_backend()
    assert choice.backend == "pythonforce" and "PythonForce" in choice.reason
    with pytest.raises(ConfigError, match="Did you mean 'torchforce'"):
        choose_backend("torch_force")


def test_pythonforce_runs_on_the_engine(
    wet: Molecules, deployed: dict[str, Deployed], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The eager network serves, on a neighbour list that outlives a step; a file of another version still works."""
    lists: list[NeighbourList] = []

    class Watched(Evaluator):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            lists.append(self.neighbour_list)

    monkeypatch.setattr(openmm_force, "Evaluator", Watched)
    bundle.read_cached.cache_clear()
    context = with_model(deployed["fast"].path, wet, "pythonforce")
    expected = forces_of(context)
    context.setPositions(wet.positions + 1e-4)
    forces_of(context)
    (found,) = lists
    assert (found.statistics.steps, found.statistics.rebuilds) == (2, 1)
    forcefield_ml.load(deployed["fast"].path).forces(wet.positions, wet.box, topology=wet.topology)
    assert len(lists) == 2, "forces() runs on it, too"
    assert not caplog.records

    monkeypatch.setattr(bundle, "_difference", lambda *_: 1.0)  # as if this machine's compiler were wrong
    bundle.read_cached.cache_clear()
    assert relative(forces_of(with_model(deployed["fast"].path, wet, "pythonforce")), expected) < EXACT
    assert "TorchScript serves" in caplog.text
    monkeypatch.setattr(bundle, "build", lambda config: make_model("tfn"))  # weights of other names
    caplog.clear()
    bundle.read_cached.cache_clear()
    assert relative(forces_of(with_model(deployed["fast"].path, wet, "pythonforce")), expected) < EXACT
    assert "made by another version" in caplog.text
    bundle.read_cached.cache_clear()
    assert len(lists) == 2
