"""The stages in order, over a run folder that can be killed and resumed at any moment."""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.config import PipelineConfig, dump_config, entry_seed, stage_key
from data_pipeline.dataset.datasheet import write_datasheet
from data_pipeline.dataset.pack import PackedEntry, pack
from data_pipeline.engine import Engine, Task, open_engine
from data_pipeline.entries.selection import Selection, best_of_clusters, select
from data_pipeline.errors import ConfigError, EntryError, PipelineError
from data_pipeline.files import remove_temporaries, write_json, write_text
from data_pipeline.labels.potential import check_potential
from data_pipeline.ledger import FAILED, OK, REJECTED, Ledger, Record, sha256
from data_pipeline.schema import ENTRY_ATTRIBUTES, ENTRY_FIELDS
from data_pipeline.sequences.cluster import Clusters, cluster, cluster_by_file
from data_pipeline.sequences.similarity import can_compare
from data_pipeline.sequences.split import Plan, check_leakage
from data_pipeline.sequences.split import plan as plan_split
from data_pipeline.sources import open_source
from data_pipeline.sources.clusters import ClusterFile, open_clusters
from data_pipeline.sources.http import Client
from data_pipeline.stages import label_entry, prepare_entry, relax_entry, sample_entry
from data_pipeline.systems.build import force_field, require_point_charges, single_thread_platform
from data_pipeline.tasks import Tasks
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


def run(
    config: PipelineConfig, folder: str | Path, *, progress: Progress | None = None, retry_failed: bool = False
) -> dict[str, Any]:
    """Run every stage that is not done yet.

    Parameters
    ----------
    config
        The configuration; its resolved copy is stored in the run folder.
    folder
        The run folder.
    progress
        Who is told how far it is.
    retry_failed
        Whether entries that were rejected or failed after selection are tried again.

    Returns
    -------
    The summary, which is also written to summary.json.

    Raises
    ------
    ConfigError
        If the configuration cannot work, or another run holds the folder.
    PipelineError
        If nothing is left to pack, or the disk is full.
    """
    folder = Path(folder).resolve()  # the workers of a cluster live elsewhere
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        ledger = Ledger(folder / "ledger.jsonl")
        try:
            remove_temporaries(folder)
            write_text(folder / "config.yaml", dump_config(config))
            _check_machine(config)
            with _open_engine(config, folder) as engine:
                summary = _Run(config, folder, ledger, engine, progress or Silent(), retry_failed).all_stages()
            remove_temporaries(folder)
            return summary
        except BaseException as error:
            log.error("stopped: %s: %s", type(error).__name__, error)
            raise
        finally:
            ledger.close()
            log.removeHandler(handler)
            handler.close()


class _Run:
    def __init__(
        self,
        config: PipelineConfig,
        folder: Path,
        ledger: Ledger,
        engine: Engine,
        progress: Progress,
        retry_failed: bool,
    ) -> None:
        self.config, self.folder, self.ledger, self.engine = config, folder, ledger, engine
        self.progress, self.retry_failed = progress, retry_failed
        self.versions = versions()
        if config.label.potential is not None:
            self.versions["openmmml"] = version("openmmml")
        self.seconds: dict[str, float] = {}
        self.records: list[Record] = []
        self.source = ""

    def all_stages(self) -> dict[str, Any]:
        log.info("run of %s begins: %s", self.config.name, json.dumps(self.versions))
        started = time.monotonic()
        criteria = self.config.select.criteria()
        source = open_source(self.config.source.kind, self.config.source.path, **self.config.source.options(criteria))
        wanted = self.config.select.wanted()
        self.progress.begin("select", len(source.ids() if wanted is None else wanted), 0)
        self.source = source.describe()
        log.info("source: %s", self.source)
        selection = select(source, self.config.select, self._record)
        self.progress.end()
        self._took("select", started)
        self._need(selection.kept, "selected")

        started = time.monotonic()
        clusters = self._cluster(selection)
        if self.config.select.one_per_cluster:
            selection = best_of_clusters(selection, clusters.clusters)
        plan = self._plan(clusters, selection)
        self._took("cluster, split", started)

        tasks = Tasks(self.config, self.folder, self.versions)
        lost: set[str] = set()
        while True:  # whoever cannot be prepared is replaced, as long as the split's clusters have others
            splits = self._split(plan, selection, lost)
            chosen = selection.keep(set(splits))
            prepared = self._stage("prepare", prepare_entry, tasks.prepare(chosen), chosen)
            relaxed = self._stage("relax", relax_entry, tasks.relax(prepared), chosen)
            missing = set(splits) - set(relaxed)
            if not missing:
                break
            lost |= missing
            if set(plan.chosen(lost)) <= set(splits):
                break
        selection = chosen
        write_json(self.folder / "selection.json", selection.as_json())
        self._need(relaxed, "prepared")

        datasets: dict[str, Any] = {}
        for protocol in self.config.sample.protocols:
            to_sample = tasks.sample(protocol, prepared, relaxed)
            frames = self._stage(f"sample {protocol}", sample_entry, to_sample, selection)
            to_label = tasks.label(protocol, prepared, frames)
            labelled = self._stage(f"label {protocol}", label_entry, to_label, selection)
            self._need(labelled, "labelled")
            started = time.monotonic()
            path = self._pack(protocol, labelled, selection, clusters, splits)
            datasets[protocol] = {"dataset": str(path.resolve())}
            self._took(f"pack {protocol}", started)
        return self._summary(selection, clusters, datasets)

    def _cluster(self, selection: Selection) -> Clusters:
        settings = self.config.split
        sequences = {name: facts.sequence for name, facts in selection.kept.items()}
        if settings.method == "rcsb":
            entities = {name: facts.entity_id for name, facts in selection.kept.items()}
            clusters = cluster_by_file(sequences, entities, self._rcsb_clusters(), settings.identity)
        else:
            clusters = cluster(sequences, settings.identity, settings.method)
        members = {name: list(ids) for name, ids in clusters.clusters.items()}
        write_json(
            self.folder / "clusters.json",
            {
                "method": clusters.method,
                "version": clusters.version,
                "identity": settings.identity,
                "clusters": members,
            },
        )
        self.versions[clusters.method] = clusters.version
        return clusters

    def _rcsb_clusters(self) -> ClusterFile:
        source = self.config.source
        cache = Path(source.path) if source.kind == "rcsb" else self.folder
        return open_clusters(self.config.split.clusters, cache, Client(source.contact, source.requests_per_second))

    def _plan(self, clusters: Clusters, selection: Selection) -> Plan:
        kept = {
            name: [entry for entry in entries if entry in selection.kept]
            for name, entries in clusters.clusters.items()
            if any(entry in selection.kept for entry in entries)
        }
        settings, select = self.config.split, self.config.select
        sizes = {name: facts.n_residues for name, facts in selection.kept.items()}
        return plan_split(
            kept,
            counts=settings.counts,
            fractions=None if settings.counts else settings.fractions,
            draw=settings.draw,
            limit=select.limit,
            size_of=sizes if select.prefer == "smallest" else None,
            seed=self.config.seed,
        )

    def _split(self, plan: Plan, selection: Selection, lost: set[str]) -> dict[str, str]:
        splits = plan.chosen(lost)
        sequences = {name: selection.kept[name].sequence for name in splits}
        if self.config.split.method == "rcsb" and not can_compare(len(sequences)):
            log.warning("nothing is installed that can compare %d sequences: leakage is not checked", len(sequences))
            leaks = []
        else:
            leaks = check_leakage(sequences, splits, self.config.split.identity, self.config.split.method)
        if leaks:
            pairs = ", ".join(f"{leak.first} ({leak.first_split}) and {leak.second}" for leak in leaks[:5])
            raise PipelineError(f"{len(leaks)} pairs of alike sequences lie in different splits: {pairs}")
        write_json(self.folder / "split.json", splits)
        return splits

    def _stage(self, name: str, function: Any, tasks: list[Task], selection: Selection) -> dict[str, Record]:
        started = time.monotonic()
        finished = {
            task.entry: record
            for task in tasks
            if (record := self.ledger.finished(task.entry, name, task.key, retry_failed=self.retry_failed))
        }
        todo = [task for task in tasks if task.entry not in finished]
        # The largest first: at the end no worker waits long for the others.
        todo.sort(key=lambda task: -selection.kept[task.entry].n_residues)
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
        labelled: dict[str, Record],
        selection: Selection,
        clusters: Clusters,
        splits: dict[str, str],
    ) -> Path:
        cluster_of = {entry: name for name, entries in clusters.clusters.items() for entry in entries}
        attributes = {
            "protocol": protocol,
            "force_field": self.config.label.reference.name,
            "config": json.dumps(self.config.recipe(), sort_keys=True),
            "versions": json.dumps(self.versions, sort_keys=True),
        }
        assignment = {entry: [splits[entry], cluster_of[entry]] for entry in labelled}
        inputs = [record.output_sha256 for record in labelled.values()]
        key = stage_key("pack", {**attributes, "assignment": assignment}, *inputs)
        output = DATASET if len(self.config.sample.protocols) == 1 else f"{protocol}/{DATASET}"
        stage = f"pack {protocol}"
        self.progress.begin(stage, len(labelled), 0)
        if self.ledger.finished("dataset", stage, key) is None:
            started = time.monotonic()
            packed = self._packed(labelled, selection, cluster_of, splits)
            pack(packed, self.folder / output, attributes, compression=self.config.pack.compression)
            seconds = round(time.monotonic() - started, 2)
            digest = sha256(self.folder / output)
            self.ledger.add(Record("dataset", stage, OK, key=key, output=output, output_sha256=digest, seconds=seconds))
        self.progress.end()
        return self.folder / output

    def _packed(
        self, labelled: dict[str, Record], selection: Selection, cluster_of: dict[str, str], splits: dict[str, str]
    ) -> Iterator[PackedEntry]:
        for entry, record in labelled.items():
            with np.load(self.folder / record.output, allow_pickle=False) as arrays:
                fields = {field.name: arrays[field.name] for field in ENTRY_FIELDS if field.name in arrays}
                attributes = {one.name: arrays[one.name] for one in ENTRY_ATTRIBUTES if one.name in arrays}
            yield PackedEntry(
                entry,
                fields,
                {
                    "split": splits[entry],
                    "cluster": cluster_of[entry],
                    "sequence": selection.kept[entry].sequence,
                    "source_file": selection.paths[entry].name,
                    "source_sha256": selection.sha256[entry],
                    "seed": entry_seed(self.config.seed, entry),
                    **attributes,
                },
            )
            self.progress.advance(Record(entry, "pack", OK))

    def _summary(self, selection: Selection, clusters: Clusters, datasets: dict[str, Any]) -> dict[str, Any]:
        lost = [record for record in self.records if record.status != OK]
        summary = {
            "name": self.config.name,
            "datasets": datasets,
            "source": self.source,
            "seen": selection.n_seen,
            "kept": len(selection.kept),
            "left_out": selection.n_left_out,
            "rejected": dict(
                Counter(f"{r.stage}: {r.error_class}" for r in lost if r.status == REJECTED).most_common()
            ),
            "failed": dict(Counter(f"{r.stage}: {r.error_class}" for r in lost if r.status == FAILED).most_common()),
            "rejections": [
                {"entry": r.entry, "stage": r.stage, "status": r.status, "class": r.error_class, "reason": r.reason}
                for r in sorted(lost, key=lambda r: (r.stage, r.entry))
            ],
            "clusters": len(clusters.clusters),
            "cluster_method": f"{clusters.method} {clusters.version}",
            "seconds": self.seconds,
            "versions": self.versions,
        }
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


def _check_machine(config: PipelineConfig) -> None:
    """Refuse what would fail in every entry: a platform, device or force field that OpenMM does not have."""
    try:
        if config.dask is None:  # else the cluster's workers are asked
            single_thread_platform(config.platform, *config.device[:1])
        for files in (config.label.force_field, config.label.mm_force_field):
            force_field(tuple(files))
        require_point_charges(config.sampling_force_field)
        if config.label.potential is not None:
            check_potential(config.label.potential.name)
    except EntryError as error:
        raise ConfigError(str(error)) from None


def _open_engine(config: PipelineConfig, folder: Path) -> Engine:
    if config.source.kind != "mirror":  # what will be fetched must be in sight of a cluster's workers, too
        Path(config.source.path).mkdir(parents=True, exist_ok=True)
    named = (
        config.source.path,
        *config.label.force_field,
        *config.label.mm_force_field,
        *config.sampling_force_field,
    )
    reads = [Path(name) for name in named if Path(name).exists()]
    return open_engine(config.dask, config.workers, config.limits(), folder, reads)


class _only_one:
    """Holds a run folder's lock, which the operating system drops when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"

    def __enter__(self) -> None:
        self.file = self.path.open("w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise ConfigError(
                f"another run is at work in {self.path.parent}; wait for it, or give another folder with -o"
            ) from error

    def __exit__(self, *exception: object) -> None:
        self.file.close()
