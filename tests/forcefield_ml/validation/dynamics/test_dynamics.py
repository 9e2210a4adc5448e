"""Block errors and drift against known series, geometry by hand, an ideal gas, and real runs of a peptide."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import Vec3, app, unit

from data_pipeline.systems.prepare import Prepared
from forcefield_ml import pretrained
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.errors import SurroundingsWarning
from forcefield_ml.simulation import build
from forcefield_ml.simulation.build import Simulated
from forcefield_ml.units import BOLTZMANN, KJ_PER_MOL_IN_MEV
from forcefield_ml.validation.dynamics import DynamicsSettings, compare
from forcefield_ml.validation.dynamics.blocks import block_mean, drift
from forcefield_ml.validation.dynamics.compare import _driven
from forcefield_ml.validation.dynamics.observables import (
    circular_difference,
    geometry,
    temperatures,
    water_structure,
)
from forcefield_ml.validation.dynamics.plots import drawn
from forcefield_ml.validation.uses import FIT, NOT_FIT, judge

FRAGMENT = Path(__file__).parents[2] / "deploy" / "data" / "1aie_351_353.pdb"


def test_block_error_sees_correlation() -> None:
    """For values that stay alike for 200 steps the error is what repetitions scatter, many times the naive one."""
    random = np.random.default_rng(0)
    means, errors, naive = [], [], []
    for _ in range(60):
        values = np.repeat(random.normal(size=25), 200)
        found = block_mean(values)
        means.append(found["mean"])
        errors.append(found["standard_error"])
        naive.append(values.std() / np.sqrt(len(values)))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.3)
    assert np.mean(naive) < 0.2 * np.std(means), "control: values taken for independent"
    assert block_mean([3.0])["standard_error"] is None
    with pytest.raises(ValueError, match="nothing to average"):
        block_mean([])


def test_drift_of_a_known_line() -> None:
    """Slope in meV/atom/ps, and the change over the run in units of the kinetic energy's own fluctuation."""
    time = np.linspace(0, 2, 201)
    swing = 5.0 * np.sin(40 * np.pi * time)
    found = drift(time, 100 + swing + 3.0 * time, 50 - swing + 4.0 * time, n_atoms=10)
    assert found["slope"] == pytest.approx(7.0 * KJ_PER_MOL_IN_MEV / 10)
    assert found["kinetic_std"] == pytest.approx(5 / np.sqrt(2), rel=0.02)
    assert found["over_kinetic_std"] == pytest.approx(14 / found["kinetic_std"])
    assert found["standard_error"] < 1e-6
    noisy = drift(time, 100 + swing, 50 + np.random.default_rng(0).normal(size=201), 10)
    assert abs(noisy["slope"]) < 4 * noisy["standard_error"] < 30
    with pytest.raises(ValueError, match="at least 4"):
        drift([0, 1, 2], [1, 1, 1], [1, 1, 1], 1)


def waters(count: int) -> app.Topology:
    """Return the topology of waters, and one residue of a protein ahead of them."""
    topology = app.Topology()
    chain = topology.addChain()
    residue = topology.addResidue("GLY", chain)
    atoms = [
        topology.addAtom(name, app.element.get_by_symbol(symbol), residue)
        for name, symbol in (("N", "N"), ("CA", "C"), ("HA2", "H"))
    ]
    topology.addBond(atoms[0], atoms[1])
    topology.addBond(atoms[1], atoms[2])
    for _ in range(count):
        residue = topology.addResidue("HOH", chain)
        oxygen, *hydrogens = (
            topology.addAtom(name, app.element.get_by_symbol(name[0]), residue) for name in ("O", "H1", "H2")
        )
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    return topology


def test_temperature_of_each_element() -> None:
    """Maxwell's velocities at one temperature for each element and group give these back, protein and water apart."""
    topology = waters(500)
    masses = np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms()])
    solute = np.arange(len(masses)) < 3
    symbols = np.array([atom.element.symbol for atom in topology.atoms()])
    wanted = np.where(solute, 100.0, np.where(symbols == "O", 330.0, 290.0))
    random = np.random.default_rng(0)
    velocities = random.normal(size=(40, len(masses), 3)) * np.sqrt(BOLTZMANN * wanted / masses)[:, None]
    found = temperatures(topology, velocities, masses, solute)
    assert set(found) == {"protein C", "protein H", "protein N", "water H", "water O"}
    for name, expected in (("water O", 330.0), ("water H", 290.0), ("protein C", 100.0)):
        assert found[name]["mean"] == pytest.approx(expected, abs=5 * found[name]["standard_error"])
    assert found["water O"]["standard_error"] < 3 and found["water H"]["atoms"] == 1000


def test_geometry_by_hand() -> None:
    """Bonds and angles by kind; what differs between bonds is no spread in time, and the start is no part."""
    topology = waters(2)
    frame = np.array(
        [
            *([0, 0, 0], [0.15, 0, 0], [0.15, 0.11, 0]),
            *([1, 1, 1], [1.1, 1, 1], [1, 1.1, 1]),
            *([2, 1, 1], [2.1, 1, 1], [2 - 0.1, 1, 1]),
        ]
    )
    positions = np.repeat(frame[None], 7, axis=0)
    positions[4:, 4, 0] += 0.02  # one of four O-H bonds is longer in the second half
    positions[0, 4, 0] += 0.5
    found = geometry(topology, positions, np.arange(9) < 3, 0.1)
    assert found["bonds"]["protein heavy"]["mean"]["mean"] == pytest.approx(0.15)
    assert found["bonds"]["protein X-H"]["mean"]["mean"] == pytest.approx(0.11)
    assert found["bonds"]["water O-H"]["mean"]["mean"] == pytest.approx(0.1 + 0.02 / 8)
    assert found["bonds"]["water O-H"]["std"]["mean"] == pytest.approx(0.01 / 2)
    assert found["angles"]["protein with H"]["mean"]["mean"] == pytest.approx(90)
    assert found["angles"]["water H-O-H"]["mean"]["mean"] == pytest.approx((90 + 180) / 2)
    assert found["rmsd"]["mean"] == pytest.approx(0, abs=1e-4) and found["phi"] == [[]] * 6


def test_ideal_gas_has_no_structure() -> None:
    """Oxygens thrown into the box at random have g(r) = 1 within the error, through the box's faces too."""
    topology = waters(400)
    box = np.diag([2.4, 2.4, 2.4])
    topology.setPeriodicBoxVectors([Vec3(*row) for row in box] * unit.nanometer)
    positions = np.random.default_rng(0).random((20, 1203, 3)) * 2.4
    found = water_structure(topology, positions.astype(np.float32), box)
    assert found is not None
    outer = np.array(found["r"]) > 0.5
    assert np.abs(np.array(found["g"])[outer].mean() - 1) < 0.01
    assert 0 < np.array(found["standard_error"])[outer].mean() < 0.1
    assert water_structure(waters(1), positions[:, :6].astype(np.float32), box) is None


def test_directions_are_compared_on_the_circle() -> None:
    """179 and -179 degrees are two degrees apart."""
    ours, theirs = np.array([[179.0, 10.0]] * 3), np.array([[-179.0, 30.0]] * 2)
    assert circular_difference(ours, theirs) == pytest.approx((2 + 20) / 2)
    assert circular_difference(np.zeros((3, 0)), np.zeros((2, 0))) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sixty-four steps of a fragment in little water by a mediocre model and by AMBER14.

    It is the one that ships with as much noise on the weights of its head as these are: as it is, it keeps its energy.
    """
    settings = DynamicsSettings(steps=64, frames=16, equilibration_ps=0.1, padding=0.3, minimise_iterations=60)
    folder = tmp_path_factory.mktemp("dynamics")
    card, module, _ = bundle.read(pretrained.path("amber14-fast"))
    model = bundle.eager(card, module)
    assert model is not None
    weights = model.head.weights.data
    weights += weights.std() * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    del card["weights_sha256"]
    return compare(FRAGMENT, bundle.write(model, card, folder / "mediocre.pt"), folder, settings, lambda line: None)


def test_runs_begin_alike_and_differ_by_the_force(runs: dict[str, Any]) -> None:
    """AMBER14 keeps its energy, a direct force does not; temperatures and geometry are those of matter at 300 K."""
    nve = runs["nve"]
    assert abs(nve["amber14"]["drift"]["over_kinetic_std"]) < 0.1
    assert nve["model"]["drift"]["over_kinetic_std"] > 3 * nve["amber14"]["drift"]["over_kinetic_std"]
    multiple = nve["multiple_time_stepping"]
    assert multiple["time"] == pytest.approx(np.arange(9) * 0.004)
    assert multiple["time"][-1] == pytest.approx(nve["model"]["time"][-1])
    assert runs["multiple_time_stepping"] == {"mode": "solute", "inner_steps": 8, "refused": None}
    assert 0 < multiple["drift"]["over_kinetic_std"] < min(0.16, 0.5 * nve["model"]["drift"]["over_kinetic_std"])
    assert runs["mode"] == "solute" and runs["target_atoms"] == "all"
    for run in runs["nvt"].values():
        assert run["event"] is None and run["frames"] == 17
        assert 200 < run["temperature"]["water O"]["mean"] < 420
        assert run["geometry"]["bonds"]["water O-H"]["mean"]["mean"] == pytest.approx(0.101, abs=0.005)
        assert 0.25 < run["water"]["peak_r"] < 0.31
    start = [run["geometry"]["structure"]["rg_nm"][0] for run in runs["nvt"].values()]
    assert start[0] == start[1], "one start for all"
    assert runs["differences"]["psi"] < 30


def test_the_run_with_multiple_time_steps_is_judged(runs: dict[str, Any]) -> None:
    """Its drift makes the criterion of NVT of a solute: a number with its length, met or not."""
    metrics = {"tensor": 1.0, "magnitude": 1.0, "angle": 1.0, "relative": 0.1}
    metrics["naive"] = {"tensor": 9.0, "magnitude": 9.0, "angle": 90.0}
    use = judge(metrics, {"lambda": 0.02, "standard_error": 0.0}, runs)[1]
    value = runs["nve"]["multiple_time_stepping"]["drift"]["over_kinetic_std"] / 0.032
    assert use.outcome == (FIT if value < 1 else NOT_FIT)
    assert f"(8 x 0.5 fs) {value:.2g} of" in use.criteria[2].what and "in 1 ps (the run had 0.032)" in use.sentence
    direct = {**runs, "nve": {**runs["nve"], "multiple_time_stepping": runs["nve"]["model"]}}
    control = judge(metrics, {"lambda": 0.02, "standard_error": 0.0}, direct)[1]
    assert control.outcome == NOT_FIT, "control: the direct force's own drift"


def test_runs_are_drawn(runs: dict[str, Any]) -> None:
    """Each figure is there once; runs that a guard stopped at once leave the rest out."""
    figures = drawn(runs)
    assert len(figures) == 8 and all(svg.count("<svg") == 1 for svg in figures.values())
    nothing = {"event": {"reason": "hot", "step": 0}, "frames": 0, "temperature": None}
    assert len(drawn({**runs, "nvt": {name: nothing for name in runs["nvt"]}})) == 1


def test_guard_ends_a_run(tmp_path: Path) -> None:
    """A step that tears the atoms apart is an event with a reason; what was before it is kept."""
    import openmm

    from forcefield_ml.deploy.guards.stability import Limits
    from forcefield_ml.validation.dynamics.motion import move

    system = openmm.System()
    bond = openmm.HarmonicBondForce()
    for _ in range(2):
        system.addParticle(1.0)
    bond.addBond(0, 1, 0.1, 4e5)
    system.addForce(bond)
    platform = openmm.Platform.getPlatformByName("Reference")
    integrator = openmm.VerletIntegrator(0.004)  # the bond's period is 0.007 ps
    context, reference = (
        openmm.Context(system, which, platform) for which in (integrator, openmm.VerletIntegrator(0.001))
    )
    context.setPositions([[0, 0, 0], [0.101, 0, 0]])
    motion = move(context, integrator, reference, None, steps=400, every=5, limits=Limits(), title="x", quiet=True)
    assert motion.event is not None and "force" in motion.event["reason"]
    assert 1 <= len(motion.time) < 80 and len(motion.kinetic) == len(motion.reference) == len(motion.time)


def test_guesses_are_kept_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the warnings as the model joins, those of atoms bonded as none in training are kept; all are passed on."""
    made = Simulated.__new__(Simulated)

    def joins(*_: Any) -> Simulated:
        warnings.warn("A:PRO1 N: bonded as no atom", SurroundingsWarning, stacklevel=1)
        warnings.warn("no water", UserWarning, stacklevel=1)
        return made

    monkeypatch.setattr(build, "add_model", joins)
    prepared = Prepared.__new__(Prepared)
    object.__setattr__(prepared, "topology", app.Topology())
    with pytest.warns(UserWarning) as told:
        found = _driven(openmm.System(), prepared, Path("model.pt"), DynamicsSettings())
    assert found == (made, ["A:PRO1 N: bonded as no atom"])
    assert [str(one.message) for one in told] == ["A:PRO1 N: bonded as no atom", "no water"]
