"""Training frames of several datasets as one: those of a protocol, and those that a model visited."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import schema
from forcefield_ml.data.dataset import ForceDataset, Sample
from forcefield_ml.data.target import Target
from forcefield_ml.errors import DatasetError
from forcefield_ml.nn.atom_types import AtomTypes

LONGEST_PEPTIDE = 8
"""Residues of a chain that is alike to no protein: so few do not tell one from another."""


class JoinedDataset(ForceDataset):
    """The training frames of a dataset, followed by those of others.

    What describes the data (protocol, force field, the scale of its forces) is the first's: the others may hold
    frames of no ensemble, as `explore` makes them.

    Parameters
    ----------
    path
        The first dataset.
    extra
        Other frames of the same training entries, or of peptides of at most `LONGEST_PEPTIDE` residues; what they mark
        as validation or test is not read.
    target
        As for `ForceDataset`.

    Attributes
    ----------
    entries
        Those of the first.
    index
        Of all.
    content_sha256
        Of the first where there are no others; else over all of theirs, in order.
    contents : list of dict
        ``name`` of the file, ``content_sha256`` and ``n_frames`` of each, the first first.

    Raises
    ------
    DatasetError
        As `ForceDataset`; or if an extra dataset holds other proteins than the first trains on, or its forces are of
        another force field or another part.
    """

    def __init__(self, path: Path | str, extra: Sequence[Path | str] = (), target: Target | None = None):
        super().__init__(path, "train", target)
        parts = [ForceDataset(other, "train", target) for other in extra]
        for part in parts:
            self._require_fit(part)
        lengths = [len(self.index), *(len(part) for part in parts)]
        self._parts, self._starts = parts, list(accumulate(lengths, initial=0))
        self.contents = [
            {"name": part.path.name, "content_sha256": part.content_sha256, "n_frames": len(part.index)}
            for part in (self, *parts)
        ]
        if parts:
            digests = [self.content_sha256, *(part.content_sha256 for part in parts)]
            self.content_sha256 = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        for part in parts:
            self.index = self.index + part.index

    def __getitem__(self, item: int) -> Sample:
        which = bisect.bisect_right(self._starts, item) - 1
        return super().__getitem__(item) if which <= 0 else self._parts[which - 1][item - self._starts[which]]

    def encode(self, types: AtomTypes | None, keys: Mapping[str, NDArray[np.int64]] | None = None) -> None:
        """Let the samples of all tell what a model knows of atoms; parameters as of `ForceDataset.encode`."""
        super().encode(types, keys)
        for part in self._parts:
            part.encode(types, keys)
            self.index = self.index + part.index

    def molecules(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Return species (N,) and bonds (B, 2) of the entries of all, those that are the same once."""
        told = set()
        for entry in chain(self.entries, *(part.entries for part in self._parts)):
            if entry.molecule not in told:
                told.add(entry.molecule)
                yield entry.species, entry.bonds

    def sequences(self) -> dict[str, str]:
        """Return the sequence of each entry of all by name."""
        return {name: value for part in self._parts for name, value in part.sequences().items()} | super().sequences()

    def residue_names(self) -> list[str]:
        """Return the names of all residues that occur in any, sorted."""
        return sorted({*super().residue_names(), *(name for part in self._parts for name in part.residue_names())})

    def sampled_items(self) -> list[int]:
        """Return the numbers of the frames that sample an ensemble: all but those that a model visited."""
        parts = zip((self, *self._parts), pairwise(self._starts), strict=True)
        return [item for part, (first, last) in parts if part.protocol != schema.VISITED for item in range(first, last)]

    def require_judge(self, judges: ForceDataset) -> None:
        """Raise DatasetError if frames that shall judge are none, of another reference, or of proteins trained on."""
        judges.require_frames()
        self._require_same_forces(judges, "validation_dataset")
        trained = set(self.sequences().values())
        seen = [entry.name for entry in judges.entries if entry.sequence in trained]
        if seen:
            raise DatasetError(
                f"{judges.path} has {', '.join(seen[:5])} ({len(seen)} in all) for {judges.split}, with sequences that "
                f"{self.path} trains on: they would judge too kindly. Take a dataset of the same split"
            )

    def rms_target_force(self) -> float:
        """Return the root mean square norm of the first dataset's target forces, kJ/mol/nm."""
        with closing(ForceDataset(self.path, "train", self.target)) as first:
            return first.rms_target_force()

    def close(self) -> None:
        """Close all files."""
        for part in self._parts:
            part.close()
        super().close()

    def _require_same_forces(self, part: ForceDataset, key: str) -> None:
        for what, found, expected in (
            ("forces of", part.force_field, self.force_field),
            ("a reciprocal part of", part.reciprocal(), self.reciprocal()),
            ("differences from", part.mm_force_field(), self.mm_force_field()),
        ):
            if found != expected:
                raise DatasetError(
                    f"{part.path} holds {what} {found}, {self.path} {what} {expected}; no model has both. Leave it out "
                    f"of {key}"
                )

    def _require_fit(self, part: ForceDataset) -> None:
        self._require_same_forces(part, "extra_datasets")
        if part.content_sha256 == self.content_sha256:
            raise DatasetError(f"{part.path} is the dataset itself; leave it out of extra_datasets")
        own = super().sequences()
        for name, sequence in part.sequences().items():
            if own.get(name) != sequence and len(sequence) > LONGEST_PEPTIDE:
                raise DatasetError(
                    f"{part.path} would train on {name}, which is no training entry of {self.path} (by name and "
                    "sequence): it may be alike to what the model is judged by. Make extra datasets from the training "
                    "entries of the same dataset (forcefield-ml explore), or put the proteins into one pipeline run"
                )
