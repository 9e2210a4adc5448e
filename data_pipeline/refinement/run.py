"""The run of the task refinement: a table of pairs -> labelled candidates -> dataset.h5."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from data_pipeline.config import entry_seed, stage_key
from data_pipeline.engine import Task
from data_pipeline.errors import PipelineError
from data_pipeline.files import write_json
from data_pipeline.ledger import OK, REJECTED, Record, sha256
from data_pipeline.refinement.config import RefinementConfig
from data_pipeline.refinement.pairs import Pair, read_pairs, shared_chains, spread
from data_pipeline.refinement.stages import label_pair
from data_pipeline.runner import Runner, log
from data_pipeline.schema import REFINEMENT
from data_pipeline.stages import read_arrays

PROTOCOL = "candidates"
"""Value of the file attribute ``protocol``."""

COUNTED = ("renamed_residues", "missing_residues", "degenerate_atoms")
"""Attributes of entries that the summary adds up."""


class RefinementRun(Runner):
    """Pairs -> refinement vectors; parameters as of `Runner`."""

    def __init__(self, config: RefinementConfig, *others: Any) -> None:
        super().__init__(config, *others)
        self.config = config

    def all_stages(self) -> dict[str, Any]:
        """Run what is not done yet; return the summary."""
        self._begin()
        started = time.monotonic()
        named, rows_left_out = read_pairs(self.config.source)
        self.source = (
            f"{len(named)} candidates of {len({pair.cluster for pair in named})} natives in {self.config.source.path}"
        )
        log.info("source: %s", self.source)
        wanted = spread(named, self.config.limit)
        hashes = self._select(wanted)
        pairs = {pair.entry: pair for pair in wanted if pair.entry in hashes}
        self._need(pairs, "selected")
        self._took("select", started)

        tasks = [self._task(pair, *hashes[entry]) for entry, pair in pairs.items()]
        labelled = self._stage("label", label_pair, tasks, lambda entry: pairs[entry].candidate.stat().st_size)
        self._need(labelled, "labelled")
        splits = {entry: pairs[entry].split for entry in labelled}
        counts = self._look_through(labelled, splits)
        write_json(self.folder / "split.json", splits)
        own = {
            entry: {
                "split": pairs[entry].split,
                "cluster": pairs[entry].cluster,
                "source_file": pairs[entry].candidate.name,
                "source_sha256": hashes[entry][0],
            }
            for entry in labelled
        }
        path = self._pack(PROTOCOL, labelled, {"task": REFINEMENT}, own, own)
        datasets = {REFINEMENT: {"dataset": str(path.resolve())}}
        summary = {
            "name": self.config.name,
            "datasets": datasets,
            "source": self.source,
            "seen": len(named),
            "kept": len(labelled),
            "left_out": len(named) - len(wanted),
            "rows_left_out": rows_left_out,
            **self._lost(),
            "clusters": len({pairs[entry].cluster for entry in labelled}),
            "cluster_method": "the table",
            "counts": counts,
            "seconds": self.seconds,
            "versions": self.versions,
        }
        return self._finish(summary, datasets)

    def _select(self, pairs: list[Pair]) -> dict[str, tuple[str, str]]:
        """Return the hashes of candidate and native of each pair whose files are there."""
        self.progress.begin("select", len(pairs), 0)
        hashes: dict[str, tuple[str, str]] = {}
        known: dict[Path, str] = {}
        for pair in pairs:
            try:
                if pair.native not in known:
                    known[pair.native] = sha256(pair.native)
                hashes[pair.entry] = sha256(pair.candidate), known[pair.native]
                record = Record(pair.entry, "select", OK)
            except OSError as error:
                reason = f"cannot read {error.filename}: {error.strerror}; see the table's row"
                record = Record(pair.entry, "select", REJECTED, reason, "not_found")
            self._record(record)
        self.progress.end()
        return hashes

    def _task(self, pair: Pair, candidate_sha256: str, native_sha256: str) -> Task:
        settings: dict[str, Any] = {**self.config.match.values(), **self.config.vectors.values()}
        augment = self.config.augment
        if pair.split == "train" and augment.copies:
            settings["augment"] = {**augment.values(), "seed": entry_seed(augment.seed, pair.entry)}
        makers = {"data-pipeline": self.versions["data-pipeline"]}
        key = stage_key("label refinement", {**settings, "made with": makers}, candidate_sha256, native_sha256)
        arguments = {
            "candidate": str(pair.candidate),
            "native": str(pair.native),
            "native_sha256": native_sha256,
            "settings": settings,
        }
        return Task(pair.entry, "label", key, f"labelled/{pair.entry}.npz", str(self.folder), arguments)

    def _look_through(self, labelled: dict[str, Record], splits: dict[str, str]) -> dict[str, int]:
        """Refuse a molecule that is in two splits; return what the labels counted, over all candidates."""
        sequences: dict[str, str] = {}
        counts: Counter[str] = Counter()
        names = ("sequence", "has_partner", "target_mask", "native_atoms", *COUNTED)
        for entry, record in labelled.items():
            found = dict(zip(names, read_arrays(self.folder / record.output, *names), strict=True))
            sequences[entry] = str(found["sequence"])
            n_pairs = int(found["has_partner"].sum())
            counts.update(  # and not +=, which drops what is zero
                atoms=len(found["has_partner"]),
                targets=int(found["target_mask"].sum()),
                atoms_without_partner=len(found["has_partner"]) - n_pairs,
                native_atoms_without_partner=int(found["native_atoms"]) - n_pairs,
                **{name: int(found[name]) for name in COUNTED},
            )
        shared = shared_chains(sequences, splits)
        if shared:
            raise PipelineError(
                f"{len(shared)} molecules lie in more than one split: {'; '.join(shared[:5])}. Give them one split in "
                "the table"
            )
        return dict(counts)
