"""What a run writes every few batches, cut back to the checkpoint when it goes on: log.csv, and for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

COLUMNS = (
    "batch",
    "seconds",
    "loss",
    "learning_rate",
    "batches_per_second",
    "waiting",
    "validation_loss",
    "validation_tensor",
    "validation_magnitude",
    "validation_angle",
    "validation_relative",
    "validation_energy_head",
)
"""Losses are Huber loss / delta in the unit on paper (meV/Å; of displacements Å), the mean since the row before;
waiting is the share of the time since then that was spent waiting for batches; validation_energy_head is the tensor
error by gradient where a direct head, whose the others are then, was trained beside it; the rest as in metrics.py."""


class RunLog:
    """Append rows to log.csv, and events for `tensorboard --logdir` on the folder or one above it.

    Parameters
    ----------
    path
        Of log.csv; events go beside it.
    n_batches
        Batches that the run goes on from; later rows of a killed run are dropped, for they come again.
    """

    def __init__(self, path: Path, n_batches: int = 0):
        # two runs begun within a second would write one file
        suffix = f".{n_batches}"
        self._events = SummaryWriter(str(path.parent), purge_step=n_batches + 1, flush_secs=10, filename_suffix=suffix)
        rows = [row for row in read_log(path) if row["batch"] <= n_batches] if path.exists() and n_batches else []
        self._file = open(path, "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        for row in rows:
            self._write(row)

    def add(self, batch: int, **values: float | None) -> None:
        """Write one row at once; what is not given stays empty."""
        self._write({"batch": batch, **values})
        for key, value in values.items():
            if value is not None:
                self._events.add_scalar(key.replace("validation_", "validation/", 1), value, batch)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._events.close()

    def _write(self, values: Mapping[str, float | None]) -> None:
        self._writer.writerow({key: _text(values.get(key)) for key in COLUMNS})
        self._file.flush()


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the rows of a log.csv, without empty cells and without a torn last line.

    Parameters
    ----------
    path
        The file.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = []
        for row in csv.DictReader(file):
            try:
                rows.append({key: float(value) for key, value in row.items() if value})
            except (TypeError, ValueError):
                continue
    return [row for row in rows if "batch" in row]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"
