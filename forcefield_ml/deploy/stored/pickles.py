"""Read a pickle of known classes and plain data; anything else is refused before it can act.

Unpickling calls what the pickle names. Here the opcodes are looked through first, and a name is looked up only by a
function of the caller, who decides what stands behind it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from forcefield_ml.errors import ForcefieldMLError

PLAIN = frozenset(
    """PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2
    LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS
    EMPTY_DICT SETITEM SETITEMS""".split()
)
"""Opcodes that make numbers, strings, tuples, lists and dicts."""

OBJECTS = frozenset(("GLOBAL", "STACK_GLOBAL", "NEWOBJ", "REDUCE", "BUILD"))
"""Opcodes that name something, call it or fill it; what they can name, the caller decides."""

PERSISTENT = frozenset(("BINPERSID",))
"""The opcode that refers to something outside, as TorchScript does for the content of tensors."""

Find = Callable[[str, str], Any]
"""Gets module and name, returns what stands for it or raises `RefusedPickle`."""


class RefusedPickle(ForcefieldMLError):
    """A pickle holds something else than was agreed, or is no pickle."""


def load(data: bytes, find: Find, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Unpickle with names looked up by `find` alone.

    Parameters
    ----------
    data
        One pickle, nothing behind it.
    find
        Looks a name up.
    persistent
        Looks a persistent id up; None refuses them.

    Raises
    ------
    RefusedPickle
        If `find` refuses a name, or the pickle uses an opcode that none of ours needs, or is damaged.
    """
    check_opcodes(data, PLAIN | OBJECTS | (frozenset() if persistent is None else PERSISTENT))

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return find(module, name)

        def persistent_load(self, pid: Any) -> Any:
            assert persistent is not None  # else its opcode is refused
            return persistent(pid)

    try:
        return Reader(io.BytesIO(data)).load()
    except RefusedPickle:
        raise
    except Exception as error:  # of any type: damage may make anything of it
        raise RefusedPickle(f"damaged pickle ({type(error).__name__}: {error})") from None


def check_opcodes(data: bytes, allowed: frozenset[str]) -> None:
    """Raise `RefusedPickle` on an opcode not allowed, a place in the memo that would eat memory, or data behind it.

    Parameters
    ----------
    data
        A pickle.
    allowed
        Names of opcodes.
    """
    end = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in allowed:
                raise RefusedPickle(f"opcode {opcode.name} at byte {position}, which no pickle of ours needs")
            if opcode.name.endswith("BINPUT") and int(argument or 0) > len(data):
                raise RefusedPickle(f"place {argument} in the memo of a pickle of {len(data)} bytes")
            end = (position or 0) + 1
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise RefusedPickle(f"damaged pickle ({error})") from None
    if end != len(data):
        raise RefusedPickle(f"{len(data) - end} bytes behind the pickle's end")


def is_plain(value: Any) -> bool:
    """Tell whether a value is None, a bool, number or string, or a list, tuple or dict of such."""
    if value is None or type(value) in (bool, int, float, str):
        return True
    if type(value) in (list, tuple):
        return all(is_plain(part) for part in value)
    return type(value) is dict and all(type(key) is str and is_plain(part) for key, part in value.items())
