"""From a structure and a model to a trajectory.

| module        | does                                                                          |
|---------------|-------------------------------------------------------------------------------|
| build.py      | structure file -> repaired, solvated, relaxed system with the model's force   |
| fire.py       | minimises with forces alone                                                   |
| record.py     | trajectory, log and checkpoint that agree with each other after a kill        |
| mts.py        | multiple time stepping: a direct force, corrected by a conservative reference |
| dynamics.py   | integrator and Context of a run, and how to make them anew                    |
| config.py     | settings of a run                                                             |
| run.py        | `simulate`: the loop                                                          |
| result.py     | what result.json says                                                         |
| trajectory.py | DCD and XTC, written, cut back and read                                       |
| walk.py       | dynamics with the reference beside the model, for `explore`                   |
| structure.py  | RMSD and radius of gyration of a trajectory                                   |
"""

from forcefield_ml.simulation.config import SimulationConfig
from forcefield_ml.simulation.fire import Minimised, minimise
from forcefield_ml.simulation.run import simulate

__all__ = ["Minimised", "SimulationConfig", "minimise", "simulate"]
