"""What the machine can do and what our models ask of it: arithmetic and bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from forcefield_ml.models.fast import FastConfig
from forcefield_ml.models.model import parse_config
from forcefield_ml.models.tfn import TensorFieldConfig
from forcefield_ml.nn.spherical import clebsch_gordan, coupling_paths

INTERPOLATION = 4
"""Multiply-adds for one radial function at one distance, cubic in a table."""

Path = tuple[int, int, int]

PAIR_BYTES = 8 + 12 + 1
"""Of index, vector and mask of one place of a neighbour matrix."""


def machine(device: str, threads: int, side: int = 2048, megabytes: int = 512) -> dict[str, float]:
    """Return the best of several products of matrices and of several copies.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"cuda"``.
    threads
        Of torch on the CPU.
    side
        Of square float32 matrices.
    megabytes
        Of the array that is copied.

    Returns
    -------
    ``gflops`` (10⁹ multiplications and additions a second) and ``copy_gb_s`` (10⁹ bytes read and written a second).
    """
    torch.set_num_threads(threads)
    one = torch.randn(side, side, device=device)
    two, out = torch.randn_like(one), torch.empty_like(one)
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.ones_like(source)
    return {
        "gflops": 2 * side**3 / _best(lambda: torch.mm(one, two, out=out)) / 1e9,
        "copy_gb_s": 2 * megabytes * 2**20 / _best(lambda: target.copy_(source)) / 1e9,
    }


def _best(work: Callable[[], Any], repeats: int = 7) -> float:
    """Return the seconds of the fastest repeat but for the first."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def arithmetic(config: Mapping[str, Any], neighbours: float) -> dict[str, dict[str, float]]:
    """Return what each layer of one of our models asks for, per atom, if every atom is computed.

    Counted are the products of the layers in their compiled form, pair by pair: radial weights from a table, couplings
    that are not zero, weight x feature, and the mixing of channels on atoms. Left out is what costs a few operations
    per pair (distance, harmonics) or per channel (norms, gates, activations), and the search.

    Parameters
    ----------
    config
        Of the model.
    neighbours
        Mean number within the cutoff; a graph of nearest neighbours has its own.

    Returns
    -------
    dict
        Layer -> ``multiply_adds`` and ``bytes`` (pairs and neighbours' features, each read once).
    """
    parsed = parse_config(dict(config))
    if isinstance(parsed, TensorFieldConfig):
        return _paper(parsed)
    if isinstance(parsed, FastConfig):
        return _fast(parsed, neighbours)
    raise ValueError(f"no count for the architecture {parsed.architecture!r}; add one to speed_limits.py")


def _convolution(channels: int, paths: Iterable[Path], neighbours: float, features: int) -> dict[str, float]:
    """Count a convolution; `features` components of each channel are read of a neighbour, 0 where it is an element."""
    per_pair = 0.0
    for f, i, o in paths:
        coupled = clebsch_gordan(f, i, o).abs() > 1e-12
        if f > 0:
            per_pair += int(coupled.sum())  # the coupling with the direction, once for all channels
        terms = int(coupled.any(0).sum()) + (min(2 * i + 1, 2 * o + 1) if features else 0)
        per_pair += channels * (INTERPOLATION + terms)
    return {
        "multiply_adds": neighbours * per_pair,
        "bytes": neighbours * (PAIR_BYTES + 4 * channels * features),
    }


def _paper(config: TensorFieldConfig) -> dict[str, dict[str, float]]:
    layers = {}
    channels, order = config.channels[0], 0
    for number, out in enumerate(config.channels):
        out_order = min(config.order, 1) if number == len(config.channels) - 1 else config.order
        paths = coupling_paths(config.order, order, out_order, config.parity)
        layer = _convolution(channels, paths, config.n_neighbours, (order + 1) ** 2)
        before = len(config.elements) * channels if number == 0 else channels * channels * (order + 1) ** 2
        layer["multiply_adds"] += before + channels * out * (out_order + 1) ** 2 + out * out * out_order
        layers[f"layer {number + 1}"] = layer
        channels, order = out, out_order
    return layers


def _fast(config: FastConfig, neighbours: float) -> dict[str, dict[str, float]]:
    channels = config.n_channels
    dense = 2 * channels * 2 * channels  # the second matrix of every update
    layer = _convolution(channels, [(0, 0, 0), (1, 0, 1)], neighbours, 0)
    layer["multiply_adds"] += len(config.elements) * channels + 3 * channels * 2 * channels + dense
    layers = {"layer 1": layer}
    for number in range(1, config.n_layers):
        layer = _convolution(channels, coupling_paths(config.filter_order, 1, 1, "O3"), neighbours, 4)
        layer["multiply_adds"] += 3 * (2 * channels) ** 2 + 4 * channels * 2 * channels + dense
        layers[f"layer {number + 1}"] = layer
    return layers
