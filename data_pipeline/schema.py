"""Every field of dataset.h5, declared once.

The file holds one protocol and all splits. Each entry is a group below ``/entries``; the group's data sets
and attributes, and the attributes of the file itself, are the `Field` tables below. The writer (`pack`), the
check, the reader of the learning side and the tests all read these tables; docs/dataset.md is made from them.

Conventions: nm, kJ/mol, kJ/mol/nm, elementary charges; box vectors are the rows of ``box``; F = -dE/dr.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1
"""Raised by one whenever a reader of the former version would misread the file."""

FORMAT = "forcefield-ml-dataset"
"""Value of the file attribute ``format``: tells our file from any other HDF5 file."""

SPLITS = ("train", "validation", "test")

ENTRIES_GROUP = "entries"


@dataclass(frozen=True)
class Field:
    """One data set or attribute.

    Parameters
    ----------
    name
        The HDF5 name.
    dtype
        A NumPy dtype string; ``"str"`` for UTF-8 text.
    shape
        Names of the dimensions: ``F`` frames, ``N`` atoms, ``B`` bonds; digits stand for themselves. Empty for a
        scalar.
    unit
        Unit of the values, empty where there is none.
    meaning
        One sentence.
    required
        False where only some protocols or targets have it.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    unit: str
    meaning: str
    required: bool = True


ENTRY_FIELDS: tuple[Field, ...] = (
    Field("species", "u1", ("N",), "", "Atomic numbers."),
    Field("atom_names", "S4", ("N",), "", "PDB atom names."),
    Field("residue_names", "S4", ("N",), "", "Residue name of each atom, as in the force field (HOH for water)."),
    Field("residue_index", "i4", ("N",), "", "Residue of each atom, counted from 0 over the whole system."),
    Field("charges", "f4", ("N",), "e", "Partial charges of the reference force field."),
    Field("bonds", "i4", ("B", "2"), "", "Atom indices of each covalent bond, water's included."),
    Field("target_mask", "b1", ("N",), "", "True for atoms whose forces are learnt and judged: the protein's."),
    Field("positions", "f4", ("F", "N", "3"), "nm", "Positions, as they were when the labels were computed."),
    Field("box", "f4", ("F", "3", "3"), "nm", "Box vectors as rows, in OpenMM's reduced form."),
    Field("forces", "f4", ("F", "N", "3"), "kJ/mol/nm", "Total reference force on every atom, solvent included."),
    Field("energy", "f8", ("F",), "kJ/mol", "Total reference potential energy."),
    Field(
        "temperature",
        "f4",
        ("F",),
        "K",
        "Temperature of the thermostat that sampled the frame; 0 for a minimum.",
        required=False,
    ),
    Field(
        "kinetic_temperature",
        "f4",
        ("F",),
        "K",
        "Of the velocities when the frame was taken; 0 for a minimum.",
        required=False,
    ),
    Field(
        "displacement",
        "f4",
        ("F",),
        "nm",
        "Standard deviation of random displacements added to the target atoms; 0, or no such field: as sampled.",
        required=False,
    ),
)

ENTRY_ATTRIBUTES: tuple[Field, ...] = (
    Field("split", "str", (), "", "One of `SPLITS`."),
    Field("cluster", "str", (), "", "Name of the sequence cluster; a cluster lies in one split only."),
    Field("sequence", "str", (), "", "One-letter sequence of the protein chain as deposited (SEQRES)."),
    Field("source_file", "str", (), "", "Name of the file the entry came from."),
    Field("source_sha256", "str", (), "", "SHA-256 of the source file as read (still compressed, if it was)."),
    Field("seed", "i8", (), "", "Seed of this entry's random numbers."),
    Field("pme_alpha", "f8", (), "1/nm", "Ewald splitting parameter of the labels; 0 where there is no PME."),
    Field("pme_grid", "i4", ("3",), "", "PME mesh points along each box vector; zeros where there is no PME."),
)

FILE_ATTRIBUTES: tuple[Field, ...] = (
    Field("format", "str", (), "", "Always `FORMAT`."),
    Field("schema_version", "i8", (), "", "`SCHEMA_VERSION` of the writer."),
    Field("protocol", "str", (), "", "Name of the sampling protocol: thermal or minimized."),
    Field("force_field", "str", (), "", "Force field files, comma separated, as given to openmm.app.ForceField."),
    Field("config", "str", (), "", "The resolved configuration, as JSON."),
    Field("versions", "str", (), "", "Versions of the packages that made the labels, as JSON."),
    Field("content_sha256", "str", (), "", "SHA-256 over every entry's fields and attributes, in order of entry."),
)


class SchemaError(ValueError):
    """The file is not a dataset of this schema; the message says what differs and what to do."""


def field(name: str) -> Field:
    """Return the declaration of an entry's data set.

    Raises
    ------
    SchemaError
        If no field has this name.
    """
    for candidate in ENTRY_FIELDS:
        if candidate.name == name:
            return candidate
    raise SchemaError(f"no field {name!r} in an entry; there are {', '.join(f.name for f in ENTRY_FIELDS)}")
