"""Lambda: against the Jacobian written down, against analytic forces whose lambda is known; work around loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS, write_dataset

from data_pipeline.labels.ewald import mesh, reciprocal_forces
from forcefield_ml import models
from forcefield_ml.data import ForceDataset, Target
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.validation.symmetry import Probed, asymmetry, load_module, loop_work
from forcefield_ml.validation.symmetry.besides import reciprocal_of


def springs(seed: int, antisymmetric: float, n: int = 30) -> tuple[torch.Tensor, float]:
    """Return a Jacobian of Gaussian numbers, so that every pair of atoms is coupled, and its lambda by definition."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(3 * n, 3 * n))
    matrix = (matrix + matrix.T) / 2 + antisymmetric * (matrix - matrix.T) / 2
    exact = np.linalg.norm(matrix - matrix.T) / (2 * np.linalg.norm(matrix))
    return torch.from_numpy(matrix), float(exact)


def linear(matrix: torch.Tensor) -> Any:
    """Return the force F = A x as a function of positions (n, 3)."""
    return lambda x: (matrix @ x.reshape(-1)).reshape(x.shape)


@pytest.mark.parametrize("antisymmetric", [0.0, 0.03, 1.0, 1e3])
def test_lambda_of_linear_forces(antisymmetric: float) -> None:
    """The estimate is the definition's value within four standard errors, which are small; exactly 0 if symmetric."""
    matrix, exact = springs(0, antisymmetric)
    found = asymmetry(linear(matrix), torch.zeros(30, 3, dtype=torch.float64), n_probes=64)
    assert abs(found["lambda"] - exact) <= 4 * found["standard_error"] + 1e-12
    assert found["standard_error"] <= 0.05 * exact + 1e-12
    assert found["jacobian_norm"] == pytest.approx(float(matrix.norm()), rel=0.1)


def test_standard_error_is_that_of_repetitions() -> None:
    """The jackknife tells how much the estimate varies from seed to seed."""
    matrix, _ = springs(1, 0.5, n=6)
    found = [asymmetry(linear(matrix), torch.zeros(6, 3, dtype=torch.float64), 16, seed) for seed in range(40)]
    spread = np.std([one["lambda"] for one in found], ddof=1)
    assert np.mean([one["standard_error"] for one in found]) == pytest.approx(spread, rel=0.35)


def swirl(x: torch.Tensor) -> torch.Tensor:
    """Return harmonic forces to the origin with 1 part in 10 of a rotation about z: not the gradient of anything."""
    turned = torch.stack([-x[:, 1], x[:, 0], torch.zeros_like(x[:, 0])], dim=1)
    return -10.0 * x + 1.0 * turned


def test_lambda_of_a_swirl() -> None:
    """By hand: each atom has J = -10 identity plus an antisymmetric block of norm sqrt 2, so lambda = sqrt(2 / 302)."""
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = asymmetry(swirl, x, 32)
    assert found["lambda"] == pytest.approx(np.sqrt(2 / 302), abs=4 * found["standard_error"] + 1e-9)


def test_what_acts_besides_dilutes_lambda() -> None:
    """A conservative force of the same size doubles the Jacobian and halves lambda of the total, not the model's."""
    matrix, _ = springs(2, 0.2)
    symmetric = ((matrix + matrix.T) / 2).numpy()
    found = asymmetry(
        linear(matrix),
        torch.zeros(30, 3, dtype=torch.float64),
        64,
        besides=lambda x: (symmetric @ x.reshape(-1)).reshape(x.shape),
    )
    total = matrix.numpy() + symmetric
    exact = np.linalg.norm(total - total.T) / (2 * np.linalg.norm(total))
    assert found["total"]["lambda"] == pytest.approx(exact, abs=4 * found["total"]["standard_error"])
    assert found["total"]["lambda"] < 0.6 * found["lambda"]


def test_reciprocal_part_is_openmms_and_conservative(tmp_path: Path) -> None:
    """On a block of atoms it is the pipeline's sum, and its Jacobian by differences is symmetric."""
    path = write_dataset(tmp_path / "dataset.h5", {"1aaa": "test"}, n_atoms=45, parts=True)
    with h5py.File(path, "r+") as file:
        file["entries/1aaa/charges"][...] = np.random.default_rng(0).normal(size=45)
        file.attrs["force_field"] = "amber14-all.xml"
    frames = ForceDataset(path, "test", Target("total_minus_reciprocal"))
    sample, block = frames[0], np.array([3, 10, 11])
    force = reciprocal_of(frames, sample, block)
    assert force is not None and sample.box is not None
    start = sample.positions[block].astype(float)
    box = sample.box[None]
    expected = reciprocal_forces(
        frames.described("1aaa")["charges"], sample.positions[None], box, alpha=4.5, grid=mesh(box[0], 4.5, 1e-6)
    )[0, block]
    np.testing.assert_allclose(force(start), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    columns = [(force(start + 1e-4 * unit) - force(start - 1e-4 * unit)) / 2e-4 for unit in np.eye(9).reshape(9, 3, 3)]
    jacobian = np.array(columns).reshape(9, 9).T
    assert np.linalg.norm(jacobian - jacobian.T) < 1e-3 * np.linalg.norm(jacobian)
    assert reciprocal_of(ForceDataset(path, "test"), sample, block) is None


def test_too_few_probes_are_refused() -> None:
    """Fewer than 16 probes tell too little."""
    with pytest.raises(ValueError, match="at least 16"):
        asymmetry(swirl, torch.ones(2, 3, dtype=torch.float64), 15)
    with pytest.raises(ValueError, match="Jacobian is zero"):
        asymmetry(lambda x: 0.0 * x, torch.ones(2, 3, dtype=torch.float64))


@pytest.fixture(scope="module", params=["fast", pytest.param("tfn1", marks=pytest.mark.slow)])
def probed(request: pytest.FixtureRequest, dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """The forces of a network with random weights, exported, on a few of the target atoms of a frame."""
    torch.manual_seed(3)
    model = models.build(TINY_MODELS[request.param]).eval()
    model.set_scale(300.0)
    path = bundle.write(model, make_card(model), tmp_path_factory.mktemp("model") / "model.pt")
    return Probed(load_module(path), ForceDataset(dataset_path, "test")[0], most=20)


def test_lambda_of_a_network_is_brute_forces(probed: Probed) -> None:
    """Row by row central differences in double precision give the Jacobian, and lambda within four standard errors."""
    n = probed.positions.numel()
    jacobian = np.zeros((n, n))
    step = 1e-6
    with torch.no_grad():
        for column in range(n):
            moved = torch.zeros(n, dtype=torch.float64)
            moved[column] = step
            moved = moved.reshape(-1, 3)
            change = probed(probed.positions + moved) - probed(probed.positions - moved)
            jacobian[:, column] = change.reshape(-1).numpy() / (2 * step)
    exact = np.linalg.norm(jacobian - jacobian.T) / (2 * np.linalg.norm(jacobian))
    assert exact > 0.01, "control: random weights are not conservative"
    found = asymmetry(probed, probed.positions, n_probes=128)
    assert found["lambda"] == pytest.approx(exact, abs=4 * found["standard_error"])
    assert found["standard_error"] < 0.1 * exact
    assert found["jacobian_norm"] == pytest.approx(np.linalg.norm(jacobian), rel=0.15)


def test_block_is_the_middle(dataset_path: Path, probed: Probed) -> None:
    """Of too many targets the nearest to their middle are taken, and their forces are as before."""
    sample = ForceDataset(dataset_path, "test")[0]
    assert len(probed.block) == 20 < sample.entry.target_mask.sum()
    assert sample.entry.target_mask[probed.block].all()
    places = sample.positions[sample.entry.target_mask]
    distances = np.linalg.norm(sample.positions[probed.block] - places.mean(axis=0), axis=1)
    assert distances.max() <= np.sort(np.linalg.norm(places - places.mean(axis=0), axis=1))[19] * (1 + 1e-6)
    every = Probed(probed._module, sample)
    rows = np.searchsorted(every.block, probed.block)
    with torch.no_grad():
        torch.testing.assert_close(every(every.positions)[rows], probed(probed.positions))


def morse(x: np.ndarray) -> np.ndarray:
    """Return the forces of a Morse potential between all pairs: anharmonic, and the gradient of an energy."""
    vectors = x[None] - x[:, None]
    distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(x))
    decay = np.exp(-3 * (distances - 0.9))
    return ((20.0 * decay * (1 - decay) / distances * (1 - np.eye(len(x))))[..., None] * vectors).sum(axis=1)


def test_no_work_around_loops_of_a_conservative_force() -> None:
    """The control: an anharmonic potential gives zero, up to rounding, on loops wide enough to feel it."""
    x = np.random.default_rng(0).normal(size=(12, 3))
    found = loop_work(morse, x, radius=0.05, n_points=32)
    assert found["moved"] > 0.1
    assert found["relative"] < 1e-10
    assert loop_work(morse, x)["relative"] < 1e-7, "as few points as the default on as small loops"


def test_work_of_a_swirl_is_stokes() -> None:
    """For a linear force the work is pi a² u^T (J - J^T) w exactly, which random directions average to a known mean."""
    x = np.random.default_rng(1).normal(size=(10, 3))
    found = loop_work(lambda at: swirl(torch.from_numpy(at)).numpy(), x, n_loops=400, radius=0.01)
    # |J - J^T|² = 8 per atom; u, w random, orthonormal in 30 dimensions: E (u^T A w)² = |A|² / (30 * 29)
    area = np.pi * 0.01**2 * 10
    assert found["work"] == pytest.approx(area * np.sqrt(80 / (30 * 29)), abs=4 * found["standard_error"])
    assert found["standard_error"] < 0.1 * found["work"]


def test_network_does_work_around_loops(probed: Probed) -> None:
    """A direct force with random weights gains or loses energy on a closed path."""

    def force(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return probed(torch.from_numpy(x)).numpy()

    found = loop_work(force, probed.positions.numpy(), n_loops=4)
    assert found["work"] > 1e-6 and len(found["each"]) == 4


def test_useless_loops_are_refused() -> None:
    """One loop has no spread."""
    with pytest.raises(ValueError, match="at least 2"):
        loop_work(morse, np.eye(3), n_loops=1)


def test_lambda_of_an_energy_is_zero(dataset_path: Path, tmp_path: Path) -> None:
    """An exported conservative model, differentiated once more, has a symmetric Jacobian."""
    torch.manual_seed(3)
    model = models.build(TINY_MODELS["fast"] | {"head": "energy"}).eval()
    path = bundle.write(model, make_card(model, target_atoms="all"), tmp_path / "model.pt")
    probed = Probed(load_module(path), ForceDataset(dataset_path, "test")[0], most=6)
    assert asymmetry(probed, probed.positions, 16)["lambda"] < 1e-9
