"""What is installed, told without importing it: a doctor must answer where nothing else does."""

from __future__ import annotations

import platform
from importlib import metadata

import forcefield_ml

PACKAGES = ("torch", "numpy", "openmm", "openmmtorch", "vesin-torch", "e3nn")


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of the installed packages among those named, without importing them."""
    versions = {"forcefield_ml": forcefield_ml.__version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
