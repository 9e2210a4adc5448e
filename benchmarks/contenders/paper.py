"""The paper's network of order 2."""

from __future__ import annotations

from contenders.interface import Setting
from contenders.ours import Ours

CONFIG = {"architecture": "tfn", "order": 2}


def make(setting: Setting) -> Ours:
    """Return the contender."""
    return Ours(CONFIG, setting)
