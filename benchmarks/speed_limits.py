"""What the machine can do and what our models ask of it: arithmetic and bandwidth.

python benchmarks/speed_limits.py cpu 2
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from forcefield_ml.models.fast import FastConfig
from forcefield_ml.models.model import parse_config
from forcefield_ml.models.tfn import TensorFieldConfig
from forcefield_ml.nn.spherical import clebsch_gordan, coupling_paths

INTERPOLATION = 4
"""Multiply-adds for one radial function at one distance, cubic in a table."""

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

    Counted are the products of the layers as documented: sums over neighbours of radial unit x harmonic x feature,
    couplings that are not zero, mixing of channels on atoms. Radial units are taken from a table. Left out is what
    costs a few operations per channel (norms, gates, activations), and the search.

    Parameters
    ----------
    config
        Of the model.
    neighbours
        Mean number of neighbours of an atom.

    Returns
    -------
    dict
        Layer -> ``multiply_adds`` and ``bytes`` (pairs and neighbours' features, each read once).
    """
    parsed = parse_config(dict(config))
    if isinstance(parsed, TensorFieldConfig):
        return _paper(parsed, min(neighbours, parsed.n_neighbours))
    if isinstance(parsed, FastConfig):
        return _fast(parsed, neighbours)
    raise ValueError(f"no count for the architecture {parsed.architecture!r}; add one to speed_limits.py")


def _convolution(
    channels: int, orders: tuple[int, int, int], units: int, neighbours: float, parity: str
) -> dict[str, float]:
    """Count a `DenseConvolution` with filters, input and output up to `orders`."""
    filters, inputs, _ = ((order + 1) ** 2 for order in orders)
    couplings = sum(int((clebsch_gordan(*path).abs() > 1e-12).sum()) for path in coupling_paths(*orders, parity))
    per_pair = units * INTERPOLATION + units * filters + units * filters * channels * inputs
    return {
        "multiply_adds": neighbours * per_pair + units * channels * couplings,
        "bytes": neighbours * (PAIR_BYTES + 4 * channels * inputs),
    }


def _paper(config: TensorFieldConfig, neighbours: float) -> dict[str, dict[str, float]]:
    layers = {}
    channels, order = config.channels[0], 0
    for number, out in enumerate(config.channels):
        out_order = min(config.order, 1) if number == len(config.channels) - 1 else config.order
        layer = _convolution(channels, (config.order, order, out_order), config.n_units, neighbours, config.parity)
        before = len(config.elements) * channels if number == 0 else channels * channels * (order + 1) ** 2
        layer["multiply_adds"] += before + channels * out * (out_order + 1) ** 2 + out * out * out_order
        layers[f"layer {number + 1}"] = layer
        channels, order = out, out_order
    return layers


def _fast(config: FastConfig, neighbours: float) -> dict[str, dict[str, float]]:
    channels, elements, units = config.n_channels, len(config.elements), config.n_first_units
    dense = 2 * channels * 2 * channels  # the second matrix of every update
    first = neighbours * units * (INTERPOLATION + 4 + 4)  # the product with a one-hot is a sum
    first += units * elements * channels * 4 + elements * channels + 3 * channels * 2 * channels + dense
    layers = {"layer 1": {"multiply_adds": first, "bytes": neighbours * (PAIR_BYTES + 4 * elements)}}
    for number in range(1, config.n_layers):
        layer = _convolution(channels, (config.filter_order, 1, 1), config.n_units, neighbours, "O3")
        layer["multiply_adds"] += 3 * (2 * channels) ** 2 + 4 * channels * 2 * channels + dense
        layers[f"layer {number + 1}"] = layer
    return layers


if __name__ == "__main__":
    print(json.dumps(machine(sys.argv[1], int(sys.argv[2]))))
