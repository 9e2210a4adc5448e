"""What must hold within one entry of a dataset: arrays against each other, against physics and against the config."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import gemmi
import numpy as np
from pdbfixer.pdbfixer import substitutions

from data_pipeline.config import PipelineConfig, entry_seed
from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.dataset.tally import as_sampled
from data_pipeline.labels import ewald
from data_pipeline.systems.build import box_width
from data_pipeline.systems.residues import CAPS, amber_name, is_protein, parent_name

MAX_BOND = 0.3
"""nm, in frames as sampled; the longest bond in proteins (S-S) is 0.2 nm."""

MIN_BOND = 0.05
"""nm."""

NET_FORCE = 1e-4
"""Largest |sum F| / sum |F| of a whole system: forces between its atoms cancel, PME's mesh leaves some 1e-7."""

SUM_RULE = 1e-4
"""Largest mean |dF| / mean |F| between the sum over force groups and the total."""

NET_CHARGE = 0.01
"""e, of a whole system: prepare neutralises it."""

PARTS = {
    "groups": ("group_names", "forces_by_group"),
    "reciprocal": ("forces_reciprocal",),
    "solute": ("forces_solute", "energy_solute"),
    "minus_mm": ("forces_minus_mm",),
}
"""Part of the labels -> its fields."""


def entry_findings(entry: PackedEntry, config: PipelineConfig | None) -> list[str]:
    """Return what is wrong with an entry whose arrays have the types and shapes of the schema.

    Parameters
    ----------
    entry
        With every required field.
    config
        The file's; None where it cannot be read, then nothing is compared with it.
    """
    found = [problem for finder in _ALONE for problem in finder(entry)]
    if config is not None:
        found += [problem for with_config in _WITH_CONFIG for problem in with_config(entry, config)]
    return [f"{entry.name}: {problem}" for problem in found]


def _targets(entry: PackedEntry) -> list[str]:
    fields = entry.fields
    protein = np.array([is_protein(residue.decode()) for residue in fields["residue_names"]])
    wrong = int((protein != fields["target_mask"]).sum())
    return [f"target_mask differs from the protein's atoms at {wrong} atoms"] if wrong else []


def atom_findings(entry: PackedEntry) -> list[str]:
    """Return what is wrong with how the atoms of an entry of any task are named and counted."""
    problems = []
    fields = entry.fields
    residues = fields["residue_index"]
    if residues[0] != 0 or not np.isin(np.diff(residues), (0, 1)).all():
        problems.append("residue_index does not count up from 0")
    if (fields["species"] == 0).any():
        problems.append("some atoms have no element")
    kinds = set(zip(fields["atom_names"].tolist(), fields["species"].tolist(), strict=True))
    for name, number in sorted((name.decode(), number) for name, number in kinds):
        symbol = gemmi.Element(number).name.upper() if number else "X"
        if number and not name.lstrip("0123456789").upper().startswith(symbol):
            problems.append(f"species has {symbol.capitalize()} for an atom named {name}")
    return problems


def _sequence(entry: PackedEntry) -> list[str]:
    """The residues that are there must follow each other in the deposited sequence as well."""
    fields = entry.fields
    first = np.unique(fields["residue_index"], return_index=True)[1]
    names = [name.decode() for name in fields["residue_names"][first][fields["target_mask"][first]]]
    letters = [_letter(name) for name in names if amber_name(name) not in CAPS]
    deposited = iter(str(entry.attributes["sequence"]))
    for index, letter in enumerate(letters):
        if not any(_same_residue(one, letter) for one in deposited):
            return [f"residue {index + 1} of {len(letters)}, {letter}, does not follow in the deposited sequence"]
    return []


def _geometry(entry: PackedEntry) -> list[str]:
    problems = []
    fields = entry.fields
    box, positions = fields["box"].astype(np.float64), fields["positions"].astype(np.float64)
    if (np.triu(box, 1) != 0).any() or (np.diagonal(box, axis1=1, axis2=2) <= 0).any():
        problems.append("box is not in OpenMM's reduced form (lower triangle, positive diagonal)")
    i, j = fields["bonds"].T
    sampled = _as_sampled(entry)
    lengths = np.linalg.norm(positions[sampled][:, i] - positions[sampled][:, j], axis=-1)
    outside = (lengths > MAX_BOND) | (lengths < MIN_BOND)
    if outside.any():
        frame, bond = (int(n) for n in np.argwhere(outside)[0])
        problems.append(
            f"{int(outside.any(axis=0).sum())} bonds are not {MIN_BOND} to {MAX_BOND} nm long: atoms {i[bond]} and "
            f"{j[bond]} are {lengths[frame, bond]:.3f} nm apart"
        )
    distinct = {frame.tobytes() for frame in fields["positions"]}
    if len(distinct) < len(positions):
        problems.append(f"{len(positions)} frames hold {len(distinct)} different ones only")
    return problems


def _sums(entry: PackedEntry) -> list[str]:
    problems = []
    fields = entry.fields
    charge = float(fields["charges"].sum(dtype=np.float64))
    if abs(charge) > NET_CHARGE:
        problems.append(f"charges sum to {charge:.3f} e, not to 0")
    if "forces_by_group" in fields:
        total = fields["forces_by_group"].sum(axis=1, dtype=np.float64)
        error = relative_error(total, fields["forces"])
        if error > SUM_RULE:
            problems.append(f"forces_by_group do not sum to forces: mean |dF| / mean |F| is {error:.1e}")
        if len(set(fields["group_names"].tolist())) < len(fields["group_names"]):
            problems.append("group_names has a name twice")
    if "forces_solute" in fields and fields["forces_solute"][:, ~fields["target_mask"]].any():
        problems.append("forces_solute acts on atoms outside the solute")
    return problems


def _momentum(entry: PackedEntry, config: PipelineConfig) -> list[str]:
    if config.label.potential is not None:  # need not be conservative
        return []
    problems = []
    for name in ("forces", "forces_solute"):
        if name in entry.fields:
            forces = entry.fields[name].astype(np.float64)
            whole = np.linalg.norm(forces, axis=-1).sum(axis=1)
            net = np.linalg.norm(forces.sum(axis=1), axis=-1)
            if (net > NET_FORCE * whole).any():
                worst = float((net / np.maximum(whole, 1e-30)).max())
                problems.append(f"{name} of a frame do not cancel: |sum F| / sum |F| is {worst:.1e}")
    return problems


def _settings(entry: PackedEntry, config: PipelineConfig) -> list[str]:
    problems = []
    fields, attributes, label = entry.fields, entry.attributes, config.label
    if attributes["seed"] != entry_seed(config.seed, entry.name):
        problems.append(f"seed is {attributes['seed']}, the config's seed {config.seed} gives another")
    largest = float(np.linalg.norm(fields["forces"], axis=-1).max())
    if largest > label.max_force * (1 + 1e-6):
        problems.append(f"a force of {largest:.3g} kJ/mol/nm exceeds label.max_force = {label.max_force:g}")
    for part, names in PARTS.items():
        there, wanted = [name for name in names if name in fields], part in label.parts
        if wanted != (len(there) == len(names)) or (there and not wanted):
            problems.append(f"label.parts is {list(label.parts)}, but the fields of {part} are {there or 'missing'}")
    if "displacement" in fields:
        n_sampled = len(_as_sampled(entry))
        n_expected = n_sampled * (1 + label.displaced_copies) - int(attributes.get("dropped_copies", 0))
        if len(fields["displacement"]) != n_expected:
            problems.append(f"{len(fields['displacement'])} frames, where {n_sampled} as sampled make {n_expected}")
        if fields["displacement"].max() > label.displacement * (1 + 1e-6):
            problems.append(f"displacement exceeds label.displacement = {label.displacement} nm")
    if "temperature" in fields:
        allowed = np.array([0.0, *config.sample.temperatures], dtype=np.float32)
        if not np.isin(fields["temperature"], allowed).all():
            problems.append(f"temperature holds {np.unique(fields['temperature'])}, the config has {allowed[1:]}")
    return problems


def _pme(entry: PackedEntry, config: PipelineConfig) -> list[str]:
    problems = []
    attributes, label, box = entry.attributes, config.label, entry.fields["box"].max(axis=0)
    alpha, grid = float(attributes["pme_alpha"]), np.asarray(attributes["pme_grid"])
    if label.potential is not None:
        return [f"pme_alpha is {alpha}, but {label.potential.name} has no PME"] if alpha or grid.any() else []
    width = min(box_width(one) for one in entry.fields["box"])
    if width < 2 * label.cutoff:
        problems.append(f"the box is {width:.3f} nm wide, less than twice label.cutoff = {label.cutoff}")
    expected = ewald.default_alpha(label.cutoff, label.ewald_tolerance)
    if abs(alpha - expected) > 1e-3 * expected:
        problems.append(f"pme_alpha is {alpha:.4f} /nm, where cutoff and tolerance of the config give {expected:.4f}")
    pairs = [("pme", alpha, grid, label.ewald_tolerance)]
    if "forces_reciprocal" in entry.fields:
        if not {"reciprocal_alpha", "reciprocal_grid"} <= set(attributes):
            return [*problems, "forces_reciprocal lacks reciprocal_alpha or reciprocal_grid"]
        alpha, grid = float(attributes["reciprocal_alpha"]), np.asarray(attributes["reciprocal_grid"])
        if alpha != label.reciprocal_alpha:
            problems.append(f"reciprocal_alpha is {alpha}, label.reciprocal_alpha is {label.reciprocal_alpha}")
        pairs.append(("reciprocal", alpha, grid, ewald.RECIPROCAL_TOLERANCE))
    for name, alpha, grid, tolerance in pairs:
        least = 2 * alpha * np.diag(box) / (3 * tolerance**0.2)
        # The estimate may be rounded, and numbers of mesh points are rounded up to what a Fourier transform takes.
        if (grid < least - 1).any() or (grid > 1.5 * least + 10).any():
            problems.append(f"{name}_grid is {grid.tolist()}, where box and alpha ask for {np.ceil(least).tolist()}")
    return problems


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return mean |dF| / mean |F| over all atoms of two arrays (..., 3); infinite where only the expected are 0."""
    difference = np.linalg.norm(found.astype(np.float64) - expected, axis=-1).mean()
    mean = np.linalg.norm(expected.astype(np.float64), axis=-1).mean()
    return float(difference / mean) if mean else (np.inf if difference else 0.0)


def _as_sampled(entry: PackedEntry) -> np.ndarray:
    """Return the frames that were not displaced."""
    return np.flatnonzero(as_sampled(entry.fields))


def _letter(residue: str) -> str:
    return gemmi.find_tabulated_residue(parent_name(residue)).one_letter_code.strip().upper() or "X"


def _same_residue(deposited: str, prepared: str) -> bool:
    return deposited in (prepared, "X") or (deposited, prepared) in _replaced()


@cache
def _replaced() -> frozenset[tuple[str, str]]:
    """Letters before and after PDBFixer replaces a modified residue by a parent that the table does not name."""
    return frozenset((_letter(name), _letter(parent)) for name, parent in substitutions.items())


_ALONE: tuple[Callable[[PackedEntry], list[str]], ...] = (*(_targets, atom_findings, _sequence, _geometry, _sums),)
_WITH_CONFIG: tuple[Callable[[PackedEntry, PipelineConfig], list[str]], ...] = (_momentum, _settings, _pme)
