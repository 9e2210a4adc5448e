"""Requests to a public server with manners: a few a second, patience with one that is busy, and a name to answer to.

One loop covers every way in which an attempt can fail (status, connection, a body that stops early, content that is
not what was asked for), so that patience is counted once and a server that asks all to wait is heard by all threads.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import requests
import urllib3

from data_pipeline import __version__
from data_pipeline.errors import PipelineError
from data_pipeline.files import whole

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed later."""

TRIES = 5
"""Attempts at a request in all, with waits of 1, 2, 4 and 8 s between them."""

DAMAGED_TRIES = 3
"""Attempts after which content that is wrong each time counts as wrong."""

LONGEST_WAIT = 300.0
"""Seconds. A server that asks for more is asked again another day."""

MAX_ANSWER = 64 << 20
"""Bytes of the largest answer that is held in memory."""

MAX_SECONDS = 900.0
"""Longest download."""

_CHUNK = 1 << 16

Result = TypeVar("Result")


class FetchError(PipelineError):
    """A request that did not succeed.

    Parameters
    ----------
    kind
        ``missing`` (404, 410), ``refused`` (another status that patience does not mend), ``damaged`` (wrong content
        each time), ``unreachable`` (no answer, or a busy one, each time).
    message
        What was asked and what came back.
    """

    def __init__(self, kind: Literal["missing", "refused", "damaged", "unreachable"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Damaged(Exception):
    """What arrived is not what was asked for; it is asked for again."""


class _Busy(Exception):
    """The server wants to be asked again later."""


@dataclass(frozen=True)
class Download:
    """A file that arrived.

    Parameters
    ----------
    url
        Where it is from.
    sha256
        Of its bytes as they lie on the disk.
    date
        When the server last changed it, or else when it was fetched; YYYY-MM-DD.
    """

    url: str
    sha256: str
    date: str


class Pace:
    """Lets the requests of all threads pass one by one, so many a second, and none while the server asks to wait.

    Parameters
    ----------
    per_second
        Requests a second.
    clock, sleep
        Give and pass the time, in seconds.
    """

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._interval, self._clock, self._sleep = 1 / per_second, clock, sleep
        self._next = clock()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may be sent."""
        while True:
            with self._lock:
                now = self._clock()
                if now >= self._next:
                    self._next = now + self._interval
                    return
                delay = self._next - now
            self._sleep(delay)

    def pause(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)

    def back_off(self, seconds: float) -> None:
        """Hold this thread alone."""
        self._sleep(seconds)


class Client:
    """Asks one server, from any number of threads.

    Parameters
    ----------
    contact
        A mail address or web page that the server's staff may write to; part of the User-Agent.
    per_second
        Requests a second, all threads together.
    first_wait
        Seconds before the second attempt; each further one waits twice as long.
    timeout
        Seconds without an answer after which an attempt has failed.
    pace
        In place of one made from `per_second`.
    """

    def __init__(
        self,
        contact: str = "",
        per_second: float = 4.0,
        *,
        first_wait: float = 1.0,
        timeout: float = 60.0,
        pace: Pace | None = None,
    ) -> None:
        about = f" ({contact})" if contact else ""
        self.user_agent = f"data-pipeline/{__version__}{about} {requests.utils.default_user_agent()}"
        self.pace = pace or Pace(per_second)
        self._first_wait, self._timeout = first_wait, timeout
        self._threads = threading.local()

    def ask(self, url: str, question: dict[str, Any]) -> Any:
        """Post a question as JSON and return the answer, None where it is empty (status 204).

        Raises
        ------
        FetchError
            If there is no answer in the end.
        """

        def read(response: requests.Response) -> Any:
            if response.status_code == requests.codes.no_content:
                return None
            body = b"".join(self._body(response, MAX_ANSWER))
            try:
                return json.loads(body)
            except ValueError as error:
                raise Damaged(f"the answer is no JSON ({error}); it starts with {body[:60]!r}") from error

        return self._patiently("POST", url, read, json=question)

    def download(self, url: str, path: Path, max_bytes: int, verify: Callable[[Path], None]) -> Download:
        """Fetch a file, which appears complete and verified or not at all.

        Parameters
        ----------
        url
            Where it is.
        path
            Where it goes.
        max_bytes
            The most that is accepted.
        verify
            Called with the temporary file; raises `Damaged` where it is not what was asked for.

        Raises
        ------
        FetchError
            If it cannot be had.
        """

        def read(response: requests.Response) -> Download:
            digest = sha256()
            with whole(path) as temporary:
                with temporary.open("wb") as file:
                    for chunk in self._body(response, max_bytes):
                        digest.update(chunk)
                        file.write(chunk)
                verify(temporary)
            return Download(url, digest.hexdigest(), _date(response))

        return self._patiently("GET", url, read)

    def _patiently(self, verb: str, url: str, read: Callable[[requests.Response], Result], **request: Any) -> Result:
        n_damaged = 0
        for attempt in range(1, TRIES + 1):
            self.pace.wait()
            try:
                # stream: nothing is read before the size is known to be sound
                with self._session().request(verb, url, stream=True, timeout=self._timeout, **request) as response:
                    self._look_at_status(url, response)
                    return read(response)
            except (_Busy, requests.RequestException, urllib3.exceptions.TimeoutError) as error:
                failure: Exception = error
            except (Damaged, urllib3.exceptions.HTTPError) as error:
                failure = error
                n_damaged += 1
                if n_damaged == DAMAGED_TRIES:
                    raise FetchError("damaged", f"{url} arrived wrong {n_damaged} times: {error}.") from error
            if attempt < TRIES:
                self.pace.back_off(self._first_wait * 2 ** (attempt - 1))
        raise FetchError(
            "unreachable",
            f"{url} could not be reached in {TRIES} attempts: {failure}. Look at your connection and at the server's "
            "news; what was fetched is kept, the same command goes on from there.",
        ) from failure

    def _look_at_status(self, url: str, response: requests.Response) -> None:
        status = response.status_code
        if status in BUSY:
            wait = _retry_after(response)
            if wait > LONGEST_WAIT:
                raise FetchError(
                    "unreachable",
                    f"{url} answered {status} and asks to wait {wait:.0f} s; run the same command again then.",
                )
            self.pace.pause(wait)
            raise _Busy(f"status {status} {response.reason}")
        if status in (404, 410):
            raise FetchError("missing", f"{url} does not exist (status {status}).")
        if not response.ok:
            told = b"".join(self._body(response, MAX_ANSWER))[:300].decode("utf-8", "replace").strip()
            raise FetchError("refused", f"{url} answered {status} {response.reason}: {told or 'no reason given'}.")

    def _body(self, response: requests.Response, max_bytes: int) -> Any:
        """Yield the body's bytes as sent; a body that ends before its Content-Length is an error of urllib3."""
        deadline = time.monotonic() + MAX_SECONDS
        n_bytes = 0
        # decode_content=False: iter_content would unpack what a server marks as Content-Encoding: gzip
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            n_bytes += len(chunk)
            if n_bytes > max_bytes:
                raise FetchError("refused", f"{response.url} sends more than {max_bytes} bytes; it is not taken.")
            if time.monotonic() > deadline:
                raise _Busy(f"it took longer than {MAX_SECONDS:.0f} s")
            yield chunk

    def _session(self) -> requests.Session:
        """Return this thread's own session: they are not made to be shared."""
        if not hasattr(self._threads, "session"):
            self._threads.session = requests.Session()
            self._threads.session.headers.update({"User-Agent": self.user_agent, "Accept-Encoding": "identity"})
        return self._threads.session


def _retry_after(response: requests.Response) -> float:
    """Return the seconds that the server asks to wait, 0 where it does not say so."""
    try:
        return urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except urllib3.exceptions.InvalidHeader:
        return 0.0


def _date(response: requests.Response) -> str:
    try:
        changed = parsedate_to_datetime(response.headers.get("Last-Modified", ""))
    except ValueError:
        changed = datetime.now(UTC)
    return changed.date().isoformat()
