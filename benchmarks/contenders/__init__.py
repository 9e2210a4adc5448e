"""Who takes part in the speed benchmark; each runs in a process of its own, peers by an interpreter of their own."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One contender.

    Attributes
    ----------
    title
        What the table calls it.
    environment
        Name of the peers' environment in envs/, empty for this project's own.
    far
        Whether growing boxes are measured as far as the limit of the whole allows.
    """

    title: str
    environment: str
    far: bool = False


CONTENDERS = {
    "fast": Entry("fast model, our engine", "", far=True),
    "shipped": Entry("amber14-fast, which ships, with its bonded terms", "", far=True),
    "fast_energy": Entry("fast model, forces by gradient", "", far=True),
    "fast_script": Entry("fast model, TorchScript", ""),
    "paper": Entry("paper's network, order 2, our engine", "", far=True),
    "paper_e3nn": Entry("paper's network, order 2, plain e3nn", ""),
    "amber": Entry("AMBER14 PME, OpenMM", "", far=True),
    "tensornet": Entry("TorchMD-NET TensorNet, 64 channels, 1 layer", "tensornet-mace"),
    "mace": Entry("MACE, size of MACE-OFF-small", "tensornet-mace"),
    "nequip": Entry("NequIP, its preset S", "nequip"),
}
"""Name, which is also the module's here -> entry."""
