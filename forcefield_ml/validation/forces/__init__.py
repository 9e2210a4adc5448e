"""Where a model's force errors are.

| module     | does                                                                                   |
|------------|----------------------------------------------------------------------------------------|
| groups.py  | classes of atoms: residue, backbone or side chain, charged, buried; metrics of each    |
| worst.py   | the atoms with the largest errors, by name                                             |
| picture.py | draws a protein's chain with such atoms marked                                         |
| detail.py  | all of it, from what evaluate kept per atom                                            |
"""

from forcefield_ml.validation.forces.detail import Detail, PerAtomForces, in_detail, read_forces

__all__ = ["Detail", "PerAtomForces", "in_detail", "read_forces"]
