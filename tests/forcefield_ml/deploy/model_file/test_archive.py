"""A model.pt that could do more than compute is refused before torch reads it, and the attacks work without that."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import time
import zipfile
from pathlib import Path
from typing import Any, Tuple  # noqa: UP035  TorchScript reads Tuple

import pytest
import torch
from deploy_helpers import Deployed

import forcefield_ml
from forcefield_ml import pretrained
from forcefield_ml.deploy.model_file import archive, bundle, script_guard
from forcefield_ml.deploy.model_file.card import CARD_FILE
from forcefield_ml.deploy.stored import pickles
from forcefield_ml.errors import ModelFileError


class WritesWhenLoaded(torch.nn.Module):
    """Writes a file while torch.jit.load reads it."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> Tuple[str, bool]:  # noqa: UP006
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[str, bool]) -> None:  # noqa: UP006
        self.path = state[0]
        self.training = state[1]
        torch.save(state, state[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return x


class WritesWhenRun(torch.nn.Module):
    """Makes a file when it is called."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return x + torch.from_file(self.path, True, 3)


class OtherLibrary(torch.nn.Module):
    """Uses an operator that is not torch's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return torch.ops._test.leaky_relu(x)


class CallsAnOperator(torch.nn.Module):
    """Has a field of the name of an operator; its source is changed such that it calls that of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._reshape_alias = 3
        self.w = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.w.reshape([2]) + self._reshape_alias + x


def script(module: torch.nn.Module, path: Path, good: Path) -> Path:
    """Save a module as a model.pt with the card of another."""
    card = json.dumps(bundle.read_card(good))
    torch.jit.save(torch.jit.script(module), str(path), _extra_files={CARD_FILE: card})
    return path


def changed(good: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """Copy a model.pt with other content for names that end as given, and with new names."""
    left = dict(changes)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(target, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        for item in old.infolist():
            name = item.filename.partition("/")[2]
            content = left.pop(name) if name in left else old.read(item)
            if content is not None:
                new.writestr(f"{top}/{name}", content)
        for name, content in left.items():
            new.writestr(f"{top}/{name}" if not name.startswith("=") else name[1:], content or b"")
    return target


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        forcefield_ml.load(path)
    assert path.name in str(caught.value)


def test_script_that_writes_a_file_when_loaded(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Control: torch.jit.load runs it and the file is there. Our reader names what it found, and there is no file."""
    marker = tmp_path / "written"
    evil = script(WritesWhenLoaded(str(marker)), tmp_path / "evil.pt", deployed["fast"].path)
    marker.unlink(missing_ok=True)
    torch.jit.load(str(evil))
    assert marker.exists(), "control: loading is enough to write a file"
    marker.unlink()
    refused(evil, "names '__getstate__'")
    assert not marker.exists()
    bundle.read_card(deployed["fast"].path)


@pytest.mark.parametrize(
    "module, message",
    [(WritesWhenRun("x"), r"torch\.from_file"), (OtherLibrary(), r"ops\._test\.leaky_relu")],
    ids=["file", "library"],
)
def test_script_with_other_operators(
    module: torch.nn.Module, message: str, deployed: dict[str, Deployed], tmp_path: Path
) -> None:
    """Operators on files and those of other libraries are named; control: torch itself takes the file."""
    evil = script(module, tmp_path / "evil.pt", deployed["fast"].path)
    torch.jit.load(str(evil))
    refused(evil, message)


def test_a_field_lends_its_name_to_no_operator(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Read as a field it is no fault (control, and torch reads both); called on a tensor it reads foreign memory."""
    good = script(CallsAnOperator(), tmp_path / "good.pt", deployed["fast"].path)
    read = archive.read_archive(good.read_bytes(), "good.pt")
    with zipfile.ZipFile(good) as file:
        sources = [name for name in file.namelist() if name.endswith(".py")]
        [name] = [name for name in sources if b"_reshape_alias" in file.read(name)]
        text, count = re.subn(
            r"torch\.reshape\((\w+), \[2\]\)", r"(\1)._reshape_alias([2], [1])", file.read(name).decode()
        )
    assert count == 1
    evil = changed(good, tmp_path / "evil.pt", {name.partition("/")[2]: text.encode()})
    for data in (read.torchscript, evil.read_bytes()):
        assert torch.jit.load(io.BytesIO(data))(torch.zeros(1)).tolist() == [4, 4]
    refused(evil, r"uses \._reshape_alias")


CALLS = {
    "field": "x._reshape_alias([9], [1])",
    "method": "x._coalesced_(True)",
    "stored": "f([9], [1])",
    "by name": "getattr(x, '_reshape_alias')([9], [1])",
    "by index": "(x._reshape_alias, 1)[0]([9], [1])",
}


@pytest.mark.parametrize("call", CALLS)
def test_no_way_to_call_an_operator_by_a_name_of_the_archive(call: str) -> None:
    """Neither a field, a method, nor what a name was stored for; controls: fields, own methods, own functions."""
    source = (
        "class A(Module):\n  _reshape_alias : int\n  inner : int\n"
        "  def _coalesced_(self, x: Tensor) -> Tensor:\n    return x\n"
        "  def own(self, x: Tensor) -> Tensor:\n    return x\n"
        "  def forward(self, x: Tensor) -> Tensor:\n    f = {first}\n    return {call}\n"
    )
    for first in ("x._reshape_alias", "getattr(x, '_reshape_alias')"):
        assert [*script_guard.faults({"a": source.format(first=first, call=CALLS[call])})]
    control = source.format(first="__torch__.other.function", call="f((self).own(x), self._reshape_alias)")
    assert not [*script_guard.faults({"a": control})]


def test_a_harmless_foreign_script_passes_the_guard(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Control: mathematics by another module is no fault."""
    archive.read_archive(script(torch.nn.Linear(2, 2), tmp_path / "m.pt", deployed["fast"].path).read_bytes(), "m.pt")


ATTACKS = {
    "aten": "    return torch.save(x, 'p')",
    "aten by itself": "    t = torch\n    return t.save(x, 'p')",
    "by its name": "    return getattr(torch, 'save')(x, 'p')",
    "attribute by name": "    return getattr(x, 'data')",
    "method": "    return x.tofile('p')",
    "library": "    return ops.fbgemm.x(x)",
    "whole library": "    o = ops.aten\n    return o.save(x, 'p')",
    "compiled class": "    return __torch__.torch.classes.dist_c10d.Store.__new__(x)",
    "part of a path": "    c = __torch__.torch.classes\n    return c.x.y(x)",
    "builtin": "    return open('p')",
    "fork": "    return fork(x)",
    "print": "    print(x)\n    return x",
    "prefix": "    a = r'\\' + torch.save(x, 'p') #'\n    return x",
    "comment": "    # type: ignore\n    return x",
    "continued": "    return torch\\\n.save(x, 'p')",
    "three quotes": '    a = """x"""\n    return x',
    "two strings": "    a = 'x' 'y'\n    return x",
    "second statement": "    a = x; return a",
    "not ascii": "    \N{CYRILLIC SMALL LETTER A} = x\n    return x",
    "form feed": "    a = x\f\n    return x",
    "import": "    import os\n    return x",
    "lambda": "    return (lambda y: y)(x)",
    "comprehension": "    return [y for y in x]",
    "not source": "    return ((",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_source_that_is_more_than_mathematics(attack: str) -> None:
    """Each way to another operator, or to text that two lexers read differently, is a fault."""
    text = f"def f(x: Tensor) -> Tensor:\n{ATTACKS[attack]}\n"
    assert [*script_guard.faults({"code/__torch__.py": text})]
    control = "def f(x: Tensor) -> Tensor:\n    y = torch.add(x, 1)\n    return y\n"
    assert not [*script_guard.faults({"code/__torch__.py": control})]


def test_no_class_may_define_what_runs_at_loading() -> None:
    """The methods that torch calls while it reads are refused wherever they stand."""
    text = "class A(Module):\n  def __setstate__(self, state: int) -> NoneType:\n    return None\n"
    assert [*script_guard.faults({"a": text})]


@pytest.mark.parametrize("where", ["data.pkl", "constants.pkl"])
@pytest.mark.parametrize("name", ["os system", "builtins eval", "__torch__.torch.classes.x Y", "torch.jit._pickle z"])
def test_pickles_name_nothing_else(where: str, name: str, deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """A pickle in the archive that names anything but tensors and the archive's classes is refused."""
    module, _, function = name.partition(" ")
    payload = f"c{module}\n{function}\n(tR.".encode()
    refused(changed(deployed["fast"].path, tmp_path / "m.pt", {where: b"\x80\x02" + payload}), "names ")


@pytest.mark.parametrize("name", ["torch.classes.vesin._NeighborList", "torch.classes.aoti.AOTIModel", "a.B"])
def test_no_name_is_parted_in_another_way(name: str) -> None:
    """Torch joins module and name before it looks: a class of a library is none of the archive's."""
    with pytest.raises(pickles.RefusedPickle, match="names __torch__"):
        archive._check_pickle(f"\x80\x02c__torch__\n{name}\n)\x81}}b.".encode("latin-1"), {})
    archive._check_pickle(b"\x80\x02c__torch__.a\nB\n)\x81}b.", {})  # control


TENSOR = "X\x07\0\0\0storage", "ctorch\nFloatStorage\n", "X\x01\0\0\0" + "0", "X\x03\0\0\0cpu", "K\x08"


@pytest.mark.parametrize(
    "offset, sizes, strides, fits",
    [
        (0, (2, 4), (4, 1), True),
        (7, (1,), (1,), True),
        (8, (0, 3), (3, 1), True),
        (3, (1000,), (0,), True),
        (0, (), (), True),
        (8, (1,), (1,), False),
        (0x70000000, (1,), (1,), False),
        (0, (2, 4), (5, 1), False),
        (0, (9,), (1,), False),
        (-1, (1,), (1,), False),
        (4, (2,), (-1,), False),
        (0, (-1,), (1,), False),
        (0, (2,), (1, 1), False),
        (0, (0x7FFFFFFF, 0x7FFFFFFF), (0, 0), False),
    ],
)
def test_tensors_lie_within_their_content(
    offset: int, sizes: tuple[int, ...], strides: tuple[int, ...], fits: bool
) -> None:
    """Of eight numbers, by offset, sizes and strides; torch itself does not look."""

    def tuple_of(numbers: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", number) for number in numbers) + b"t"

    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((" + "".join(TENSOR).encode() + b"tQ"
    data += b"J" + struct.pack("<i", offset) + tuple_of(sizes) + tuple_of(strides) + b"\x89NtR."
    if fits:
        archive._check_pickle(data, {"data/0": bytes(32)})
    else:
        with pytest.raises(pickles.RefusedPickle, match="outside its content"):
            archive._check_pickle(data, {"data/0": bytes(32)})


def test_pickles_that_take_for_ever() -> None:
    """A tuple of itself twice, 28 times over, is not hashed; neither is anything nested without bound."""
    start = time.perf_counter()
    twice = b"".join(b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) for k in range(28))
    with pytest.raises(pickles.RefusedPickle, match="a key that is neither"):
        archive._check_pickle(b"\x80\x02})q\0" + twice + b"K\x01s.", {})
    with pytest.raises(pickles.RefusedPickle, match="levels within each other"):
        archive._check_pickle(b"\x80\x02)" + b"\x85" * 100_000 + b".", {})
    archive._check_pickle(b"\x80\x02)" + b"\x85" * 50 + b".", {})  # control
    assert time.perf_counter() - start < 2


def test_pickle_payload_does_nothing(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Control: the pickle writes a file where Python reads it; here it does not."""
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(marker),))

    data = pickle.dumps(Payload(), 2)
    pickle.loads(data)
    assert marker.exists()
    marker.rmdir()
    refused(changed(deployed["fast"].path, tmp_path / "m.pt", {"data.pkl": data}), "names posix.mkdir")
    assert not marker.exists()


def test_archives_that_torch_did_not_write(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """Bombs, names that two readers understand differently, paths that lead elsewhere, content that is not there."""
    good = deployed["fast"].path
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(changed(good, bomb, {}), "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{file.namelist()[0].partition('/')[0]}/code/__torch__/x.py", b" " * (40 << 20))
    assert bomb.stat().st_size < 1 << 20
    start = time.perf_counter()
    refused(bomb, "bytes of source and pickles")
    assert time.perf_counter() - start < 1, "refused by its table of contents, not by unpacking it"

    tensors = tmp_path / "tensors.pt"
    with zipfile.ZipFile(changed(good, tensors, {}), "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{file.namelist()[0].partition('/')[0]}/data/999", b"\0" * (8 << 20))
    refused(tensors, "bytes of tensors in a file of")

    packed = tmp_path / "packed.pt"
    for way in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(changed(good, packed, {"version": None}), "a", way) as file:
            file.writestr(f"{file.namelist()[0].partition('/')[0]}/version", b"3\n")
        refused(packed, "packed in a way that torch does not use")

    for change, message in (
        ({"../../etc/x": b""}, "a file '../../etc/x'"),
        ({"data/../x": b""}, "a file 'data/../x'"),
        ({"code/__torch__/x.so": b""}, "a file 'code/__torch__/x.so'"),
        ({"attributes.pkl": b""}, "a file 'attributes.pkl'"),
        ({"=other/data.pkl": b""}, "more than one folder"),
        ({"DATA.PKL": b""}, "twice"),
        ({"data/2": b"\0"}, "numbers of FloatStorage in data/2, which has 1 bytes"),
        ({"data/2": None}, "which has 0 bytes"),
    ):
        refused(changed(good, tmp_path / "m.pt", change), message)
    beside = tmp_path / "beside.pt"
    beside.write_bytes(b"#!/bin/sh\n" + good.read_bytes())
    refused(beside, "something beside the zip file")
    forcefield_ml.load(changed(good, tmp_path / "same.pt", {}))  # control: rewriting alone does no harm


def test_what_is_no_file(tmp_path: Path) -> None:
    """A device, a pipe or a folder in the place of a model does not hang or fill the memory."""
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero"), tmp_path):
        with pytest.raises(ModelFileError, match="is no file"):
            bundle.read(path)


def test_too_many_places_in_a_memo(deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """A pickle of few bytes that makes its reader take gigabytes is refused unread."""
    evil = b"\x80\x02Nr" + (1 << 30).to_bytes(4, "little") + b"."
    refused(changed(deployed["fast"].path, tmp_path / "m.pt", {"data.pkl": evil}), "place 1073741824 in the memo")


def test_the_guard_is_cheap() -> None:
    """Looking a model over takes a fraction of a second, once a load."""
    data = pretrained.path("amber14-fast").read_bytes()
    archive.read_archive(data, "warm up")
    start = time.process_time()
    torch.jit.load(io.BytesIO(archive.read_archive(data, "amber14-fast").torchscript))
    assert time.process_time() - start < 1.0  # 0.1 s on an idle core
