"""A watched simulation fails with step, atoms and value, and its last good state can be gone back to."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, bare_system, forces_of, make_model
from openmm import app

import forcefield_ml
from forcefield_ml.deploy.force import openmm_force
from forcefield_ml.deploy.force.openmm_force import ModelCallable
from forcefield_ml.deploy.guards.watch import Watch
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import BoxError, UnstableError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")

BACKENDS = ("pythonforce", "torchforce")


@pytest.fixture(scope="module")
def gentle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose random forces are too weak to heat the peptide."""
    model = make_model("fast")
    model.set_scale(0.01 * float(model.head.scale))
    return bundle.write(model, make_card(model), tmp_path_factory.mktemp("gentle") / "model.pt")


@pytest.fixture
def make(dry: Molecules, gentle: Path, tmp_path: Path) -> Callable[..., app.Simulation]:
    """Return a maker of Simulations of the dry peptide, at 300 K; the model acts alone, and nothing holds bonds."""

    def simulation_of(
        backend: str = "pythonforce", platform: str = "Reference", seed: int = 1, **options: Any
    ) -> app.Simulation:
        system = bare_system(dry)
        system.addForce(forcefield_ml.load(gentle).create_force(dry.topology, backend=backend))
        simulation = app.Simulation(
            dry.topology, system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName(platform)
        )
        simulation.context.setPositions(dry.positions)
        simulation.context.setVelocitiesToTemperature(300, seed)
        return forcefield_ml.check(
            simulation, **{"last_good": tmp_path / "good.xml", "every": 10, "torn_bonds": False, **options}
        )

    return simulation_of


def largest(simulation: app.Simulation) -> float:
    return float(np.linalg.norm(forces_of(simulation.context), axis=1).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_absurd_forces(
    backend: str, make: Callable[..., app.Simulation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model stops the run at the very step whose force is too large, and the last look before it is on disk."""
    for seed in range(10):  # of the velocities, until a force outgrows all before it
        free = make(backend, last_good=None, seed=seed)
        norms = [largest(free)]
        kept = {}
        for step in range(1, 100):
            free.step(1)
            norms.append(largest(free))
            kept[step] = free.context.getState(positions=True).getPositions(asNumpy=True)._value
            if step > 11 and norms[-1] > 1.001 * max(norms[:-1]):
                break
        else:
            continue
        break
    else:
        pytest.fail("no force stood out")
    monkeypatch.setattr(openmm_force, "MAX_FORCE", 0.5 * (max(norms[:-1]) + norms[-1]))
    simulation = make(backend, seed=seed)
    with pytest.raises(UnstableError) as caught:
        simulation.step(300)
    found = re.search(
        r"(?:at|after) step (\d+): the model's forces are above (\d+) kJ/mol/nm on \d+ atoms?: A:\w+35\d \w+ "
        r"\(atom \d+\) with (\d+)[.,].* The last good state, step (\d+), is in (.*); simulation.loadState",
        str(caught.value),
    )
    assert found, str(caught.value)
    assert int(found[1]) == step and abs(int(found[3]) - norms[-1]) <= 1
    assert int(found[4]) == 10 * ((step - 1) // 10) and found[5] == str(tmp_path / "good.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.xml"]
    simulation.loadState(found[5])
    assert simulation.currentStep == int(found[4])
    back = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    assert np.allclose(back, kept[int(found[4])], atol=1e-6)


def test_bonds_that_tear(make: Callable[..., app.Simulation], tmp_path: Path) -> None:
    """Where nothing holds bonds they tear long before anything is too hot; the state before it is kept."""
    with pytest.raises(
        UnstableError,
        match=r"at step \d+: (1 bond is|\d+ bonds are) torn, the longest to 0\.\d+ nm, beyond 1\.6 times .*; worst: ",
    ) as caught:
        make(torn_bonds=True).step(300)
    state = openmm.XmlSerializer.deserialize((tmp_path / "good.xml").read_text())
    assert 0 < state.getStepCount() < int(re.findall(r"at step (\d+)", str(caught.value))[0])
    make(torn_bonds=False).step(300)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_that_are_lost(
    backend: str, platform: str, dry: Molecules, make: Callable[..., app.Simulation], tmp_path: Path
) -> None:
    """NaN from elsewhere is told with its atom on every platform, and the state kept is the finite one."""
    simulation = make(backend, platform)
    simulation.step(12)
    positions = dry.positions.copy()
    positions[7] = np.inf if platform == "Reference" else np.nan
    simulation.context.setPositions(positions)
    with pytest.raises(UnstableError, match=r"step 12: positions are not finite: .*LYS351.*\((atom )?7\).*step 10"):
        simulation.step(10)
    simulation.loadState(str(tmp_path / "good.xml"))
    assert np.isfinite(forces_of(simulation.context)).all()
    simulation.step(5)


def test_heat(make: Callable[..., app.Simulation], tmp_path: Path) -> None:
    """Atoms that are too hot are told at the next look; the limit is the caller's."""
    simulation = make(max_temperature=900.0)
    simulation.step(10)
    simulation.context.setVelocitiesToTemperature(5000, 1)
    with pytest.raises(
        UnstableError, match=r"at step 20: the temperature of the system is \d+ K, above 900 K; worst: "
    ):
        simulation.step(100)
    assert simulation.currentStep == 20 and (tmp_path / "good.xml").is_file()


def test_a_change_of_box_is_no_instability(wet: Molecules, deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """What the callable says of a box keeps its kind."""
    system = bare_system(wet)
    system.addForce(forcefield_ml.load(deployed["fast"].path).create_force(wet.topology))
    simulation = app.Simulation(wet.topology, system, openmm.VerletIntegrator(0.0005))
    simulation.context.setPositions(wet.positions)
    forcefield_ml.check(simulation, last_good=tmp_path / "good.xml", torn_bonds=False).step(1)
    simulation.context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in 1.01 * wet.box))
    with pytest.raises(BoxError, match="no barostat can act"):
        simulation.step(1)


def test_nothing_good(make: Callable[..., app.Simulation], dry: Molecules, tmp_path: Path) -> None:
    """A run that was never good writes nothing and says so."""
    simulation = make()
    positions = dry.positions.copy()
    positions[0] = np.nan
    simulation.context.setPositions(positions)
    with pytest.raises(UnstableError, match="no good state to go back to"):
        simulation.step(1)
    assert not list(tmp_path.iterdir())


def test_interrupt_in_the_model(make: Callable[..., app.Simulation], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the model computes is a KeyboardInterrupt, not an instability without a message."""
    simulation = make()
    original = ModelCallable.__call__

    def interrupted(self: ModelCallable, state: Any) -> Any:
        if state.getStepCount() == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, state)

    monkeypatch.setattr(ModelCallable, "__call__", interrupted)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits "ignore"
    try:
        with pytest.raises(KeyboardInterrupt):
            simulation.step(10)
    finally:
        signal.signal(signal.SIGINT, former)


def test_watching_again_and_not_at_all(make: Callable[..., app.Simulation], tmp_path: Path) -> None:
    """A second check replaces the first watch; None leaves the simulation's own step."""
    simulation = make()
    forcefield_ml.check(simulation, last_good=tmp_path / "other.xml", every=7, torn_bonds=False)
    (watch,) = [reporter for reporter in simulation.reporters if isinstance(reporter, Watch)]
    assert (watch.every, watch.path) == (7, tmp_path / "other.xml")
    simulation.step(20)
    simulation.runForClockTime(0.05 / 3600)
    assert simulation.currentStep > 20
    plain = make(last_good=None)
    assert not plain.reporters and "step" not in vars(plain)


def test_cost(make: Callable[..., app.Simulation], monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching evaluates the model once more per look and at the start, and no more."""
    calls = 0
    original = ModelCallable.__call__

    def counted(self: ModelCallable, state: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(self, state)

    simulation = make()
    monkeypatch.setattr(ModelCallable, "__call__", counted)
    simulation.step(50)
    assert calls <= 50 + 1 + 5
    begin = time.perf_counter()
    for _ in range(1000):
        simulation.step(0)
    assert time.perf_counter() - begin < 0.2  # 0.2 ms a call would matter to those who step one by one
