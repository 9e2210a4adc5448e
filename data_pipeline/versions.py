"""What decides the bits of a data set besides its configuration: the versions of what makes it."""

from __future__ import annotations

import platform
from importlib.metadata import version

from data_pipeline import __version__

PACKAGES = ("openmm", "pdbfixer", "numpy", "gemmi", "h5py")


def versions() -> dict[str, str]:
    """Return the versions of what makes the data."""
    return {
        "data-pipeline": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
