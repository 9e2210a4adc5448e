"""The Protein Data Bank itself: RCSB finds the entries and sends their mmCIF files, a cache folder keeps both.

The folder is laid out as a flat mirror (``1ubq.cif.gz``) and can be used as one. Beside the files lie the answers of
the search and ``downloads.jsonl``, the hash of every file that arrived whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.entries.structure import MAX_BYTES, read_bytes
from data_pipeline.errors import ConfigError, EntryError, PipelineError
from data_pipeline.files import remove_temporaries
from data_pipeline.ledger import sha256
from data_pipeline.sources.http import MAX_SECONDS, Client, Damaged, FetchError
from data_pipeline.sources.ids import is_id, normalise_id
from data_pipeline.sources.search import Answer, kept_search, search_query

if TYPE_CHECKING:  # curate imports the sources
    from data_pipeline.entries.curate import Criteria

log = logging.getLogger(__name__)

SEARCH_URL = "https://search.rcsb.org/rcsbsearch/v2/query"
DOWNLOAD_URL = "https://files.rcsb.org/download"

CONNECTIONS = 4
"""Downloads at the same time."""

DOWN_AFTER = 5
"""Entries in a row that could not be reached, after which the server counts as down and the run stops."""

_ENTRY_ID = re.compile(rb"""^_entry\.id\s+['"]?([^\s'"]+)""", re.MULTILINE)


class Rcsb:
    """RCSB's archive, as far as the criteria reach.

    Parameters
    ----------
    cache
        The folder that keeps what was fetched; made where it is missing.
    criteria
        What the search asks for.
    search_url, download_url
        RCSB's, or a mirror's.
    requests_per_second
        All threads together.
    contact
        A mail address or web page for the User-Agent.
    max_age
        Days that a search's answer is kept; 0 asks anew, None keeps it for ever.
    max_entries
        Only so many of the entries found, drawn by a hash of the id, so that the same ones are drawn everywhere.
    client
        In place of one made from the values above.

    Raises
    ------
    ConfigError
        If the folder cannot be made.
    """

    def __init__(
        self,
        cache: Path,
        criteria: Criteria,
        *,
        search_url: str = SEARCH_URL,
        download_url: str = DOWNLOAD_URL,
        requests_per_second: float = 4.0,
        contact: str = "",
        max_age: float | None = None,
        max_entries: int | None = None,
        client: Client | None = None,
    ) -> None:
        self.cache = Path(cache)
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the cache {self.cache} cannot be made: {error.strerror}. Give another folder."
            ) from error
        # What killed runs left; another run may be writing to the same cache.
        remove_temporaries(self.cache, older_than=2 * MAX_SECONDS)
        self.client = client or Client(contact, requests_per_second)
        self._query = search_query(criteria)
        self._search_url, self._download_url = search_url, download_url.rstrip("/")
        self._max_age, self._max_entries = max_age, max_entries
        self._answer: Answer | None = None
        self._arrived = _Arrived(self.cache / "downloads.jsonl")
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="rcsb")
        self._jobs: dict[str, Future[str]] = {}
        self._unreached = 0

    def ids(self) -> list[str]:
        """Return the id of every entry that the search finds, lower case and sorted.

        Raises
        ------
        FetchError
            If the server does not answer.
        """
        if self._answer is None:
            self._answer = kept_search(self.client, self._search_url, self._query, self.cache, self._max_age)
        ids = self._answer.ids
        if self._max_entries is not None:
            ids = sorted(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[: self._max_entries])
        return ids

    def ahead(self, ids: Sequence[str]) -> Iterator[str]:
        """Yield the ids while the files of the next few are being fetched."""
        for position, entry_id in enumerate(ids):
            for following in ids[position : position + 2 * CONNECTIONS]:
                self._job(following)
            yield entry_id

    def path(self, entry_id: str) -> Path:
        """Return the entry's file in the cache, verified, fetching it first where that is needed.

        Parameters
        ----------
        entry_id
            In any of the forms that `normalise_id` accepts; it need not be one that the search finds.

        Raises
        ------
        EntryError
            Of kind ``not_found`` where the archive has no such entry, ``download`` where it cannot be fetched.
        PipelineError
            If the server does not answer for `DOWN_AFTER` entries in a row.
        """
        self._job(entry_id).result()
        return self._file(normalise_id(entry_id))

    def sha256(self, entry_id: str) -> str:
        """Return the SHA-256 of the entry's file as it lies in the cache; raises as `path`."""
        return self._job(entry_id).result()

    def describe(self) -> str:
        """Return where the entries come from, in one line."""
        if self._answer is None:
            return f"RCSB ({self._download_url}), entries as listed"
        found, day = len(self._answer.ids), self._answer.date
        return f"RCSB ({self._search_url}), {found} entries found on {day}, sha256 {self._answer.sha256[:16]}"

    def _job(self, entry_id: str) -> Future[str]:
        """Return what becomes the hash of an entry's file; an entry that fails is not tried again in this run."""
        entry = normalise_id(entry_id)
        if entry not in self._jobs:
            self._jobs[entry] = self._threads.submit(self._have, entry)
        return self._jobs[entry]

    def _file(self, entry: str) -> Path:
        return self.cache / f"{entry}.cif.gz"

    def _have(self, entry: str) -> str:
        if not is_id(entry):
            raise EntryError("not_found", f"{entry!r} is no entry's id; they look like 1ubq or pdb_00001ubq.")
        path = self._file(entry)
        if path.is_file():
            found = sha256(path)
            if found == self._arrived.hashes.get(entry):
                return found
            if entry not in self._arrived.hashes and _is_sound(path, entry):
                self._arrived.add(entry, found, "found in the cache")  # a run was killed before it noted the hash
                return found
            log.warning("%s is damaged; it is fetched again", path)
        return self._fetch(entry, path)

    def _fetch(self, entry: str, path: Path) -> str:
        name = entry if entry.startswith("pdb_") else entry.upper()
        url = f"{self._download_url}/{name}.cif.gz"
        try:
            download = self.client.download(url, path, MAX_BYTES, lambda file: _verify(file, entry))
        except FetchError as error:
            if error.kind == "missing":
                self._unreached = 0
                raise EntryError(
                    "not_found", f"no entry {entry} at {self._download_url}: withdrawn, or never there."
                ) from error
            self._unreached = self._unreached + 1 if error.kind != "damaged" else 0
            if self._unreached >= DOWN_AFTER:
                raise PipelineError(
                    f"{self._unreached} entries in a row could not be had from {self._download_url}, the last one: "
                    f"{error} What arrived is kept in {self.cache}."
                ) from error
            raise EntryError("download", str(error)) from error
        self._unreached = 0
        self._arrived.add(entry, download.sha256, url)
        return download.sha256


class _Arrived:
    """The hashes of the files that arrived whole: one line of JSON each, the last one of an entry counting."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.hashes: dict[str, str] = {}
        self._torn = False
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            self._torn = not line.endswith(b"\n")  # by a kill; the file is verified as if it had no line
            try:
                values = json.loads(line)
                self.hashes[str(values["entry"])] = str(values["sha256"])
            except (ValueError, TypeError, KeyError):
                continue

    def add(self, entry: str, digest: str, source: str) -> None:
        line = json.dumps({"entry": entry, "sha256": digest, "from": source}) + "\n"
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + line if self._torn else line)
            self._torn = False
            self.hashes[entry] = digest


def _is_sound(path: Path, entry: str) -> bool:
    try:
        _verify(path, entry)
    except Damaged:
        return False
    return True


def _verify(path: Path, entry: str) -> None:
    """Raise `Damaged` unless this is the entry's gzipped mmCIF file, from the first line to the last."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            raise Damaged("no gzip file, which has no checksum; a web page perhaps")
    try:
        data = read_bytes(path)  # compares gzip's checksum and size
    except EntryError as error:
        raise Damaged(str(error)) from error
    told = _ENTRY_ID.search(data)
    if told is None:
        raise Damaged("no mmCIF file of an entry: it does not say _entry.id")
    found = normalise_id(told.group(1).decode("ascii", "replace"))
    if found != entry:
        raise Damaged(f"the file is of entry {found}, not of {entry}")
    if not data.rstrip().endswith(b"\n#"):
        raise Damaged("the end is missing: the last line is not '#'")
