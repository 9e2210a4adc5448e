"""Write what `forcefield-ml evaluate` found of several models on several data sets as one Markdown page.

forcefield-ml evaluate amber14-fast runs/pdb/dataset.h5 --json runs/fast.json
python benchmarks/models_page.py runs/fast.json runs/accurate.json -o docs/results/models.md

Models stand in the order given. A card's own evaluation is the first file of its model.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = """# The models that ship, on proteins they have not seen

Written by `{command}`. Tensor errors in meV/Å, ± the standard error of the mean over proteins, and the mean force
behind them.

| model | data | proteins (frames) | tensor | angle (°) | relative | Pearson | of water and ions |
|---|---|---|---|---|---|---|---|"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or print it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+", help="JSON of `forcefield-ml evaluate`")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file; printed where none is named")
    parser.add_argument("--note", default="", help="what a reader must know of the data")
    options = parser.parse_args(arguments)
    given = [str(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if "--note" in given:
        given[given.index("--note") + 1] = "..."  # it stands below
    command = shlex.join(["python", "benchmarks/models_page.py", *given])
    rows = [row(json.loads(path.read_text(encoding="utf-8"))) for path in options.evaluations]
    page = "\n".join([HEAD.format(command=command), *rows, *(["", options.note] if options.note else []), ""])
    if options.output is None:
        print(page, end="")
    else:
        options.output.write_text(page, encoding="utf-8")
    return 0


def row(found: dict[str, Any]) -> str:
    """Return the line of one evaluation.

    Parameters
    ----------
    found
        What `forcefield_ml.training.evaluate.evaluate` returned.
    """
    error, data = found["proteins"]["standard_error"], found["dataset"]
    others = found.get("others")
    cells = [
        Path(found["model"]).stem,
        f"{data['protocol']}, `{data['content_sha256'][:8]}`",
        f"{found['n_proteins']} ({found['n_frames']})",
        f"{found['tensor']:.1f} ± {error['tensor']:.1f} of {found['naive']['tensor']:.0f}",
        f"{found['angle']:.2f} ± {error['angle']:.2f}",
        f"{found['relative']:.4f} ± {error['relative']:.4f}",
        f"{found['pearson']:.4f}",
        f"{others['tensor']:.1f} of {others['naive']['tensor']:.0f}" if others else "-",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
