"""Bonded terms by least squares: bonds, angles and torsions, learnt from the forces before a network is.

At 300 K the forces of bonds and angles are five times as large as all others together, stiff, and of a form that is
known: harmonic, as in every class I force field. What is linear in its parameters needs no network. `fit` finds them
for each kind of term from a dataset's forces, `table` keeps them by what the atoms of a term are bonded to, and the
network learns what is left: non-bonded forces, and whatever a reference has besides.

Order of reading: `terms` (which atoms), `geometry` (functions of their positions), `table`, `fit`; then `module` (the
table as weights of a model) and `batch` (terms of a training batch); last `bound` (the terms of one system, for use).
"""

from forcefield_ml.bonded.fit import fit
from forcefield_ml.bonded.table import BondedTable, Parameters
from forcefield_ml.bonded.terms import KINDS, Terms, find_terms

__all__ = ["KINDS", "BondedTable", "Parameters", "Terms", "find_terms", "fit"]
