"""`forcefield-ml`: train, evaluate, export, simulate, validate, doctor. Each command parses, configures, calls once."""

from __future__ import annotations

import sys

import typer

from forcefield_ml.errors import ForcefieldMLError

app = typer.Typer(
    help="Equivariant networks that predict forces directly, inside OpenMM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Equivariant networks that predict forces directly, inside OpenMM."""


def main() -> None:
    """Run the command line; errors this package raises on purpose end as one message and exit code 1."""
    try:
        app()
    except ForcefieldMLError as error:
        print(f"forcefield-ml: {error}", file=sys.stderr)
        sys.exit(1)
