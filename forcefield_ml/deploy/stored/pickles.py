"""Read a pickle of known classes and plain data; anything else is refused before it can act.

Unpickling calls what the pickle names. Here the opcodes are looked through first, and a name is looked up only by a
function of the caller, who decides what stands behind it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterable
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

MAX_DEPTH = 60
"""Levels of containers and objects within each other; a network of ours has some 20."""

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
    """Raise `RefusedPickle` on an opcode not allowed, or what would eat memory, stack or time, or data behind it.

    Nothing may contain itself or be more than `MAX_DEPTH` deep, and keys of a dict must be strings or integers: to hash
    nested tuples that share their parts takes time that doubles with each level.

    Parameters
    ----------
    data
        A pickle.
    allowed
        Names of opcodes.
    """
    end = 0
    shape = _Shape()
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in allowed:
                raise RefusedPickle(f"opcode {opcode.name} at byte {position}, which no pickle of ours needs")
            if opcode.name.endswith("BINPUT") and int(argument or 0) > len(data):
                raise RefusedPickle(f"place {argument} in the memo of a pickle of {len(data)} bytes")
            shape.follow(opcode.name, argument)
            end = (position or 0) + 1
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise RefusedPickle(f"damaged pickle ({error})") from None
    if end != len(data):
        raise RefusedPickle(f"{len(data) - end} bytes behind the pickle's end")


class _Part:
    """What stands for one value while the opcodes are followed; `used` once it is inside of another."""

    __slots__ = ("depth", "key", "used")

    def __init__(self, parts: Iterable[_Part] = (), key: bool = False, used: bool = False):
        self.depth, self.key, self.used = 0, key, False
        self.fill(parts)
        self.used = used

    def fill(self, parts: Iterable[_Part]) -> None:
        """Put parts in; what is itself inside of another is full, so that nothing can contain itself."""
        for part in parts:
            self.depth = max(self.depth, part.depth + 1)
            part.used = True
        if self.used:
            raise RefusedPickle("something contains itself, or is filled after it was used")
        if self.depth > MAX_DEPTH:
            raise RefusedPickle(f"more than {MAX_DEPTH} levels within each other")


_ATOM = _Part(used=True)
_KEY = _Part(key=True, used=True)
KEYS = frozenset("BININT BININT1 BININT2 LONG1 SHORT_BINUNICODE BINUNICODE".split())
NAMES = frozenset("NONE NEWTRUE NEWFALSE BINFLOAT GLOBAL".split())
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Shape:
    """Follows opcodes as an unpickler does, with nothing but how deep each value is."""

    def __init__(self) -> None:
        self.stack: list[_Part] = []
        self.marks: list[int] = []
        self.memo: dict[int, _Part] = {}

    def _pop(self, count: int) -> list[_Part]:
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("its stack is empty")
        at = len(self.stack) - count
        parts = self.stack[at:]
        del self.stack[at:]
        return parts

    def _pop_mark(self) -> list[_Part]:
        parts = self._pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return parts

    def follow(self, name: str, argument: Any) -> None:
        """Do what an opcode does to stack and memo."""
        if name in KEYS:
            self.stack.append(_KEY)
        elif name in NAMES:
            self.stack.append(_ATOM)
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in TUPLES:
            self.stack.append(_Part(self._pop(TUPLES[name])))
        elif name == "TUPLE":
            self.stack.append(_Part(self._pop_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            self.stack.append(_Part())
        elif name in ("NEWOBJ", "REDUCE"):
            self.stack.append(_Part(self._pop(2)))
        elif name in ("APPEND", "BUILD"):
            self._fill(self._pop(1))
        elif name == "APPENDS":
            self._fill(self._pop_mark())
        elif name in ("SETITEM", "SETITEMS"):
            parts = self._pop(2) if name == "SETITEM" else self._pop_mark()
            if not all(part.key for part in parts[::2]):
                raise RefusedPickle("a dict with a key that is neither string nor integer")
            self._fill(parts)
        elif name.endswith("BINGET"):
            self.stack.append(self.memo[argument])
        elif name.endswith("BINPUT") or name == "MEMOIZE":
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("STACK_GLOBAL", "BINPERSID"):
            self._pop(2 if name == "STACK_GLOBAL" else 1)
            self.stack.append(_ATOM)

    def _fill(self, parts: list[_Part]) -> None:
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise ValueError("its stack is empty")
        self.stack[-1].fill(parts)


def is_plain(value: Any) -> bool:
    """Tell whether a value is None, a bool, number or string, or a list, tuple or dict with string keys of such."""
    seen: set[int] = set()
    left = [value]
    while left:
        part = left.pop()
        if part is None or type(part) in (bool, int, float, str) or id(part) in seen:
            continue
        seen.add(id(part))
        if type(part) is dict and all(type(key) is str for key in part):
            left.extend(part.values())
        elif type(part) in (list, tuple):
            left.extend(part)
        else:
            return False
    return True
