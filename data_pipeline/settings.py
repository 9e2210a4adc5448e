"""What the configurations of all tasks share: strict sections, and how the work is done."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.engine import Limits

EXECUTION = ("workers", "device", "timeout", "memory_limit", "dask")
"""Keys that say how the work is done; they are no part of any resume key or data set."""


class Section(BaseModel):
    """A part of a configuration; keys that are not declared are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def values(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return self.model_dump(mode="json")


class PackConfig(Section):
    """The file."""

    compression: Literal["gzip", "lzf", "none"] = "gzip"


class Execution(Section):
    """The name of a data set, how it is stored, and how the work is done, which decides nothing of its content."""

    name: str = Field(min_length=1, description="Of the data set.")
    pack: PackConfig = PackConfig()
    workers: int = Field(default=2, ge=1, description="Processes, of one thread each.")
    timeout: float = Field(default=120.0, gt=0, description="Minutes for each entry and stage.")
    memory_limit: float | None = Field(default=None, gt=0, description="GB of each worker; null for no limit.")
    dask: str | None = Field(default=None, description="Address of a Dask scheduler, which then has the workers.")

    def recipe(self) -> dict[str, Any]:
        """Return the values that decide what comes out, as plain JSON types."""
        return {name: value for name, value in self.values().items() if name not in EXECUTION}

    def limits(self) -> Limits:
        """Return what one task may use, as `engine` takes it."""
        return Limits(self.timeout * 60, None if self.memory_limit is None else int(self.memory_limit * 1e9))
