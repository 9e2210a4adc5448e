"""The fast model with an energy, whose gradient the forces are; the same settings otherwise."""

from __future__ import annotations

from contenders.fast import CONFIG
from contenders.interface import Setting
from contenders.ours import Ours


def make(setting: Setting) -> Ours:
    """Return the contender."""
    return Ours({**CONFIG, "head": "energy"}, setting)
