"""Stored Systems: read without running code, models found again by their hash, the same physics in another process."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, bare_system, context_of, forces_of, write_model
from openmm import app, unit

import forcefield_ml
from forcefield_ml import pretrained
from forcefield_ml.deploy.force.openmm_force import ModelCallable
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.stored import pickles, serialise
from forcefield_ml.deploy.system.mm import SubtractMM
from forcefield_ml.errors import ForcefieldMLError, ModelFileError, SerialisationError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def with_pickle(data: bytes) -> str:
    """Return the XML of a System whose PythonForce holds this pickle."""
    system = openmm.System()
    system.addParticle(1)
    system.addForce(openmm.PythonForce(ModelCallable("p", "0" * 64, {}, False)))
    text = openmm.XmlSerializer.serialize(system)
    stored = text.partition('function="')[2].partition('"')[0]
    return text.replace(stored, data.hex())


def mm_system(molecules: Molecules, forcefield: app.ForceField) -> openmm.System:
    options = {"nonbondedMethod": app.NoCutoff}
    if molecules.box is not None:
        options = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.8 * unit.nanometer}
    return forcefield.createSystem(
        molecules.topology, constraints=None, rigidWater=False, removeCMMotion=False, **options
    )


MODES = {
    "system": {"target_atoms": "all"},
    "solute": {},
    "embedded": {"predicts": "solute_alone"},
    "correction": {"predicts": "reference_minus_mm"},
}


def in_mode(mode: str, folder: Path, molecules: Molecules, forcefield: app.ForceField) -> openmm.System:
    """Return a System with a model in a mode; the MM of mode solute on the Reference platform, for equal bits."""
    model = forcefield_ml.load(write_model(folder, **MODES[mode]))
    if mode == "system":
        return model.create_system(molecules.topology)
    system = mm_system(molecules, forcefield)
    return model.add_to_system(system, molecules.topology, mode=mode, mm_platform="Reference")


def test_payload_in_a_python_force_is_not_run(tmp_path: Path) -> None:
    """Control: OpenMM runs it on reading. Ours says which force it refused, and nothing was run."""
    marker = tmp_path / "ran"
    text = with_pickle(pickle.dumps(Payload(marker)))
    openmm.XmlSerializer.deserialize(text)
    assert marker.exists(), "control: reading by OpenMM runs the payload"
    marker.rmdir()
    for read in (forcefield_ml.read_system, forcefield_ml.read_xml, serialise.check_xml):
        with pytest.raises(SerialisationError, match=r"'forcefield_ml|PythonForce.*names posix\.mkdir"):
            read(text)
    path = tmp_path / "system.xml"
    path.write_text(text)
    with pytest.raises(SerialisationError, match=r"system\.xml holds a PythonForce .*not run"):
        forcefield_ml.read_system(path)
    assert not marker.exists()


def test_payload_in_hiding(tmp_path: Path, dry: Molecules) -> None:
    """Inside a CustomCVForce, in a State's place, in a comment's shadow, in the inner MM System: found everywhere."""
    marker = tmp_path / "ran"
    evil = with_pickle(pickle.dumps(Payload(marker)))
    force = evil[evil.index("<Force ") : evil.index("</Forces>")]
    inner = "<CollectiveVariables><CollectiveVariable name='a'>" + force + "</CollectiveVariable></CollectiveVariables>"
    hidden = {
        "nested": evil.replace(force, f'<Force type="CustomCVForce" version="1" energy="a">{inner}</Force>'),
        "after a comment": "<!-- <State> -->" + evil.partition("?>")[2],
        "bare force": force,
        "inner": with_pickle(pickle.dumps(SubtractMM(evil, [0], False))),
        "inner of ours": with_pickle(
            pickle.dumps(SubtractMM(with_pickle(pickle.dumps(ModelCallable("p", "0", {}, False))), [0], False))
        ),
        "in the state": with_pickle(pickle.dumps(ModelCallable("p", "0", {"x": Payload(marker)}, False))),
        "doctype": '<!DOCTYPE a [<!ENTITY b "c">]>' + evil.partition("?>")[2],
        "opcodes": with_pickle(b"\x80\x04cposix\nmkdir\n."),
        "no callable": with_pickle(pickle.dumps({"a": 1})),
        "no hex": with_pickle(b"").replace('function=""', 'function="zz"'),
        "class itself": with_pickle(pickle.dumps(ModelCallable)),
    }
    for kind, text in hidden.items():
        with pytest.raises(SerialisationError):
            forcefield_ml.read_xml(text)
        assert not marker.exists(), kind


@pytest.mark.parametrize(
    "state",
    [
        {"path": "p", "sha256": "0", "binding": {}, "has_energy": False, "more": 1},
        {"path": "p"},
        {"path": "p", "sha256": "0", "binding": {"a": {1, 2}}, "has_energy": False},
    ],
    ids=["unknown", "lacking", "not plain"],
)
def test_our_callable_holds_its_own_fields_only(state: dict[str, Any]) -> None:
    """A ModelCallable with other fields, without its own, or with values that are not plain is refused."""
    evil = ModelCallable.__new__(ModelCallable)
    evil.__setstate__(state)
    with pytest.raises(pickles.RefusedPickle):
        serialise.unpickle(pickle.dumps(evil))
    serialise.unpickle(pickle.dumps(ModelCallable("p", "0", {"a": [1, 2.5, "c", None, True]}, False)))  # control


@pytest.mark.parametrize(
    "callable_, message",
    [
        (ModelCallable(5, "0", {}, False), "path is of type int, not str"),  # type: ignore[arg-type]
        (ModelCallable("p", 5, {}, False), "sha256 is of type int, not str"),  # type: ignore[arg-type]
        (ModelCallable("p", "0", [], False), "binding is of type list, not dict"),  # type: ignore[arg-type]
        (SubtractMM(5, [0], False), "system_xml is of type int, not str"),  # type: ignore[arg-type]
        (SubtractMM("p", 0, False), "atoms is of type int, not list"),  # type: ignore[arg-type]
    ],
)
def test_fields_of_another_type(callable_: Any, message: str) -> None:
    """Each is named before anything makes use of it."""
    with pytest.raises(SerialisationError, match=message):
        forcefield_ml.read_xml(with_pickle(pickle.dumps(callable_)))


def test_what_would_take_stack_or_time() -> None:
    """Lists in themselves, lists that share their parts, XML of many levels: refused or read at once."""
    itself: list[Any] = []
    itself.append(itself)
    shared: list[Any] = []
    for _ in range(40):
        shared = [shared, shared]
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    for value, message in ((itself, "contains itself"), (deep, "levels within each other")):
        with pytest.raises(pickles.RefusedPickle, match=message):
            serialise.unpickle(pickle.dumps(ModelCallable("p", "0", {"a": value}, False)))
    start = time.perf_counter()
    serialise.unpickle(pickle.dumps(ModelCallable("p", "0", {"a": shared}, False)))
    assert time.perf_counter() - start < 1
    with pytest.raises(SerialisationError, match="elements within each other"):
        forcefield_ml.read_xml("<System type='System'>" + "<a>" * 50_000 + "</a>" * 50_000 + "</System>")


def test_values_without_a_name() -> None:
    """A field named by a number is refused as others are; so is a class filled instead of an object."""
    named = b"\x80\x02cforcefield_ml.deploy.force.openmm_force\nModelCallable\n"
    for rest in (b")\x81}K\x01K\x02sb.", b"}b."):
        with pytest.raises(pickles.RefusedPickle, match=r"no name|filled after"):
            serialise.unpickle(named + rest)


def test_xml_of_openmm_is_read_unchanged(wet: Molecules, forcefield: app.ForceField) -> None:
    """What has no Python in it comes out as OpenMM reads it: Systems, Integrators, States, odd characters and all."""
    system = mm_system(wet, forcefield)
    force = openmm.CustomExternalForce("k*x; k=2")
    force.setName('a <"name"> & \N{ANGSTROM SIGN}\n')
    force.addParticle(0, [])
    many = openmm.CustomManyParticleForce(3, "distance(p1,p2)")
    for i in range(system.getNumParticles()):
        many.addParticle([], i % 2)
    collective = openmm.CustomCVForce("a")
    collective.addCollectiveVariable("a", openmm.CustomBondForce("r"))
    table = openmm.CustomCompoundBondForce(2, "f(distance(p1,p2))")
    table.addTabulatedFunction("f", openmm.Continuous1DFunction([0, 1, 2], 0, 1))
    for added in (force, many, collective, table, openmm.MonteCarloBarostat(1, 300), openmm.AmoebaMultipoleForce()):
        system.addForce(added)
    context = context_of(bare_system(wet), wet, "Reference")
    for thing in (
        system,
        openmm.LangevinMiddleIntegrator(300, 1, 0.001),
        context.getState(positions=True, velocities=True),
        openmm.Continuous1DFunction([0, 1, 2], 0, 1),
    ):
        text = openmm.XmlSerializer.serialize(thing)
        assert openmm.XmlSerializer.serialize(forcefield_ml.read_xml(text)) == text
        assert openmm.XmlSerializer.serialize(openmm.XmlSerializer.deserialize(text)) == text, "control"
    with pytest.raises(SerialisationError, match="LangevinMiddleIntegrator, not a System"):
        forcefield_ml.read_system(openmm.XmlSerializer.serialize(openmm.LangevinMiddleIntegrator(300, 1, 0.001)))


def test_every_callable_of_ours_is_read() -> None:
    """What any force of ours calls can be stored and read: a new class in deploy must join `serialise.OWN`."""
    from forcefield_ml.deploy.force import openmm_force
    from forcefield_ml.deploy.system import mm

    found = {
        (module.__name__, name)
        for module in (mm, openmm_force)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and "__getstate__" in dir(kind)
        if "__call__" in dir(kind) and "__setstate__" in dir(kind) and not kind.__subclasses__()
    }
    assert found == serialise.OWN
    for kind in (mm.SubtractMM, mm.AddToSolute):
        text = with_pickle(pickle.dumps(kind(openmm.XmlSerializer.serialize(openmm.System()), [0], False)))
        assert type(pickle_of(forcefield_ml.read_system(text))) is kind


def test_unreadable_xml(tmp_path: Path) -> None:
    """A missing file, damaged XML, and a plugin's force each end in a message that says so."""
    for source, message in (
        (tmp_path / "none.xml", "there is no file"),
        ("<System", "no XML or damaged"),
        ("<System type='System'><a:b xmlns:a='c'/></System>", "namespaces"),
        ("<System type='System'><Forces><Force type='Plumed'/></Forces></System>", "'Plumed'"),
        ("<System type='System' version='99'/>", "cannot read"),
    ):
        with pytest.raises(SerialisationError, match=message):
            forcefield_ml.read_system(source)


TORCH_FORCE = """
import sys, warnings
warnings.simplefilter("ignore")
import forcefield_ml, openmm
from openmm import app
topology = app.Topology()
residue = topology.addResidue("MOL", topology.addChain())
atoms = [topology.addAtom(name, app.Element.getBySymbol(name), residue) for name in "OHH"]
system = openmm.System()
for hydrogen in atoms[1:]:
    topology.addBond(atoms[0], hydrogen)
for _ in atoms:
    system.addParticle(16.0)
system.addForce(forcefield_ml.load("amber14-fast").create_force(topology, atoms=[0], backend="torchforce",
    allow_residues=["MOL"]))
text = openmm.XmlSerializer.serialize(system)
print("written", flush=True)
{read}
"""


@pytest.mark.parametrize(
    "read, code",
    [
        ("openmm.XmlSerializer.deserialize(text)", -11),
        ("forcefield_ml.read_system(text)", 1),
    ],
    ids=["openmm crashes", "ours refuses"],
)
def test_torchforce_in_xml(read: str, code: int) -> None:
    """OpenMM dies of it without a word (once this fails, look whether it can be read now); our reader says why."""
    done = subprocess.run([sys.executable, "-c", TORCH_FORCE.format(read=read)], capture_output=True, text=True)
    assert "written" in done.stdout, done.stderr
    assert done.returncode == code, done.stderr
    if code == 1:
        assert "SerialisationError: the XML holds a TorchForce" in done.stderr
        assert "backend='pythonforce'" in done.stderr


ANOTHER_PROCESS = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, openmm, forcefield_ml
for folder in sys.argv[1:]:
    platform = folder.rpartition("-")[2]
    system = forcefield_ml.read_system(folder + "/system.xml")
    integrator = forcefield_ml.read_xml(folder + "/integrator.xml")
    options = {"DeterministicForces": "true", "Threads": "1"} if platform == "CPU" else {}
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), options)
    context.loadCheckpoint(open(folder + "/checkpoint", "rb").read())
    at_checkpoint = context.getState(positions=True, velocities=True, forces=True)
    context.setState(forcefield_ml.read_xml(folder + "/state.xml"))
    integrator.step(5)
    state = context.getState(positions=True, velocities=True)
    np.savez(folder + "/again.npz", forces=at_checkpoint.getForces(asNumpy=True)._value,
             start=at_checkpoint.getVelocities(asNumpy=True)._value,
             positions=state.getPositions(asNumpy=True)._value, velocities=state.getVelocities(asNumpy=True)._value)
"""


@pytest.mark.parametrize("platform", ["CPU", pytest.param("Reference", marks=pytest.mark.slow)])
def test_another_process_gives_the_same_trajectory(
    platform: str, wet: Molecules, forcefield: app.ForceField, tmp_path: Path
) -> None:
    """In every mode, from XML of System, State and integrator and from a checkpoint: the same bits in a fresh process.

    With one thread, and neighbours searched at the same step: their order is that of the last search.
    """
    expected = {}
    for mode in MODES:
        folder = tmp_path / f"{mode}-{platform}"
        folder.mkdir()
        system = in_mode(mode, folder, wet, forcefield)
        for force in system.getForces():
            if isinstance(force, openmm.NonbondedForce):
                force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)  # PME is slow on Reference
        integrator = openmm.VerletIntegrator(0.0001)
        options = {"DeterministicForces": "true", "Threads": "1"} if platform == "CPU" else {}
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), options)
        context.setPositions(wet.positions)
        context.setVelocitiesToTemperature(100, 1)
        start = context.getState(positions=True, velocities=True)
        (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
        (folder / "integrator.xml").write_text(openmm.XmlSerializer.serialize(integrator))
        (folder / "state.xml").write_text(openmm.XmlSerializer.serialize(start))
        (folder / "checkpoint").write_bytes(context.createCheckpoint())
        forces = forces_of(context)
        assert np.abs(forces[wet.solute]).max() > 1, "control: there are forces"
        integrator.step(5)
        expected[folder] = start, forces, context.getState(positions=True, velocities=True)
    folders = [str(folder) for folder in expected]
    done = subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, (start, forces, end) in expected.items():
        again = np.load(folder / "again.npz")
        assert np.array_equal(again["start"], start.getVelocities(asNumpy=True)._value), folder.name
        assert np.array_equal(again["forces"], forces), folder.name
        assert np.array_equal(again["positions"], end.getPositions(asNumpy=True)._value), folder.name
        assert np.array_equal(again["velocities"], end.getVelocities(asNumpy=True)._value), folder.name
        moved = end.getPositions(asNumpy=True)._value - start.getPositions(asNumpy=True)._value
        assert np.abs(moved).max() > 1e-5, "control: atoms moved"


def stored(path: Path, dry: Molecules) -> str:
    """Return the XML of a System with the model of a file."""
    system = bare_system(dry)
    system.addForce(forcefield_ml.load(path).create_force(dry.topology))
    return openmm.XmlSerializer.serialize(system)


def test_a_moved_model_is_found_by_its_hash(
    dry: Molecules, deployed: dict[str, Deployed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By argument, by the XML's folder, by the environment; a file of the right name and wrong content is passed by."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    path = Path(shutil.copy(deployed["fast"].path, old / "model.pt"))
    text = stored(path, dry)
    expected = forces_of(context_of(forcefield_ml.read_system(text), dry, "Reference"))
    assert openmm.XmlSerializer.serialize(forcefield_ml.read_system(text)) == text, "what is in its place is kept"
    shutil.move(path, new / "renamed.pt")
    shutil.copy(deployed["tfn"].path, new / "model.pt")
    with pytest.raises(ModelFileError, match=r"not at .*old/model\.pt.*models=.*FORCEFIELD_ML_MODELS"):
        forcefield_ml.read_system(text)
    (new / "system.xml").write_text(text)
    systems = [
        forcefield_ml.read_system(text, models=[new]),
        forcefield_ml.read_system(text, models=[new / "renamed.pt"]),
        forcefield_ml.read_system(new / "system.xml"),
    ]
    monkeypatch.setenv("FORCEFIELD_ML_MODELS", f"{tmp_path}/nowhere:{new}")
    systems.append(forcefield_ml.read_system(text))
    systems.append(openmm.XmlSerializer.deserialize(text))  # found at the first step
    for system in systems:
        bundle.read_cached.cache_clear()
        assert np.array_equal(forces_of(context_of(system, dry, "Reference")), expected)
    assert "renamed.pt" in str(pickle_of(systems[0]).path)


def pickle_of(system: openmm.System) -> Any:
    text = openmm.XmlSerializer.serialize(system)
    return serialise.unpickle(bytes.fromhex(text.partition('function="')[2].partition('"')[0]))


def test_a_changed_model_is_refused(dry: Molecules, deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Another file in the place of the model is named with both hashes, on reading and, by OpenMM's reader, later."""
    path = Path(shutil.copy(deployed["fast"].path, tmp_path / "model.pt"))
    text = stored(path, dry)
    shutil.copy(deployed["tfn"].path, path)
    bundle.read_cached.cache_clear()
    with pytest.raises(ModelFileError, match=r"not the model that this force was made with.*another file, SHA-256"):
        forcefield_ml.read_system(text)
    with pytest.raises(openmm.OpenMMException, match="not the model that this force was made with"):
        forces_of(context_of(openmm.XmlSerializer.deserialize(text), dry, "Reference"))


def test_a_model_that_ships_is_stored_by_name(
    wet: Molecules, forcefield: app.ForceField, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the package lies elsewhere its models are still found; one of other content in its place is refused."""
    quiet = context_of(forcefield.createSystem(wet.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8), wet, "CPU")
    openmm.LocalEnergyMinimizer.minimize(quiet, 100, 50)
    wet = wet._replace(positions=quiet.getState(positions=True).getPositions(asNumpy=True)._value)
    text = stored(pretrained.path("amber14-fast"), wet)
    assert pickle_of(forcefield_ml.read_system(text)).path == "pretrained:amber14-fast"
    assert str(pretrained.FOLDER) not in bytes.fromhex(text.partition('function="')[2].partition('"')[0]).decode(
        "latin-1"
    )
    expected = forces_of(context_of(forcefield_ml.read_system(text), wet, "Reference"))
    shutil.copy(pretrained.path("amber14-fast"), tmp_path / "amber14-fast.pt")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    bundle.read_cached.cache_clear()
    assert np.array_equal(forces_of(context_of(forcefield_ml.read_system(text), wet, "Reference")), expected)
    (tmp_path / "amber14-fast.pt").write_bytes(b"other")
    with pytest.raises(ForcefieldMLError, match="pretrained:amber14-fast"):
        forcefield_ml.read_system(text)


def test_the_inner_mm_system_is_read_safely(dry: Molecules, tmp_path: Path) -> None:
    """What mode solute evaluates beside the model goes through the same reader, whoever made the callable."""
    marker = tmp_path / "ran"
    force = openmm.PythonForce(SubtractMM(with_pickle(pickle.dumps(Payload(marker))), [0], False))
    system = openmm.System()
    system.addParticle(1)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([(0, 0, 0)])
    with warnings.catch_warnings(), pytest.raises(openmm.OpenMMException, match="not one of forcefield-ml"):
        context.getState(forces=True)
    assert not marker.exists()
