"""Write dataset.h5 from labelled entries, one entry in memory at a time, as `schema` declares it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.errors import PipelineError
from data_pipeline.files import whole
from data_pipeline.schema import (
    ENTRIES_GROUP,
    ENTRY_ATTRIBUTES,
    ENTRY_FIELDS,
    FILE_ATTRIBUTES,
    FORCES,
    FORMAT,
    SCHEMA_VERSION,
    Field,
    SchemaError,
    declared,
)

FILTERS: dict[str, dict[str, Any]] = {
    # Higher levels take longer to write and save half a percent; docs/decisions/0010-pack.md has the numbers.
    "gzip": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "lzf": {"compression": "lzf", "shuffle": True},
    "none": {},
}

COMPRESSIONS = tuple(FILTERS)


@dataclass(frozen=True)
class PackedEntry:
    """What dataset.h5 holds of one entry.

    Parameters
    ----------
    name
        The entry's id.
    fields
        Arrays by name, as in `schema.ENTRY_FIELDS`.
    attributes
        Values by name, as in `schema.ENTRY_ATTRIBUTES`.
    """

    name: str
    fields: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]


def pack(
    entries: Iterable[PackedEntry], path: str | Path, attributes: Mapping[str, Any], *, compression: str = "gzip"
) -> str:
    """Write a dataset; the file appears complete or not at all.

    Parameters
    ----------
    entries
        In order of name; read one by one.
    path
        The file to write.
    attributes
        File attributes of `schema.FILE_ATTRIBUTES` other than format, schema_version and content_sha256; ``task`` says
        which fields the entries must have.
    compression
        One of `COMPRESSIONS`; arrays over frames and atoms are chunked by frame, so that one frame is read alone.

    Returns
    -------
    The content's SHA-256.

    Raises
    ------
    SchemaError
        If an entry lacks a field or one has the wrong type or shape; nothing is written then.
    PipelineError
        If the disk is full or cannot be written; nothing is lost, and packing can be repeated.
    """
    if compression not in COMPRESSIONS:
        raise SchemaError(f"no compression {compression!r}. Allowed: {', '.join(COMPRESSIONS)}.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    task = str(attributes.get("task", FORCES))
    digest = hashlib.sha256()
    previous = ""
    try:
        with whole(path) as temporary, _Disk(temporary, "w+") as disk:
            with h5py.File(disk, "w", libver=("v108", "v108")) as file:
                group = file.create_group(ENTRIES_GROUP)
                for entry in entries:
                    if entry.name <= previous:
                        raise SchemaError(f"entries must come in order of name; {entry.name!r} came after {previous!r}")
                    previous = entry.name
                    _write_entry(group, entry, compression, task)
                    digest_entry(digest, entry)
                    disk.check()
                if not previous:
                    raise SchemaError("there is no entry to pack; look at the ledger for what was rejected or failed")
                values = {
                    **attributes,
                    "format": FORMAT,
                    "schema_version": SCHEMA_VERSION,
                    "content_sha256": digest.hexdigest(),
                }
                values["header_sha256"] = digest_header(values)
                for one in declared(FILE_ATTRIBUTES, task):
                    if one.required or one.name in values:
                        file.attrs[one.name] = _attribute(one, values, "the file")
            disk.check()
    except OSError as error:
        raise PipelineError(_disk_message(error, path)) from error
    return digest.hexdigest()


def entry_problems(name: str, fields: Mapping[str, np.ndarray], task: str = FORCES) -> list[str]:
    """Return what is wrong with an entry's arrays against `schema.ENTRY_FIELDS`; empty when all is well.

    Checks presence, dtype, shapes that agree with each other, finite numbers, bond indices, and a target mask that
    marks something.

    Parameters
    ----------
    name
        For the messages.
    fields
        Arrays by name.
    task
        Of the file.
    """
    known = declared(ENTRY_FIELDS, task)
    problems = []
    sizes: dict[str, int] = {}
    for one in known:
        if one.name not in fields:
            if one.required:
                problems.append(f"{name}: field {one.name} is missing")
            continue
        values = np.asarray(fields[one.name])
        if values.dtype != np.dtype(one.dtype):
            problems.append(f"{name}: {one.name} is {values.dtype}, not {np.dtype(one.dtype)}")
            continue
        problem = _shape_problem(one, values.shape, sizes)
        if problem:
            problems.append(f"{name}: {problem}")
        elif values.dtype.kind == "f" and not np.isfinite(values).all():
            problems.append(f"{name}: {one.name} holds values that are not finite")
    unknown = set(fields) - {one.name for one in known}
    problems += [f"{name}: {extra} is no field of the schema for {task}" for extra in sorted(unknown)]
    if not problems:
        bonds, n_atoms = np.asarray(fields["bonds"]), sizes["N"]
        if bonds.size and (bonds.min() < 0 or bonds.max() >= n_atoms):
            problems.append(f"{name}: bonds name atoms outside 0..{n_atoms - 1}")
        if not np.asarray(fields["target_mask"]).any():
            problems.append(f"{name}: no atom is a target")
        if not sizes["F"]:
            problems.append(f"{name}: there is no frame")
    return problems


def digest_entry(digest: Any, entry: PackedEntry) -> None:
    """Feed one entry's name, fields and attributes to a hash, in the order of the schema."""
    digest.update(f"entry {entry.name}\n".encode())
    for one in ENTRY_FIELDS:
        if one.name in entry.fields:
            values = np.ascontiguousarray(entry.fields[one.name])
            # Little endian always: the digest must not depend on the machine.
            values = values.astype(values.dtype.newbyteorder("<"), copy=False)
            digest.update(f"field {one.name} {values.dtype.str} {values.shape}\n".encode())
            digest.update(values.tobytes())
    for one in ENTRY_ATTRIBUTES:
        if one.name in entry.attributes:
            plain = _plain(entry.attributes[one.name])
            digest.update(f"attribute {one.name} {json.dumps(plain)}\n".encode())


def digest_header(attributes: Mapping[str, Any]) -> str:
    """Return the SHA-256 over the file's attributes other than header_sha256, in the order of the schema."""
    present = [one.name for one in FILE_ATTRIBUTES if one.name in attributes and one.name != "header_sha256"]
    lines = [f"{name} {json.dumps(_plain(attributes[name]))}\n" for name in present]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _write_entry(parent: h5py.Group, entry: PackedEntry, compression: str, task: str) -> None:
    problems = entry_problems(entry.name, entry.fields, task)
    if problems:
        raise SchemaError("; ".join(problems[:5]))
    group = parent.create_group(entry.name)
    for one in declared(ENTRY_FIELDS, task):
        if one.name not in entry.fields:
            continue
        values = np.asarray(entry.fields[one.name])
        options: dict[str, Any] = {}
        if one.shape and values.size:
            by_frame = one.shape[0] == "F" and "N" in one.shape
            options = {"chunks": (1, *values.shape[1:]) if by_frame else values.shape, "fletcher32": True}
            options |= FILTERS[compression]
        data = group.create_dataset(one.name, data=values, **options)
        if one.unit:
            data.attrs["unit"] = one.unit
    for one in declared(ENTRY_ATTRIBUTES, task):
        if one.required or one.name in entry.attributes:
            group.attrs[one.name] = _attribute(one, entry.attributes, entry.name)


def _attribute(one: Field, values: Mapping[str, Any], owner: str) -> Any:
    if one.name not in values:
        raise SchemaError(f"attribute {one.name} of {owner} is missing: {one.meaning}")
    value = values[one.name]
    if one.dtype == "str":
        return str(value)
    array = np.asarray(value, dtype=one.dtype)
    if array.shape != tuple(int(n) for n in one.shape):
        raise SchemaError(f"attribute {one.name} of {owner} has shape {array.shape}, not {one.shape}")
    return array if one.shape else array[()]


def _shape_problem(one: Field, shape: tuple[int, ...], sizes: dict[str, int]) -> str:
    if len(shape) != len(one.shape):
        return f"{one.name} has shape {shape}, not ({', '.join(one.shape)})"
    for dimension, length in zip(one.shape, shape, strict=True):
        expected = int(dimension) if dimension.isdigit() else sizes.setdefault(dimension, length)
        if length != expected:
            return f"{one.name} has shape {shape}, where {dimension} is {expected}"
    return ""


class _Disk(io.FileIO):
    """A file that hides from HDF5 that the disk is full, and tells us: HDF5 crashes when closing cannot write."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def check(self) -> None:
        """Raise what writing raised."""
        if self.error is not None:
            raise self.error


def _disk_message(error: OSError, path: Path) -> str:
    what = "no space left on the disk while writing" if error.errno == errno.ENOSPC else f"{error.strerror} in writing"
    return f"{what} {path}. What was finished is safe: make room and run the same command again, it goes on from there"
