"""What a force on paper obeys, and how far a model is from it.

| module      | does                                                                                  |
|-------------|---------------------------------------------------------------------------------------|
| single.py   | rotation and permutation error, net force and torque; forces as a function to probe   |
| jacobian.py | lambda: how far the Jacobian of the forces is from symmetric                          |
| loops.py    | work around closed loops                                                              |
| besides.py  | the conservative force that OpenMM supplies besides, for lambda of the total          |
"""

from forcefield_ml.validation.symmetry.jacobian import asymmetry
from forcefield_ml.validation.symmetry.loops import loop_work
from forcefield_ml.validation.symmetry.single import Probed, load_module, symmetry

__all__ = ["Probed", "asymmetry", "load_module", "loop_work", "symmetry"]
