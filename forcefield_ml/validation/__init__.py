"""What a model is worth, on one page.

| module       | does                                                                        |
|--------------|-----------------------------------------------------------------------------|
| paper.py     | the numbers of the paper that the page shows beside ours                    |
| figures.py   | plots as SVG that follow the page's colours                                 |
| symmetry.py  | rotation error and net force of a model                                     |
| verdict.py   | the numbers in plain words                                                  |
| report.py    | `write_report`: report.html, self-contained, and report.json                |
| validate.py  | `validate`: evaluate on a dataset or on a PDB entry, gather, report         |
"""

from forcefield_ml.validation.report import ReportInputs, write_report

__all__ = ["ReportInputs", "write_report"]
