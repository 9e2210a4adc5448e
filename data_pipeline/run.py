"""The stages in order, over a run folder that can be killed and resumed at any moment."""

from __future__ import annotations

import fcntl
import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipeline.config import PipelineConfig, dump_config, entry_seed
from data_pipeline.engine import Engine, open_engine
from data_pipeline.entries.selection import Selection, best_of_clusters, select
from data_pipeline.errors import ConfigError, EntryError, PipelineError
from data_pipeline.files import remove_temporaries, write_json, write_text
from data_pipeline.labels.potential import check_potential
from data_pipeline.ledger import Ledger, Record
from data_pipeline.refinement.config import RefinementConfig
from data_pipeline.refinement.run import RefinementRun
from data_pipeline.runner import DATASET, Progress, Runner, Silent, log
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


def run(
    config: PipelineConfig | RefinementConfig,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    retry_failed: bool = False,
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
            if isinstance(config, PipelineConfig):
                _check_machine(config)
            with _open_engine(config, folder) as engine:
                work = (folder, ledger, engine, progress or Silent(), retry_failed)
                summary = (
                    RefinementRun(config, *work) if isinstance(config, RefinementConfig) else _ForcesRun(config, *work)
                ).all_stages()
            remove_temporaries(folder)
            return summary
        except BaseException as error:
            log.error("stopped: %s: %s", type(error).__name__, error)
            raise
        finally:
            ledger.close()
            log.removeHandler(handler)
            handler.close()


class _ForcesRun(Runner):
    """Entries of a source -> reference forces."""

    def __init__(self, config: PipelineConfig, *others: Any) -> None:
        super().__init__(config, *others)
        self.config = config
        if config.label.potential is not None:
            self.versions["openmmml"] = version("openmmml")

    def all_stages(self) -> dict[str, Any]:
        self._begin()
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

        def size(entry: str) -> float:
            return selection.kept[entry].n_residues

        while True:  # whoever cannot be prepared is replaced, as long as the split's clusters have others
            splits = self._split(plan, selection, lost)
            chosen = selection.keep(set(splits))
            prepared = self._stage("prepare", prepare_entry, tasks.prepare(chosen), size)
            relaxed = self._stage("relax", relax_entry, tasks.relax(prepared), size)
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
            frames = self._stage(f"sample {protocol}", sample_entry, to_sample, size)
            to_label = tasks.label(protocol, prepared, frames)
            labelled = self._stage(f"label {protocol}", label_entry, to_label, size)
            self._need(labelled, "labelled")
            output = DATASET if len(self.config.sample.protocols) == 1 else f"{protocol}/{DATASET}"
            own = self._attributes(labelled, selection, clusters, splits)
            assignment = {entry: [values["split"], values["cluster"]] for entry, values in own.items()}
            file = {"force_field": self.config.label.reference.name}
            path = self._pack(protocol, labelled, file, own, assignment, output)
            datasets[protocol] = {"dataset": str(path.resolve())}
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

    def _attributes(
        self, labelled: dict[str, Record], selection: Selection, clusters: Clusters, splits: dict[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Return the attributes of each entry that are known before it is prepared."""
        cluster_of = {entry: name for name, entries in clusters.clusters.items() for entry in entries}
        return {
            entry: {
                "split": splits[entry],
                "cluster": cluster_of[entry],
                "sequence": selection.kept[entry].sequence,
                "source_file": selection.paths[entry].name,
                "source_sha256": selection.sha256[entry],
                "seed": entry_seed(self.config.seed, entry),
            }
            for entry in labelled
        }

    def _summary(self, selection: Selection, clusters: Clusters, datasets: dict[str, Any]) -> dict[str, Any]:
        summary = {
            "name": self.config.name,
            "datasets": datasets,
            "source": self.source,
            "seen": selection.n_seen,
            "kept": len(selection.kept),
            "left_out": selection.n_left_out,
            **self._lost(),
            "clusters": len(clusters.clusters),
            "cluster_method": f"{clusters.method} {clusters.version}",
            "seconds": self.seconds,
            "versions": self.versions,
        }
        return self._finish(summary, datasets)


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


def _open_engine(config: PipelineConfig | RefinementConfig, folder: Path) -> Engine:
    named = [config.source.path]
    if isinstance(config, PipelineConfig):
        if config.source.kind != "mirror":  # what will be fetched must be in sight of a cluster's workers, too
            Path(config.source.path).mkdir(parents=True, exist_ok=True)
        named += [*config.label.force_field, *config.label.mm_force_field, *config.sampling_force_field]
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
