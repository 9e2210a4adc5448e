"""The fingerprint of a network's weights: the same for a checkpoint and for the model.pt exported from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights: of names, types, shapes and bytes, in the order of the names.

    A file's own hash changes when its card grows or its archive is written anew; this one does not.

    Parameters
    ----------
    state
        The ``state_dict`` of a model of `models.build`, on any device.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
