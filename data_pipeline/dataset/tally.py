"""Numbers of a dataset, gathered one entry at a time: counts, magnitudes, temperatures, how far snapshots differ.

Frames whose atoms were displaced at random are no samples of the protocol: they are counted, and that is all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any

import gemmi
import numpy as np
from Bio.SVDSuperimposer import SVDSuperimposer

from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.schema import FORCES, PAPER, SPLITS, Paper

EDGES = np.logspace(-3, 8, 221)
"""Of magnitudes in their unit on paper; 20 bins in each factor of ten. What is smaller or larger falls into the first
or last."""

OWN = (
    *("pme_alpha", "pme_grid"),
    *("native_file", "native_sha256", "native_atoms", "renamed_residues", "missing_residues", "degenerate_atoms"),
)
"""Attributes of an entry that are told as they are, where it has them."""

N_BINS = 20
"""About so many bins in the other histograms."""


class Tally:
    """Adds up entries; memory does not grow with their atoms.

    The error of predicting the mean magnitude needs that mean first, so it has a pass of its own, `deviations`.

    Parameters
    ----------
    task
        Of the file.
    """

    def __init__(self, task: str = FORCES) -> None:
        self.paper = PAPER[task]
        self.entries: list[dict[str, Any]] = []
        self.fields: set[str] = set()
        self._counts = {split: np.zeros(len(EDGES) - 1, dtype=np.int64) for split in SPLITS}
        self._sums = {split: np.zeros(3) for split in SPLITS}  # number, sum, sum of squares
        self._max = dict.fromkeys(SPLITS, 0.0)
        self._deviations: dict[str, float] | None = None
        self._temperatures: dict[float, list[float]] = defaultdict(list)
        self._rmsd: dict[str, list[float]] = {split: [] for split in SPLITS}
        self._elements: dict[str, Counter[int]] = {"protein": Counter(), "everything": Counter()}
        self._residues: dict[str, Counter[str]] = {"protein": Counter(), "other": Counter()}
        self._by_element: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self._by_residue: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))

    def add(self, entries: Iterable[PackedEntry]) -> None:
        """Add up entries.

        Parameters
        ----------
        entries
            As `check.read_entries` yields them.
        """
        for entry in entries:
            self._add(entry)

    def _add(self, entry: PackedEntry) -> None:
        fields, split = entry.fields, str(entry.attributes["split"])
        self.fields |= set(fields)
        mask, sampled = fields["target_mask"], as_sampled(fields)
        magnitude = target_magnitudes(fields, self.paper)
        self._counts[split] += np.histogram(np.clip(magnitude, EDGES[0], np.nextafter(EDGES[-1], 0)), EDGES)[0]
        self._sums[split] += (magnitude.size, magnitude.sum(), (magnitude**2).sum())
        self._max[split] = max(self._max[split], float(magnitude.max(initial=0.0)))
        self._add_groups(fields, magnitude)
        positions = fields["positions"][sampled][:, mask]
        rmsd = [superposed_rmsd(a, b) for a, b in pairwise(positions)]
        self._rmsd[split] += rmsd
        if "kinetic_temperature" in fields and "temperature" in fields:
            pairs = zip(fields["temperature"][sampled], fields["kinetic_temperature"][sampled], strict=True)
            for thermostat, kinetic in pairs:
                if thermostat > 0:
                    self._temperatures[round(float(thermostat), 3)].append(float(kinetic))
        self.entries.append(
            {
                "id": entry.name,
                **{key: entry.attributes[key] for key in ("split", "cluster", "source_file", "source_sha256")},
                "sequence_length": len(str(entry.attributes["sequence"])),
                "residues": len(np.unique(fields["residue_index"][mask])),
                "atoms": len(mask),
                "targets": int(mask.sum()),
                "frames": int(sampled.sum()),
                "displaced": int((~sampled).sum()),
                f"mean_{self.paper.name}": float(magnitude.mean()) if magnitude.size else None,
                "rmsd": float(np.mean(rmsd)) if rmsd else None,
                **{key: np.asarray(entry.attributes[key]).tolist() for key in OWN if key in entry.attributes},
            }
        )

    def _add_groups(self, fields: Mapping[str, np.ndarray], magnitude: np.ndarray) -> None:
        mask, species, residues = fields["target_mask"], fields["species"], fields["residue_names"]
        self._elements["protein"].update(species[mask].tolist())
        self._elements["everything"].update(species.tolist())
        first = np.flatnonzero(np.diff(fields["residue_index"], prepend=-1))
        for name, is_target in zip(residues[first].tolist(), mask[first].tolist(), strict=True):
            self._residues["protein" if is_target else "other"][name.decode()] += 1
        of_atom, frames = magnitude.sum(axis=0), len(magnitude)
        for z, n, total in _by_group(species[mask], of_atom):
            self._by_element[z] += (n * frames, total)
        for name, n, total in _by_group(residues[mask], of_atom):
            self._by_residue[name.decode()] += (n * frames, total)

    def deviations(self, entries: Iterable[PackedEntry]) -> None:
        """Add up how far magnitudes are from their split's mean and from the mean of all.

        Parameters
        ----------
        entries
            Those given to `add`, again; the fields of `target_magnitudes` suffice.
        """
        means = {split: sums[1] / sums[0] for split, sums in self._by_split().items() if sums[0]}
        self._deviations = dict.fromkeys(means, 0.0)
        for entry in entries:
            magnitude = target_magnitudes(entry.fields, self.paper)
            for split in (str(entry.attributes["split"]), "all"):
                if split in means:
                    self._deviations[split] += float(np.abs(magnitude - means[split]).sum())

    def _by_split(self) -> dict[str, np.ndarray]:
        return {**self._sums, "all": np.sum(list(self._sums.values()), axis=0)}

    def splits(self) -> dict[str, dict[str, Any]]:
        """Return counts and magnitudes of each split and of ``all``, as `datasheet.datasheet` describes them."""
        counted = ("residues", "frames", "displaced", "atoms", "targets")
        result: dict[str, dict[str, Any]] = {}
        for split, (n, total, squares) in self._by_split().items():
            entries = [entry for entry in self.entries if split in ("all", entry["split"])]
            mean = float(total / n) if n else None
            spread = float(self._deviations[split] / n) if n and self._deviations is not None else None
            maxima = self._max.values() if split == "all" else [self._max[split]]
            name = self.paper.name
            result[split] = {
                "entries": len(entries),
                **{key: sum(entry[key] for entry in entries) for key in counted},
                "clusters": len({entry["cluster"] for entry in entries}),
                f"mean_{name}": mean,
                f"rms_{name}": float(np.sqrt(squares / n)) if n else None,
                f"max_{name}": max(maxima) if n else None,
                "zero_predictor": mean,
                "mean_magnitude_predictor": spread,
            }
        return result

    def distributions(self) -> dict[str, Any]:
        """Return histograms (``edges``, ``counts`` by split or thermostat) and means by group, in plain types.

        Keys: ``residues``, ``atoms``, ``force`` (or whatever the vector is, in its unit on paper), ``rmsd`` (nm,
        between successive frames of an entry, protein atoms superposed), ``temperature`` (K, by the thermostat's),
        ``clusters`` (entries and mean sequence length of each), ``force_by_element`` and ``force_by_residue``; None
        where the file has nothing to say.
        """
        counts = np.array([self._counts[split] for split in SPLITS])
        filled = np.flatnonzero(counts.sum(axis=0))
        magnitudes = None
        if len(filled):
            low, high = int(filled[0]), int(filled[-1]) + 1
            magnitudes = {
                "edges": EDGES[low : high + 1].tolist(),
                "counts": {split: self._counts[split][low:high].tolist() for split in SPLITS},
            }
        by_split = {
            key: {split: [e[key] for e in self.entries if e["split"] == split] for split in SPLITS}
            for key in ("residues", "atoms")
        }
        temperatures = {f"{kelvin:g}": values for kelvin, values in sorted(self._temperatures.items())}
        return {
            "residues": histogram(by_split["residues"], whole=True),
            "atoms": histogram(by_split["atoms"], whole=True),
            self.paper.name: magnitudes,
            "rmsd": histogram(self._rmsd),
            "temperature": histogram(temperatures),
            "clusters": self._clusters(),
            f"{self.paper.name}_by_element": {
                _symbol(z): total / n for z, (n, total) in sorted(self._by_element.items()) if n
            },
            f"{self.paper.name}_by_residue": {
                name: total / n for name, (n, total) in sorted(self._by_residue.items()) if n
            },
        }

    def spread(self) -> dict[str, Any]:
        """Return number, least, mean and largest of the RMSD (nm) and of the kinetic temperature (K) by thermostat."""
        temperatures = {f"{kelvin:g}": _summary(values) for kelvin, values in sorted(self._temperatures.items())}
        return {"rmsd": _summary(list(chain(*self._rmsd.values()))), "temperature": temperatures}

    def composition(self) -> dict[str, dict[str, int]]:
        """Return atoms by element and residues by name, of the targets (protein) and of everything else."""
        elements = {part: {_symbol(z): n for z, n in sorted(c.items())} for part, c in self._elements.items()}
        residues = {part: dict(counts.most_common()) for part, counts in self._residues.items()}
        return {
            "protein_atoms": elements["protein"],
            "all_atoms": elements["everything"],
            "protein_residues": residues["protein"],
            "other_residues": residues["other"],
        }

    def _clusters(self) -> list[dict[str, Any]]:
        members: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.entries:
            members[str(entry["cluster"])].append(entry)
        return [
            {
                "name": name,
                "split": entries[0]["split"],
                "entries": len(entries),
                "mean_length": float(np.mean([entry["sequence_length"] for entry in entries])),
            }
            for name, entries in sorted(members.items())
        ]


def as_sampled(fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (F,) bool, true for frames without displaced atoms."""
    if "displacement" in fields:
        return np.asarray(fields["displacement"] == 0)
    return np.ones(len(next(fields[one.field] for one in PAPER.values() if one.field in fields)), dtype=bool)


def target_magnitudes(fields: Mapping[str, np.ndarray], paper: Paper) -> np.ndarray:
    """Return (frames as sampled, target atoms) magnitudes of the labels in their unit on paper."""
    vectors = fields[paper.field][as_sampled(fields)][:, fields["target_mask"]].astype(np.float64)
    return np.linalg.norm(vectors, axis=-1) * paper.factor


def superposed_rmsd(first: np.ndarray, second: np.ndarray) -> float:
    """Return the root-mean-square distance of two (n, 3) sets of atoms after the best superposition, in their unit."""
    superimposer = SVDSuperimposer()
    superimposer.set(first.astype(np.float64), second.astype(np.float64))
    superimposer.run()
    return float(superimposer.get_rms())


def histogram(groups: Mapping[str, list[float]], *, whole: bool = False) -> dict[str, Any] | None:
    """Count values in about `N_BINS` bins of a round width.

    Parameters
    ----------
    groups
        Name to values; groups share the bins.
    whole
        True for whole numbers, whose bins are no narrower than 1.

    Returns
    -------
    ``edges`` and ``counts`` by group; None without any value.
    """
    values = np.array([value for group in groups.values() for value in group], dtype=np.float64)
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    raw = (high - low or abs(high) or 1.0) / N_BINS
    power = 10.0 ** np.floor(np.log10(raw))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))
    width = max(width, 1.0) if whole else width
    start = np.floor(low / width)
    edges = (start + np.arange(int(np.floor(high / width) - start) + 2)) * width
    counts = {name: np.histogram(group, edges)[0].tolist() for name, group in groups.items()}
    return {"edges": np.round(edges, 12).tolist(), "counts": counts}


def _by_group(labels: np.ndarray, values: np.ndarray) -> Iterator[tuple[Any, int, float]]:
    groups, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    yield from zip(groups.tolist(), counts.tolist(), np.bincount(which, values).tolist(), strict=True)


def _summary(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    numbers = {"least": np.min(values), "mean": np.mean(values), "largest": np.max(values)}
    return {"n": len(values), **{name: float(value) for name, value in numbers.items()}}


def _symbol(atomic_number: int) -> str:
    return gemmi.Element(atomic_number).name
