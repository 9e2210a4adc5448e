"""Positions and box -> NeighbourMatrix: search, shells around targets, batches."""

from forcefield_ml.graph.batching import concatenate
from forcefield_ml.graph.box import check_box, heights
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.graph.search import NeighbourSearch, whole
from forcefield_ml.graph.shells import shells

__all__ = ["NeighbourMatrix", "NeighbourSearch", "check_box", "concatenate", "heights", "shells", "whole"]
