"""RCSB's clusters: which entries they join, what a comparison adds, and where the file comes from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from rcsb_server import Archive, Reply, serve

from data_pipeline.config import SplitConfig, load_config
from data_pipeline.entries.facts import inspect
from data_pipeline.errors import ConfigError
from data_pipeline.run import Silent, run
from data_pipeline.sequences import similarity
from data_pipeline.sequences.cluster import cluster_by_file
from data_pipeline.sequences.split import check_leakage, split
from data_pipeline.sources.clusters import ClusterFile, clusters_url, open_clusters
from data_pipeline.sources.http import Client, FetchError

LINES = """\
9AAA_1 1AAA_2 AF_AFP12345F1_1 1BBB_1
MA_MABAKCEPC0001_1 pdb_10001ccc_1 1DDD_1
1EEE_1
1AAA_1 1EEE_2
"""


def chain(seed: int, length: int = 80) -> str:
    return "".join(random.Random(seed).choices("ACDEFGHIKLMNPQRSTVWY", k=length))


def relative(sequence: str) -> str:
    """Return a sequence two thirds of which are the same."""
    other = chain(len(sequence) + sum(map(ord, sequence)), len(sequence))
    return "".join(other[n] if n % 3 == 0 else residue for n, residue in enumerate(sequence))


@pytest.fixture
def file(tmp_path: Path) -> ClusterFile:
    path = tmp_path / "clusters-by-entity-30.txt"
    path.write_text(LINES)
    return open_clusters(str(path), tmp_path, Client())


SEQUENCES = {name: chain(n) for n, name in enumerate(("1aaa", "1bbb", "1ddd", "1eee", "pdb_10001ccc"))}
ENTITIES = {"1aaa": "2", "1bbb": "1", "1ddd": "1", "1eee": "1", "pdb_10001ccc": "1"}


def test_the_entity_of_the_protein_decides(file: ClusterFile) -> None:
    """Entries share a cluster when their proteins' entities do; models and unknown entries play no part."""
    found = cluster_by_file(SEQUENCES, ENTITIES, file, 0.3)
    assert found.clusters == {"1aaa": ["1aaa", "1bbb"], "1ddd": ["1ddd", "pdb_10001ccc"], "1eee": ["1eee"]}
    assert found.method == "rcsb" and "holds 5 of 5 entries" in found.version and file.version in found.version
    other = cluster_by_file(SEQUENCES, ENTITIES | {"1aaa": "1", "1eee": "2"}, file, 0.3)
    assert other.clusters["1aaa"] == ["1aaa", "1eee"] and other.clusters["1bbb"] == ["1bbb"]


def test_what_the_file_lacks_is_compared(file: ClusterFile) -> None:
    """A relative that the file does not hold, or holds apart, joins; a stranger stays alone; so nothing leaks."""
    sequences = SEQUENCES | {"2new": relative(SEQUENCES["1bbb"]), "2alo": chain(99), "1eee": relative(chain(2))}
    entities = ENTITIES | {"2new": "1", "2alo": ""}
    found = cluster_by_file(sequences, entities, file, 0.3)
    assert found.clusters == {
        "1aaa": ["1aaa", "1bbb", "2new"],
        "1ddd": ["1ddd", "1eee", "pdb_10001ccc"],
        "2alo": ["2alo"],
    }
    assert "holds 5 of 7 entries" in found.version
    for seed in range(5):
        splits = split(found.clusters, fractions={"train": 1, "validation": 1, "test": 1}, seed=seed)
        assert check_leakage(sequences, splits, 0.3, "rcsb") == []
    file_alone = {entry: [entry] for entry in sequences} | {"1aaa": ["1aaa", "1bbb"]}
    del file_alone["1bbb"]
    leaks = [
        check_leakage(sequences, split(file_alone, fractions={"train": 1, "test": 1}, seed=seed), 0.3, "rcsb")
        for seed in range(5)
    ]
    assert any(leaks), "the check sees what the file alone would have let through"


def test_without_a_program_the_file_alone_decides_and_that_is_said(
    file: ClusterFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many sequences for what is installed: RCSB's clusters and singletons, and a version that says so aloud."""
    monkeypatch.setattr(similarity, "MAX_PYTHON", 3)
    monkeypatch.setattr(similarity.shutil, "which", lambda program: None)
    sequences = SEQUENCES | {"2new": relative(SEQUENCES["1bbb"])}
    found = cluster_by_file(sequences, ENTITIES | {"2new": "1"}, file, 0.3)
    assert found.clusters["1aaa"] == ["1aaa", "1bbb"] and found.clusters["2new"] == ["2new"]
    assert "NOT compared" in found.version and "apt-get install" in found.version and found.pairs == []


def test_the_entity_comes_from_the_entry(mirror: Path) -> None:
    """An mmCIF file names it; a PDB file's only polymer is RCSB's entity 1, and of several nobody knows."""
    assert inspect(mirror / "1ubq.cif.gz").entity_id == "1"
    assert inspect(mirror / "1crn.pdb.gz").entity_id == inspect(mirror / "1crn.cif.gz").entity_id == "1"
    assert inspect(mirror / "1gua.pdb.gz").n_chains == 2 and inspect(mirror / "1gua.pdb.gz").entity_id == ""


def test_the_entity_is_the_proteins_own(mirror: Path, tmp_path: Path) -> None:
    """Where the protein is not the first molecule, its own number is read, not 1."""
    import gemmi

    document = gemmi.cif.read(str(mirror / "1ubq.cif.gz"))
    block = document[0]
    for tag in ("_entity.id", "_entity_poly.entity_id", "_entity_poly_seq.entity_id", "_struct_asym.entity_id"):
        for row in block.find([tag]):
            row[0] = {"1": "7", "7": "1"}.get(row[0], row[0])
    for row in block.find(["_atom_site.label_entity_id"]):
        row[0] = {"1": "7", "7": "1"}.get(row[0], row[0])
    (tmp_path / "1ubq.cif").write_text(document.as_string())
    assert inspect(tmp_path / "1ubq.cif").entity_id == "7"


# --- where the file comes from


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(Archive(files={"clusters-by-entity-30.txt": LINES.encode()})) as server:
        yield server


def fast() -> Client:
    return Client("", 1000.0, first_wait=0.002)


def test_the_file_is_fetched_once_and_dated(archive: Archive, tmp_path: Path) -> None:
    """The date is the server's; the kept file serves until it is damaged or removed; troubles are survived."""
    address = "/download/clusters-by-entity-30.txt"
    archive.troubles[address] = [Reply(200, b"<html>busy</html>"), Reply(429), Reply(200, LINES.encode()[:30])]
    archive.troubles[address][2].headers["Content-Length"] = str(len(LINES))
    url = archive.url + address
    first = open_clusters(url, tmp_path, fast())
    assert first.path.read_text() == LINES and "clusters-by-entity-30.txt of 2026-11-18, sha256" in first.version
    assert archive.asked(address) == 4
    assert open_clusters(url, tmp_path, fast()) == first and archive.asked(address) == 4
    first.path.write_text(LINES[:40])
    assert open_clusters(url, tmp_path, fast()) == first and archive.asked(address) == 5
    (tmp_path / "clusters-by-entity-30.txt.json").unlink()
    assert open_clusters(url, tmp_path, fast()) == first and archive.asked(address) == 6


def test_what_is_no_file_of_clusters_is_refused(archive: Archive, tmp_path: Path) -> None:
    """A web page, another file, nothing or no file at all: told, with what is wanted."""
    url = f"{archive.url}/download/clusters-by-entity-30.txt"
    for body in (b"<html>moved</html>", b"1ubq 1crn\n", b""):
        archive.files["clusters-by-entity-30.txt"] = body
        with pytest.raises(FetchError, match="arrived wrong 3 times"):
            open_clusters(url, tmp_path, fast())
    with pytest.raises(FetchError, match="does not exist"):
        open_clusters(url + "x", tmp_path, fast())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ids.txt").write_text("1ubq 1crn\n")
    with pytest.raises(ConfigError, match="line 1: '1ubq' is no member of a cluster"):
        cluster_by_file(SEQUENCES, ENTITIES, open_clusters(str(tmp_path / "ids.txt"), tmp_path, fast()), 0.3)
    with pytest.raises(ConfigError, match="no file of clusters at"):
        open_clusters(str(tmp_path / "none.txt"), tmp_path, fast())


def test_settings_take_rcsbs_identities(tmp_path: Path) -> None:
    """The identity defaults to 30 %, RCSB's lowest; 20 % does not exist there; the file is RCSB's unless named."""
    settings = SplitConfig(method="rcsb")
    assert settings.identity == 0.3 and settings.clusters == clusters_url(0.3)
    assert clusters_url(0.3).endswith("/clusters-by-entity-30.txt")
    assert clusters_url(0.95).endswith("/clusters-by-entity-95.txt")
    assert SplitConfig(method="rcsb", identity=0.7).clusters.endswith("/clusters-by-entity-70.txt")
    assert SplitConfig().identity == 0.2
    for split_settings, words in (
        ("{method: rcsb, identity: 0.2}", "no clusters at identity 0.2; allowed with method rcsb: 0.3, 0.4"),
        ("{cluster_file: x.txt}", "cluster_file is for method rcsb"),
    ):
        (tmp_path / "x.yaml").write_text(f"name: x\nsource: {{path: .}}\nsplit: {split_settings}\n")
        with pytest.raises(ConfigError, match=words):
            load_config(tmp_path / "x.yaml")


CONFIG = """
name: clustered
source: {{path: {mirror}}}
select: {{ids: [1crn, 1ajj, 2ovo]}}
split: {{method: rcsb, cluster_file: clusters.txt, train: 0.5, validation: 0, test: 0.5}}
prepare: {{padding: 0.7}}
sample: {{protocol: minimized, damping_time: 0.01, relax_tolerance: 1000}}
workers: 1
"""


class _UntilPrepare(Silent):
    """Interrupts a run when preparation begins."""

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Interrupt."""
        if stage == "prepare":
            raise KeyboardInterrupt


def test_a_run_records_rcsbs_clusters(mirror: Path, tmp_path: Path) -> None:
    """Strangers that the file puts together stay together through the split; file and hash are recorded."""
    (tmp_path / "clusters.txt").write_text("1AJJ_1 4XYZ_1 2OVO_1\n1CRN_1\n")
    (tmp_path / "clustered.yaml").write_text(CONFIG.format(mirror=mirror))
    with pytest.raises(KeyboardInterrupt):
        run(load_config(tmp_path / "clustered.yaml"), tmp_path / "run", progress=_UntilPrepare())
    clusters = json.loads((tmp_path / "run" / "clusters.json").read_text())
    assert clusters["clusters"] == {"1ajj": ["1ajj", "2ovo"], "1crn": ["1crn"]}
    assert (clusters["method"], clusters["identity"]) == ("rcsb", 0.3)
    assert clusters["version"].startswith("clusters.txt, sha256 ")
    splits = json.loads((tmp_path / "run" / "split.json").read_text())
    assert splits["1ajj"] == splits["2ovo"] != splits["1crn"]
