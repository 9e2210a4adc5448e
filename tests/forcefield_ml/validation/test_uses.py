"""The verdict: each threshold of the three uses, on both sides of it, and what is not measured."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from forcefield_ml.validation.dynamics.blocks import block_mean
from forcefield_ml.validation.uses import FIT, NOT_FIT, NOT_SHOWN, judge

GOOD: dict[str, Any] = {
    "tensor": 100.0,
    "magnitude": 60.0,
    "angle": 5.0,
    "relative": 0.10,
    "naive": {"tensor": 1000.0, "magnitude": 600.0, "angle": 90.0},
}
STRAIGHT = {"lambda": 0.01, "standard_error": 0.001}
MANY = 10**9
"""Atoms whose temperature hardly fluctuates."""

DYNAMICS: dict[str, Any] = {
    "mode": "system",
    "settings": {"temperature": 300.0, "timestep_fs": 0.5, "friction_per_ps": 1.0},
    "multiple_time_stepping": {"mode": "solute", "inner_steps": 8, "refused": None},
    "nve": {
        "model": {"event": None, "drift": {"over_kinetic_std": 50.0, "length": 1.0, "slope": 2.4}},
        "multiple_time_stepping": {"event": None, "drift": {"over_kinetic_std": 0.99, "length": 1.0}},
    },
    "nvt": {
        "model": {
            "event": None,
            "length": 1.0,
            "temperature": {
                "protein C": {"mean": 309.0, "standard_error": 0.1, "atoms": MANY},
                "water O": {"mean": 320.0, "standard_error": 7.0, "atoms": MANY},
            },
        }
    },
}


def outcomes(
    metrics: dict[str, Any] | None = None,
    asymmetry: dict[str, Any] | None = STRAIGHT,
    dynamics: dict[str, Any] | None = DYNAMICS,
    atoms: str = "all",
) -> list[str]:
    """Return what becomes of the three uses of a good model but for what is given."""
    return [use.outcome for use in judge({**GOOD, **(metrics or {})}, asymmetry, dynamics, atoms)]


def test_everything_at_its_limit_is_fit() -> None:
    """Limits belong to what is allowed: relative 0.10, lambda 0.01, 3 %, three errors; drift is below 1."""
    assert outcomes() == [FIT, FIT, FIT]


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        (0.1001, [FIT, FIT, NOT_FIT]),
        (0.15, [FIT, FIT, NOT_FIT]),
        (0.1501, [FIT, NOT_FIT, NOT_FIT]),
        (0.6, [FIT, NOT_FIT, NOT_FIT]),
        (0.6001, [NOT_FIT] * 3),
        (float("nan"), [NOT_FIT] * 3),
    ],
)
def test_relative_error(relative: float, expected: list[str]) -> None:
    """0.6, 0.15 and 0.10."""
    assert outcomes({"relative": relative}) == expected


@pytest.mark.parametrize(("relative", "expected"), [(0.10, FIT), (0.1001, NOT_FIT), (float("nan"), NOT_FIT)])
def test_water_counts_for_a_whole_system(relative: float, expected: str) -> None:
    """0.10 as for the protein; a solute alone does not ask."""
    others = {**GOOD, "relative": relative}
    assert outcomes({"others": others}) == [FIT, FIT, expected]
    (use,) = judge({**GOOD, "others": others}, STRAIGHT, DYNAMICS, "all")[2:]
    assert "relative error of water and ions" in use.sentence


@pytest.mark.parametrize("key", ["tensor", "magnitude", "angle"])
def test_every_naive_predictor_must_be_beaten(key: str) -> None:
    """One that is as good as the model is enough to refuse."""
    assert outcomes({key: GOOD["naive"][key]})[0] == NOT_FIT


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0101, [FIT, NOT_FIT]), (0.03, [FIT, NOT_FIT]), (0.0301, [NOT_FIT, NOT_FIT])]
)
def test_lambda(value: float, expected: list[str]) -> None:
    """0.03 for a solute, 0.01 for a whole system."""
    assert outcomes(asymmetry={**STRAIGHT, "lambda": value})[1:] == expected


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return `DYNAMICS` with one value changed."""
    found = copy.deepcopy(DYNAMICS)
    *keys, last = path.split("/")
    inner = found
    for key in keys:
        inner = inner[key]
    inner[last] = value
    return found


@pytest.mark.parametrize("value", [1.0, 7.0, float("nan")])
def test_drift_is_that_of_multiple_time_stepping(value: float) -> None:
    """1 is too much; the direct force's own drift, which is 50 here, is not what is asked for."""
    path = "nve/multiple_time_stepping/drift/over_kinetic_std"
    assert outcomes(dynamics=changed(path, value)) == [FIT, NOT_FIT, FIT]


def test_no_run_passes_by_being_short() -> None:
    """Of a run of 0.1 ps a tenth of what is allowed in 1 ps is asked; a longer one is judged by all that it did."""
    short = changed("nve/multiple_time_stepping/drift/length", 0.1)
    assert outcomes(dynamics=short)[1] == NOT_FIT
    short["nve"]["multiple_time_stepping"]["drift"]["over_kinetic_std"] = 0.099
    assert outcomes(dynamics=short)[1] == FIT
    long = changed("nve/multiple_time_stepping/drift/length", 20.0)
    assert outcomes(dynamics=long)[1] == FIT


@pytest.mark.parametrize(
    ("mean", "error", "met"),
    [
        (309.0, 0.0, True),
        (309.2, 0.0, False),
        (290.8, 1.0, False),
        (290.8, 4.0, True),
        (320.0, 6.6, False),
        (float("nan"), 1.0, False),
    ],
)
def test_temperature_of_each_element(mean: float, error: float, met: bool) -> None:
    """3 % or three block standard errors, whichever is larger; one element off is enough."""
    found = changed("nvt/model/temperature/protein C", {"mean": mean, "standard_error": error, "atoms": MANY})
    assert outcomes(dynamics=found)[2] == (FIT if met else NOT_FIT)


@pytest.mark.parametrize(("signs", "expected"), [((1, 1, 1), NOT_FIT), ((-1, -1, -1), NOT_FIT), ((1, -1, 1), FIT)])
def test_elements_that_are_all_a_little_off_add_up(signs: tuple[int, ...], expected: str) -> None:
    """Each 20 K off with an error of 7 K is within three; all three one way are 20 ± 4 K off."""
    elements = {
        f"protein {name}": {"mean": 300.0 + 20.0 * sign, "standard_error": 7.0, "atoms": MANY}
        for name, sign in zip("HCN", signs, strict=True)
    }
    water = {"water O": {"mean": 300.0, "standard_error": 1.0, "atoms": MANY}}
    use = judge(GOOD, STRAIGHT, changed("nvt/model/temperature", {**elements, **water}))[2]
    assert use.outcome == expected
    if expected == NOT_FIT:
        assert f"protein {300 + 20 * signs[0]} ± 4 K" in use.sentence and "water" not in use.sentence.split("off")[1]


@pytest.mark.parametrize(("theirs", "expected"), [(2.0, NOT_FIT), (20.0, FIT), (None, FIT)])
def test_a_run_that_heats_does_not_widen_its_limit(theirs: float | None, expected: str) -> None:
    """300 K and in the last fifth 450 K are 330 ± 30 K; that error counts where AMBER14's run has half of it, too."""
    frames = np.r_[np.full(32, 300.0), np.full(8, 450.0)]
    found = changed("nvt/model/temperature/protein C", {**block_mean(frames), "atoms": MANY})
    own = found["nvt"]["model"]["temperature"]["protein C"]
    assert (own["mean"], own["standard_error"]) == pytest.approx((330.0, 30.0))
    told = {"mean": 300.0, "standard_error": theirs}
    found["nvt"]["amber14"] = {"event": None, "temperature": {"protein C": told, "water O": told}}
    found["nvt"]["model"]["temperature"]["water O"]["mean"] = 300.0
    assert outcomes(dynamics=found)[2] == expected
    found["nvt"]["amber14"]["temperature"] = None  # a guard stopped it
    assert outcomes(dynamics=found)[2] == FIT


@pytest.mark.parametrize(
    ("atoms", "length", "mean", "expected"),
    [
        (24, 1.0, 354.6, NOT_SHOWN),  # AMBER14's own run of a tripeptide's hydrogens: 50 K are one standard error
        (24, 1.0, 460.0, NOT_FIT),  # three of them are not met
        (24, 100.0, 314.0, FIT),  # 5 K are
        (24, 100.0, 316.0, NOT_FIT),
        (741, 1.0, 309.0, FIT),  # 9.0 K are 3 %
        (740, 1.0, 300.0, NOT_SHOWN),
    ],
)
def test_a_short_run_of_few_atoms_shows_nothing(atoms: int, length: float, mean: float, expected: str) -> None:
    """Blocks say 1 K; what any force fluctuates by counts. Where that is above 3 % of a group nothing is said."""
    hydrogens = {"mean": mean, "standard_error": 1.0, "atoms": atoms}
    found = changed(
        "nvt/model/temperature", {"protein H": hydrogens, "water O": {**hydrogens, "atoms": MANY, "mean": 300}}
    )
    found["nvt"]["model"]["length"] = length
    assert outcomes(dynamics=found)[2] == expected
    if expected == NOT_SHOWN:
        assert (
            f"{length:g} ps tell the temperature of {atoms} atoms of protein"
            in judge(GOOD, STRAIGHT, found)[2].sentence
        )


def test_what_was_not_measured_is_not_claimed() -> None:
    """Without lambda or dynamics a good model is fit for single points; the rest is not shown, and said to be so."""
    uses = judge(GOOD)
    assert [use.outcome for use in uses] == [FIT, NOT_SHOWN, NOT_SHOWN]
    assert "lambda was not measured" in uses[1].sentence and "multiple time stepping" in uses[1].sentence
    assert outcomes(dynamics=changed("mode", "solute"))[2] == NOT_SHOWN
    none = changed("nve/multiple_time_stepping", None)
    none["multiple_time_stepping"]["refused"] = "not in this mode"
    assert outcomes(dynamics=none)[1] == NOT_SHOWN
    assert "multiple time stepping was made (not in this mode)" in judge(GOOD, STRAIGHT, none)[1].sentence
    unknown = changed("nvt/model/temperature/water O/standard_error", None)
    assert outcomes(dynamics=unknown)[2] == NOT_SHOWN


def test_guards_and_missing_atoms_refuse() -> None:
    """A run that a guard stopped shows nothing good, and a network of the solute's atoms moves no whole system."""
    event = {"reason": "hot", "step": 3}
    assert outcomes(dynamics=changed("nve/multiple_time_stepping/event", event))[1] == NOT_FIT
    stopped = changed("nvt/model/event", event)
    assert outcomes(dynamics=stopped) == [FIT, FIT, NOT_FIT]
    assert outcomes(dynamics={**stopped, "mode": "solute"}) == [FIT, NOT_FIT, NOT_SHOWN]
    assert outcomes(atoms="solute") == [FIT, FIT, NOT_FIT]


@pytest.mark.parametrize(("slope", "expected"), [(7.7, FIT), (7.8, NOT_FIT), (4e6, NOT_FIT)])
def test_what_breaks_at_constant_energy_is_not_fit(slope: float, expected: str) -> None:
    """30 K a ps are 3 k_B x 30 K = 0.748 kJ/mol = 7.76 meV for each atom; the run's temperatures do not matter."""
    dynamics = copy.deepcopy(DYNAMICS)
    dynamics["nve"]["model"]["drift"]["slope"] = slope
    assert outcomes(dynamics=dynamics) == [FIT, FIT, expected]
    dynamics["mode"] = "solute"
    assert outcomes(dynamics=dynamics)[1] == expected


def test_a_guard_at_constant_energy() -> None:
    """The run at constant temperature came to its end, the other did not."""
    dynamics = copy.deepcopy(DYNAMICS)
    dynamics["nve"]["model"] = {"event": {"reason": "a bond is torn"}, "drift": None}
    (*_, use) = judge(GOOD, STRAIGHT, dynamics, "all")
    assert use.outcome == NOT_FIT and use.why == ["a guard stopped the run at constant energy: a bond is torn"]


def test_guesses_are_not_fit() -> None:
    """Atoms bonded as none in training: whatever a short run did, neither kind of NVT is shown."""
    dynamics = {**DYNAMICS, "surroundings": ["A:PRO1 N: bonded as no atom"]}
    assert outcomes(dynamics=dynamics) == [FIT, NOT_FIT, NOT_FIT]
