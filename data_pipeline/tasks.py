"""Which work a run consists of: for each entry and stage a `Task` with its settings, inputs and resume key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.config import PipelineConfig, entry_seed, stage_key
from data_pipeline.engine import Task
from data_pipeline.entries.selection import Selection
from data_pipeline.ledger import Record, sha256


class Tasks:
    """The tasks of every stage that works entry by entry; each stage needs the records of those before it.

    Parameters
    ----------
    config
        Of the run.
    folder
        The run folder.
    versions
        Of the packages that make the data, by name: part of every key.
    """

    def __init__(self, config: PipelineConfig, folder: Path, versions: Mapping[str, str]) -> None:
        self.config, self.folder = config, folder
        makers = ("data-pipeline", "openmm", "pdbfixer", "openmmml")  # the last only where a potential needs it
        self._makers = {name: versions[name] for name in makers if name in versions}

    def prepare(self, selection: Selection) -> list[Task]:
        """Return what makes prepared/ID.cif of every entry that is kept."""
        settings = {
            **self.config.prepare.values(),
            "cutoff": max(self.config.sample.cutoff, self.config.label.cutoff),
            "force_field_files": self.config.sampling_force_field,
        }
        own = self._hashes(self.config.sampling_force_field)
        tasks = []
        for entry in selection.kept:
            arguments = {"path": str(selection.paths[entry]), "settings": settings, "seed": self._seed(entry)}
            key = self._key("prepare", {**settings, "seed": self._seed(entry)}, selection.sha256[entry], *own)
            tasks.append(self._task(entry, "prepare", key, f"prepared/{entry}.cif", arguments))
        return tasks

    def relax(self, prepared: Mapping[str, Record]) -> list[Task]:
        """Return what makes relaxed/ID.npz."""
        settings = {"tolerance": self.config.sample.relax_tolerance, **self._moving()}
        own = self._hashes(self.config.sampling_force_field)
        tasks = []
        for entry, record in prepared.items():
            key = self._key("relax", settings, record.output_sha256, *own)
            arguments = {"prepared": self._path(record), "settings": settings}
            tasks.append(self._task(entry, "relax", key, f"relaxed/{entry}.npz", arguments))
        return tasks

    def sample(self, protocol: str, prepared: Mapping[str, Record], relaxed: Mapping[str, Record]) -> list[Task]:
        """Return what makes PROTOCOL/frames/ID.npz."""
        settings = {**self.config.sample.of(protocol), **self._moving()}
        own = self._hashes(self.config.sampling_force_field)
        tasks = []
        for entry, record in relaxed.items():
            seeds = {"seed": self._seed(entry)} if protocol == "thermal" else {}
            key = self._key("sample", {"protocol": protocol, **settings, **seeds}, record.output_sha256, *own)
            arguments = {
                "prepared": self._path(prepared[entry]),
                "relaxed": self._path(record),
                "protocol": protocol,
                "settings": settings,
                **seeds,
            }
            tasks.append(self._task(entry, f"sample {protocol}", key, f"{protocol}/frames/{entry}.npz", arguments))
        return tasks

    def label(self, protocol: str, prepared: Mapping[str, Record], frames: Mapping[str, Record]) -> list[Task]:
        """Return what makes PROTOCOL/labelled/ID.npz."""
        values = self.config.label.values()
        files = {f"{key}_files": values.pop(key) for key in ("force_field", "mm_force_field")}
        settings = {**files, **values, "platform": self.config.platform}
        own = self._hashes([name for names in files.values() for name in names])
        tasks = []
        for entry, record in frames.items():
            inputs = [prepared[entry].output_sha256, record.output_sha256, *own]
            key = self._key("label", {**settings, "seed": self._seed(entry)}, *inputs)
            arguments = {
                "prepared": self._path(prepared[entry]),
                "frames": self._path(record),
                "settings": settings,
                "seed": self._seed(entry),
            }
            tasks.append(self._task(entry, f"label {protocol}", key, f"{protocol}/labelled/{entry}.npz", arguments))
        return tasks

    def _moving(self) -> dict[str, Any]:
        """Return what relaxation and both protocols move atoms with."""
        return {
            "cutoff": self.config.sample.cutoff,
            "force_field_files": self.config.sampling_force_field,
            "platform": self.config.platform,
        }

    def _task(self, entry: str, stage: str, key: str, output: str, arguments: dict[str, Any]) -> Task:
        return Task(entry, stage, key, output, str(self.folder), arguments)

    def _key(self, stage: str, settings: dict[str, Any], *inputs: str) -> str:
        return stage_key(stage, {**settings, "made with": self._makers}, *inputs)

    def _seed(self, entry: str) -> int:
        return entry_seed(self.config.seed, entry)

    def _path(self, record: Record) -> str:
        return str(self.folder / record.output)

    @staticmethod
    def _hashes(files: list[str]) -> list[str]:
        """Return the hashes of a user's own files, which may change under the same name; OpenMM's have its version."""
        return [sha256(Path(name)) for name in files if Path(name).is_absolute()]
