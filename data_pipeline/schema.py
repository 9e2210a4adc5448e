"""Every field of dataset.h5, declared once.

The file holds one protocol and all splits. Each entry is a group below ``/entries``; the group's data sets
and attributes, and the attributes of the file itself, are the `Field` tables below. The writer (`pack`), the
check, the reader of the learning side and the tests all read these tables; docs/dataset.md is made from them.

A file is of one task, which is what its labels are for: ``forces``, or ``refinement`` (vectors that move the atoms of a
candidate structure to where the native has them). Most fields are of both; `Field.tasks` says which are of one.

Conventions: nm, kJ/mol, kJ/mol/nm, elementary charges; box vectors are the rows of ``box``; F = -dE/dr.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import h5py

SCHEMA_VERSION = 1
"""Raised by one whenever a reader of the former version would misread the file."""

FORMAT = "forcefield-ml-dataset"
"""Value of the file attribute ``format``: tells our file from any other HDF5 file."""

SPLITS = ("train", "validation", "test")

FORCES, REFINEMENT = "forces", "refinement"

TASKS = (FORCES, REFINEMENT)
"""Values of the file attribute ``task``; a file without it is of the first."""


class Paper(NamedTuple):
    """The vector that a task's files hold, as it is printed.

    Attributes
    ----------
    name
        What it is, in the singular.
    symbol
        Of its norm.
    field
        Where it stands.
    unit
        On paper.
    factor
        From the unit of the field to that on paper.
    digits
        Decimals of an error on paper.
    """

    name: str
    symbol: str
    field: str
    unit: str
    factor: float
    digits: int

    def text(self, value: float | None, digits: int | None = None) -> str:
        """Return a value on paper without its unit, a dash for none; `digits` in place of its own if given."""
        return "-" if value is None else f"{value:.{self.digits if digits is None else digits}f}"

    @property
    def deviation(self) -> str:
        """How far two sets of these vectors are apart, in symbols: ``mean |dF| / mean |F|``."""
        return f"mean |d{self.symbol.strip('|')}| / mean {self.symbol}"


MEV_PER_ANGSTROM = 1.0364269656
"""1 kJ/mol/nm in meV/Å; the same as in forcefield_ml.units, where it is derived (a test compares)."""

PAPER = {
    FORCES: Paper("force", "|F|", "forces", "meV/Å", MEV_PER_ANGSTROM, 1),
    REFINEMENT: Paper("displacement", "|v|", "refinement", "Å", 10.0, 2),
}
"""Task -> its vector."""

ENTRIES_GROUP = "entries"

VISITED = "visited"
"""The protocol of frames that a model visited (`forcefield-ml explore`): they sample no ensemble."""


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
        Names of the dimensions: ``F`` frames, ``N`` atoms, ``B`` bonds, ``G`` force groups; digits stand for
        themselves. Empty for a scalar.
    unit
        Unit of the values, empty where there is none.
    meaning
        One sentence.
    required
        False where only some protocols or targets have it.
    tasks
        Whose files have it.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    unit: str
    meaning: str
    required: bool = True
    tasks: tuple[str, ...] = TASKS


_F: Any = {"tasks": (FORCES,)}
_R: Any = {"tasks": (REFINEMENT,)}

ENTRY_FIELDS: tuple[Field, ...] = (
    Field("species", "u1", ("N",), "", "Atomic numbers."),
    Field("atom_names", "S4", ("N",), "", "PDB atom names."),
    Field("residue_names", "S4", ("N",), "", "Residue name of each atom, as in the force field (HOH for water)."),
    Field("residue_index", "i4", ("N",), "", "Residue of each atom, counted from 0 over the whole system."),
    Field(
        "charges",
        "f4",
        ("N",),
        "e",
        "Partial charges of the reference force field; of `label.mm_force_field` where the reference has no fixed ones "
        "(AMOEBA, an openmm-ml potential).",
        **_F,
    ),
    Field("bonds", "i4", ("B", "2"), "", "Atom indices of each covalent bond, water's included."),
    Field(
        "target_mask",
        "b1",
        ("N",),
        "",
        "True for atoms whose forces are learnt and judged: the protein's. Of refinement: for those with a vector.",
    ),
    Field("positions", "f4", ("F", "N", "3"), "nm", "Positions, as they were when the labels were computed."),
    Field("box", "f4", ("F", "3", "3"), "nm", "Box vectors as rows, in OpenMM's reduced form.", **_F),
    Field("forces", "f4", ("F", "N", "3"), "kJ/mol/nm", "Total reference force on every atom, solvent included.", **_F),
    Field("energy", "f8", ("F",), "kJ/mol", "Total reference potential energy.", **_F),
    Field(
        "temperature",
        "f4",
        ("F",),
        "K",
        "Temperature of the thermostat that sampled the frame; 0 for a minimum.",
        required=False,
        **_F,
    ),
    Field(
        "kinetic_temperature",
        "f4",
        ("F",),
        "K",
        "Of the velocities when the frame was taken; 0 for a minimum.",
        required=False,
        **_F,
    ),
    Field(
        "displacement",
        "f4",
        ("F",),
        "nm",
        "Standard deviation (of uneven ones the largest) of random displacements of atoms; 0, or no such field: as "
        "sampled, of refinement as read.",
        required=False,
    ),
    Field("group_names", "S32", ("G",), "", "Name of each force group, sorted.", required=False, **_F),
    Field(
        "forces_by_group",
        "f4",
        ("F", "G", "N", "3"),
        "kJ/mol/nm",
        "`forces` by term of the force field, PME's direct and reciprocal space apart; the sum over G is `forces`.",
        required=False,
        **_F,
    ),
    Field(
        "forces_reciprocal",
        "f4",
        ("F", "N", "3"),
        "kJ/mol/nm",
        "Reciprocal-space part of the Ewald sum over `charges` at `reciprocal_alpha`, no pair of atoms excluded.",
        required=False,
        **_F,
    ),
    Field(
        "forces_solute",
        "f4",
        ("F", "N", "3"),
        "kJ/mol/nm",
        "Reference forces on the target atoms alone in a vacuum, without box or cutoff; zero on other atoms.",
        required=False,
        **_F,
    ),
    Field("energy_solute", "f8", ("F",), "kJ/mol", "Reference energy of the same.", required=False, **_F),
    Field(
        "forces_minus_mm",
        "f4",
        ("F", "N", "3"),
        "kJ/mol/nm",
        "`forces` minus the forces of `label.mm_force_field`.",
        required=False,
        **_F,
    ),
    Field(
        "refinement",
        "f4",
        ("F", "N", "3"),
        "nm",
        "From each atom to where its partner in the native lies once the native's surroundings are superposed on the "
        "atom's; zero outside `target_mask`.",
        **_R,
    ),
    Field("native_positions", "f4", ("F", "N", "3"), "nm", "Of the partners in the native, zero where none is.", **_R),
    Field("has_partner", "b1", ("N",), "", "True for atoms that the native has as well, with the same residue.", **_R),
    Field("chain_names", "S4", ("N",), "", "Chain of each atom, as the candidate's file names it.", **_R),
    Field("residue_numbers", "S8", ("N",), "", "Number and insertion code of each atom's residue in that file.", **_R),
)

ENTRY_ATTRIBUTES: tuple[Field, ...] = (
    Field("split", "str", (), "", "One of `SPLITS`."),
    Field(
        "cluster",
        "str",
        (),
        "",
        "Name of the sequence cluster; a cluster lies in one split only. Of refinement: all candidates of one native.",
    ),
    Field(
        "sequence",
        "str",
        (),
        "",
        "One-letter sequence of the protein chain as deposited (SEQRES). Of refinement: of the candidate, chains "
        "parted by /.",
    ),
    Field("source_file", "str", (), "", "Name of the file the entry came from."),
    Field("source_sha256", "str", (), "", "SHA-256 of the source file as read (still compressed, if it was)."),
    Field("seed", "i8", (), "", "Seed of this entry's random numbers.", **_F),
    Field("pme_alpha", "f8", (), "1/nm", "Ewald splitting parameter of the labels; 0 where there is no PME.", **_F),
    Field("pme_grid", "i4", ("3",), "", "PME mesh points along each box vector; zeros where there is no PME.", **_F),
    Field(
        "reciprocal_alpha",
        "f8",
        (),
        "1/nm",
        "Ewald splitting parameter of `forces_reciprocal`.",
        required=False,
        **_F,
    ),
    Field("reciprocal_grid", "i4", ("3",), "", "PME mesh points of `forces_reciprocal`.", required=False, **_F),
    Field(
        "dropped_copies",
        "i8",
        (),
        "",
        "Displaced copies left out because a force on them exceeded `label.max_force`. Of refinement: because atoms "
        "came too near.",
        required=False,
    ),
    Field("native_file", "str", (), "", "Name of the native's file.", **_R),
    Field("native_sha256", "str", (), "", "SHA-256 of that file as read.", **_R),
    Field("native_atoms", "i8", (), "", "Heavy atoms of the native, those without a partner included.", **_R),
    Field("renamed_residues", "i8", (), "", "Residues whose name differs in the native: none of its atoms pair.", **_R),
    Field("missing_residues", "i8", (), "", "Residues of the candidate that the native lacks.", **_R),
    Field("degenerate_atoms", "i8", (), "", "Atoms with a partner whose surroundings define no superposition.", **_R),
)

FILE_ATTRIBUTES: tuple[Field, ...] = (
    Field("format", "str", (), "", "Always `FORMAT`."),
    Field("schema_version", "i8", (), "", "`SCHEMA_VERSION` of the writer."),
    Field("task", "str", (), "", "One of `TASKS`; forces where there is no such attribute.", required=False),
    Field(
        "protocol",
        "str",
        (),
        "",
        "Name of the sampling protocol: thermal or minimized; visited: see origin. Of refinement: candidates.",
    ),
    Field(
        "force_field",
        "str",
        (),
        "",
        "What gave the labels: files as given to openmm.app.ForceField, comma separated, or openmm-ml:NAME.",
        **_F,
    ),
    Field("config", "str", (), "", "The resolved configuration, as JSON."),
    Field("versions", "str", (), "", "Versions of the packages that made the labels, as JSON."),
    Field(
        "origin",
        "str",
        (),
        "",
        "Where the frames come from if not from the pipeline's sampling: program, model and settings, as JSON.",
        required=False,
        **_F,
    ),
    Field("content_sha256", "str", (), "", "SHA-256 over every entry's fields and attributes, in order of entry."),
    Field(
        "header_sha256", "str", (), "", "SHA-256 over the other attributes of the file, in this order.", required=False
    ),
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


def declared(table: tuple[Field, ...], task: str) -> tuple[Field, ...]:
    """Return the declarations of a table that files of a task have.

    Parameters
    ----------
    table
        `ENTRY_FIELDS`, `ENTRY_ATTRIBUTES` or `FILE_ATTRIBUTES`.
    task
        One of `TASKS`.
    """
    return tuple(one for one in table if task in one.tasks)


def task_of(file: h5py.File) -> str:
    """Return the task of an open dataset.

    Raises
    ------
    SchemaError
        If there is no such task.
    """
    task = str(file.attrs.get("task", FORCES))
    if task not in TASKS:
        raise SchemaError(
            f"{file.filename} is of task {task!r}, this program knows {', '.join(TASKS)}; install a newer version"
        )
    return task


def open_dataset(path: str | Path) -> h5py.File:
    """Open a dataset for reading after looking at its format and version.

    Parameters
    ----------
    path
        A dataset.h5.

    Raises
    ------
    SchemaError
        If it is missing, damaged, not HDF5, another kind of HDF5 file, or of another schema version.
    """
    import h5py  # here, so that the tables above can be read without it

    path = Path(path)
    if not path.is_file():
        raise SchemaError(f"no dataset at {path}; make one with `data-pipeline run CONFIG`")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise SchemaError(f"{path} is damaged or no HDF5 file: {error}. Make it again or copy it again.") from error
    try:
        found = file.attrs.get("format")
        if found != FORMAT:
            raise SchemaError(
                f"{path} is HDF5 but no dataset of this pipeline: format is {found!r}, it must be {FORMAT!r}"
            )
        version = int(file.attrs.get("schema_version", -1))
        if version != SCHEMA_VERSION:
            advice = "make it again with this version" if version < SCHEMA_VERSION else "install a newer version"
            raise SchemaError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; {advice}")
        task_of(file)
        if not isinstance(file.get(ENTRIES_GROUP), h5py.Group):
            raise SchemaError(f"{path} has no group /{ENTRIES_GROUP}; it is damaged, make it again")
    except (SchemaError, OSError, ValueError) as error:
        file.close()
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"{path} is damaged: {error}. Make it again or copy it again.") from error
    return file
