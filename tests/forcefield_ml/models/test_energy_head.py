"""Forces that are minus the gradient of an energy: that they are, on what they depend, and who may have one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forcefield_ml import testing
from forcefield_ml.errors import ConfigError
from forcefield_ml.graph import shells, whole
from forcefield_ml.models import Atoms, Model, Prediction, TwoHeads, build, build_for_training

CONFIG: dict[str, Any] = {"architecture": "fast", "n_channels": 6, "cutoff": 0.3, "n_layers": 2, "head": "energy"}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(4)
    model = build(CONFIG).double().eval()
    model.set_scale(700.0)
    return model


def predict(model: Model, species: Tensor, positions: Tensor, box: Tensor | None) -> Prediction:
    with torch.no_grad():
        return model(Atoms(species), model.search()(positions, box), whole(len(species), model.capabilities.n_layers))


@pytest.mark.parametrize("periodic", [False, True])
def test_forces_are_the_energys_slope(model: Model, periodic: bool) -> None:
    """A displacement of all atoms changes the energy by minus force times displacement; so does that of one atom."""
    species, positions, box = testing.random_liquid(216, triclinic=True, seed=2)
    box = box if periodic else None
    forces = predict(model, species, positions, box).forces
    generator = torch.Generator().manual_seed(0)
    one = torch.zeros_like(positions)
    one[5, 1] = 1.0
    for direction in (torch.randn(positions.shape, generator=generator, dtype=torch.float64), one):
        step = 1e-5 * direction / direction.norm()
        change = (
            predict(model, species, positions + step, box).energy
            - predict(model, species, positions - step, box).energy
        )
        assert float(-change / 2) == pytest.approx(float((forces * step).sum()), rel=1e-5)


def test_the_energy_is_invariant(model: Model) -> None:
    """Rotation, reflection, translation, renumbering and other images change nothing; copies far apart add up."""
    species, positions, box = testing.random_liquid(216, triclinic=True, seed=2)
    energy = float(predict(model, species, positions, box).energy)
    order = torch.randperm(len(species), generator=torch.Generator().manual_seed(3))
    mirror = testing.random_rotation(7, reflect=True)
    for turned in (
        predict(model, species, positions @ mirror.T, box @ mirror.T),
        predict(model, species[order], positions[order], box),
        predict(model, species, positions + 0.7 + box[1], box),
    ):
        assert float(turned.energy) == pytest.approx(energy, rel=1e-10)
    far = torch.cat([positions, positions + 50.0])
    alone = float(predict(model, species, positions, None).energy)
    assert float(predict(model, torch.cat([species, species]), far, None).energy) == pytest.approx(2 * alone, rel=1e-10)


def test_energy_and_momentum(model: Model) -> None:
    """Forces of a whole system sum to zero and turn nothing; a direct head's do not (the control)."""
    species, positions, _ = testing.random_liquid(100, seed=6)
    for head, balanced in (("energy", True), ("vector", False)):
        torch.manual_seed(4)
        forces = predict(build(CONFIG | {"head": head}).double().eval(), species, positions, None).forces
        size = float(forces.norm(dim=1).sum())
        assert (float(forces.sum(0).norm()) < 1e-9 * size) == balanced
        assert (float(torch.linalg.cross(positions, forces).sum(0).norm()) < 1e-9 * size) == balanced


def test_energy_and_force_are_continuous_at_the_cutoff(model: Model) -> None:
    """An atom that crosses the cutoff changes the energy, too, by less than rounding of the step."""
    cutoff = model.capabilities.cutoff
    species = torch.tensor([6, 8, 7])
    found = []
    for step in (-1e-6, 1e-6):
        positions = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.02, 0.0], [0.0, 0.0, cutoff + step]], dtype=torch.float64)
        found.append(predict(model, species, positions, None))
    assert float((found[1].energy - found[0].energy).abs()) < 1e-9 * float(found[0].energy.abs())
    assert float((found[1].forces - found[0].forces).norm()) < 1e-4 * float(found[0].forces.norm())


def test_patch_equals_whole_and_needs_all_its_hops(model: Model) -> None:
    """Forces on a few atoms from 2 L hops are those of the whole system; with one hop less they are not."""
    species, positions, box = testing.random_liquid(1000, seed=9)
    search, hops = model.search(), model.capabilities.n_layers
    assert hops == 2 * CONFIG["n_layers"]
    neighbours = search(positions, box)
    targets = torch.zeros(1000, dtype=torch.bool)
    targets[[3, 500]] = True
    expected = predict(model, species, positions, box).forces[targets]
    order, inner, sizes = shells(neighbours, targets, hops)
    assert len(order) < 1000
    found = model(Atoms(species[order]), inner, sizes).forces
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    short = model(Atoms(species[order]), inner, sizes[1:]).forces  # of atoms one hop away alone
    assert float((short - expected).norm() / expected.norm()) > 1e-6


def test_what_is_recorded(model: Model) -> None:
    """Without gradients outside the result is plain numbers; with them forces can be differentiated by positions."""
    species, positions, _ = testing.random_liquid(27, seed=1)
    plain = predict(model, species, positions, None)
    assert not plain.forces.requires_grad and not plain.energy.requires_grad
    sizes = whole(27, model.capabilities.n_layers)

    def forces(x: Tensor) -> Tensor:
        return model(Atoms(species), model.search()(x, None), sizes).forces[:3]

    jacobian = torch.autograd.functional.jacobian(forces, positions)[:, :, :3].reshape(9, 9)
    assert float(jacobian.norm()) > 0
    assert float((jacobian - jacobian.T).norm() / (2 * jacobian.norm())) < 1e-12  # lambda is 0 by construction


def test_statistics_are_no_part_of_the_force() -> None:
    """In training, forces are those at fixed statistics: the deployed ones, where these are the batch's."""
    torch.manual_seed(1)
    model = build(CONFIG).double().train()
    species, positions, box = testing.random_liquid(216, seed=2)
    sizes = whole(216, model.capabilities.n_layers)
    for part in model.modules():
        if hasattr(part, "momentum"):
            part.momentum = 1.0  # the running statistics are the batch's
    training = model(Atoms(species), model.search()(positions, box), sizes).forces
    assert torch.allclose(training, predict(model.eval(), species, positions, box).forces, rtol=1e-9, atol=1e-12)


def test_only_smooth_architectures_have_an_energy() -> None:
    """A nearest-K graph jumps: refused with what to choose instead, for both heads, too."""
    for head in ("energy", "both"):
        with pytest.raises(ConfigError, match=r"'tfn' sees the nearest atoms by number.*architecture: fast"):
            build_for_training({"architecture": "tfn", "order": 1, "head": head})
    with pytest.raises(ConfigError, match=r"model\.head"):
        build(CONFIG | {"head": "enrgy"})
    with pytest.raises(ConfigError, match="two models"):
        build(CONFIG | {"head": "both"})


def test_two_heads_share_a_backbone() -> None:
    """Each part equals the model of its head with these weights; the direct one takes the last of the layer sizes."""
    torch.manual_seed(2)
    pair = build_for_training(CONFIG | {"head": "both"}).double().eval()
    assert isinstance(pair, TwoHeads) and pair.vector.backbone is pair.energy.backbone
    pair.set_scale(300.0)
    species, positions, box = testing.random_liquid(1000, seed=9)
    targets = torch.zeros(1000, dtype=torch.bool)
    targets[[7, 70]] = True
    order, inner, sizes = shells(pair.search()(positions, box), targets, pair.capabilities.n_layers)
    for head, part in pair.parts.items():
        alone = build(CONFIG | {"head": head}).double().eval()
        alone.load_state_dict(part.state_dict())
        expected = predict(alone, species, positions, box).forces[targets]
        assert torch.allclose(part(Atoms(species[order]), inner, sizes).forces, expected, rtol=1e-9, atol=1e-9)
