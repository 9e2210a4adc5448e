"""From a structure and a model that predicts refinement vectors to a structure nearer to the native.

| module            | does                                                                          |
|-------------------|-------------------------------------------------------------------------------|
| structure_file.py | a PDB or mmCIF file of which the coordinates alone change                     |
| predictor.py      | a model.pt as a field of vectors, refused where it predicts something else    |
| geometry.py       | bonds and clashes: counted, and put right after a step                        |
| steps.py          | the steps, and what ends them                                                 |
| scores.py         | RMSD, local RMSD and lDDT to a native                                         |
| outcome.py        | what became better and what worse, in words                                   |
| picture.py        | the paper's figure 4 for a structure                                          |
| report.py         | report.html, report.json, and the structure                                   |
| refine.py         | `refine`: all of it                                                           |
"""

from forcefield_ml.refinement.refine import Refinement, refine
from forcefield_ml.refinement.steps import Settings

__all__ = ["Refinement", "Settings", "refine"]
