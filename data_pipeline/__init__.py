"""From PDB entries to reference forces.

| stage   | reads                           | writes                   | room               |
|---------|---------------------------------|--------------------------|--------------------|
| select  | a source of entries             | selection.json           | sources/, entries/ |
| cluster | selection.json                  | clusters.json            | sequences/         |
| split   | clusters.json                   | split.json               | sequences/         |
| prepare | an entry's file                 | prepared/ID.cif          | systems/           |
| relax   | prepared/ID.cif                 | relaxed/ID.npz           | systems/           |
| sample  | prepared/ID.cif, relaxed/ID.npz | PROTOCOL/frames/ID.npz   | systems/           |
| label   | prepared/ID.cif, frames/ID.npz  | PROTOCOL/labelled/ID.npz | labels/            |
| pack    | labelled/*.npz, split.json      | dataset.h5, datasheet    | dataset/           |

A configuration of task refinement goes another way: a table of pairs of structures -> labelled/ID.npz -> dataset.h5
(room refinement/), over the same ledger, engine, pack and datasheet (`runner.py`).

`run.py` goes through the stages; `tasks.py` says what each has to do for an entry, `stages.py` does it in a worker,
`engine/` has the workers, `ledger.py` records what became of it. `schema.py` declares every field of dataset.h5: it is
all that forcefield_ml's data, networks and training know of this package. Nothing here imports torch or forcefield_ml.
"""

__version__ = "0.2.0"
