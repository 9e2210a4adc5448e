"""Reading dataset.h5: entries of one split, one frame at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline import schema
from forcefield_ml.bonded.batch import EntryTerms, looked_up
from forcefield_ml.bonded.terms import find_terms, touching
from forcefield_ml.data.target import Target, charges_of, mm_force_field
from forcefield_ml.errors import DatasetError, closest
from forcefield_ml.nn.atom_types import AtomTypes, bonds_among

_DESCRIPTION = ("species", "atom_names", "residue_names", "residue_index", "charges", "bonds", "target_mask")
"""Fields of an entry that are the same in all its frames."""


@dataclass(frozen=True)
class Entry:
    """What is the same in all frames of one entry. Its N atoms are those that the network sees.

    Parameters
    ----------
    name
        The entry's id.
    species
        (N,) atomic numbers.
    target_mask
        (N,) bool, True for atoms whose forces are learnt.
    marked
        (N,) bool, True for those that the file marks as targets: what models are judged by.
    sequence
        One-letter sequence of the chain.
    frames
        Frames that serve: all in the training split; elsewhere those as sampled, without displaced atoms.
    source
        The file: entries of several may have one name.
    bonds
        (B, 2) int64, of the atoms that the network sees.
    codes
        (N,) int64, what a model is told of each atom: its atomic number, or that and its type; see
        `ForceDataset.encode`.
    terms
        Its bonded terms with the places of their parameters in a model that has such; see `ForceDataset.encode`.
    """

    name: str
    species: NDArray[np.uint8]
    target_mask: NDArray[np.bool_]
    marked: NDArray[np.bool_]
    sequence: str
    frames: tuple[int, ...]
    source: str = ""
    bonds: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    codes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    terms: EntryTerms | None = None

    def __post_init__(self) -> None:
        if not len(self.codes):
            object.__setattr__(self, "codes", self.species.astype(np.int64))

    @property
    def molecule(self) -> tuple[bytes, bytes]:
        """What the molecule is, species and bonds: the same for the same atoms in another dataset."""
        return self.species.tobytes(), self.bonds.tobytes()


class Sample(NamedTuple):
    """One frame of one entry, float32, nm and kJ/mol/nm (of refinement: nm).

    Attributes
    ----------
    entry
        The entry.
    frame
        Number of the frame.
    positions
        (N, 3).
    box
        (3, 3), vectors as rows; None where there is no periodicity: the file has no box or one of zeros, or the
        target is the marked atoms' own force without others.
    forces
        (N, 3), what is learnt, on every atom.
    supplied
        (N, 3), what is added to it before a model is judged; None for nothing. See `target.Target`.
    """

    entry: Entry
    frame: int
    positions: NDArray[np.float32]
    box: NDArray[np.float32] | None
    forces: NDArray[np.float32]
    supplied: NDArray[np.float32] | None = None


class ForceDataset:
    """The frames of one split of a dataset.h5, read from disk when asked for.

    Parameters
    ----------
    path
        The file.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    target
        What is learnt, and on which atoms; the total force on the marked atoms if left out.

    Attributes
    ----------
    entries : list of Entry
        In order of name.
    index : list of (Entry, int)
        Entry and frame of each item.
    content_sha256, protocol, force_field : str
        Attributes of the file; no force field stands behind refinement vectors.

    Raises
    ------
    DatasetError
        If the file is missing, damaged, foreign or of another schema version, lacks what the target needs, or there
        is no such split.
    """

    def __init__(self, path: Path | str, split: str = "train", target: Target | None = None):
        if split not in schema.SPLITS:
            raise DatasetError(f"no split {split!r}.{closest(split, schema.SPLITS)}")
        self.path, self.split = Path(path), split
        self.target = target or Target()
        self._file = _open(self.path)
        try:
            attributes = self._file.attrs
            self.content_sha256 = str(attributes["content_sha256"])
            self.protocol = str(attributes["protocol"])
            self.target.require_task(schema.task_of(self._file), str(self.path))
            self.force_field = str(attributes["force_field"]) if self.target.task == schema.FORCES else ""
            self._seen: dict[str, NDArray[np.bool_]] = {}
            self.entries = list(self._read_entries())
        except (KeyError, OSError) as error:
            raise DatasetError(_damaged(self.path, error)) from None
        self.index = [(entry, frame) for entry in self.entries for frame in entry.frames]

    def _read_entries(self) -> Iterable[Entry]:
        for name, group in sorted(self._file[schema.ENTRIES_GROUP].items()):
            if group.attrs["split"] != self.split:
                continue
            mask = group["target_mask"][:].astype(bool)
            if not mask.any():
                raise DatasetError(f"{name} in {self.path} marks no target atoms; run: data-pipeline check {self.path}")
            self.target.require(group, f"{name} in {self.path}")
            frames = list(range(len(group["positions"])))
            if "displacement" in group and self.split != "train":
                displacement = group["displacement"][:]
                frames = [frame for frame in frames if displacement[frame] == 0]
            species, sequence = group["species"][:], str(group.attrs["sequence"])
            self._seen[name] = seen = mask if self.target.alone else np.ones_like(mask)
            targets = np.ones_like(mask) if self.target.atoms == "all" else mask
            yield Entry(
                name,
                species[seen],
                targets[seen],
                mask[seen],
                sequence,
                tuple(frames),
                str(self.path),
                bonds_among(group["bonds"][:], seen),
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> Sample:
        entry, frame = self.index[item]
        try:
            group = self._file[schema.ENTRIES_GROUP][entry.name]
            positions, box = group["positions"][frame], group["box"][frame] if "box" in group else None
            forces, supplied = self.target.read(group, frame)
        except (KeyError, OSError) as error:
            raise DatasetError(_damaged(self.path, error)) from None
        if self.target.alone:
            seen = self._seen[entry.name]
            return Sample(entry, frame, positions[seen], None, forces[seen])
        return Sample(entry, frame, positions, box if box is not None and box.any() else None, forces, supplied)

    def target_atoms(self, entry: Entry) -> NDArray[np.int32]:
        """Return the numbers (n,) in the file of an entry's target atoms, ascending."""
        return np.flatnonzero(self._seen[entry.name])[entry.target_mask].astype(np.int32)

    def described(self, name: str) -> dict[str, NDArray[Any]]:
        """Return what the file tells of all N atoms of an entry, whether the network sees them or not.

        Parameters
        ----------
        name
            Of the entry.

        Returns
        -------
        dict
            `schema.ENTRY_FIELDS` to arrays: species, atom_names and residue_names (str), residue_index, charges (of
            forces), bonds, target_mask.
        """
        try:
            group = self._file[schema.ENTRIES_GROUP][name]
            wanted = [one.name for one in schema.declared(schema.ENTRY_FIELDS, self.target.task)]
            found = {field: group[field][:] for field in _DESCRIPTION if field in wanted}
        except (KeyError, OSError) as error:
            raise DatasetError(_damaged(self.path, error)) from None
        return {field: np.char.decode(value) if value.dtype.kind == "S" else value for field, value in found.items()}

    def positions(self, name: str, frame: int) -> NDArray[np.float32]:
        """Return the positions (N, 3), nm, of all atoms of an entry in a frame."""
        try:
            return self._file[schema.ENTRIES_GROUP][name]["positions"][frame]
        except (KeyError, OSError) as error:
            raise DatasetError(_damaged(self.path, error)) from None

    def molecules(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Return species (N,) and bonds (B, 2) of each entry, as the network sees it."""
        return ((entry.species, entry.bonds) for entry in self.entries)

    def encode(self, types: AtomTypes | None, keys: Mapping[str, NDArray[np.int64]] | None = None) -> None:
        """Let samples tell what a model knows of atoms by their bonds.

        Parameters
        ----------
        types
            The model's atom types; None for elements alone.
        keys
            Kind to the sorted keys of the model's bonded terms; None for a model without such.
        """
        if types is None:
            codes = [entry.species.astype(np.int64) for entry in self.entries]
        else:
            codes = [types.codes(entry.species, entry.bonds) for entry in self.entries]
        terms: list[EntryTerms | None] = [None] * len(self.entries)
        if keys is not None:
            found = (touching(find_terms(entry.species, entry.bonds), entry.target_mask) for entry in self.entries)
            terms = [looked_up(each, keys) for each in found]
        self.entries = [
            replace(entry, codes=told, terms=bound)
            for entry, told, bound in zip(self.entries, codes, terms, strict=True)
        ]
        self.index = [(entry, frame) for entry in self.entries for frame in entry.frames]

    def require_frames(self) -> None:
        """Raise DatasetError unless the split has at least one frame."""
        if not len(self):
            groups: Any = self._file[schema.ENTRIES_GROUP].values()
            filled = sorted({str(group.attrs["split"]) for group in groups})
            raise DatasetError(
                f"{self.path} has no frames in the split {self.split!r}; it has some in {', '.join(filled) or 'none'}. "
                "Choose one of these, or give the pipeline more entries"
            )

    def require_species(self, supported: Iterable[int]) -> None:
        """Check that a model knows every element of the split.

        Parameters
        ----------
        supported
            Atomic numbers.

        Raises
        ------
        DatasetError
            Naming the entry and the atomic numbers that the model lacks.
        """
        known = sorted(supported)
        for entry in self.entries:
            unknown = sorted({int(number) for number in np.unique(entry.species)} - set(known))
            if unknown:
                raise DatasetError(
                    f"{entry.name} in {self.path} has atomic numbers {unknown}, the model knows {known}. Give the "
                    "model elements that include them (model: {elements: [...]}), or leave the entry out of the dataset"
                )

    def sequences(self) -> dict[str, str]:
        """Return the sequence of each entry by name."""
        return {entry.name: entry.sequence for entry in self.entries}

    def residue_names(self) -> list[str]:
        """Return the names of all residues in the split, sorted; of water and ions, too."""
        groups = self._file[schema.ENTRIES_GROUP]
        try:
            names = {name for entry in self.entries for name in np.unique(groups[entry.name]["residue_names"][:])}
        except (KeyError, OSError) as error:
            raise DatasetError(_damaged(self.path, error)) from None
        return sorted(name.decode() for name in names)

    def reciprocal(self) -> dict[str, Any] | None:
        """Return what tells which reciprocal-space sum the target leaves out; None if it leaves out none.

        Returns
        -------
        dict or None
            ``alpha`` in 1/nm, ``force_field``: files of the one that gives the charges.

        Raises
        ------
        DatasetError
            If the entries of the split do not agree.
        """
        if self.target.supplied != "reciprocal" or not self.entries:
            return None
        groups = self._file[schema.ENTRIES_GROUP]
        alphas = sorted({float(groups[entry.name].attrs["reciprocal_alpha"]) for entry in self.entries})
        if len(alphas) > 1:
            raise DatasetError(
                f"{self.path} has entries of different reciprocal_alpha ({', '.join(map(str, alphas))} /nm): what is "
                "left of the force differs between them. Make the dataset again with one label.reciprocal_alpha"
            )
        return {"alpha": alphas[0], "force_field": charges_of(self.force_field, str(self._file.attrs["config"]))}

    def mm_force_field(self) -> list[str] | None:
        """Return the files of the MM force field that the target is a correction of; None if it is none."""
        return mm_force_field(str(self._file.attrs["config"])) if self.target.supplied == "mm" else None

    def rms_target_force(self) -> float:
        """Return the root mean square norm of all target vectors of the split, in their unit inside."""
        total, count = 0.0, 0
        for sample in (self[item] for item in range(len(self))):
            forces = sample.forces[sample.entry.target_mask].astype(np.float64)
            total, count = total + float((forces**2).sum()), count + len(forces)
        return float(np.sqrt(total / count)) if count else 0.0

    def close(self) -> None:
        """Close the file; items can no longer be read."""
        self._file.close()


def _open(path: Path) -> h5py.File:
    try:
        return schema.open_dataset(path)
    except schema.SchemaError as error:
        raise DatasetError(str(error)) from None


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged or no HDF5 file ({error}). Run: data-pipeline check {path}"
