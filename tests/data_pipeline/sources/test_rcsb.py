"""RCSB as a source, against a server on this machine that has the real one's habits and troubles."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from rcsb_server import GOOD, Archive, Reply, mmcif, serve

from data_pipeline.config import load_config
from data_pipeline.dataset.check import check
from data_pipeline.entries.curate import Criteria
from data_pipeline.entries.selection import select
from data_pipeline.errors import ConfigError, EntryError, PipelineError
from data_pipeline.run import run
from data_pipeline.sources import http, open_source, search
from data_pipeline.sources.http import Client, FetchError, Pace
from data_pipeline.sources.rcsb import DOWN_AFTER, SEARCH_URL, Rcsb


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def archive() -> Iterator[Archive]:
    """Three good entries."""
    ids = ("1AAA", "1BBB", "pdb_10001ccc")
    entries = {name: dict(GOOD) for name in ids}
    with serve(Archive(entries, {f"{name}.cif.gz": mmcif(name) for name in ids})) as server:
        yield server


def fast(**settings: Any) -> Client:
    """Return a client that backs off for milliseconds."""
    return Client("tests@example.org", 1000.0, first_wait=0.002, **settings)


def source(archive: Archive, cache: Path, client: Client | None = None, **options: Any) -> Rcsb:
    urls = {"search_url": archive.search_url, "download_url": archive.download_url}
    return Rcsb(cache, options.pop("criteria", Criteria()), client=client or fast(), **urls, **options)


# --- search


def test_the_query_asks_for_the_papers_criteria(archive: Archive, tmp_path: Path) -> None:
    """Entries at and beyond each limit are left out by the search: limits are strict where the criteria are."""
    beyond = {
        "2NUC": {"rcsb_entry_info.polymer_entity_count_protein": 0},
        "2NMR": {"exptl.method": "SOLUTION NMR"},
        "2RES": {"rcsb_entry_info.resolution_combined": 2.5},
        "2TWO": {"rcsb_entry_info.deposited_polymer_entity_instance_count": 2},
        "2BIG": {"rcsb_entry_info.deposited_polymer_monomer_count": 200},
    }
    archive.entries |= {name: GOOD | wrong for name, wrong in beyond.items()}
    archive.entries["2EDG"] = GOOD | {
        "rcsb_entry_info.resolution_combined": 2.49,
        "rcsb_entry_info.deposited_polymer_monomer_count": 199,
    }
    assert source(archive, tmp_path).ids() == ["1aaa", "1bbb", "2edg", "pdb_10001ccc"]
    lifted = Criteria(n_chains=None, max_residues=None, method=None, max_resolution=None)
    everything = source(archive, tmp_path, criteria=lifted).ids()
    assert set(everything) == {name.lower() for name in archive.entries} - {"2nuc"}, "it must contain protein"
    assert source(archive, tmp_path, criteria=Criteria(min_residues=51)).ids() == ["2edg"]
    # With two chains the criterion looks at the first, so the search must not look at the sum.
    archive.entries["2TWO"] = GOOD | {
        "rcsb_entry_info.deposited_polymer_entity_instance_count": 2,
        "rcsb_entry_info.deposited_polymer_monomer_count": 300,
    }
    assert source(archive, tmp_path, criteria=Criteria(n_chains=2)).ids() == ["2two"]


def test_pages_are_put_together(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More entries than a page holds are all found, none twice, whether or not the last page is full."""
    monkeypatch.setattr(search, "PAGE", 4)
    archive.max_rows = 4
    for number, n_entries in enumerate((8, 10)):
        archive.entries = {f"{n:04d}": dict(GOOD) for n in range(n_entries)}
        before = archive.asked("/search")
        assert source(archive, tmp_path / str(number)).ids() == sorted(name.lower() for name in archive.entries)
        assert archive.asked("/search") - before == -(-n_entries // 4)


def test_no_hit_is_an_empty_list(archive: Archive, tmp_path: Path) -> None:
    """Status 204 with an empty body means that nothing meets the criteria."""
    assert source(archive, tmp_path, criteria=Criteria(min_residues=1000)).ids() == []


def test_pages_that_do_not_fit_together_are_asked_for_again(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the archive changes between two pages, the whole search is repeated; when it never fits, that is said."""
    first = Reply(200, json.dumps({"total_count": 4, "result_set": ["1AAA"]}).encode())
    archive.troubles["/search"] = [first]
    assert len(source(archive, tmp_path).ids()) == 3
    archive.always["/search"] = first
    with pytest.raises(FetchError, match=r"announced 4 entries and named 1, 3 times"):
        source(archive, tmp_path / "other").ids()


@pytest.mark.parametrize("answer", [b"[1]", b'{"total_count": 1, "result_set": ["../../etc/passwd"]}'])
def test_an_answer_that_is_none_of_rcsbs_is_refused(archive: Archive, tmp_path: Path, answer: bytes) -> None:
    """Another JSON, or names that are no ids and would lead elsewhere as file names, end the search."""
    archive.always["/search"] = Reply(200, answer)
    with pytest.raises(FetchError, match=r"is this RCSB's search|no entry's id"):
        source(archive, tmp_path).ids()


def test_a_wrong_query_is_told_at_once(archive: Archive, tmp_path: Path) -> None:
    """Status 400 is not retried and its reason is passed on."""
    archive.always["/search"] = Reply(400, b'{"message": "attribute is unknown"}')
    with pytest.raises(FetchError, match=r"400.*attribute is unknown"):
        source(archive, tmp_path).ids()
    assert archive.asked("/search") == 1


def test_the_answer_is_kept_until_it_is_too_old_or_damaged(archive: Archive, tmp_path: Path) -> None:
    """A resumed run works on the same entries; another question, age, or a wrong hash asks again."""
    assert len(source(archive, tmp_path).ids()) == 3
    (kept,) = tmp_path.glob("search-*.json")
    answer = json.loads(kept.read_text())
    assert answer["ids"] == ["1aaa", "1bbb", "pdb_10001ccc"] and answer["url"] == archive.search_url
    assert answer["sha256"] == hashlib.sha256(b"1aaa\n1bbb\npdb_10001ccc\n").hexdigest()
    assert len(answer["query"]["nodes"]) == 5 and answer["date"] == time.strftime("%Y-%m-%d", time.gmtime())

    archive.entries["9NEW"] = dict(GOOD)
    assert len(source(archive, tmp_path).ids()) == 3
    assert len(source(archive, tmp_path, max_age=1).ids()) == 3
    assert archive.asked("/search") == 1
    kept.write_text(json.dumps(answer | {"ids": ["1aaa"]}))
    assert len(source(archive, tmp_path).ids()) == 4
    kept.write_text(json.dumps(answer | {"date": "2026-01-01"}))
    assert len(source(archive, tmp_path, max_age=1).ids()) == 4
    assert len(source(archive, tmp_path, max_age=0).ids()) == 4
    assert archive.asked("/search") == 4
    assert len(source(archive, tmp_path, criteria=Criteria(max_resolution=2.0)).ids()) == 4
    assert archive.asked("/search") == 5 and len(list(tmp_path.glob("search-*.json"))) == 2


def test_a_draw_is_the_same_everywhere_and_grows(archive: Archive, tmp_path: Path) -> None:
    """`max_entries` takes so many of the hits, a larger number those of a smaller one and more."""
    archive.entries = {f"{n:04d}": dict(GOOD) for n in range(50)}
    few, more = (source(archive, tmp_path / str(n), max_entries=n).ids() for n in (5, 20))
    assert len(few) == 5 and len(more) == 20 and set(few) < set(more) and more == sorted(more)


# --- patience


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(archive: Archive, tmp_path: Path, status: int) -> None:
    """Search and download survive an answer that says later, given once or twice."""
    archive.troubles["/search"] = [Reply(status)]
    archive.troubles["/download/1AAA.cif.gz"] = [Reply(status), Reply(status)]
    live = source(archive, tmp_path)
    assert len(live.ids()) == 3 and live.path("1aaa").read_bytes() == archive.files["1AAA.cif.gz"]
    assert archive.asked("/download/1AAA.cif.gz") == 3


class _Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(archive: Archive, form: str) -> None:
    """The wait that the server names, in seconds or as a date, passes before the next request."""
    value = "7" if form == "seconds" else formatdate(time.time() + 8, usegmt=True)
    archive.troubles["/search"] = [Reply(429, headers={"Retry-After": value})]
    clock = _Clock()
    Client(pace=Pace(4.0, clock, clock.sleep)).ask(archive.search_url, _question())
    assert sum(clock.slept) == pytest.approx(7, abs=1.1)


def test_without_retry_after_waits_double(archive: Archive) -> None:
    """Backing off takes 1, 2, 4 and 8 s; then the server counts as unreachable, and the message says what to do."""
    archive.always["/search"] = Reply(429)
    clock = _Clock()
    with pytest.raises(FetchError, match=r"5 attempts: status 429.*the same command goes on") as caught:
        Client(pace=Pace(1000.0, clock, clock.sleep)).ask(archive.search_url, _question())
    assert caught.value.kind == "unreachable"
    assert [seconds for seconds in clock.slept if seconds > 0.01] == [1, 2, 4, 8]


def test_a_server_that_asks_for_hours_is_left_alone(archive: Archive) -> None:
    """A Retry-After beyond the longest wait ends the attempt at once and says how long it asks for."""
    archive.always["/search"] = Reply(503, headers={"Retry-After": "7200"})
    with pytest.raises(FetchError, match="asks to wait 7200 s"):
        fast().ask(archive.search_url, _question())
    assert archive.asked("/search") == 1


def test_the_rate_holds_for_all_threads_together() -> None:
    """Ten requests at four a second, from five threads, take at least nine quarters of a second."""
    clock, lock, passed = _Clock(), threading.Lock(), []

    def sleep(seconds: float) -> None:
        with lock:
            clock.sleep(seconds)

    pace = Pace(4.0, clock, sleep)

    def ask_twice() -> None:
        for _ in range(2):
            pace.wait()
            passed.append(clock.now)

    threads = [threading.Thread(target=ask_twice) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 10 and clock.now - 100.0 >= 9 / 4 - 1e-9
    before = clock.now
    pace.pause(30)
    pace.wait()
    assert clock.now - before >= 30


def test_the_rate_holds_at_the_server(archive: Archive, tmp_path: Path) -> None:
    """Downloads in several threads arrive no faster than asked; with a pace ten times as fast they do."""
    names = [f"{n:04d}" for n in range(12)]
    archive.files = {f"{name}.cif.gz": mmcif(name) for name in names}
    took = {}
    for rate in (25.0, 250.0):
        began = len(archive.requests)
        live = source(archive, tmp_path / str(rate), Client(per_second=rate))
        assert [live.path(name).is_file() for name in live.ahead(names)] == [True] * 12
        times = [moment for moment, *_ in archive.requests[began:]]
        took[rate] = max(times) - min(times)
    assert took[25.0] >= 11 / 25 - 0.03 > took[250.0]


def test_the_client_says_who_it_is(archive: Archive, tmp_path: Path) -> None:
    """Every request has a User-Agent with the program and the contact."""
    live = source(archive, tmp_path)
    live.path(live.ids()[0])
    agents = [headers["User-Agent"] for _, _, headers, _ in archive.requests]
    assert len(agents) == 2
    assert all(agent.startswith("data-pipeline/") and "(tests@example.org)" in agent for agent in agents)


def _question() -> dict[str, Any]:
    query = search.search_query(Criteria())
    return {"query": query, "return_type": "entry", "request_options": {"paginate": {"start": 0, "rows": 10}}}


# --- downloads


def test_both_forms_of_an_id_are_fetched_and_the_cache_is_a_mirror(archive: Archive, tmp_path: Path) -> None:
    """Files lie as in a flat mirror, byte for byte as sent, and the hash is that of the file."""
    live = source(archive, tmp_path)
    for entry in live.ids():
        assert live.sha256(entry.upper()) == hashlib.sha256(live.path(entry).read_bytes()).hexdigest()
    assert live.path("pdb_00001aaa") == tmp_path / "1aaa.cif.gz"
    assert archive.asked("/download/pdb_10001ccc.cif.gz") == archive.asked("/download/1AAA.cif.gz") == 1
    mirror = open_source("mirror", tmp_path)
    assert mirror.ids() == live.ids()
    assert [mirror.sha256(entry) for entry in mirror.ids()] == [live.sha256(entry) for entry in live.ids()]


FILE = mmcif("1aaa", 3000)
DAMAGED = {
    "cut, length as announced": Reply(200, FILE[:-1000], {"Content-Length": str(len(FILE))}),
    "cut, length not announced": Reply(200, FILE[:-1000]),
    "cut by a proxy that packs again": Reply(200, gzip.compress(gzip.decompress(FILE)[:-2])),
    "wrong checksum": Reply(200, FILE[:-8] + bytes([FILE[-8] ^ 1]) + FILE[-7:]),
    "a flipped bit": Reply(200, FILE[:5000] + bytes([FILE[5000] ^ 4]) + FILE[5001:]),
    "another entry": Reply(200, mmcif("1bbb")),
    "a web page": Reply(200, b"<html>maintenance</html>"),
    "nothing": Reply(200, b""),
    "not packed": Reply(200, gzip.decompress(FILE)),
}


@pytest.mark.parametrize("trouble", DAMAGED)
def test_damage_on_the_way_is_noticed(archive: Archive, tmp_path: Path, trouble: str) -> None:
    """Each kind of damage is fetched again; when it comes three times the entry is given up and no file is left."""
    archive.files["1AAA.cif.gz"] = FILE
    address = "/download/1AAA.cif.gz"
    archive.troubles[address] = [DAMAGED[trouble]] * 2
    assert source(archive, tmp_path / "twice").path("1aaa").read_bytes() == FILE
    assert archive.asked(address) == 3
    archive.always[address] = DAMAGED[trouble]
    live = source(archive, tmp_path / "always")
    for _ in range(2):
        with pytest.raises(EntryError, match="arrived wrong 3 times") as caught:
            live.path("1aaa")
        assert caught.value.kind == "download"
    assert archive.asked(address) == 6, "not tried again in the same run"
    assert list((tmp_path / "always").iterdir()) == []
    assert live.path("1bbb").is_file(), "the others go on"


def test_a_slow_answer_is_cut_off_and_asked_for_again(archive: Archive, tmp_path: Path) -> None:
    """A server that hangs costs one attempt, not the run."""
    archive.troubles["/download/1AAA.cif.gz"] = [Reply(delay=5.0)]
    began = time.monotonic()
    assert source(archive, tmp_path, fast(timeout=0.2)).path("1aaa").is_file()
    assert time.monotonic() - began < 3


def test_a_file_that_never_ends_is_not_taken(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than any entry has are refused while they come; so is a bomb that unpacks to more."""
    monkeypatch.setattr("data_pipeline.sources.rcsb.MAX_BYTES", 1000)
    archive.files["1AAA.cif.gz"] = FILE
    with pytest.raises(EntryError, match="sends more than 1000 bytes"):
        source(archive, tmp_path).path("1aaa")
    monkeypatch.setattr("data_pipeline.entries.structure.MAX_BYTES", 10_000)
    archive.files["1BBB.cif.gz"] = gzip.compress(b" " * 100_000)
    with pytest.raises(EntryError, match="when unpacked"):
        source(archive, tmp_path).path("1bbb")
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_does_not_exist_is_not_found(archive: Archive, tmp_path: Path) -> None:
    """404 is asked once and said of that entry; what is no id is not asked at all."""
    live = source(archive, tmp_path)
    for entry in ("9zzz", "../1aaa"):
        with pytest.raises(EntryError) as caught:
            live.path(entry)
        assert caught.value.kind == "not_found"
    assert [path for _, path, _, _ in archive.requests] == ["/download/9ZZZ.cif.gz"]


def test_a_server_that_is_down_ends_the_run(archive: Archive, tmp_path: Path) -> None:
    """One entry out of reach is that entry's trouble; several in a row are the server's, and clearly said."""
    archive.always["/download/1AAA.cif.gz"] = Reply(500)
    live = source(archive, tmp_path)
    with pytest.raises(EntryError, match="could not be reached in 5 attempts"):
        live.path("1aaa")
    assert live.path("1bbb").is_file()
    nowhere = source(archive, tmp_path)
    archive.always |= {f"/download/{n:04d}.cif.gz": Reply(502) for n in range(DOWN_AFTER)}
    for n in range(DOWN_AFTER - 1):
        with pytest.raises(EntryError):
            nowhere.path(f"{n:04d}")
    with pytest.raises(PipelineError, match=rf"{DOWN_AFTER} entries in a row could not be had.*is kept in"):
        nowhere.path(f"{DOWN_AFTER - 1:04d}")
    closed = Rcsb(tmp_path / "closed", Criteria(), client=fast(), search_url="http://127.0.0.1:9/search")
    with pytest.raises(PipelineError, match=r"127\.0\.0\.1:9/search could not be reached.*Look at your connection"):
        closed.ids()


def test_what_is_there_and_sound_is_not_fetched_again(archive: Archive, tmp_path: Path) -> None:
    """A second run fetches nothing; a file that was damaged since, or lost, is fetched again."""
    address = "/download/1AAA.cif.gz"
    first = source(archive, tmp_path).sha256("1aaa")
    assert source(archive, tmp_path).sha256("1aaa") == first and archive.asked(address) == 1
    path = tmp_path / "1aaa.cif.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert source(archive, tmp_path).sha256("1aaa") == first and archive.asked(address) == 2
    path.unlink()
    assert source(archive, tmp_path).sha256("1aaa") == first and archive.asked(address) == 3
    path.write_bytes(mmcif("1aaa", 5))  # sound, but not what arrived
    assert source(archive, tmp_path).sha256("1aaa") == first and archive.asked(address) == 4


def test_a_file_whose_hash_was_not_noted_is_verified(archive: Archive, tmp_path: Path) -> None:
    """Killed between file and note, or in the note: a sound file is taken over, a damaged one fetched again."""
    address = "/download/1AAA.cif.gz"
    source(archive, tmp_path).path("1aaa")
    notes = tmp_path / "downloads.jsonl"
    notes.write_text(notes.read_text()[:-20])
    source(archive, tmp_path).path("1aaa")
    source(archive, tmp_path).path("1bbb")
    assert archive.asked(address) == 1
    assert {json.loads(line)["entry"] for line in notes.read_text().splitlines()[1:]} == {"1aaa", "1bbb"}
    notes.unlink()
    old, new = tmp_path / ".1aaa.cif.gz.12345678.tmp", tmp_path / ".1bbb.cif.gz.12345678.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    (tmp_path / "1aaa.cif.gz").write_bytes(FILE[:-500])
    assert source(archive, tmp_path).path("1aaa").read_bytes() == archive.files["1AAA.cif.gz"]
    assert archive.asked(address) == 2
    assert new.exists() and not old.exists(), "another run may be writing the new one"


FETCH = """
import sys
from data_pipeline.entries.curate import Criteria
from data_pipeline.sources.http import Client
from data_pipeline.sources.rcsb import Rcsb
url, cache = sys.argv[1:]
live = Rcsb(cache, Criteria(), search_url=url + "/search", download_url=url + "/download", client=Client(per_second=40))
for entry in live.ahead(live.ids()):
    live.path(entry)
"""


def test_a_killed_fetch_goes_on_where_it_stopped(archive: Archive, tmp_path: Path) -> None:
    """Kill -9 in the middle: what had arrived is not fetched again, the rest is, and the search is not repeated."""
    names = [f"{n:04d}" for n in range(40)]
    archive.entries = {name: dict(GOOD) for name in names}
    archive.files = {f"{name}.cif.gz": mmcif(name) for name in names}
    command = [sys.executable, "-c", FETCH, archive.url, str(tmp_path / "cache")]
    process = subprocess.Popen(command)
    while len(list((tmp_path / "cache").glob("[0-9]*.cif.gz"))) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = {path.name[:4] for path in (tmp_path / "cache").glob("[0-9]*.cif.gz")}
    assert 8 <= len(there) < 40, "killed too late to test anything"
    seen = len(archive.requests)
    subprocess.run(command, check=True, timeout=60)
    again = {path.removeprefix("/download/")[:4] for _, path, _, _ in archive.requests[seen:]}
    assert again == set(names) - there
    assert open_source("mirror", tmp_path / "cache").ids() == names


# --- configuration and whole runs

CONFIG = """
name: live
seed: 4
source:
  kind: rcsb
  path: cache
  search_url: {url}/search
  download_url: {url}/download
  requests_per_second: 20
  contact: tests@example.org
select: {select}
split: {{method: rcsb, cluster_file: {url}/download/clusters-by-entity-30.txt, train: 0.5, validation: 0, test: 0.5}}
prepare: {{padding: 0.7}}
sample: {{n_frames: 1, equilibration: 0.008, interval: 0.008, flexible_time: 0.002, relax_tolerance: 1000}}
workers: 1
"""


@pytest.fixture
def crambins(mirror: Path) -> Iterator[Archive]:
    """Two entries of the bundled mirror, and a third that the search names and nobody has."""
    files = {f"{name}.cif.gz": (mirror / f"{name.lower()}.cif.gz").read_bytes() for name in ("1CRN", "1FAS")}
    files["clusters-by-entity-30.txt"] = b"1FAS_1 AF_AFP12345F1_1\n1CRN_1\n"
    with serve(Archive({name: dict(GOOD) for name in ("1CRN", "1FAS", "9XXX")}, files)) as server:
        server.troubles["/search"] = [Reply(500)]
        server.troubles["/download/1CRN.cif.gz"] = [DAMAGED["a web page"]]
        yield server


def test_a_whole_run_from_rcsb(crambins: Archive, tmp_path: Path) -> None:
    """Search, clusters, downloads and every stage end in a good dataset; what is kept is not asked again."""
    path = tmp_path / "live.yaml"
    path.write_text(CONFIG.format(url=crambins.url, select="{}"))
    summary = run(load_config(path), tmp_path / "run")
    report = check(tmp_path / "run" / "dataset.h5")
    assert report.ok, report.problems
    assert sum(report.entries.values()) == 2
    assert {r["entry"]: r["class"] for r in summary["rejections"]} == {"9xxx": "not_found"}
    assert summary["cluster_method"].startswith("rcsb clusters-by-entity-30.txt of ")
    assert "holds 2 of 2 entries" in summary["cluster_method"] and "30% identity" in report.leakage
    assert (tmp_path / "cache" / "clusters-by-entity-30.txt").is_file()
    assert summary["source"].startswith("RCSB") and "3 entries found on" in summary["source"]
    asked = len(crambins.requests)
    again = run(load_config(path), tmp_path / "run")
    assert [path for _, path, _, _ in crambins.requests[asked:]] == ["/download/9XXX.cif.gz"]
    assert [m["datasheet"] for m in again["datasets"].values()] == [
        m["datasheet"] for m in summary["datasets"].values()
    ]


def test_a_list_of_ids_needs_no_search(crambins: Archive, tmp_path: Path) -> None:
    """With a list only the entries in it are fetched, one that nobody has is recorded, and the search is not asked."""
    crambins.troubles.clear()
    (tmp_path / "ids.txt").write_text("# two\n1crn,\nPDB_00009XXX # withdrawn\n")
    path = tmp_path / "live.yaml"
    path.write_text(CONFIG.format(url=crambins.url, select="{ids_file: ids.txt}"))
    config = load_config(path)
    criteria = config.select.criteria()
    live = open_source(config.source.kind, config.source.path, **config.source.options(criteria))
    records = []
    selection = select(live, config.select, records.append)
    assert list(selection.kept) == ["1crn"] and selection.n_seen == 2
    assert [(r.entry, r.error_class) for r in records if r.status != "ok"] == [("9xxx", "not_found")]
    assert crambins.asked("/search") == 0 and "as listed" in live.describe()


def test_documented_settings_load(tmp_path: Path) -> None:
    """Every example of docs/sources.md is a valid configuration."""
    text = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        (tmp_path / "example.yaml").write_text(block)
        load_config(tmp_path / "example.yaml")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("kind: mirror, contact: me", "contact without kind: rcsb"),
        ("kind: rcsb, search_url: ftp://x", "search_url"),
        ("kind: rcsb, requests_per_second: 100", "requests_per_second.*20"),
        ('kind: rcsb, contact: "a\\nb: c"', "contact"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, wrong: str, words: str) -> None:
    """What does not fit the kind, would flood the server or forge a header is refused with the key's name."""
    (tmp_path / "x.yaml").write_text(f"name: x\nsource: {{path: cache, {wrong}}}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "x.yaml")


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file where the cache folder should be is an error of the configuration."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        Rcsb(tmp_path / "cache", Criteria())


@pytest.mark.live
def test_the_real_rcsb(tmp_path: Path) -> None:
    """The real search accepts the query and finds crambin and no lysozyme dimer; a file arrives, and 404 is 404."""
    client = Client("data-pipeline tests", 2.0)
    live = Rcsb(tmp_path, Criteria(max_residues=50, max_resolution=1.6), client=client)
    ids = live.ids()
    assert len(ids) > 100 and "1crn" in ids
    assert live.path("1crn").stat().st_size > 5000
    with pytest.raises(EntryError) as caught:
        live.path("0zzz")
    assert caught.value.kind == "not_found"
    assert client.ask(SEARCH_URL, _question())["total_count"] > 5000
    assert http.TRIES > 1
