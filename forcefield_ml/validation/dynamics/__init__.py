"""Short runs by a model and by AMBER14 from the same start, side by side.

| module         | does                                                                               |
|----------------|------------------------------------------------------------------------------------|
| blocks.py      | means with block-averaged errors, drift                                            |
| motion.py      | runs a Context at constant energy or temperature and keeps frames, guarded         |
| observables.py | temperature by element, bonds, angles, phi and psi, RMSD, Rg, water's O-O          |
| compare.py     | `compare`: the runs, from a structure to numbers                                   |
| plots.py       | figures of these numbers                                                           |
"""

from forcefield_ml.validation.dynamics.compare import DynamicsSettings, compare

__all__ = ["DynamicsSettings", "compare"]
