"""What a model is worth, on one page.

| module       | does                                                                        |
|--------------|-----------------------------------------------------------------------------|
| paper.py     | the numbers of the paper that the page shows beside ours                    |
| figures.py   | plots as SVG that follow the page's colours                                 |
| inputs.py    | a structure or a trajectory made into a labelled dataset                    |
| forces/      | errors by class of atoms, the worst atoms, the structure that shows them    |
| symmetry/    | rotation, permutation, net force, lambda, work around loops                 |
| dynamics/    | runs by the model and by AMBER14 from one start, compared                   |
| uses.py      | the three uses: thresholds, and whether they are met                        |
| verdict.py   | the numbers in plain words                                                  |
| commands.py  | the commands that make a page again                                         |
| page.py      | how a page and its JSON are written; shared with `refinement`               |
| report.py    | `write_report`: report.html, self-contained, and report.json                |
| validate.py  | `validate`: dataset, PDB entry or trajectory to page                        |
"""

from forcefield_ml.validation.report import ReportInputs, write_report

__all__ = ["ReportInputs", "write_report"]
