"""Write what `forcefield-ml evaluate` found of several models on several data sets as one Markdown page.

forcefield-ml evaluate amber14-fast runs/pdb/dataset.h5 --json runs/fast.json
python benchmarks/models_page.py runs/fast.json runs/accurate.json -o docs/results/models.md

Models stand in the order given. A card's own evaluation is the first file of its model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import noted_page

HEAD = """# The models that ship, on proteins they have not seen

Written by `{command}`. Tensor errors in meV/Å, ± the standard error of the mean over proteins, and the mean force
behind them.

| model | data | proteins (frames) | tensor | angle (°) | relative | Pearson | of water, ions | first residue | last | \
1 in 10,000 above | largest |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or print it; return the exit code."""
    parser = argparse.ArgumentParser(
        "benchmarks/models_page.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluations", type=Path, nargs="+", help="JSON of `forcefield-ml evaluate`")

    def markdown(options: argparse.Namespace, command: str) -> str:
        rows = [row(json.loads(path.read_text(encoding="utf-8"))) for path in options.evaluations]
        return "\n".join([HEAD.format(command=command), *rows, ""])

    return noted_page.write(parser, markdown, arguments)


def row(found: dict[str, Any]) -> str:
    """Return the line of one evaluation.

    Parameters
    ----------
    found
        What `forcefield_ml.training.evaluate.evaluate` returned.
    """
    error, data = found["proteins"]["standard_error"], found["dataset"]
    others, tail = found.get("others"), found.get("tail") or {}
    cells = [
        Path(found["model"]).stem,
        f"{data['protocol']}, `{data['content_sha256'][:8]}`",
        f"{found['n_proteins']} ({found['n_frames']})",
        f"{found['tensor']:.1f} ± {error['tensor']:.1f} of {found['naive']['tensor']:.0f}",
        f"{found['angle']:.2f} ± {error['angle']:.2f}",
        f"{found['relative']:.4f} ± {error['relative']:.4f}",
        f"{found['pearson']:.4f}",
        f"{others['tensor']:.1f} of {others['naive']['tensor']:.0f}" if others else "-",
        *(f"{found['ends'][end]['tensor']:.1f}" if found.get("ends") else "-" for end in ("first", "last")),
        *(f"{tail[name]:.0f}" if name in tail else "-" for name in ("1 in 10000", "largest")),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
