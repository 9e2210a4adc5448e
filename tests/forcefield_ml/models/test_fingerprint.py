"""The fingerprint of weights: equal where they are, different where anything in them is."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch

from forcefield_ml.models.fingerprint import weights_sha256

STATE = {"b": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "a": torch.tensor(7)}


def test_by_hand() -> None:
    """It is the SHA-256 of names, types, shapes and little-endian numbers, in the order of the names."""
    content = (
        b"a torch.int64 ()\n" + struct.pack("<q", 7) + b"b torch.float32 (2, 3)\n" + struct.pack("<6f", *range(1, 7))
    )
    assert weights_sha256(STATE) == hashlib.sha256(content).hexdigest()


def test_what_does_not_matter() -> None:
    """The order of the dict and the layout in memory are not the weights'."""
    other = {"a": STATE["a"].clone(), "b": STATE["b"].T.contiguous().T}
    assert not other["b"].is_contiguous() and list(other) != list(STATE)
    assert weights_sha256(other) == weights_sha256(STATE)


@pytest.mark.parametrize(
    "changed",
    [
        {**STATE, "b": STATE["b"] * (1 + torch.tensor(2.0**-23))},
        {**STATE, "b": STATE["b"].double()},
        {**STATE, "b": STATE["b"].reshape(3, 2)},
        {**STATE, "b": -STATE["b"]},
        {"a": STATE["a"], "c": STATE["b"]},
        {"a": STATE["a"]},
        {**STATE, "d": torch.zeros(0)},
    ],
)
def test_what_matters(changed: dict[str, torch.Tensor]) -> None:
    """Any bit, type, shape, name or number of tensors that differs gives another fingerprint."""
    assert weights_sha256(changed) != weights_sha256(STATE)
