"""From PDB entries to reference forces.

| stage   | reads                        | writes                 | module               |
|---------|------------------------------|------------------------|----------------------|
| select  | a source of entries          | selection.json         | sources/, facts.py, curate.py, selection.py |
| cluster | selection.json               | clusters.json          | cluster.py           |
| split   | clusters.json                | split.json             | split.py             |
| prepare | an entry's file              | prepared/ID.cif        | prepare.py           |
| sample  | prepared/ID.cif              | frames/ID.npz          | sample.py            |
| label   | frames/ID.npz                | labelled/ID.npz        | label.py             |
| pack    | labelled/*.npz, split.json   | dataset.h5             | pack.py              |

`ledger.py` records what became of each entry at each stage; `engine.py` maps a stage over entries. Nothing
here imports torch or forcefield_ml.
"""

__version__ = "0.2.0"
