"""Machine-learnt reference potentials by name, through openmm-ml (the optional extra ``mlpotential``)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import openmm
from openmm import app

from data_pipeline.errors import ConfigError, EntryError


@dataclass(frozen=True)
class Potential:
    """A potential as openmm-ml makes it.

    Parameters
    ----------
    name
        As openmm-ml knows it: built in, or registered by a package in the entry-point group ``openmmml.potentials``.
    options
        Keyword arguments of ``openmmml.MLPotential``, such as ``modelPath``.
    system_options
        Keyword arguments of its ``createSystem``, such as ``precision`` or ``device``.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    system_options: Mapping[str, Any] = field(default_factory=dict)

    def build_system(self, topology: app.Topology) -> openmm.System:
        """Return a System of every atom of the topology, periodic if that has a box.

        Raises
        ------
        ConfigError
            If openmm-ml or the potential is missing.
        EntryError
            Of kind potential, if it cannot describe these atoms.
        """
        potential = _openmmml().MLPotential
        check_potential(self.name)
        try:
            made = potential(self.name, **self.options)
            return made.createSystem(topology, removeCMMotion=False, **self.system_options)
        except ImportError as error:
            raise ConfigError(f"the potential {self.name!r} needs a package: {error}") from error
        except Exception as error:
            # Each potential raises its own types for elements it does not know, files that are missing, ...
            raise EntryError("potential", f"{self.name} cannot be set up for this system: {error!r}") from error


def check_potential(name: str) -> None:
    """Make sure that openmm-ml is installed and knows a potential.

    Parameters
    ----------
    name
        Of the potential.

    Raises
    ------
    ConfigError
        Saying what to install, or the closest known name.
    """
    # openmm-ml has no public list of what is registered.
    known = sorted(_openmmml().MLPotential._implFactories)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"openmm-ml knows no potential {name!r}.{hint} Allowed: {', '.join(known)}. A package adds others by the "
            "entry-point group openmmml.potentials."
        )


def _openmmml() -> Any:
    try:
        import openmmml
    except ImportError as error:
        raise ConfigError(
            f"label.potential needs openmm-ml, which cannot be imported ({error}); "
            "install it with: pip install 'forcefield-ml[mlpotential]'"
        ) from error
    return openmmml
