"""A stand-in for RCSB on this machine: search, files and clusters, with the troubles that a test asks for."""

from __future__ import annotations

import gzip
import json
import operator
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "exact_match": operator.eq,
    "equals": operator.eq,
    "less": operator.lt,
    "less_or_equal": operator.le,
    "greater": operator.gt,
    "greater_or_equal": operator.ge,
}

GOOD = {
    "rcsb_entry_info.polymer_entity_count_protein": 1,
    "exptl.method": "X-RAY DIFFRACTION",
    "rcsb_entry_info.resolution_combined": 1.5,
    "rcsb_entry_info.deposited_polymer_entity_instance_count": 1,
    "rcsb_entry_info.deposited_polymer_monomer_count": 50,
}
"""Attributes of an entry that meets the paper's criteria."""


def mmcif(entry: str, n_lines: int = 200) -> bytes:
    """Return a gzipped mmCIF file with an id and filling."""
    numbers = random.Random(entry)
    filling = "".join(f"_filling.line_{n} {numbers.random()}\n" for n in range(n_lines))
    return gzip.compress(f"data_{entry.upper()}\n#\n_entry.id   {entry.upper()}\n#\n{filling}#\n".encode())


@dataclass
class Reply:
    """One answer.

    Parameters
    ----------
    status, body, headers
        As sent; Content-Length is that of the body unless the headers say otherwise.
    delay
        Seconds before it.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass
class Archive:
    """What the server holds, what it is to do wrong, and what it was asked.

    Parameters
    ----------
    entries
        Id as in the address (upper case, or pdb_ and eight) -> attributes.
    files
        Name -> bytes.
    troubles
        Path -> replies that are given first, one a request, in place of the right one.
    always
        Path -> reply that is given for ever.
    max_rows
        Largest page.
    requests
        (time, path, headers, question) of every request.
    """

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    troubles: dict[str, list[Reply]] = field(default_factory=lambda: defaultdict(list))
    always: dict[str, Reply] = field(default_factory=dict)
    max_rows: int = 10_000
    requests: list[tuple[float, str, dict[str, str], Any]] = field(default_factory=list)
    url: str = ""

    @property
    def search_url(self) -> str:
        """Address of the search."""
        return f"{self.url}/search"

    @property
    def download_url(self) -> str:
        """Address of the files."""
        return f"{self.url}/download"

    def asked(self, path: str) -> int:
        """Return how often a path was asked for."""
        return sum(one == path for _, one, _, _ in self.requests)

    def reply(self, path: str, question: Any) -> Reply:
        """Return what a request is answered with."""
        if self.troubles[path]:
            return self.troubles[path].pop(0)
        if path in self.always:
            return self.always[path]
        if path == "/search":
            return self._search(question)
        name = path.removeprefix("/download/")
        if name in self.files:
            changed = {"Last-Modified": "Wed, 18 Nov 2026 00:00:00 GMT"}
            return Reply(200, self.files[name], {"Content-Type": "application/gzip", **changed})
        return Reply(404, b"<html>not found</html>")

    def _search(self, question: dict[str, Any]) -> Reply:
        assert question["return_type"] == "entry"
        options = question["request_options"]
        start, rows = options["paginate"]["start"], options["paginate"]["rows"]
        if rows > self.max_rows:
            return Reply(400, b'{"message": "rows out of range"}')
        found = sorted(name for name, attributes in self.entries.items() if _meets(attributes, question["query"]))
        if not found[start:]:
            return Reply(204)
        page = found[start : start + rows]
        return Reply(200, json.dumps({"total_count": len(found), "result_set": page}).encode())


def _meets(attributes: dict[str, Any], query: dict[str, Any]) -> bool:
    if query["type"] == "group":
        assert query["logical_operator"] == "and"
        return all(_meets(attributes, node) for node in query["nodes"])
    assert query["service"] == "text"
    condition = query["parameters"]
    return OPERATORS[condition["operator"]](attributes[condition["attribute"]], condition["value"])


@contextmanager
def serve(archive: Archive) -> Iterator[Archive]:
    """Serve an archive on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, question: Any) -> None:
            with lock:
                archive.requests.append((time.monotonic(), self.path, dict(self.headers), question))
                reply = archive.reply(self.path, question)
            time.sleep(reply.delay)
            self.send_response(reply.status)
            headers = {"Content-Length": str(len(reply.body)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            if int(headers["Content-Length"]) != len(reply.body):
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients hang up in the middle where a test wants them to

    lock = threading.Lock()
    server = Server(("127.0.0.1", 0), Handler)
    archive.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
