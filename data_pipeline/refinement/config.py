"""The configuration of the task refinement: which pairs, how they are matched, which surroundings count."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_pipeline.refinement.vectors import NEIGHBOURS
from data_pipeline.settings import Execution, Section

Split = Literal["train", "validation", "test"]


class PairsConfig(Section):
    """Where pairs come from."""

    kind: Literal["pairs"] = "pairs"
    path: str = Field(
        description="A table (.tsv, .csv, .yaml), relative to this file, with split and either candidate and native "
        "(files) or cluster (or puzzle: a folder with native.* and candidates/); paths in it are relative to it."
    )
    splits: dict[str, Split] = Field(
        default={"train": "train", "validation": "validation", "val": "validation", "test": "test"},
        min_length=1,
        description="What the table calls a split -> the split; rows of others are left out.",
    )


class MatchConfig(Section):
    """Which pairs serve."""

    min_matched: float = Field(
        default=0.5, gt=0, le=1, description="Share of the candidate's atoms that have a partner in the native."
    )
    min_covered: float = Field(
        default=0.9, gt=0, le=1, description="Share of the native's atoms that are a partner: the candidate is whole."
    )


class VectorsConfig(Section):
    """Algorithm 1."""

    n_neighbours: int = Field(
        default=NEIGHBOURS, ge=3, description="Atoms whose native positions are superposed, the atom itself included."
    )


class AugmentConfig(Section):
    """Bent copies of the candidates to train on, with vectors of their own (`augment.bend`)."""

    copies: int = Field(default=0, ge=0, description="Of each candidate in the training split.")
    displacement: float = Field(
        default=0.08, gt=0, le=0.5, description="nm, standard deviation of each coordinate of an atom's displacement."
    )
    correlation: float = Field(default=0.55, gt=0, description="nm over which atoms are displaced alike.")
    seed: int = Field(default=0, ge=0)


class RefinementConfig(Execution):
    """Everything that decides what comes out, and how the work is done, which does not (`settings.EXECUTION`)."""

    task: Literal["refinement"]
    source: PairsConfig
    match: MatchConfig = MatchConfig()
    vectors: VectorsConfig = VectorsConfig()
    augment: AugmentConfig = AugmentConfig()
    limit: int | None = Field(default=None, ge=1, description="Only so many candidates, spread over the clusters.")
