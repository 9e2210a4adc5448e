"""Neighbours along a trajectory: searched anew only when some atom has moved far, else picked among candidates."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from forcefield_ml.graph import compiled, refresh
from forcefield_ml.graph.candidates import Candidates, PlainSearch, join_rows, spatial_order, wrapping_offsets
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.graph.search import (
    NeighbourSearch,
    check_cutoff,
    check_positions,
    largest_radius,
    refuse_too_few,
)
from forcefield_ml.kernels import serves

logger = logging.getLogger(__name__)

SKIN = 0.1
"""nm, the default for all atoms, measured in docs/decisions/0013-neighbour-list.md."""

SKIN_OF_TARGETS = 0.06
"""nm, the default where there are targets: there the skin also widens the shells of atoms that layers run on."""

SPARE_PLACES = 4
"""Added to the longest row found at first, before rounding up to a multiple of `ROUNDING`."""

ROUNDING = 8


Search: TypeAlias = Callable[[Tensor, Tensor], Candidates]


class Forms(NamedTuple):
    """One of two ways, equal in their results, to do the work of a list."""

    search: Callable[[Tensor, Tensor | None], Search]
    refresh_cutoff: Callable[[Tensor, Candidates, float, NeighbourMatrix], int]
    refresh_nearest: Callable[[Tensor, Candidates, NeighbourMatrix], Tensor]


PLAIN = Forms(PlainSearch, refresh.refresh_cutoff, refresh.refresh_nearest)
COMPILED = Forms(compiled.CompiledSearch, compiled.refresh_cutoff, compiled.refresh_nearest)


class Neighbourhood(NamedTuple):
    """What a prediction depends on, in the order in which the model is to work.

    Attributes
    ----------
    order
        (n,) int64, atoms whose features matter; those of a layer lead, the targets first of all.
    neighbours
        Rows of the first ``layer_sizes[0]`` of these atoms; indices count along `order`; neighbours stand in the
        leading places of a row. The next call overwrites these tensors.
    layer_sizes
        Atoms that layer 1, 2, ... L is computed for; the last entry is the number of targets.
    ascending
        (n_targets,) int64: ``prediction[ascending]`` has the targets in ascending order of atom.
    """

    order: Tensor
    neighbours: NeighbourMatrix
    layer_sizes: list[int]
    ascending: Tensor


@dataclass
class Statistics:
    """What a neighbour list has done so far.

    Attributes
    ----------
    steps
        Calls.
    rebuilds
        Searches for candidates.
    search_seconds, refresh_seconds
        Wall time of searches, and of all else.
    """

    steps: int = 0
    rebuilds: int = 0
    search_seconds: float = 0.0
    refresh_seconds: float = 0.0


class _Build(NamedTuple):
    """What one search for candidates leaves for the steps that follow."""

    positions: Tensor  # (N, 3), of all atoms
    box: Tensor | None
    skin: float  # nm; the box may allow less than was asked for
    reach: Tensor  # (n_rows,) nm, up to which a row's candidates were complete; of a nearest list
    offsets: Tensor  # (n, 3) nm, from positions to places in the box
    candidates: Candidates
    order: Tensor
    layer_sizes: list[int]
    ascending: Tensor


class NeighbourList:
    """Give the neighbours at each step of one system's trajectory; the same as `NeighbourSearch` gives.

    Candidates are all pairs within the cutoff plus a skin. A pair outside was farther apart than that, and has come
    closer by no more than the sum of the two largest displacements, 2 u: until that is the skin, candidates hold every
    neighbour. Then, and when the box changes, they are searched anew. For the K nearest, row i's candidates reach to
    the K-th distance at the search plus the skin, R_i; they hold the K nearest as long as the K-th distance is at most
    R_i - 2 u.

    Parameters
    ----------
    kind, n_neighbours, cutoff
        As of `NeighbourSearch`.
    n_layers
        Message passing layers of the model.
    skin
        nm, above 0. Wider: rarer searches, more candidates. None: `SKIN`, or with targets `SKIN_OF_TARGETS`.
    targets
        (N,) bool, the atoms to predict; None for all.
    dtype
        Of the vectors, which are formed in float64 and rounded.

    Attributes
    ----------
    statistics : Statistics
        Steps, searches, seconds.

    Raises
    ------
    ValueError
        For the reasons that `NeighbourSearch` has, or if skin or targets are not as said.
    """

    def __init__(
        self,
        kind: str,
        n_neighbours: int = 0,
        cutoff: float = 0.0,
        n_layers: int = 1,
        skin: float | None = None,
        targets: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        if skin is None:
            skin = SKIN if targets is None else SKIN_OF_TARGETS
        if not 0 < skin < math.inf:
            raise ValueError(f"a neighbour list needs a skin above 0 nm, got {skin}")
        if targets is not None and (targets.dtype != torch.bool or targets.dim() != 1 or not bool(targets.any())):
            raise ValueError(
                f"targets must be a mask with one bool for each atom, some True; got {targets.dtype} of shape "
                f"{tuple(targets.shape)}, {int(targets.count_nonzero())} of them not zero. None stands for all atoms"
            )
        self._first_radius = NeighbourSearch(kind, n_neighbours, cutoff).first_radius  # which checks its parameters
        self.statistics = Statistics()
        self._nearest, self._n_neighbours, self._cutoff = kind == "nearest", n_neighbours, cutoff
        self._n_layers, self._skin, self._targets, self._dtype = n_layers, skin, targets, dtype
        self._radii: Tensor | None = None
        self._width = n_neighbours
        self._forms = PLAIN
        self._build: _Build | None = None
        self._out: NeighbourMatrix | None = None

    @torch.inference_mode(False)  # what a call keeps, later ones write to, perhaps outside that mode
    def __call__(self, positions: Tensor, box: Tensor | None = None) -> Neighbourhood:
        """Return the neighbours at these positions.

        Parameters
        ----------
        positions
            (N, 3) nm, in float64 for full precision; need not lie inside the box.
        box
            (3, 3) nm, vectors as rows; None where there is no periodicity.

        Returns
        -------
        Neighbourhood
            Order and sizes stay the same from search to search, the number of places in a row as long as it suffices.
        """
        begin, searched = time.perf_counter(), self.statistics.search_seconds
        positions = positions.detach().to(torch.float64)
        box = None if box is None else box.detach().to(torch.float64)
        found = self._refresh(positions, self._displacement(positions, box))
        if found is None:
            self._search(positions, box)
            self.statistics.search_seconds += time.perf_counter() - begin
            found = self._refresh(positions, 0.0)
            assert found is not None, "candidates just found hold all neighbours"
        self.statistics.steps += 1
        self.statistics.refresh_seconds += time.perf_counter() - begin
        self.statistics.refresh_seconds -= self.statistics.search_seconds - searched
        return found

    def _displacement(self, positions: Tensor, box: Tensor | None) -> float:
        """Return the mean of the two largest displacements since the last search, nm; infinite where none is kept.

        No two atoms have come closer by more than twice that.
        """
        build = self._build
        if build is None or build.positions.shape != positions.shape or not _same_box(build.box, box):
            return math.inf
        squared = (positions - build.positions).square().sum(1)
        moved = float(squared.topk(min(2, len(squared))).values.sqrt().mean())
        return moved if math.isfinite(moved) else math.inf

    def _search(self, positions: Tensor, box: Tensor | None) -> None:
        """Find candidates, put atoms in order and keep what the steps that follow need."""
        check_positions(positions)
        vectors = torch.empty(0, dtype=self._dtype, device=positions.device)
        self._forms = COMPILED if serves(vectors, compiled.library) else PLAIN
        if self._targets is not None and self._targets.shape != positions.shape[:1]:
            raise ValueError(
                f"targets are a mask of {len(self._targets)} atoms, but there are positions of {len(positions)}"
            )
        largest = largest_radius(positions, box)
        skin = self._skin
        if not self._nearest and box is not None:
            check_cutoff(self._cutoff, largest)
            skin = min(skin, largest - self._cutoff)
        self._build = None  # its memory first
        offsets = wrapping_offsets(positions, box)
        along = spatial_order(positions + offsets)
        offsets = offsets[along]
        x = positions[along] + offsets  # from here to the end atoms are counted along the curve
        search = self._forms.search(x, box)
        unseen = torch.ones(len(x), dtype=torch.bool, device=x.device)
        targets = torch.ones_like(unseen) if self._targets is None else self._targets.to(x.device)[along]
        shell = targets.nonzero()[:, 0]
        shells, blocks, reaches, counts = [shell], [], [], []
        for _ in range(self._n_layers):  # each hop from the targets is computed in one layer less
            counts.append(sum(map(len, shells)))
            unseen[shell] = False
            if len(shell) > 0:
                if self._nearest:
                    candidates, reach = self._nearest_candidates(x, search, shell, along[shell], largest)
                else:
                    reach = x.new_full((len(shell),), self._cutoff + skin)
                    candidates = search(shell, reach)
                blocks.append(candidates)
                reaches.append(reach)
                found = torch.zeros_like(unseen)
                found[candidates.partners.long()] = True
                shell = (found & unseen).nonzero()[:, 0]
            shells.append(shell)
        inner = torch.cat(shells[: len(blocks) + 1])
        order = along[inner]
        self._build = _Build(
            positions.clone(),
            None if box is None else box.clone(),
            skin,
            torch.cat(reaches),
            offsets[inner],
            join_rows(blocks, inner, len(x)),
            order,
            counts[::-1],
            torch.argsort(order[: counts[0]]),
        )
        self.statistics.rebuilds += 1

    def _nearest_candidates(
        self, x: Tensor, search: Search, rows: Tensor, atoms: Tensor, largest: float
    ) -> tuple[Candidates, Tensor]:
        """Return candidates as far as the K-th neighbour and a skin, and how far that is (m,) nm, for these rows."""
        wanted = min(self._n_neighbours, len(x) - 1)
        if self._radii is None or len(self._radii) != len(x):
            self._radii = x.new_full((len(x),), self._first_radius)
        radii = self._radii[atoms].clamp_(max=largest)  # where the last search ended: most likely far enough
        while True:
            candidates = search(rows, radii)
            lacking = candidates.starts.diff() < wanted
            if not bool(lacking.any()):
                break
            if bool((radii[lacking] >= largest).any()):
                refuse_too_few(self._n_neighbours, largest)
            radii = torch.where(lacking, (1.25 * radii).clamp(max=largest), radii)
        moved = candidates._replace(partners=candidates.partners + len(rows))  # the rows' atoms must lead
        nearest = self._empty(len(rows), self._n_neighbours, x.device)
        reached = self._forms.refresh_nearest(torch.cat([x[rows], x]), moved, nearest)
        del candidates, moved, nearest  # a million atoms have gigabytes of them
        reach = (reached + self._skin).clamp_(max=largest)
        self._radii[atoms] = reach
        return search(rows, reach), reach

    def _refresh(self, positions: Tensor, moved: float) -> Neighbourhood | None:
        """Return the neighbours among the candidates, or None if these may lack some."""
        build = self._build
        if build is None or (moved > 0 and not 2 * moved < build.skin):
            return None
        x = positions.index_select(0, build.order) + build.offsets
        n_rows = build.layer_sizes[0]
        if self._out is None or len(self._out.mask) != n_rows:
            self._out = self._empty(n_rows, self._width, x.device)
        if self._nearest:
            reached = self._forms.refresh_nearest(x, build.candidates, self._out)
            if moved > 0 and bool((reached > build.reach - 2 * moved).any()):
                return None
        else:
            longest = self._forms.refresh_cutoff(x, build.candidates, self._cutoff, self._out)
            if longest > self._width or self._width == 0:
                self._grow(longest, len(positions))
                self._out = self._empty(n_rows, self._width, x.device)
                self._forms.refresh_cutoff(x, build.candidates, self._cutoff, self._out)
        return Neighbourhood(build.order, self._out, build.layer_sizes, build.ascending)

    def _grow(self, longest: int, n_atoms: int) -> None:
        """Make rows long enough, with places to spare."""
        spacious = -(-(longest + SPARE_PLACES) // ROUNDING) * ROUNDING
        width = min(spacious, max(n_atoms - 1, 1))  # more neighbours than that there cannot be
        if self._width > 0:
            logger.info(
                "an atom has %d neighbours, more than the %d places in a row; the neighbour matrix now has %d",
                longest,
                self._width,
                width,
            )
        self._width = width

    def _empty(self, n_rows: int, width: int, device: torch.device) -> NeighbourMatrix:
        return NeighbourMatrix(
            torch.zeros(n_rows, width, dtype=torch.int64, device=device),
            torch.zeros(n_rows, width, 3, dtype=self._dtype, device=device),
            torch.zeros(n_rows, width, dtype=torch.bool, device=device),
        )


def _same_box(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
