"""The fast model with the settings it has by default."""

from __future__ import annotations

from contenders.interface import Setting
from contenders.ours import Ours

CONFIG = {"architecture": "fast"}


def make(setting: Setting) -> Ours:
    """Return the contender."""
    return Ours(CONFIG, setting)
