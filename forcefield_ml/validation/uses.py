"""Three uses of a model and what each asks of it: the thresholds, and whether they are met.

| use                   | asked                                                                                        |
|-----------------------|----------------------------------------------------------------------------------------------|
| single-point use      | relative error at most 0.6, and better than every naive predictor                            |
| NVT of a solute       | relative error at most 0.15, lambda at most 0.03, and drift over the standard deviation of   |
|                       | the kinetic energy below 1 with multiple time stepping                                       |
| NVT of a whole system | relative error at most 0.10, of water and ions, too, where data hold them; lambda at most    |
|                       | 0.01; and the temperature of each element, and of protein and water as a whole, within 3 %   |
|                       | or three standard errors, whichever is larger (see `WIDEST`), in a run long enough to tell   |
|                       | that of protein and of water to 3 %                                                          |

A use is *fit* when everything asked was measured and is met, *not fit* when something measured is not met, and *not
shown* otherwise: what was not measured counts for nobody. A run that a guard stopped speaks against its use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from forcefield_ml.units import BOLTZMANN, KJ_PER_MOL_IN_MEV
from forcefield_ml.validation.dynamics.blocks import thermal_error
from forcefield_ml.validation.dynamics.compare import AMBER, ML, MTS

SINGLE_POINT_RELATIVE = 0.6
SOLUTE_RELATIVE, SOLUTE_LAMBDA, SOLUTE_DRIFT = 0.15, 0.03, 1.0
SYSTEM_RELATIVE, SYSTEM_LAMBDA = 0.10, 0.01
DRIFT_LENGTH = 1.0
"""ps, over which the drift of a shorter run is taken to go on: no run passes by being short."""

HEATING = 30.0
"""K per ps that a model may heat at constant energy, three times what `amber14-fast` does: beyond, it broke."""

TEMPERATURE_SHARE, TEMPERATURE_ERRORS = 0.03, 3.0
WIDEST = 2.0
"""Most standard errors of AMBER14's run, from the same start and as long, that count as one of the model's: blocks of a
run that heats differ, and would widen the measure by which it is judged. At least `thermal_error` counts."""

FIT, NOT_FIT, NOT_SHOWN = "fit", "not fit", "not shown"


@dataclass(frozen=True)
class Criterion:
    """One thing asked of a model.

    Parameters
    ----------
    what
        In words, with the value found and the limit.
    met
        None where it was not measured.
    """

    what: str
    met: bool | None


@dataclass(frozen=True)
class Use:
    """A use and what became of its criteria.

    Parameters
    ----------
    name
        Of the use.
    criteria
        All that is asked.
    """

    name: str
    criteria: tuple[Criterion, ...]

    @property
    def outcome(self) -> str:
        """`FIT`, `NOT_FIT` or `NOT_SHOWN`."""
        met = [criterion.met for criterion in self.criteria]
        return NOT_FIT if False in met else NOT_SHOWN if None in met else FIT

    @property
    def why(self) -> list[str]:
        """What decided: all that is met of a use that is fit, else what is not met, or was not measured."""
        wanted = {FIT: True, NOT_FIT: False, NOT_SHOWN: None}[self.outcome]
        return [criterion.what for criterion in self.criteria if criterion.met is wanted]

    @property
    def sentence(self) -> str:
        """The verdict line."""
        return f"{self.name}: {self.outcome}, {'; '.join(self.why)}."

    def plain(self) -> dict[str, Any]:
        """Return what report.json holds."""
        return {**asdict(self), "outcome": self.outcome, "sentence": self.sentence}


def judge(
    metrics: Mapping[str, Any],
    asymmetry: Mapping[str, Any] | None = None,
    dynamics: Mapping[str, Any] | None = None,
    target_atoms: str | None = None,
) -> tuple[Use, Use, Use]:
    """Return the three uses, judged.

    Parameters
    ----------
    metrics
        Of `evaluate`; ``others``, where it is, counts for a whole system.
    asymmetry
        Of `symmetry.asymmetry`.
    dynamics
        Of `dynamics.compare`.
    target_atoms
        "solute" or "all", of which atoms the model predicts the force; None if that is not known.
    """
    if metrics["tensor"] is None:
        none = Criterion("it predicts magnitudes only, forces without a direction", False)
        return Use("Single-point use", (none,)), Use("NVT of a solute", (none,)), Use("NVT of a whole system", (none,))
    return (
        Use("Single-point use", (_relative(metrics, SINGLE_POINT_RELATIVE), _better(metrics))),
        Use(
            "NVT of a solute",
            (
                _relative(metrics, SOLUTE_RELATIVE),
                _lambda(asymmetry, SOLUTE_LAMBDA),
                _drift(dynamics),
                *(
                    []
                    if dynamics is None or dynamics["mode"] == "system"
                    else [*_stopped(dynamics), *_broken(dynamics)]
                ),
                *_strange(dynamics),
            ),
        ),
        Use(
            "NVT of a whole system",
            (
                _relative(metrics, SYSTEM_RELATIVE),
                *_of_water(metrics),
                _lambda(asymmetry, SYSTEM_LAMBDA),
                *_temperatures(dynamics, target_atoms),
                *([] if dynamics is None or dynamics["mode"] != "system" else _broken(dynamics)),
                *_strange(dynamics),
            ),
        ),
    )


def _relative(metrics: Mapping[str, Any], limit: float) -> Criterion:
    value = metrics["relative"]
    return Criterion(*_at_most("relative error", value, limit))


def _of_water(metrics: Mapping[str, Any]) -> list[Criterion]:
    """Return what is asked of the atoms that are not the protein's, where the model was compared on them."""
    others = metrics.get("others")
    if not others or others["tensor"] is None:
        return []
    return [Criterion(*_at_most("relative error of water and ions", others["relative"], SYSTEM_RELATIVE))]


def _better(metrics: Mapping[str, Any]) -> Criterion:
    lost = beaten(metrics)[1]
    if lost:
        return Criterion(f"no better than the naive predictor in {' and '.join(lost)}", False)
    return Criterion("better than every naive predictor", True)


def beaten(metrics: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return which of tensor, magnitude and angle beat the naive predictors, and which do not.

    Parameters
    ----------
    metrics
        With ``naive``; a metric that is None belongs to neither.
    """
    known = [key for key in ("tensor", "magnitude", "angle") if metrics[key] is not None]
    won = [key for key in known if metrics[key] < metrics["naive"][key]]
    return won, [key for key in known if key not in won]


def _lambda(asymmetry: Mapping[str, Any] | None, limit: float) -> Criterion:
    if asymmetry is None:
        return Criterion("lambda was not measured", None)
    return Criterion(*_at_most("lambda", asymmetry["lambda"], limit))


def _at_most(name: str, value: float | None, limit: float) -> tuple[str, bool]:
    if value is None:
        return f"{name} has no value", False
    met = value <= limit
    digits = max(2, 3 if value < 0.1 else 2)
    return f"{name} {value:.{digits}f}, {'at most' if met else 'more than'} {limit:g}", met


def _drift(dynamics: Mapping[str, Any] | None) -> Criterion:
    run = dynamics["nve"].get(MTS) if dynamics else None
    if dynamics is None or run is None:
        refused = dynamics["multiple_time_stepping"]["refused"] if dynamics else None
        why = f" ({refused})" if refused else ""
        return Criterion(f"no run at constant energy with multiple time stepping was made{why}", None)
    if run["event"] is not None:
        return Criterion(f"a guard stopped multiple time stepping: {run['event']['reason']}", False)
    value = run["drift"]["over_kinetic_std"] if run["drift"] else None
    if value is None:
        return Criterion("the run with multiple time stepping was too short for a drift", None)
    length = run["drift"]["length"]
    value *= max(1.0, DRIFT_LENGTH / length)
    met = value < SOLUTE_DRIFT
    return Criterion(
        f"drift with multiple time stepping ({dynamics['multiple_time_stepping']['inner_steps']} x "
        f"{dynamics['settings']['timestep_fs']:g} fs) {value:.2g} of the kinetic energy's standard deviation in "
        f"{max(length, DRIFT_LENGTH):.3g} ps (the run had {length:.3g}), {'below' if met else 'not below'} "
        f"{SOLUTE_DRIFT:g}",
        met,
    )


def _stopped(dynamics: Mapping[str, Any]) -> list[Criterion]:
    """Return what speaks against a model whose own run at constant temperature did not come to its end."""
    event = dynamics["nvt"][ML]["event"]
    return [Criterion(f"a guard stopped the run at constant temperature: {event['reason']}", False)] if event else []


def _broken(dynamics: Mapping[str, Any]) -> list[Criterion]:
    """Return what speaks against a model whose own run at constant energy broke: sooner or later every run does."""
    run, limit = dynamics["nve"][ML], 3 * BOLTZMANN * HEATING * KJ_PER_MOL_IN_MEV
    if run["event"] is not None:
        return [Criterion(f"a guard stopped the run at constant energy: {run['event']['reason']}", False)]
    slope = run["drift"]["slope"] if run["drift"] else 0.0
    if slope <= limit:
        return []
    return [
        Criterion(
            f"something broke in the run at constant energy, which gained {slope:.3g} meV/atom/ps, more than "
            f"{limit:.2g} ({HEATING:g} K a ps)",
            False,
        )
    ]


def _strange(dynamics: Mapping[str, Any] | None) -> list[Criterion]:
    """Return what speaks against a structure with atoms that are bonded as none in training."""
    return [Criterion(told, False) for told in (dynamics or {}).get("surroundings", ())]


def _standard_error(name: str, dynamics: Mapping[str, Any]) -> float | None:
    """Return the standard error (K) of an element's temperature in the model's run; see `WIDEST`."""
    found = dynamics["nvt"][ML]["temperature"][name]
    ours = found["standard_error"]
    theirs = (dynamics["nvt"].get(AMBER, {}).get("temperature") or {}).get(name, {}).get("standard_error")
    if ours is None:
        return None
    return max(_thermal_error(found["atoms"], dynamics), ours if theirs is None else min(ours, WIDEST * theirs))


def _thermal_error(n_atoms: int, dynamics: Mapping[str, Any]) -> float:
    settings, length = dynamics["settings"], dynamics["nvt"][ML]["length"]
    return thermal_error(settings["temperature"], n_atoms, settings["friction_per_ps"], length)


def _vague(dynamics: Mapping[str, Any]) -> list[str]:
    """Return of what the run cannot tell the temperature to `TEMPERATURE_SHARE`: the protein, water."""
    atoms: dict[str, int] = {}
    for name, found in dynamics["nvt"][ML]["temperature"].items():
        group = name.split()[0]
        atoms[group] = atoms.get(group, 0) + found["atoms"]
    errors = {group: _thermal_error(n_atoms, dynamics) for group, n_atoms in atoms.items()}
    share = TEMPERATURE_SHARE * dynamics["settings"]["temperature"]
    return [f"{atoms[group]} atoms of {group} to ± {error:.0f} K" for group, error in errors.items() if error > share]


def _temperatures(dynamics: Mapping[str, Any] | None, target_atoms: str | None) -> list[Criterion]:
    asked: list[Criterion] = []
    if target_atoms == "solute":
        asked.append(Criterion("it predicts the forces on the solute's atoms alone", False))
    if dynamics is None or dynamics["mode"] != "system":
        return [*asked, Criterion("no run of a whole system by the model was made", None)]
    run, target = dynamics["nvt"][ML], dynamics["settings"]["temperature"]
    if run["event"] is not None:
        return [*asked, *_stopped(dynamics)]
    found = run["temperature"] or {}
    errors = {name: _standard_error(name, dynamics) for name in found}
    unknown = [name for name, error in errors.items() if error is None]
    known = {name: (found[name]["mean"], error) for name, error in errors.items() if error is not None}
    wrong = _off(known, target) or _off(_as_a_whole(known, found), target)
    if wrong:
        return [*asked, Criterion(f"temperatures off the {target:g} K that were set: {', '.join(wrong)}", False)]
    if unknown or not run["temperature"]:
        return [*asked, Criterion("the run was too short for temperatures with an error", None)]
    vague = _vague(dynamics)
    if vague:
        told = f"{run['length']:.3g} ps tell the temperature of {' and of '.join(vague)}, not to 3 %"
        return [*asked, Criterion(f"{told}; --dynamics with more steps", None)]
    return [*asked, Criterion("every element's temperature within 3 % or three standard errors", True)]


def _off(temperatures: Mapping[str, tuple[float, float]], target: float) -> list[str]:
    """Return in words which means (K), given with their standard errors, are off the target."""
    return [
        f"{name} {mean:.0f} ± {error:.0f} K"
        for name, (mean, error) in temperatures.items()
        if not abs(mean - target) <= max(TEMPERATURE_SHARE * target, TEMPERATURE_ERRORS * error)  # nor with NaN
    ]


def _as_a_whole(
    known: Mapping[str, tuple[float, float]], found: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Return mean and standard error of the protein and of water: elements that are all a little too warm add up."""
    groups: dict[str, list[tuple[int, float, float]]] = {}
    for name, (mean, error) in known.items():
        groups.setdefault(name.split()[0], []).append((found[name]["atoms"], mean, error))
    whole = {}
    for group, parts in groups.items():
        atoms = sum(count for count, _, _ in parts)
        mean = sum(count * mean for count, mean, _ in parts) / atoms
        whole[group] = (mean, math.hypot(*(count * error / atoms for count, _, error in parts)))
    return whole
