"""Residue names: what AMBER, CHARMM, GROMACS and the PDB call the same thing, told apart in one place.

OpenMM's readers translate some of these names and leave others, so that any of them can be met in a topology.
"""

from __future__ import annotations

import re
from functools import lru_cache

AMINO_ACIDS = frozenset("ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split())
CAPS = frozenset(("ACE", "NME", "NH2"))
VARIANTS = {
    "ASH": "ASP", "CYM": "CYS", "CYX": "CYS", "GLH": "GLU", "HID": "HIS", "HIE": "HIS", "HIP": "HIS", "LYN": "LYS",
}  # fmt: skip
"""AMBER's name of a protonation state (or of a cystine's half) to that of the amino acid."""

PROTEIN_RESIDUES = frozenset((*AMINO_ACIDS, *VARIANTS, *CAPS, "HYP"))
"""Residues whose atoms are targets: the standard ones, their protonation variants and caps. AMBER's names."""

IONS = frozenset(("LI", "NA", "K", "RB", "CS", "MG", "CA", "SR", "BA", "MN", "FE", "CO", "NI", "CU", "ZN", "CD",
                  "F", "CL", "BR", "I"))  # fmt: skip
"""Residues of one ion, named as the element."""

_OTHER_NAMES = {
    "ARG": "ARN ARGN", "ASH": "ASPH ASPP", "CYM": "CYSD", "CYS": "CYSH", "CYX": "CYS2 CYSX", "GLH": "GLUH GLUP",
    "HID": "HISA HISD HSD", "HIE": "HISB HISE HSE", "HIP": "HISH HISP HSP HSH HIH", "HIS": "HIS1 HIS2",
    "LYN": "LSN LYSN", "LYS": "LYP LYSH", "NME": "NMA", "NH2": "NHE",
    "HOH": "DOD H2O OPC OPC3 SOL SPC SPCE T3P T4P TIP TIP3 TIP3P TIP4 TIP4P TIP5 TIP5P TP3 TP4 TP5 WAT",
    "BA": "BAR", "BR": "BRO", "CA": "CAL", "CD": "CAD", "CL": "CLA", "CS": "CES", "F": "FLU", "I": "IOD",
    "K": "POT", "LI": "LIT", "NA": "SOD", "RB": "RUB",
}  # fmt: skip
_AMBER_NAME = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}
_CHARGE = re.compile(r"\d*[+-]*$")


@lru_cache(maxsize=1024)
def amber_name(name: str) -> str:
    """Return AMBER's name of a residue: ``HSD`` is HID, ``NALA`` ALA, ``ASPH`` ASH, ``SOL`` HOH, ``Na+`` NA.

    A name that is not known comes back in capitals, so that nothing foreign is taken for something else.

    Parameters
    ----------
    name
        As any of the conventions has it.
    """
    plain = name.strip().upper()
    if plain in PROTEIN_RESIDUES or plain in IONS or plain == "HOH":
        return plain
    if plain in _AMBER_NAME:
        return _AMBER_NAME[plain]
    ion = _CHARGE.sub("", plain)
    if ion in IONS:
        return ion
    inner = _AMBER_NAME.get(plain[1:], plain[1:])
    if len(plain) >= 4 and plain[0] in "NC" and inner in PROTEIN_RESIDUES - CAPS:  # AMBER's termini
        return inner
    return plain


def parent_name(name: str) -> str:
    """Return `amber_name` without the protonation state: ``HSD`` is HIS."""
    found = amber_name(name)
    return VARIANTS.get(found, found)


def is_protein(name: str) -> bool:
    """Tell whether a residue is an amino acid or a cap."""
    return amber_name(name) in PROTEIN_RESIDUES


def is_water(name: str) -> bool:
    """Tell whether a residue is water."""
    return amber_name(name) == "HOH"


def is_ion(name: str, n_atoms: int) -> bool:
    """Tell whether a residue is a lone ion: some ligands of the PDB bear the name of one (RUB, CAD)."""
    return n_atoms == 1 and amber_name(name) in IONS
