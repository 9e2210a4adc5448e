"""Short peptides, built: every residue at either end of a chain and beside every other, of which the archive has few.

An archive has one pair of ends an entry, most of them methionine, glycine or alanine, and a model trained on it guesses
at the others. Files hold the backbone alone, in conformations that occur in proteins; preparation builds side chains,
hydrogens and caps as it does where an entry lacks them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np

from data_pipeline.errors import ConfigError, EntryError
from data_pipeline.files import remove_temporaries, write_text
from data_pipeline.ledger import sha256
from data_pipeline.sources.ids import normalise_id

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty, one letter each."""

STEP = 7
"""By which the pairs of one joint are ahead of those of the joint before it, so that they are others."""

CONFORMATIONS = ((-63.0, -43.0), (-120.0, 130.0), (-70.0, 145.0))
"""phi and psi in degrees of an alpha helix, a beta strand and polyproline II."""

CONFORMATIONS_OF_PROLINE = (CONFORMATIONS[0], CONFORMATIONS[2])
"""Those that its ring allows."""

SPREAD = 10.0
"""Degrees, standard deviation of phi and psi around them."""

_BONDS = {("C", "N"): 1.329, ("N", "CA"): 1.458, ("CA", "C"): 1.525, ("C", "O"): 1.231}
"""Å; Engh and Huber, Acta Cryst. A 47, 392 (1991), as the angles."""

_ANGLES = {"N": 116.2, "CA": 121.7, "C": 111.2, "O": 120.8}
"""Degrees, at the atom before the one that is placed."""


class Peptides:
    """Peptides in which each residue stands at each place equally often.

    Parameters
    ----------
    folder
        Where their files are written when they are asked for; made where it is missing.
    length
        L, residues of each.
    rounds
        Times that each residue stands at each place: 20 peptides a round. All 400 pairs stand at each joint after 20.

    Raises
    ------
    ConfigError
        If the folder cannot be made.
    """

    def __init__(self, folder: Path, *, length: int = 3, rounds: int = 10) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the folder {self.folder} cannot be made: {error.strerror}. Give another source.path."
            ) from error
        remove_temporaries(self.folder, older_than=60)
        self._sequences = {f"0{k:03d}": name for k, name in enumerate(sequences(length, rounds))}

    def ids(self) -> list[str]:
        """Return every peptide's id: 0000, 0001 and so on, which no entry of the archive has."""
        return list(self._sequences)

    def ahead(self, ids: Sequence[str]) -> Iterator[str]:
        """Yield the ids: a file is written within a millisecond."""
        return iter(ids)

    def path(self, entry_id: str) -> Path:
        """Return the peptide's file, written anew where it is missing or not what it should be.

        Parameters
        ----------
        entry_id
            One of `ids`.

        Raises
        ------
        EntryError
            Of kind ``not_found`` where there is no such peptide.
        """
        known = normalise_id(entry_id)
        if known not in self._sequences:
            raise EntryError(
                "not_found",
                f"no peptide {entry_id!r}; there are {len(self._sequences)}, 0000 to {self.ids()[-1]}. Take the id out "
                "of the list, or set source.rounds higher.",
            )
        path, text = self.folder / f"{known}.pdb", pdb_text(known, self._sequences[known])
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
        return path

    def sha256(self, entry_id: str) -> str:
        """Return the SHA-256 of the peptide's file."""
        return sha256(self.path(entry_id))

    def describe(self) -> str:
        """Return where the entries come from, in one line."""
        return f"{len(self._sequences)} built peptides, files in {self.folder}"


def sequences(length: int, rounds: int) -> list[str]:
    """Return the sequences, a round of twenty after the other.

    In one round each residue stands once at each place; in the next its neighbours are the next ones of `RESIDUES`.

    Parameters
    ----------
    length, rounds
        As of `Peptides`.
    """
    found = []
    for turn in range(rounds):
        for first in range(len(RESIDUES)):
            places = [first]
            for joint in range(length - 1):
                places.append(places[-1] + turn + STEP * joint)
            found.append("".join(RESIDUES[place % len(RESIDUES)] for place in places))
    return found


def backbone(conformations: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return the positions (L, 4, 3) in Å of N, CA, C and O of a chain with trans peptides.

    Parameters
    ----------
    conformations
        L pairs of phi and psi in degrees; the first phi moves nothing.
    """
    chain = [np.zeros(3), np.array([_BONDS["N", "CA"], 0.0, 0.0])]
    corner = np.radians(180 - _ANGLES["C"])
    chain.append(chain[1] + _BONDS["CA", "C"] * np.array([np.cos(corner), np.sin(corner), 0.0]))
    for (_, psi), (phi, _) in pairwise(conformations):
        for before, name, torsion in (("C", "N", psi), ("N", "CA", 180.0), ("CA", "C", phi)):
            chain.append(_placed(chain[-3:], _BONDS[before, name], _ANGLES[name], torsion))
    atoms = np.array(chain).reshape(-1, 3, 3)
    oxygens = [
        _placed(list(own), _BONDS["C", "O"], _ANGLES["O"], psi + 180)
        for own, (_, psi) in zip(atoms, conformations, strict=True)
    ]
    return np.concatenate([atoms, np.array(oxygens)[:, None]], axis=1)


def _placed(before: Sequence[np.ndarray], bond: float, angle: float, torsion: float) -> np.ndarray:
    """Return where an atom lies from the three before it, a bond in Å, an angle and a torsion in degrees."""
    first, second, third = before
    along = (third - second) / np.linalg.norm(third - second)
    normal = np.cross(second - first, along)
    normal /= np.linalg.norm(normal)
    bend, turn = np.radians(180 - angle), np.radians(torsion)
    across = np.cos(turn) * np.cross(normal, along) + np.sin(turn) * normal
    return third + bond * (np.cos(bend) * along + np.sin(bend) * across)


def pdb_text(entry_id: str, sequence: str) -> str:
    """Return the PDB file of a peptide: its sequence, and N, CA, C and O of every residue.

    Parameters
    ----------
    entry_id
        Four characters.
    sequence
        One letter a residue. It decides the conformation, too.
    """
    draw = random.Random(sequence)
    conformations = []
    for letter in sequence:
        phi, psi = draw.choice(CONFORMATIONS_OF_PROLINE if letter == "P" else CONFORMATIONS)
        conformations.append((draw.gauss(phi, SPREAD), draw.gauss(psi, SPREAD)))
    structure = gemmi.Structure()
    structure.name = entry_id.upper()
    structure.info["_entry.id"], structure.info["_exptl.method"] = entry_id.upper(), "THEORETICAL MODEL"
    chain = gemmi.Chain("A")
    names = gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA)
    for number, (name, atoms) in enumerate(zip(names, backbone(conformations), strict=True), start=1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(number, " ")
        for label, place in zip(("N", "CA", "C", "O"), atoms, strict=True):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.pos = label, gemmi.Element(label[0]), gemmi.Position(*place)
            residue.add_atom(atom)
        chain.add_residue(residue)
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    structure.setup_entities()
    structure.entities[0].full_sequence = names
    return str(structure.make_pdb_string())
