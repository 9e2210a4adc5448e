"""Positions and box -> NeighbourMatrix: search, list along a trajectory, shells, batches."""

from forcefield_ml.graph.batching import concatenate
from forcefield_ml.graph.box import check_box, heights
from forcefield_ml.graph.neighbour_list import Neighbourhood, NeighbourList
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.graph.search import NeighbourSearch, whole
from forcefield_ml.graph.shells import shells

__all__ = [
    "NeighbourList",
    "NeighbourMatrix",
    "NeighbourSearch",
    "Neighbourhood",
    "check_box",
    "concatenate",
    "heights",
    "shells",
    "whole",
]
