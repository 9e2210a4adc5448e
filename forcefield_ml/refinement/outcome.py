"""What came of a refinement, in words: never silent about what became worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Quantity(NamedTuple):
    """Something that is compared before and after.

    Attributes
    ----------
    name
        For readers.
    unit
        On paper; empty where it has none.
    digits
        Decimals.
    better
        The sign of a change for the better.
    rounding
        The largest change that counts as none: coordinates in files have steps of 0.001 Å.
    needs_native
        Whether it takes a native to know it.
    meaning
        One line.
    """

    name: str
    unit: str
    digits: int
    better: int
    rounding: float
    needs_native: bool
    meaning: str


QUANTITIES = {
    "rmsd": Quantity("RMSD", "Å", 3, -1, 1e-3, True, "of all atoms with a partner, after the best superposition"),
    "local_rmsd": Quantity(
        "local RMSD", "Å", 3, -1, 1e-3, True, "of the atoms nearest to each atom, after superposing these alone; mean"
    ),
    "to_go": Quantity("true |v|", "Å", 3, -1, 1e-3, True, "mean length of the vectors that a perfect model would give"),
    "lddt": Quantity(
        "lDDT", "", 4, 1, 1e-4, True, "share of the native's distances up to 15 Å kept within 0.5, 1, 2 and 4 Å; mean"
    ),
    "clashes": Quantity("clashes", "", 0, -1, 0.5, False, "pairs that are not bonded and nearer than they can be"),
    "bond_rms": Quantity("bond change", "Å", 3, -1, 5e-3, False, "root mean square change of bond lengths"),
}
"""What report.json holds under ``before`` and ``after`` and compares."""


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of what became better and of what became worse.

    Parameters
    ----------
    before, after
        Values by name, some of `QUANTITIES`; lengths in Å.
    """
    found: dict[str, list[str]] = {"better": [], "worse": []}
    for name, quantity in QUANTITIES.items():
        one, other = before.get(name), after.get(name)
        if one is not None and other is not None and abs(other - one) > quantity.rounding:
            found["better" if quantity.better * (other - one) > 0 else "worse"].append(name)
    return found


def verdict(report: Mapping[str, Any]) -> str:
    """Return ``better``, ``worse``, ``mixed`` or ``unchanged`` by the native; ``unknown`` without one.

    Parameters
    ----------
    report
        As `refine.Refinement.report`, before it has this.
    """
    if report["moved"]["largest"] == 0:
        return "unchanged"
    if report["native"] is None:
        return "unknown"
    better, worse = ([name for name in report[way] if QUANTITIES[name].needs_native] for way in ("better", "worse"))
    if better and worse:
        return "mixed"
    return "better" if better else "worse" if worse else "unchanged"


def outcome(report: Mapping[str, Any]) -> list[str]:
    """Return what came of it in sentences, those that the screen shows and that stand at the top of the page.

    Parameters
    ----------
    report
        As `refine.Refinement.report`, with its verdict.
    """
    steps = report["taken"][-1]
    if report["moved"]["largest"] == 0:
        told = [f"Nothing was moved: {report['why']}."]
    else:
        moved = report["moved"]
        told = [
            f"{report['atoms']:,} atoms moved by {moved['mean']:.2f} Å on average (the farthest by "
            f"{moved['largest']:.2f}) in {steps} step{'' if steps == 1 else 's'}. It stopped because "
            f"{report['why']}."
        ]
    told.append(_by_native(report) if report["native"] else _by_model(report))
    spoilt = [name for name in report["worse"] if not QUANTITIES[name].needs_native]
    if spoilt:
        told.append(f"WORSE in geometry: {_changes(report, spoilt)}.")
    return told


def _by_native(report: Mapping[str, Any]) -> str:
    better, worse = ([name for name in report[way] if QUANTITIES[name].needs_native] for way in ("better", "worse"))
    if not better and not worse:
        return "By the native it is as near as it was."
    if not worse:
        return f"Nearer to the native: {_changes(report, better)}."
    if not better:
        return f"WORSE: farther from the native than the input: {_changes(report, worse)}. Keep the input."
    return f"Mixed: WORSE in {_changes(report, worse)}; better in {_changes(report, better)}."


def _by_model(report: Mapping[str, Any]) -> str:
    lengths = [row["predicted"] for row in report["steps"] if row["predicted"] is not None]
    found = f"the vectors it predicts are {lengths[0]:.2f} Å long on average at the input"
    if report["taken"][-1] > 0:
        found += f" and {lengths[report['taken'][-1]]:.2f} Å at the result"
    return f"Whether it is nearer to the truth is not known without --native; by the model alone, {found}."


def _changes(report: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(_change(QUANTITIES[name], report["before"][name], report["after"][name]) for name in names)


def _change(quantity: Quantity, before: float, after: float) -> str:
    unit = f" {quantity.unit}" if quantity.unit else ""
    return f"{quantity.name} {before:.{quantity.digits}f} to {after:.{quantity.digits}f}{unit}"
