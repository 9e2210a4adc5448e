"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forcefield_ml.errors import UnstableError
from forcefield_ml.training.metrics import ANGLE_FLOOR, force_metrics, grouped, mean_and_error, naive_metrics, tail
from forcefield_ml.units import MEV_PER_ANGSTROM

UNIT = 1.0 / MEV_PER_ANGSTROM
"""1 meV/Å in kJ/mol/nm."""


def test_hand_computed_case():
    """Three atoms, worked out by hand: norms 3, 4, 5 against 3, 5, 0; angles 90, 0 and (no direction) 90."""
    target = np.array([[3.0, 0, 0], [0, 4, 0], [0, 0, 5]]) * UNIT
    predicted = np.array([[0.0, 3, 0], [0, 5, 0], [0, 0, 0]]) * UNIT
    found = force_metrics(predicted, target)
    tensor = (math.sqrt(18) + 1 + 5) / 3
    # deviations of the norms: (-1, 0, 1) and (1/3, 7/3, -8/3)
    pearson = (-1 / 3 - 8 / 3) / math.sqrt(2 * (1 + 49 + 64) / 9)
    expected = {
        "tensor": tensor,
        "magnitude": (0 + 1 + 5) / 3,
        "angle": 60.0,
        "relative": tensor / 4,
        "pearson": pearson,
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_perfect_prediction_has_no_error():
    """The truth itself has zero errors and correlation one; the arc cosine's argument never leaves [-1, 1]."""
    target = np.random.default_rng(0).normal(size=(1000, 3)) * 1e3
    found = force_metrics(target, target)
    assert found["tensor"] == 0 and found["magnitude"] == 0 and found["relative"] == 0
    assert found["angle"] == pytest.approx(0, abs=1e-5) and found["pearson"] == pytest.approx(1)


def test_opposite_forces():
    """Negative control: minus the truth has the right magnitudes and is as wrong as can be in direction."""
    target = np.random.default_rng(1).normal(size=(50, 3))
    found = force_metrics(-target, target)
    assert found["magnitude"] == pytest.approx(0, abs=1e-12) and found["pearson"] == pytest.approx(1)
    assert found["angle"] == pytest.approx(180) and found["relative"] == pytest.approx(2)


def test_metrics_do_not_depend_on_the_frame():
    """Rotating both leaves every metric; rotating one alone does not."""
    random = np.random.default_rng(2)
    target, predicted = random.normal(size=(2, 80, 3))
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    assert force_metrics(predicted @ rotation, target @ rotation) == pytest.approx(force_metrics(predicted, target))
    assert force_metrics(predicted @ rotation, target)["tensor"] != pytest.approx(
        force_metrics(predicted, target)["tensor"], rel=1e-3
    )


def test_naive_predictors_by_hand_and_by_predicting():
    """The naive numbers are those of really predicting zero, and the mean magnitude."""
    target = np.array([[3.0, 0, 0], [0, 4, 0], [0, 0, 11]]) * UNIT
    assert naive_metrics(target) == pytest.approx(
        {"tensor": 6.0, "magnitude": (3 + 2 + 5) / 3, "angle": 90.0, "relative": 1.0, "pearson": None}
    )
    zero = force_metrics(np.zeros((3, 3)), target)
    assert zero["tensor"] == pytest.approx(6.0) and zero["relative"] == pytest.approx(1.0)
    assert zero["angle"] == 90.0 and zero["pearson"] is None
    constant = force_metrics(np.full(3, 6.0 * UNIT), target)
    assert constant["magnitude"] == pytest.approx(10 / 3) and constant["pearson"] is None


def test_random_directions_are_ninety_degrees_away():
    """The naive angle of 90 degrees is what random directions give (standard error here 0.13)."""
    random = np.random.default_rng(3)
    target, predicted = random.normal(size=(2, 100_000, 3))
    assert force_metrics(predicted, target)["angle"] == pytest.approx(90, abs=0.7)


def test_order_0_reports_magnitude_and_pearson_only():
    """A model of magnitudes has no tensor, angle or relative error."""
    target = np.array([[3.0, 0, 0], [0, 4, 0], [0, 0, 5]]) * UNIT
    found = force_metrics(np.array([4.0, 4.0, 7.0]) * UNIT, target)
    assert found["tensor"] is None and found["angle"] is None and found["relative"] is None
    assert found["magnitude"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(3 / math.sqrt(2 * 6))


def test_angle_leaves_out_atoms_without_force():
    """A true force at the floor has no direction; all atoms below it give no angle at all."""
    target = np.array([[0.5 * ANGLE_FLOOR, 0, 0], [2.0, 0, 0]]) * UNIT
    predicted = np.array([[-1.0, 0, 0], [0, 1.0, 0]]) * UNIT
    assert force_metrics(predicted, target)["angle"] == pytest.approx(90)
    assert force_metrics(predicted[:1], target[:1])["angle"] is None


def test_the_tail_tells_the_worst_atoms():
    """Of 1,000 errors of 1 to 1,000 meV/Å, shuffled; a rarity that so few atoms cannot tell is not told."""
    errors = np.random.default_rng(0).permutation(np.arange(1.0, 1001.0)) / MEV_PER_ANGSTROM
    target = np.random.default_rng(1).normal(size=(1000, 3)) * 100
    axis = np.random.default_rng(2).normal(size=(1000, 3))
    predicted = target + errors[:, None] * axis / np.linalg.norm(axis, axis=1, keepdims=True)
    found = tail(predicted, target)
    assert list(found) == ["1 in 100", "1 in 1000", "largest"]
    assert list(found.values()) == pytest.approx([990.01, 999.001, 1000.0], rel=1e-6)
    assert tail(np.linalg.norm(predicted, axis=1), target) is None
    assert list(tail(predicted[:50], target[:50])) == ["largest"]


def test_groups_and_their_standard_error():
    """Each protein has weight one in the mean over proteins; pooling has weight one for each atom."""
    target = np.array([[2.0, 0, 0]] * 3 + [[4.0, 0, 0]]) * UNIT
    predicted = np.array([[1.0, 0, 0]] * 3 + [[1.0, 0, 0]]) * UNIT
    each = grouped(predicted, target, np.array([0, 0, 0, 2]), ["a", "empty", "b"])
    assert list(each) == ["a", "b"] and each["a"]["n_atoms"] == 3 and each["b"]["tensor"] == pytest.approx(3)
    over = mean_and_error(each)
    assert over["mean"]["tensor"] == pytest.approx(2) and over["standard_error"]["tensor"] == pytest.approx(1)
    assert force_metrics(predicted, target)["tensor"] == pytest.approx(1.5)
    assert mean_and_error({"a": each["a"]})["standard_error"]["tensor"] is None


@pytest.mark.parametrize("shape", [(3,), (3, 2), (0, 3)])
def test_wrong_shapes_are_refused(shape):
    """Anything but (n, 3) with atoms is refused."""
    with pytest.raises(ValueError, match="shape"):
        force_metrics(np.zeros(shape), np.zeros(shape))


def test_predictions_that_are_not_finite_are_refused():
    """NaN never enters a mean silently."""
    predicted = np.zeros((4, 3))
    predicted[2, 1] = np.nan
    with pytest.raises(UnstableError, match=r"1 of 4.*row 2"):
        force_metrics(predicted, np.ones((4, 3)))
