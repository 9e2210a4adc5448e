"""The zip that a model.pt is, looked over before torch reads it: names, sizes, pickles and source.

What torch gets is written anew from what was looked at, so that two readers of zip files cannot see two contents. See
docs/decisions/0019-reading-safely.md.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections import Counter
from typing import Any, NamedTuple

from forcefield_ml.deploy.model_file import script_guard
from forcefield_ml.deploy.model_file.card import CARD_FILE
from forcefield_ml.deploy.stored import pickles
from forcefield_ml.errors import ModelFileError

ADVICE = "Get the file again, or export the checkpoint anew with: forcefield-ml export CHECKPOINT -o model.pt"

MAX_FILE = 2 << 30
"""Bytes of a model.pt; a hundred times the largest network one would wait for."""

MAX_TEXT = 32 << 20
"""Bytes of source, card and pickles in it, unpacked; ours have some 0.1 MB."""

MAX_ENTRIES = 20_000
"""Files in it; ours have some 200."""

PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How torch packs: source deflated, all else as it is."""

TENSOR = re.compile(r"data/\d+")
SOURCE = re.compile(r"code/__torch__(/\w+)*\.py")
EXACT = frozenset(("data.pkl", "constants.pkl", "version", "byteorder", ".data/serialization_id"))
LEFT_OUT = re.compile(r"code/__torch__(/\w+)*\.py\.debug_pkl")
"""Line numbers for error messages: a pickle of which torch needs nothing."""

STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
"""Content of tensors, and its bytes for each number."""

FUNCTIONS = frozenset(
    (
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("collections", "OrderedDict"),
        ("torch.jit._pickle", "restore_type_tag"),
        ("torch.jit._pickle", "build_intlist"),
        ("torch.jit._pickle", "build_doublelist"),
        ("torch.jit._pickle", "build_boollist"),
        ("torch.jit._pickle", "build_tensorlist"),
    )
)
"""What the pickles of TorchScript call; torch has its own meaning for each and imports nothing."""


class Archive(NamedTuple):
    """A model.pt that was looked over.

    Attributes
    ----------
    card
        Its card as text.
    torchscript
        What torch may read.
    """

    card: str
    torchscript: bytes


def read_archive(data: bytes, source: str) -> Archive:
    """Look a model.pt over.

    Parameters
    ----------
    data
        Its content.
    source
        Its name for messages.

    Raises
    ------
    ModelFileError
        If it is damaged, foreign, absurdly large once unpacked, or could do more than compute.
    """
    entries = _unpack(data, source)
    if "constants.pkl" not in entries or not any(name.startswith("code/") for name in entries):
        raise ModelFileError(
            f"{source} is a zip file but holds no TorchScript (a training checkpoint perhaps?). {ADVICE}"
        )
    card = entries.pop(f"extra/{CARD_FILE}", None)
    if card is None:
        raise ModelFileError(f"{source} is TorchScript without a card: not a model of this program. {ADVICE}")
    found = [*_faults(entries)]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ModelFileError(
            f"{source} holds more than a network and was not loaded: {found[0]}{more}. A model file can carry code; "
            "do not use this one unless you know who wrote it. If you exported it yourself from an architecture of "
            "your own, see docs/serialisation.md, section `What a model file may hold`"
        )
    return Archive(_text(card, f"extra/{CARD_FILE}", source), _pack(entries))


def replace_card(data: bytes, card: str, source: str) -> bytes:
    """Return a model.pt with another card; every other file in it stays what it is, byte for byte.

    Parameters
    ----------
    data
        Its content.
    card
        The new card as text.
    source
        Its name for messages.

    Raises
    ------
    ModelFileError
        As `read_archive`, of the old and of the new.
    """
    read_archive(data, source)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.partition("/")[2] == f"extra/{CARD_FILE}":
                content = card.encode("utf-8")
            about = zipfile.ZipInfo(item.filename, item.date_time)
            about.compress_type = item.compress_type
            new.writestr(about, content)
    found = read_archive(buffer.getvalue(), source)
    before, after = _unpack(data, source), _unpack(buffer.getvalue(), source)
    if after != {**before, f"extra/{CARD_FILE}": card.encode("utf-8")} or found.card != card:
        raise ModelFileError(f"writing {source} anew changed more than its card; nothing was written. Please report it")
    return buffer.getvalue()


def _unpack(data: bytes, source: str) -> dict[str, bytes]:
    """Return the files in the archive without the folder that they all lie in; none of them is large by surprise."""
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise ModelFileError(
                f"{source} ({len(data)} bytes) is damaged, cut short or no TorchScript file (which is a zip). {ADVICE}"
            )
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            items = archive.infolist()
            _check_listing(items, data, archive.comment, source)
            entries = {}
            for item in items:
                try:
                    entries[item.filename.partition("/")[2]] = archive.read(item)
                except zipfile.BadZipFile:
                    raise ModelFileError(f"{source} is damaged: {item.filename} in it is not whole. {ADVICE}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{source} is damaged ({error}). {ADVICE}") from None
    except RuntimeError as error:  # an entry marked as encrypted
        raise ModelFileError(f"{source} is damaged or encrypted ({error}). {ADVICE}") from None
    return entries


def _check_listing(items: list[zipfile.ZipInfo], data: bytes, comment: bytes, source: str) -> None:
    """Refuse an archive by its table of contents, before anything is unpacked."""
    fault = ""
    folders = {item.filename.partition("/")[0] for item in items}
    twice = [name for name, count in Counter(item.filename.lower() for item in items).items() if count > 1]
    packed = [item for item in items if not TENSOR.fullmatch(item.filename.partition("/")[2])]
    text = sum(item.file_size for item in packed)
    total = sum(item.file_size for item in items)
    if len(items) > MAX_ENTRIES:
        fault = f"{len(items)} files; {MAX_ENTRIES} are allowed"
    elif text > MAX_TEXT:
        fault = f"{text} bytes of source and pickles once unpacked; {MAX_TEXT} are allowed"
    elif total - text > len(data):
        fault = f"{total - text} bytes of tensors in a file of {len(data)}"
    elif len(folders) > 1:
        fault = f"more than one folder at its top: {', '.join(sorted(folders)[:3])}"
    elif twice:
        fault = f"the name {twice[0]!r} twice"
    elif packing := [item.filename for item in items if item.compress_type not in PACKINGS]:
        fault = f"{packing[0]!r} packed in a way that torch does not use"
    elif comment or not data.startswith(b"PK\3\4"):
        fault = "something beside the zip file"
    if fault:
        raise ModelFileError(f"{source} is no file that torch wrote: it has {fault}. {ADVICE}")


def _faults(entries: dict[str, bytes]) -> list[str]:
    """Return what in an archive is more than a network."""
    odd = [
        f"a file {name!r}"
        for name in entries
        if not (name in EXACT or TENSOR.fullmatch(name) or SOURCE.fullmatch(name) or LEFT_OUT.fullmatch(name))
    ]
    sources = {name: content for name, content in entries.items() if SOURCE.fullmatch(name)}
    found = odd + [f"{name} that is no ASCII" for name, content in sources.items() if not content.isascii()]
    if not found:
        found += script_guard.faults({name: content.decode("ascii") for name, content in sources.items()})
    for name in ("data.pkl", "constants.pkl"):
        try:
            _check_pickle(entries.get(name, b""), entries)
        except pickles.RefusedPickle as error:
            found.append(f"{name}: {error}")
    return found


class _Stand:
    """Stands for whatever a pickle of TorchScript makes, and does nothing."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Content(_Stand):
    """Stands for the content of a tensor: `count` numbers."""

    def __init__(self, count: int):
        self.count = count


def _tensor(content: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> _Stand:
    """Stand for `_rebuild_tensor_v2`: a tensor must lie within its content, since torch does not look."""
    numbers = (offset, *sizes, *strides)
    fits = (
        isinstance(content, _Content)
        and type(sizes) is type(strides) is tuple
        and len(sizes) == len(strides)
        and all(type(number) is int and 0 <= number <= MAX_FILE for number in numbers)
        and math.prod(sizes) <= MAX_FILE  # a stride of 0 makes many of few
    )
    if fits and 0 not in sizes:
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        fits = last < content.count
    if not fits:
        raise pickles.RefusedPickle("a tensor that lies outside its content")
    return _Stand()


def _check_pickle(data: bytes, entries: dict[str, bytes]) -> None:
    """Walk through a pickle of TorchScript with stand-ins for all it names; the content of tensors must be there."""

    class Storage(str):
        """The name of a storage's type."""

    def find(module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return Storage(name)
        if (module, name) in FUNCTIONS:
            return _tensor if name == "_rebuild_tensor_v2" else _Stand
        # torch joins the two, wherever the pickle parts them
        own = module.startswith("__torch__.") or module == "__torch__"
        if own and "." not in name and not f"{module}.{name}".startswith("__torch__.torch.classes"):
            return type("_Object", (_Stand,), {})
        raise pickles.RefusedPickle(f"names {module}.{name}, which no network is made of")

    def persistent(pid: Any) -> _Content:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, Storage) or type(key) is not str:
            raise pickles.RefusedPickle("a tensor's content is given by something else than type and name")
        if type(count) is not int or count < 0:
            raise pickles.RefusedPickle("a tensor's content is given without its length")
        there = len(entries.get(f"data/{key}", b""))
        if count * STORAGES[storage] > there:
            raise pickles.RefusedPickle(f"{count} numbers of {storage} in data/{key}, which has {there} bytes")
        return _Content(count)

    pickles.load(data, find, persistent)


def _pack(entries: dict[str, bytes]) -> bytes:
    """Return a zip file of these files, not compressed, as torch reads it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            if not LEFT_OUT.fullmatch(name):
                archive.writestr(f"model/{name}", content)
    return buffer.getvalue()


def _text(content: bytes, name: str, source: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{source} is damaged: {name} in it is no text ({error}). {ADVICE}") from None
