"""Figures: angles by hand, panels that a model has, SVG that a page can hold."""

from __future__ import annotations

import re

import numpy as np
import pytest

from forcefield_ml.validation import figures


def test_angles_of_known_vectors() -> None:
    """Equal, orthogonal and opposite vectors are 0, 90 and 180 degrees apart; a zero vector has no angle."""
    true = np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [1, 0, 0], [1, 0, 0]])
    given = np.array([[5.0, 0, 0], [0, 0, 1], [0, 0, -1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(figures.angles(true, given), [0, 90, 180, 45, np.nan])


@pytest.fixture(scope="module")
def forces() -> tuple[np.ndarray, np.ndarray]:
    """True forces and predictions near them."""
    random = np.random.default_rng(0)
    true = random.normal(size=(300, 3)) * 1000
    return true, true + random.normal(size=(300, 3)) * 200


def test_three_panels_with_vectors_one_with_magnitudes(forces: tuple[np.ndarray, np.ndarray]) -> None:
    """A model of order 0 has no angles, so only the first panel is drawn."""
    true, given = forces
    assert set(figures.figure_3(true, given)) == {"magnitudes", "angles", "angle_magnitude"}
    assert set(figures.figure_3(true, np.linalg.norm(given, axis=1))) == {"magnitudes"}


def test_svgs_share_a_page(forces: tuple[np.ndarray, np.ndarray]) -> None:
    """Ids differ between figures, every reference finds its id, and the ink is the page's own."""
    series = {name: figures.lines([0, 1, 2], {"a": [1, 2, 3]}, "y (nm)", name=name) for name in ("one", "two")}
    seen: set[str] = set()
    for svg in [*figures.figure_3(*forces).values(), *series.values()]:
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert not ids & seen
        seen |= ids
        assert set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg)) <= ids
        assert "currentColor" in svg and "#010203" not in svg and svg.count("<svg") == 1


def test_few_and_zero_forces_are_drawn() -> None:
    """One atom is enough; forces of zero have no direction, and stop nothing."""
    one = np.ones((1, 3))
    assert set(figures.figure_3(one, one)) == {"magnitudes", "angles", "angle_magnitude"}
    assert set(figures.figure_3(np.zeros((4, 3)), np.zeros((4, 3)))) == {"magnitudes"}
