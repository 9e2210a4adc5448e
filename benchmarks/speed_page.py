"""The speed benchmark's results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from contenders import CONTENDERS
from speed_limits import arithmetic
from speed_summary import kilobytes_per_atom, marks, ratio

METHOD = """A step is positions in, forces out, with the search for neighbours inside it, for every contender alike:
consecutive frames, 1 fs apart, of unconstrained AMBER14 dynamics at 300 K go in one after the other, so that a list
of neighbours that lasts for some steps is searched as often as in a simulation. Each contender has a process of its
own, its first evaluations are not counted (compilers work then). A repeat is the mean over a process of at least ten
steps; of contenders too slow for that, which search at every step, each step is a repeat. Numbers are medians,
minimum and maximum in brackets; a ratio's brackets hold what the repeats allow at worst and at best. Memory is the
peak of the resident size, less what was there after the imports. A first force is that of a process that finds
nothing compiled; the second process finds what the first has kept. A training step is forward, (for peers) gradient
of the energy, backward of a loss on forces, and Adam, on a ball of protein and water without periodicity, the same
atoms for all; neighbours are found beforehand where the library's data loader does so. Weights are random, on which
no cost depends; a relative error is that of a model of the same configuration after the training that
benchmarks/train_fast.yaml and benchmarks/train_paper.yaml describe, on proteins at 300 K that it has not seen."""

REACHED = {True: "yes", False: "**no**", None: "-"}


def page(results: Mapping[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    results
        Of `speed.run`.
    """
    machine, system = results["machine"], results["system"]
    parts = [
        "# Speed",
        f"Written by `{results['command']}` in {results['seconds'] / 60:.1f} minutes on {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB, {machine['accelerator']}; {results['threads']} "
        f"thread(s), device {results['device']}, load {machine['load']:.1f} before. {_versions(system['contenders'])}.",
        " ".join(METHOD.split()),
        f"## {system['title']}",
        _system_table(system["contenders"], results["errors"]),
        "\n".join(f"- {CONTENDERS[n].title}: {r['note']}." for n, r in system["contenders"].items() if "note" in r),
        *_missing(system["contenders"]),
        "## Marks",
        _table(
            ("what", "mark", "measured", "reached"),
            [
                (
                    mark.what,
                    mark.goal,
                    mark.value or "not measured",
                    {True: "yes", False: "**no**", None: "-"}[mark.reached],
                )
                for mark in marks(results)
            ],
        ),
        _same(results["same_forces"]),
        "## Boxes of growing size",
        "Periodic copies of one box of flexible water. µs per atom and step; in brackets kB of memory per atom.",
        _sizes(results["sizes"]),
        *_missing_sizes(results["sizes"]),
        "## Where the time goes",
        *_profiles(system["contenders"]),
        "## What the machine allows",
        _limits(system["contenders"], results["limits"], results["neighbours"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _system_table(rows: Mapping[str, Any], errors: Mapping[str, float]) -> str:
    """Return the main table."""
    reference = rows.get("fast", {}).get("us_per_atom")
    head = (
        "contender",
        "parameters",
        "neighbours within",
        "µs per atom and step",
        "s per step",
        "repeats (steps)",
        "times the fast model",
        "peak MB (above imports)",
        "first force, s from start (from ready)",
        "training, atoms per s",
        "relative error",
    )
    lines = []
    for name, row in rows.items():
        title = CONTENDERS[name].title
        error = f"{errors[name]:.3f}" if name in errors else "-"
        if "reason" in row:
            lines.append((title, *["-"] * (len(head) - 2), error))
            continue
        against = "-" if reference is None else _spread(ratio(row["us_per_atom"], reference))
        peak = f"{row['peak_mb']:.0f} ({row['peak_mb'] - row['baseline_mb']:.0f})"
        if "device_peak_mb" in row:
            peak += f", device {row['device_peak_mb']:.0f}"
        lines.append(
            (
                title,
                "-" if row["n_parameters"] is None else f"{row['n_parameters']:,}",
                row["cutoff"],
                _spread(row["us_per_atom"]),
                f"{row['step_s'][1]:.3g}",
                f"{row['repeats']} ({row['n_steps']})",
                against,
                peak,
                "; again ".join(
                    f"{start:.1f} ({ready:.2f})"
                    for start, ready in zip(row["first_force_s"], row["first_step_s"], strict=True)
                ),
                _spread(row["training_atoms_per_s"]) if "training_atoms_per_s" in row else "-",
                error,
            )
        )
        if "dynamics_us_per_atom" in row:
            cells = ["-"] * len(head)
            cells[0] = f"{title}, dynamics inside"
            cells[3] = _spread(row["dynamics_us_per_atom"])
            cells[6] = "-" if reference is None else _spread(ratio(row["dynamics_us_per_atom"], reference))
            lines.append(tuple(cells))
    return _table(head, lines)


def _missing(rows: Mapping[str, Any]) -> list[str]:
    """Say who is missing, or stopped half way, and why."""
    lines = [f"- {CONTENDERS[name].title}: {row['reason']}" for name, row in rows.items() if "reason" in row]
    lines += [
        f"- {CONTENDERS[name].title}, in part: {row['incomplete']}" for name, row in rows.items() if "incomplete" in row
    ]
    return ["Not measured:", "\n".join(lines)] if lines else []


def _same(found: Mapping[str, float | None]) -> str:
    known = [f"{pair}: {value:.1e}" for pair, value in found.items() if value is not None]
    return "Forces of two forms of one model, mean |F - F'| / mean |F'|: " + "; ".join(known) + "." if known else ""


def _sizes(sizes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    numbers = sorted({row["n_atoms"] for rows in sizes.values() for row in rows})
    lines = []
    for name, rows in sizes.items():
        by_size = {row["n_atoms"]: row for row in rows}
        cells = [CONTENDERS[name].title]
        for number in numbers:
            row = by_size.get(number, {})
            known = "us_per_atom" in row
            cells.append(f"{_short(row['us_per_atom'][1])} ({kilobytes_per_atom(row):.1f})" if known else "-")
        lines.append(tuple(cells))
    return _table(("contender", *(f"{number:,}" for number in numbers)), lines)


def _missing_sizes(sizes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = []
    for name, rows in sizes.items():
        reasons: dict[str, list[int]] = {}
        for row in rows:
            if "reason" in row:
                reasons.setdefault(row["reason"], []).append(row["n_atoms"])
        for reason, numbers in reasons.items():
            lines.append(f"- {CONTENDERS[name].title}, {', '.join(f'{n:,}' for n in numbers)} atoms: {reason}")
    return ["Not measured:", "\n".join(lines)] if lines else []


def _profiles(rows: Mapping[str, Any]) -> list[str]:
    found = []
    for name, row in rows.items():
        if row.get("profile"):
            profile = row["profile"]
            parts, operations = profile["parts"], profile["operations"]
            found += [
                f"{CONTENDERS[name].title}, shares of {profile['steps']} steps with {profile['searches']} searches:",
                _table(("part", "share"), ((part, f"{share:.1%}") for part, share in parts.items())),
                "Operations by torch's profiler: "
                + ", ".join(f"`{operation}` {share:.0%}" for operation, share in operations.items())
                + ".",
            ]
    return found or ["Not asked for, or no model of ours ran."]


def _limits(rows: Mapping[str, Any], limits: Mapping[str, float], neighbours: float) -> str:
    """Return the machine's limits and what share of them our models reach."""
    text = (
        f"torch multiplies float32 matrices at {limits['gflops']:.0f} GFLOP/s and copies a large array at "
        f"{limits['copy_gb_s']:.1f} GB/s (read and written). The layers of our models as documented ask for the "
        f"following per atom, with {neighbours:.1f} neighbours within the cutoff and no skin, and reach this share; "
        "bytes are pairs and neighbours' features, which caches hold in part."
    )
    lines = []
    for name, row in rows.items():
        if "us_per_atom" not in row or "config" not in row:
            continue
        layers = arithmetic(row["config"], neighbours)
        products = sum(layer["multiply_adds"] for layer in layers.values())
        traffic = sum(layer["bytes"] for layer in layers.values())
        seconds = row["us_per_atom"][1] * 1e-6
        lines.append(
            (
                CONTENDERS[name].title,
                f"{products / 1e3:,.0f}",
                f"{2 * products / limits['gflops'] / 1e3:.2f}",
                f"{2 * products / seconds / limits['gflops'] / 1e9:.1%}",
                f"{traffic / 1e3:,.0f}",
                f"{traffic / limits['copy_gb_s'] / 1e3:.2f}",
                f"{traffic / seconds / limits['copy_gb_s'] / 1e9:.1%}",
            )
        )
    head = (
        "contender",
        "10³ multiply-adds",
        "µs by arithmetic alone",
        "share of arithmetic",
        "kB",
        "µs by bandwidth alone",
        "share of bandwidth",
    )
    return text + "\n\n" + _table(head, lines)


def _versions(rows: Mapping[str, Any]) -> str:
    """Return each package's versions; several where environments differ."""
    found: dict[str, set[str]] = {}
    for row in rows.values():
        for package, version in row.get("versions", {}).items():
            found.setdefault(package, set()).add(version)
    return ", ".join(f"{package} {' and '.join(sorted(versions))}" for package, versions in sorted(found.items()))


def _spread(values: Sequence[float]) -> str:
    low, middle, high = values
    return f"{_short(middle)} ({_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    """Return three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
