"""Training frames of several datasets as one: those of a protocol, and those that a model visited."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path

from data_pipeline import schema
from forcefield_ml.data.dataset import ForceDataset, Sample
from forcefield_ml.data.target import Target
from forcefield_ml.errors import DatasetError


class JoinedDataset(ForceDataset):
    """The training frames of a dataset, followed by those of others.

    What describes the data (protocol, force field, the scale of its forces) is the first's: the others may hold
    frames of no ensemble, as `explore` makes them.

    Parameters
    ----------
    path
        The first dataset.
    extra
        Others; what they mark as validation or test is not read.
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

    Raises
    ------
    DatasetError
        As `ForceDataset`; or if forces of different force fields would be mixed, or an extra dataset would train on
        what the first keeps for validation or test.
    """

    def __init__(self, path: Path | str, extra: Sequence[Path | str] = (), target: Target | None = None):
        super().__init__(path, "train", target)
        parts = [ForceDataset(other, "train", target) for other in extra]
        for part in parts:
            self._require_fit(part)
        lengths = [len(self.index), *(len(part) for part in parts)]
        self._parts, self._starts = parts, list(accumulate(lengths, initial=0))
        if parts:
            digests = [self.content_sha256, *(part.content_sha256 for part in parts)]
            self.content_sha256 = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        for part in parts:
            self.index = self.index + part.index

    def __getitem__(self, item: int) -> Sample:
        which = bisect.bisect_right(self._starts, item) - 1
        return super().__getitem__(item) if which <= 0 else self._parts[which - 1][item - self._starts[which]]

    def rms_target_force(self) -> float:
        """Return the root mean square norm of the first dataset's target forces, kJ/mol/nm."""
        with closing(ForceDataset(self.path, "train", self.target)) as first:
            return first.rms_target_force()

    def require_species(self, supported: Iterable[int]) -> None:
        """Check that a model knows every element; as `ForceDataset.require_species`."""
        known = tuple(supported)
        super().require_species(known)
        for part in self._parts:
            part.require_species(known)

    def residue_names(self) -> list[str]:
        """Return the names of all residues, sorted; of water and ions, too."""
        return sorted({*super().residue_names(), *(name for part in self._parts for name in part.residue_names())})

    def sequences(self) -> dict[str, str]:
        """Return the sequence of each entry by name."""
        found = super().sequences()
        for part in self._parts:
            found |= part.sequences()
        return found

    def close(self) -> None:
        """Close all files."""
        for part in self._parts:
            part.close()
        super().close()

    def _require_fit(self, part: ForceDataset) -> None:
        if part.force_field != self.force_field:
            raise DatasetError(
                f"{part.path} holds forces of {part.force_field}, {self.path} those of {self.force_field}; a model "
                "cannot learn both. Leave it out of extra_datasets"
            )
        held_back: dict[str, str] = {}
        for group in self._file[schema.ENTRIES_GROUP].values():
            if group.attrs["split"] != "train":
                held_back[str(group.attrs["sequence"])] = str(group.attrs["split"])
        for entry in part.entries:
            if entry.sequence in held_back:
                raise DatasetError(
                    f"{part.path} would train on {entry.name}, whose sequence {self.path} keeps for "
                    f"{held_back[entry.sequence]}: what the model is judged by must stay unseen. Leave it out of "
                    "extra_datasets, or make it from the training entries of the same dataset (forcefield-ml explore)"
                )
