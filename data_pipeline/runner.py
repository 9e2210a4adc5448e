"""What the runs of every task share: stages over entries, what is recorded of each, packing, the summary."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.config import stage_key
from data_pipeline.dataset.datasheet import write_datasheet
from data_pipeline.dataset.pack import PackedEntry, pack
from data_pipeline.engine import Engine, Task
from data_pipeline.errors import PipelineError
from data_pipeline.files import write_json
from data_pipeline.ledger import FAILED, OK, REJECTED, Ledger, Record, sha256
from data_pipeline.schema import ENTRY_ATTRIBUTES, ENTRY_FIELDS
from data_pipeline.settings import Execution
from data_pipeline.versions import versions

log = logging.getLogger("data_pipeline")

DATASET = "dataset.h5"


class Progress(Protocol):
    """Who is told how far a run is."""

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Tell that a stage begins: entries to do and entries already done."""
        ...

    def advance(self, record: Record) -> None:
        """Tell what became of one entry."""
        ...

    def end(self) -> None:
        """Tell that the stage is over."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Ignore."""

    def advance(self, record: Record) -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""


class Runner:
    """One run over a run folder; a task's own class goes through its stages.

    Parameters
    ----------
    config
        Of the run.
    folder
        The run folder.
    ledger
        Its records.
    engine
        Who does the work.
    progress
        Who is told how far it is.
    retry_failed
        Whether entries that were rejected or failed after selection are tried again.
    """

    def __init__(
        self,
        config: Execution,
        folder: Path,
        ledger: Ledger,
        engine: Engine,
        progress: Progress,
        retry_failed: bool,
    ) -> None:
        self.settings, self.folder, self.ledger, self.engine = config, folder, ledger, engine
        self.progress, self.retry_failed = progress, retry_failed
        self.versions = versions()
        self.seconds: dict[str, float] = {}
        self.records: list[Record] = []
        self.source = ""

    def all_stages(self) -> dict[str, Any]:
        """Run what is not done yet; return the summary."""
        raise NotImplementedError

    def _begin(self) -> None:
        log.info("run of %s begins: %s", self.settings.name, json.dumps(self.versions))

    def _stage(self, name: str, function: Any, tasks: list[Task], size: Callable[[str], float]) -> dict[str, Record]:
        started = time.monotonic()
        finished = {
            task.entry: record
            for task in tasks
            if (record := self.ledger.finished(task.entry, name, task.key, retry_failed=self.retry_failed))
        }
        todo = [task for task in tasks if task.entry not in finished]
        # The largest first: at the end no worker waits long for the others.
        todo.sort(key=lambda task: -size(task.entry))
        self.progress.begin(name, len(tasks), len(finished))
        results = dict(finished)
        self.records += finished.values()
        for record in self.engine.map(function, todo):
            self._record(record)
            results[record.entry] = record
        self.progress.end()
        self._took(name, started)
        return {entry: record for entry, record in sorted(results.items()) if record.status == OK}

    def _pack(
        self,
        protocol: str,
        labelled: Mapping[str, Record],
        attributes: Mapping[str, Any],
        own: Mapping[str, Mapping[str, Any]],
        assignment: Any,
        output: str = DATASET,
    ) -> Path:
        """Write a dataset unless it is there: of what stages wrote of entries, with attributes of the file and own."""
        started = time.monotonic()
        attributes = {
            **attributes,
            "protocol": protocol,
            "config": json.dumps(self.settings.recipe(), sort_keys=True),
            "versions": json.dumps(self.versions, sort_keys=True),
        }
        inputs = [record.output_sha256 for record in labelled.values()]
        key = stage_key("pack", {**attributes, "assignment": assignment}, *inputs)
        stage = f"pack {protocol}"
        self.progress.begin(stage, len(labelled), 0)
        if self.ledger.finished("dataset", stage, key) is None:
            packed = self._packed(labelled, own)
            pack(packed, self.folder / output, attributes, compression=self.settings.pack.compression)
            seconds = round(time.monotonic() - started, 2)
            digest = sha256(self.folder / output)
            self.ledger.add(Record("dataset", stage, OK, key=key, output=output, output_sha256=digest, seconds=seconds))
        self.progress.end()
        self._took(stage, started)
        return self.folder / output

    def _packed(self, labelled: Mapping[str, Record], own: Mapping[str, Mapping[str, Any]]) -> Iterable[PackedEntry]:
        for entry, record in labelled.items():
            with np.load(self.folder / record.output, allow_pickle=False) as arrays:
                fields = {field.name: arrays[field.name] for field in ENTRY_FIELDS if field.name in arrays}
                attributes = {one.name: arrays[one.name] for one in ENTRY_ATTRIBUTES if one.name in arrays}
            yield PackedEntry(entry, fields, {**own[entry], **attributes})
            self.progress.advance(Record(entry, "pack", OK))

    def _lost(self) -> dict[str, Any]:
        """Return the part of the summary that tells of entries that did not get through."""
        lost = [record for record in self.records if record.status != OK]
        return {
            "rejected": dict(
                Counter(f"{r.stage}: {r.error_class}" for r in lost if r.status == REJECTED).most_common()
            ),
            "failed": dict(Counter(f"{r.stage}: {r.error_class}" for r in lost if r.status == FAILED).most_common()),
            "rejections": [
                {"entry": r.entry, "stage": r.stage, "status": r.status, "class": r.error_class, "reason": r.reason}
                for r in sorted(lost, key=lambda r: (r.stage, r.entry))
            ],
        }

    def _finish(self, summary: dict[str, Any], datasets: dict[str, Any]) -> dict[str, Any]:
        """Write datasheets and summary.json; return the summary."""
        started = time.monotonic()
        sheets = {name: write_datasheet(made["dataset"], None, summary) for name, made in datasets.items()}
        for name, sheet in sheets.items():
            datasets[name]["datasheet"] = sheet
        self._took("datasheet", started)
        write_json(self.folder / "summary.json", summary)
        for made in datasets.values():
            log.info("done: %d entries in %s", made["datasheet"]["splits"]["all"]["entries"], made["dataset"])
        return summary

    def _record(self, record: Record) -> None:
        if record.stage != "select" or self.ledger.last(record.entry, record.stage) != record:
            self.ledger.add(record)
        self.records.append(record)
        self.progress.advance(record)
        level = logging.INFO if record.status == OK else logging.WARNING
        log.log(level, "%s %s %s %s %s", record.stage, record.entry, record.status, record.error_class, record.reason)

    def _took(self, stage: str, started: float) -> None:
        # preparation goes on with others where some were lost
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - started, 2)

    def _need(self, entries: dict[str, Any], what: str) -> None:
        if entries:
            return
        lost = Counter(f"{r.stage}: {r.error_class}" for r in self.records if r.status != OK)
        reasons = "; ".join(f"{n} x {reason}" for reason, n in lost.most_common()) or "the source and ids do not meet"
        raise PipelineError(f"no entry could be {what}: {reasons}. Details are in {self.folder / 'ledger.jsonl'}.")
