"""The neighbour list against looking at every pair and image, at every step of trajectories."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import openmm
import pytest
import torch
from openmm import app, unit
from torch import Tensor

from forcefield_ml.graph import Neighbourhood, NeighbourList, NeighbourMatrix, NeighbourSearch, compiled, whole
from forcefield_ml.graph import neighbour_list as module
from forcefield_ml.graph.candidates import pair_rows, spatial_order, wrapping_offsets
from forcefield_ml.graph.neighbour_list import Statistics
from forcefield_ml.graph.search import largest_radius
from forcefield_ml.kernels import plain_form
from forcefield_ml.models import Atoms, build
from forcefield_ml.testing import brute_force_pairs, matrix_pairs, random_liquid

BOXES = {
    "cubic": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "dodecahedron": [[1, 0, 0], [0, 1, 0], [0.5, 0.5, math.sqrt(0.5)]],
    "octahedron": [[1, 0, 0], [1 / 3, 2 * math.sqrt(2) / 3, 0], [-1 / 3, math.sqrt(2) / 3, math.sqrt(6) / 3]],
    "triclinic": [[1, 0, 0], [-0.45, 0.9, 0], [0.48, -0.4, 1.2]],
    "none": None,
}
CUTOFF = 0.3
N_ATOMS = 216


@pytest.fixture(params=["compiled", "plain"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with compiled kernels, and as on a machine without a compiler."""
    if request.param == "plain":
        with plain_form():
            yield request.param
    else:
        yield request.param


def system(name: str, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """Return positions of a jittered liquid and the box of that name, some 1.2 nm wide."""
    _, positions, cube = random_liquid(N_ATOMS, seed=seed, spacing=0.21)
    if BOXES[name] is None:
        return positions, None
    shape = torch.tensor(BOXES[name], dtype=torch.float64)
    box = shape * (cube[0, 0] / torch.det(shape).abs() ** (1 / 3))
    return positions @ torch.linalg.inv(cube) @ box, box


def least_distances(positions: Tensor, box: Tensor | None) -> Tensor:
    """Return the distances (N, N) to the nearest image, over all images around the rounded one; infinite to itself."""
    apart = positions[None] - positions[:, None]
    least = torch.full(apart.shape[:2], math.inf, dtype=torch.float64)
    shifts = torch.zeros(1, 3, dtype=torch.float64)
    if box is not None:
        apart = apart - (apart @ torch.linalg.inv(box)).round() @ box
        near = torch.zeros(1) if torch.equal(box, box.diag().diag()) else torch.arange(-1.0, 2.0)
        shifts = torch.cartesian_prod(near, near, near).double().view(-1, 3) @ box
    for shift in shifts:
        least = torch.minimum(least, (apart + shift).norm(dim=-1))
    return least.fill_diagonal_(math.inf)


def in_atom_order(found: Neighbourhood, n_atoms: int) -> NeighbourMatrix:
    """Return the matrix with rows and indices that count atoms; rows not computed are empty."""
    indices, vectors, mask = found.neighbours
    rows = found.order[: len(mask)]
    result = NeighbourMatrix(
        torch.zeros(n_atoms, mask.shape[1], dtype=torch.int64),
        torch.zeros(n_atoms, mask.shape[1], 3, dtype=torch.float64),
        torch.zeros(n_atoms, mask.shape[1], dtype=torch.bool),
    )
    result.indices[rows], result.vectors[rows], result.mask[rows] = found.order[indices] * mask, vectors.double(), mask
    assert bool((indices[~mask] == 0).all()) and bool((vectors[~mask] == 0).all())
    assert bool((mask.long().diff(dim=1) <= 0).all()), "neighbours stand in the leading places"
    return result


def missing_and_wrong(found: Neighbourhood, positions: Tensor, box: Tensor | None, cutoff: float) -> tuple[int, int]:
    """Return how many pairs within the cutoff a list lacks, and how many of its pairs or vectors are not right."""
    distances = least_distances(positions, box)
    matrix = in_atom_order(found, len(positions))
    rows = found.order[: len(found.neighbours.mask)]
    listed = torch.zeros_like(distances)
    listed[torch.arange(len(positions))[:, None].expand_as(matrix.mask)[matrix.mask], matrix.indices[matrix.mask]] += 1
    expected = torch.zeros_like(listed)
    expected[rows] = (distances[rows] < cutoff).double()
    lengths = distances.gather(1, matrix.indices)[matrix.mask]
    apart = positions[matrix.indices] - positions[:, None] - matrix.vectors
    if box is not None:
        apart = apart @ torch.linalg.inv(box)
        apart = apart - apart.round()
    wrong = ((matrix.vectors.norm(dim=-1)[matrix.mask] - lengths).abs() > 1e-6).sum() + (
        apart[matrix.mask].abs() > 1e-5
    ).any(1).sum()
    return int((expected > listed).sum()), int((listed > expected).sum() + wrong)


def nearest_differ(found: Neighbourhood, positions: Tensor, box: Tensor | None, n_neighbours: int) -> float:
    """Return by how much the distances of the K nearest differ from those of all atoms, at most, in nm."""
    distances = least_distances(positions, box)
    matrix = in_atom_order(found, len(positions))
    assert bool(matrix.mask.all()) and matrix.indices.shape == (len(positions), n_neighbours)
    expected = distances.topk(n_neighbours, largest=False).values
    listed = distances.gather(1, matrix.indices)
    wrong = max(
        float((listed.sort(dim=1).values - expected).abs().max()),
        float((matrix.vectors.norm(dim=-1) - listed).abs().max()),
    )
    return wrong if bool((matrix.indices.sort(dim=1).values.diff(dim=1) > 0).all()) else math.inf


def walk(positions: Tensor, steps: int, seed: int = 3) -> list[Tensor]:
    """Return a trajectory with velocities that persist and are kicked: 0.01 nm a step, and a drift across the box."""
    generator = torch.Generator().manual_seed(seed)
    velocities = torch.zeros_like(positions)
    frames = []
    for _ in range(steps):
        velocities = 0.9 * velocities + 0.002 * torch.randn(positions.shape, generator=generator, dtype=torch.float64)
        positions = positions + velocities + torch.tensor([0.004, -0.003, 0.0])
        frames.append(positions)
    return frames


@pytest.mark.parametrize("name", BOXES)
def test_one_frame_against_brute_force(form: str, name: str) -> None:
    """Every pair and image within the cutoff, none beyond, with positions far outside the box."""
    positions, box = system(name)
    if box is not None:
        positions = positions + 7 * box[0] - 4 * box[1] + 3 * box[2]
        positions[::5] -= 2 * box[2]
    found = NeighbourList("cutoff", cutoff=CUTOFF)(positions, box)
    matrix = in_atom_order(found, N_ATOMS)
    home = positions if box is None else positions - (positions @ torch.linalg.inv(box)).floor() @ box
    vectors = matrix.vectors
    assert missing_and_wrong(found, positions, box, CUTOFF) == (0, 0)
    assert matrix_pairs(NeighbourMatrix(matrix.indices, vectors, matrix.mask), home, box) == brute_force_pairs(
        home, box, CUTOFF
    )


@pytest.mark.parametrize("name", BOXES)
def test_no_pair_is_missed_along_a_walk(form: str, name: str) -> None:
    """At every step the neighbours are those of brute force, and most steps need no search."""
    positions, box = system(name)
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF, skin=0.1)
    for frame in walk(positions, 30):
        assert missing_and_wrong(neighbours(frame, box), frame, box, CUTOFF) == (0, 0)
    assert 2 <= neighbours.statistics.rebuilds <= 15 and neighbours.statistics.steps == 30


def test_pairs_are_missed_without_the_displacement_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: candidates that are never searched anew lack pairs, and the comparison sees it."""
    positions, box = system("cubic")
    monkeypatch.setattr(
        NeighbourList,
        "_displacement",
        lambda self, positions, box: math.inf if self._build is None else 0.0,
    )
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF, skin=0.1)
    missing = [missing_and_wrong(neighbours(frame, box), frame, box, CUTOFF)[0] for frame in walk(positions, 30)]
    assert neighbours.statistics.rebuilds == 1 and missing[0] == 0 and max(missing) > 10


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("approach", [0.099, 0.102])
def test_two_atoms_meet_from_beyond_the_skin(form: str, approach: float, share: float) -> None:
    """A pair just outside cutoff + skin comes closer by almost, and by more than, the skin: it is never missed."""
    apart = 0.3 + 0.1 + 0.001
    start = torch.tensor([[0.0, 0, 0], [apart, 0, 0], [0, 5.0, 0]], dtype=torch.float64)
    moved = start.clone()
    moved[0, 0] += share * approach
    moved[1, 0] -= (1 - share) * approach
    neighbours = NeighbourList("cutoff", cutoff=0.3, skin=0.1)
    neighbours(start)
    found = neighbours(moved)
    assert int(found.neighbours.mask.sum()) == (2 if approach > 0.1 else 0)
    assert neighbours.statistics.rebuilds == (2 if approach > 0.1 else 1)


@pytest.mark.parametrize("name", ["cubic", "dodecahedron"])
def test_frames_wrapped_into_the_box(form: str, name: str) -> None:
    """Atoms that jump by a box vector from one frame to the next have the same neighbours as those that do not."""
    positions, box = system(name)
    assert box is not None
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF, skin=0.1)
    for frame in walk(positions, 25):
        wrapped = frame - (frame @ torch.linalg.inv(box)).floor() @ box
        assert missing_and_wrong(neighbours(wrapped, box), wrapped, box, CUTOFF) == (0, 0)


def test_box_that_changes(form: str) -> None:
    """A box scaled by a barostat, tilted or dropped is seen at once, though no atom has moved far."""
    positions, box = system("triclinic")
    assert box is not None
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF, skin=0.1)
    tilted = box.clone()
    tilted[2, 0] -= 0.02
    for rebuilds, cell in enumerate([box, 1.01 * box, tilted, None, box], start=1):
        assert missing_and_wrong(neighbours(positions, cell), positions, cell, CUTOFF) == (0, 0)
        assert neighbours.statistics.rebuilds == rebuilds
    box *= 1.05  # the caller's own tensor changes in place
    assert missing_and_wrong(neighbours(positions, box), positions, box, CUTOFF) == (0, 0)


def test_positions_changed_in_place(form: str) -> None:
    """A caller that integrates in place does not take the reference along."""
    positions, box = system("cubic")
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF, skin=0.1)
    for _ in range(5):
        assert missing_and_wrong(neighbours(positions, box), positions, box, CUTOFF) == (0, 0)
        positions[::3, 0] += 0.04
    assert neighbours.statistics.rebuilds == 3


@pytest.mark.parametrize("name", BOXES)
def test_nearest_are_exact_along_a_walk(form: str, name: str) -> None:
    """At every step the K nearest of all atoms and images, also when displacements come near half the skin."""
    positions, box = system(name)
    neighbours = NeighbourList("nearest", n_neighbours=20, skin=0.1)
    for frame in walk(positions, 15):
        assert nearest_differ(neighbours(frame, box), frame, box, 20) < 1e-6
    assert 2 <= neighbours.statistics.rebuilds < 12


def test_nearest_are_wrong_without_their_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control for the nearest."""
    positions, box = system("cubic")
    monkeypatch.setattr(
        NeighbourList, "_displacement", lambda self, positions, box: math.inf if self._build is None else 0.0
    )
    neighbours = NeighbourList("nearest", n_neighbours=20, skin=0.02)
    wrong = []
    for frame in walk(positions, 40):
        found = neighbours(frame, box)
        neighbours._build = neighbours._build._replace(reach=torch.full((N_ATOMS,), math.inf))
        wrong.append(nearest_differ(found, frame, box, 20))
    assert wrong[0] < 1e-6 and wrong[-1] > 1e-3


def test_nearest_of_a_lonely_atom(form: str) -> None:
    """An atom that flies off alone keeps its K nearest, however far."""
    positions, _ = system("none")
    neighbours = NeighbourList("nearest", n_neighbours=10, skin=0.1)
    for step in range(30):
        positions[0, 0] -= 0.03 * step
        assert nearest_differ(neighbours(positions), positions, None, 10) < 1e-5


def water_trajectory(steps: int) -> tuple[list[Tensor], Tensor]:
    """Return frames 1 fs apart of a flexible water box at 300 K, unwrapped, and the box."""
    forcefield = app.ForceField("amber14/tip3pfb.xml")
    modeller = app.Modeller(app.Topology(), [])
    modeller.addSolvent(forcefield, model="tip3p", boxSize=openmm.Vec3(1.7, 1.7, 1.7) * unit.nanometer)
    system = forcefield.createSystem(
        modeller.topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=0.8,
        constraints=None,
        rigidWater=False,
    )
    integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.001)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(
        modeller.topology, system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}
    )
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=50)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(100)
    frames = []
    for _ in range(steps):
        simulation.step(1)
        state = simulation.context.getState(positions=True)
        frames.append(torch.from_numpy(state.getPositions(asNumpy=True)._value.copy()))
    return frames, torch.from_numpy(state.getPeriodicBoxVectors(asNumpy=True)._value.copy())


def test_no_pair_is_missed_in_molecular_dynamics() -> None:
    """Flexible water at 300 K and 1 fs: right at every step, and searched once in several steps."""
    frames, box = water_trajectory(15)
    by_cutoff = NeighbourList("cutoff", cutoff=0.45, skin=0.1)
    nearest = NeighbourList("nearest", n_neighbours=50, skin=0.1)
    for frame in frames:
        assert missing_and_wrong(by_cutoff(frame, box), frame, box, 0.45) == (0, 0)
        assert nearest_differ(nearest(frame, box), frame, box, 50) < 1e-6
    assert by_cutoff.statistics.rebuilds < 5 and nearest.statistics.rebuilds < 10


def test_overflow_grows_the_rows_once_and_loses_nothing(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """A droplet that contracts: rows grow with one message each time, and no neighbour is cut off."""
    positions, _ = system("none")
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF, skin=0.1)
    widths = []
    with caplog.at_level(logging.INFO, logger=module.__name__):
        for step in range(12):
            frame = positions * (1 - 0.02 * step)
            found = neighbours(frame)
            assert missing_and_wrong(found, frame, None, CUTOFF) == (0, 0)
            widths.append(found.neighbours.indices.shape[1])
    grown = [record for record in caplog.records if "places in a row" in record.getMessage()]
    assert len(grown) == len(set(widths)) - 1 >= 1
    assert widths == sorted(widths) and all(width % module.ROUNDING == 0 for width in widths)
    assert neighbours(positions).neighbours.indices.shape[1] == widths[-1], "shapes never shrink"


@pytest.mark.parametrize("name", ["dodecahedron", "none"])
def test_targets_lead_and_layers_hold_what_they_need(form: str, name: str) -> None:
    """Layer by layer, each row is complete and names only atoms that the layer before is computed for."""
    positions, box = system(name)
    targets = torch.zeros(N_ATOMS, dtype=torch.bool)
    targets[[3, 17, 190]] = True
    neighbours = NeighbourList("cutoff", cutoff=0.22, n_layers=3, skin=0.03, targets=targets)
    for frame in walk(positions, 20):
        found = neighbours(frame, box)
        order, matrix, sizes, ascending = found
        assert order[: sizes[-1]][ascending].tolist() == [3, 17, 190]
        assert len(order) >= sizes[0] >= sizes[1] >= sizes[2] == 3 and len(matrix.mask) == sizes[0]
        assert len(set(order.tolist())) == len(order)
        assert missing_and_wrong(found, frame, box, 0.22) == (0, 0)  # every row of sizes[0]
        for rows, known in zip(sizes, [len(order), *sizes], strict=False):
            assert int(matrix.indices[:rows].max()) < known
    assert len(found.order) < N_ATOMS and neighbours.statistics.rebuilds > 1


@pytest.mark.parametrize("config", [{"architecture": "tfn", "order": 1, "n_neighbours": 12}, {"architecture": "fast"}])
def test_a_model_predicts_the_same(config: dict[str, object]) -> None:
    """Predictions by the list, put in ascending order, are those of the whole system by a fresh search."""
    torch.manual_seed(1)
    model = build({**config, "n_channels": 4, "cutoff": 0.3} if config["architecture"] == "fast" else config)
    model = model.double().eval()
    species, positions, box = random_liquid(N_ATOMS, triclinic=True, seed=2)
    wanted = model.capabilities
    targets = torch.zeros(N_ATOMS, dtype=torch.bool)
    targets[[200, 4, 77]] = True
    for chosen in (None, targets):
        neighbours = NeighbourList(
            wanted.neighbours,
            wanted.n_neighbours,
            wanted.cutoff,
            wanted.n_layers,
            skin=0.05,
            targets=chosen,
            dtype=torch.float64,
        )
        for frame in walk(positions, 6):
            found = neighbours(frame, box)
            with torch.no_grad():
                forces = model(Atoms(species[found.order]), found.neighbours, found.layer_sizes).forces
                everything = model(Atoms(species), model.search()(frame, box), whole(N_ATOMS, wanted.n_layers)).forces
            expected = everything if chosen is None else everything[chosen]
            assert torch.allclose(
                forces[found.ascending], expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max())
            )


@pytest.mark.parametrize("n_atoms", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cutoff", "nearest"])
@pytest.mark.parametrize("periodic", [False, True])
def test_tiny_systems(form: str, n_atoms: int, kind: str, periodic: bool) -> None:
    """Fewer atoms than places; the same pairs as a fresh search finds, near and out of reach."""
    positions = torch.tensor([[0.0, 0, 0], [0.2, 0, 0], [0, 0.3, 0]], dtype=torch.float64)[:n_atoms]
    box = 3.0 * torch.eye(3, dtype=torch.float64) if periodic else None
    neighbours = NeighbourList(kind, n_neighbours=5, cutoff=0.25)
    search = NeighbourSearch(kind, n_neighbours=5, cutoff=0.25)
    for scale in (1.0, 1.1, 4.0):
        frame = positions * scale
        found = in_atom_order(neighbours(frame, box), n_atoms)
        assert found.indices.shape[1] >= 1
        assert matrix_pairs(found, frame, box) == matrix_pairs(search(frame, box), frame, box)
        assert kind == "nearest" or scale < 4 or not bool(found.mask.any())


def test_bad_input_is_refused() -> None:
    """The errors of the search, at the first step and at later ones; and those of the list."""
    positions, box = system("cubic")
    assert box is not None
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF)
    with pytest.raises(ValueError, match="no atoms"):
        neighbours(positions[:0], box)
    for _ in range(2):
        broken = positions.clone()
        broken[5, 1] = math.nan
        with pytest.raises(ValueError, match="not finite"):
            neighbours(broken, box)
        broken[5, 1] = math.inf
        with pytest.raises(ValueError, match="not finite"):
            neighbours(broken, box)
        neighbours(positions, box)
    with pytest.raises(ValueError, match="twice the cutoff"):
        neighbours(positions * 0.4, box * 0.4)
    with pytest.raises(ValueError, match="no volume"):
        neighbours(positions, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="too small for the nearest"):
        NeighbourList("nearest", n_neighbours=150)(positions, box)
    with pytest.raises(ValueError, match="above 0 nm"):
        NeighbourList("cutoff", cutoff=CUTOFF, skin=0.0)
    with pytest.raises(ValueError, match="mask with one bool"):
        NeighbourList("cutoff", cutoff=CUTOFF, targets=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="mask with one bool"):
        NeighbourList("cutoff", cutoff=CUTOFF, targets=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask of 4 atoms"):
        NeighbourList("cutoff", cutoff=CUTOFF, targets=torch.ones(4, dtype=torch.bool))(positions, box)
    with pytest.raises(ValueError, match="kind of neighbours"):
        NeighbourList("far")


@pytest.mark.parametrize("kind", ["cutoff", "nearest"])
def test_the_skin_shrinks_in_a_small_box(form: str, kind: str) -> None:
    """A box barely twice the cutoff high leaves no room for the skin: still right, searched more often."""
    positions, box = system("dodecahedron")
    assert box is not None
    height = float(box[2, 2])
    cutoff = 0.4999 * height
    neighbours = NeighbourList(kind, n_neighbours=40, cutoff=cutoff, skin=0.3)
    for frame in walk(positions, 8):
        found = neighbours(frame, box)
        if kind == "cutoff":
            assert missing_and_wrong(found, frame, box, cutoff) == (0, 0)
        else:
            assert nearest_differ(found, frame, box, 40) < 1e-6
    assert kind == "nearest" or neighbours.statistics.rebuilds == 8


def test_ties_are_broken_alike_and_by_double_precision() -> None:
    """On a lattice, exact and all but exact ties at the K-th place: each form chooses the truly nearest atoms."""
    grid = torch.cartesian_prod(*[torch.arange(5.0, dtype=torch.float64)] * 3) * 0.2
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 1e-10, 1e-3):
        positions = grid + size * torch.randn(grid.shape, generator=generator, dtype=torch.float64)
        box = torch.eye(3, dtype=torch.float64)
        results = []
        for context in (nullcontext, plain_form):
            neighbours = NeighbourList("nearest", n_neighbours=10)
            with context():
                results.append(neighbours(positions, box))
            distances = least_distances(positions, box).sort(dim=1).values[:, :11]
            listed = in_atom_order(results[-1], 125)
            truly = least_distances(positions, box).gather(1, listed.indices).sort(dim=1).values
            assert float((truly - distances[:, :10]).abs().max()) < 1e-14
        if size > 0:
            rows = [found.neighbours.indices.sort(dim=1).values for found in results]
            assert torch.equal(*rows)


@pytest.mark.parametrize("kind", ["cutoff", "nearest"])
def test_compiled_equals_plain(kind: str) -> None:
    """The same pairs, and vectors equal to the rounding of single precision, on one and two threads."""
    positions, box = system("triclinic", seed=8)
    pair = [NeighbourList(kind, n_neighbours=24, cutoff=CUTOFF) for _ in range(2)]
    threads = torch.get_num_threads()
    try:
        for step, frame in enumerate(walk(positions, 12)):
            torch.set_num_threads(1 + step % 2)
            one = pair[0](frame, box)
            with plain_form():
                other = pair[1](frame, box)
            assert one.neighbours.vectors.dtype == torch.float32
            assert torch.equal(one.order, other.order) and one.layer_sizes == other.layer_sizes
            rows = [(f.neighbours.indices - 1000 * f.neighbours.mask).sort(dim=1) for f in (one, other)]
            assert torch.equal(rows[0].values, rows[1].values)
            vectors = [
                found.neighbours.vectors.gather(1, row.indices[:, :, None].expand(-1, -1, 3))
                for found, row in zip((one, other), rows, strict=True)
            ]
            assert torch.allclose(*vectors, rtol=2e-7, atol=1e-12)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", BOXES)
def test_compiled_search_equals_vesin(name: str) -> None:
    """Candidates with a radius of each row's own: the same pairs and images, one atom far off."""
    positions, box = system(name)
    positions = positions + wrapping_offsets(positions, box)
    if box is None:
        positions[7] += 300.0
    largest = largest_radius(positions, box)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(N_ATOMS, generator=generator)
    for low, high in ((0.05, 0.3), (0.3, min(largest, 0.6)), (largest, largest) if box is not None else (0.2, 0.2)):
        radii = low + (high - low) * torch.rand(N_ATOMS, generator=generator, dtype=torch.float64)
        searches = module.PLAIN.search(positions, box), compiled.CompiledSearch(positions, box)
        for chosen in (rows, rows[:50]):
            found = [search(chosen, radii[: len(chosen)]) for search in searches]
            assert torch.equal(found[0].starts, found[1].starts) and len(found[0].partners) > 0
            names = [(pair_rows(f) * 10_000 + f.partners) * 27 + f.images for f in found]
            assert torch.equal(names[0].sort().values, names[1].sort().values)


def test_the_kernel_refuses_other_memory() -> None:
    """Pointers go to compiled code: another dtype, or a view with gaps, raises instead."""
    positions, box = system("cubic")
    neighbours = NeighbourList("cutoff", cutoff=CUTOFF)
    neighbours(positions, box)
    build, out = neighbours._build, neighbours._out
    assert build is not None and out is not None
    with pytest.raises(TypeError, match="float64"):
        compiled.refresh_cutoff(positions.float(), build.candidates, CUTOFF, out)
    with pytest.raises(TypeError, match="contiguous"):
        compiled.refresh_cutoff(positions.T.contiguous().T, build.candidates, CUTOFF, out)
    with pytest.raises(TypeError, match="float32"):
        compiled.refresh_cutoff(positions, build.candidates, CUTOFF, out._replace(vectors=out.vectors.double()))


def test_no_gradient_is_recorded() -> None:
    """Positions that require gradients give vectors that do not: the list serves dynamics."""
    positions, box = system("cubic")
    found = NeighbourList("cutoff", cutoff=CUTOFF, dtype=torch.float64)(positions.requires_grad_(), box)
    assert not found.neighbours.vectors.requires_grad


def test_far_from_the_origin_nothing_is_lost(form: str) -> None:
    """Vectors of atoms that have drifted a kilometre of boxes away are as precise as at home."""
    positions, box = system("cubic")
    assert box is not None
    at_home = NeighbourList("cutoff", cutoff=CUTOFF)(positions, box)
    away = positions + 1000 * box[0]
    found = NeighbourList("cutoff", cutoff=CUTOFF)(away, box)
    lengths = [in_atom_order(f, N_ATOMS).vectors.norm(dim=-1).sort(dim=1).values for f in (at_home, found)]
    assert torch.allclose(*lengths, rtol=0, atol=1e-7)


def test_spatial_order_is_local() -> None:
    """Atoms next to each other in the order are near in space, far nearer than in a random order."""
    _, positions, _ = random_liquid(1000, seed=1)
    positions = positions[torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
    order = spatial_order(positions)
    assert order.sort().values.tolist() == list(range(1000))
    steps = positions[order].diff(dim=0).norm(dim=1).mean()
    assert steps < 0.3 * positions.diff(dim=0).norm(dim=1).mean()


@pytest.mark.parametrize("kind", ["cutoff", "nearest"])
def test_a_list_begun_in_inference_mode_goes_on_without(form: str, kind: str) -> None:
    """What a call keeps may be written to later."""
    positions, box = system("cubic")
    neighbours = NeighbourList(kind, n_neighbours=20, cutoff=CUTOFF)
    with torch.inference_mode():
        neighbours(positions.clone(), box)
    found = neighbours(positions + 1e-4 * torch.randn_like(positions), box)
    assert not found.neighbours.vectors.is_inference()
    neighbours(positions + 0.2 * torch.randn_like(positions), box)
    assert neighbours.statistics.rebuilds == 2


def resident(field: str) -> int:
    """Return this process's memory in bytes: VmRSS what it holds, VmHWM the most it has held."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(field + ":")[1].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cutoff", "nearest"])
def test_time_and_memory_are_linear(kind: str) -> None:
    """From 1,000 to 1,000,000 atoms a search and a refresh cost the same per atom, and memory is under 4 kB an atom."""
    seconds: dict[int, list[float]] = {}
    for n_atoms in (1_000, 10_000, 100_000, 1_000_000):
        _, positions, box = random_liquid(n_atoms, seed=1)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        neighbours = NeighbourList(kind, n_neighbours=50, cutoff=0.45, n_layers=3)
        neighbours(positions, box)
        least = [math.inf, math.inf]
        for repeat in range(3):
            neighbours.statistics = Statistics()
            found = neighbours(positions + 0.2 * (repeat + 1), box)
            assert neighbours.statistics.rebuilds == 1
            least[0] = min(least[0], neighbours.statistics.search_seconds / n_atoms)
            least[1] = min(least[1], neighbours.statistics.refresh_seconds / n_atoms)
        seconds[n_atoms] = least
        some = torch.arange(0, n_atoms, n_atoms // 50)
        lengths = found.neighbours.vectors[found.ascending[some]].norm(dim=2).sort(dim=1, descending=True).values
        for atom, row in zip(some.tolist(), lengths, strict=True):
            apart = positions - positions[atom]
            distances = (apart - (apart / box[0, 0]).round() * box[0, 0]).norm(dim=1).sort().values[1:]
            near = distances[:50] if kind == "nearest" else distances[distances < 0.45]
            assert torch.allclose(row[: len(near)].double(), near.flip(0), atol=1e-6) and not bool(
                row[len(near) :].any()
            )
        grown = resident("VmHWM") - before
        print(n_atoms, [f"{1e6 * value:.2f} µs/atom" for value in least], f"{grown / n_atoms:.0f} bytes/atom")
        if n_atoms == 1_000_000:
            assert grown < 4000 * n_atoms
    for part in (0, 1):
        assert seconds[1_000_000][part] < 4 * seconds[10_000][part]
