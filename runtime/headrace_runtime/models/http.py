"""HTTP as sources need it: one request at a time from many threads, answers read as they come, errors in plain words.

urllib3 keeps the connections and follows redirects; it drops credentials where a redirect leaves the host. Proxies and
certificate authorities are those of the usual environment variables. What may be tried again is a BrokenError, and
`persist` tries it again.
"""

from __future__ import annotations

import logging
import random
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from headrace_runtime.models.credentials import SECRET
from headrace_runtime.models.errors import BrokenError, FetchError
from headrace_runtime.models.listing import Address
from headrace_runtime.models.progress import Progress

Result = TypeVar("Result")
CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 60.0
"""A server that sends nothing for so long is taken for gone."""
MAX_DOCUMENT = 64 * 1024**2
"""Of a listing or a manifest."""
FAILURES = 8
"""In a row, with not one byte in between: about a minute."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
UNWELL = frozenset({408, 425, 429, 500, 502, 503, 504})
DENIED = frozenset({401, 403})
# urllib3 logs whole addresses, where a redirect leads among them: what is signed in them is a secret.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)
CLIENT = {"User-Agent": "headrace", "Accept-Encoding": "identity"}


class Http:
    """Connections to the hosts of one source. Thread-safe."""

    def __init__(self, connections: int = 8, proxies: Mapping[str, str] | None = None) -> None:
        self._proxies = urllib.request.getproxies() if proxies is None else proxies
        self._connections = connections
        self._pools: dict[str | None, PoolManager] = {None: self._pool(None)}
        for proxy in {self._proxies.get(scheme) for scheme in ("http", "https")} - {None}:
            self._pools[proxy] = self._pool(proxy)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    @contextmanager
    def open(
        self, address: Address, what: str, headers: Mapping[str, str] | None = None, also: int = 200
    ) -> Iterator[BaseHTTPResponse]:
        """The answer to a GET, its body unread. Raises BrokenError; FetchError for a status that will not change,
        other than `also`."""
        host = urlsplit(address.url).netloc.rpartition("@")[2]
        with plainly(what, host):
            answer = self._pool_of(address.url).request(
                "GET",
                address.url,
                headers={**CLIENT, **address.headers, **(headers or {})},
                preload_content=False,
                decode_content=False,
                retries=Retry(connect=0, read=0, other=0, status=0, redirect=5, raise_on_redirect=True),
                timeout=Timeout(connect=CONNECT_SECONDS, read=SILENCE_SECONDS),
            )
            try:
                if answer.status != also:
                    check(answer, what, host)
                if address.url.startswith("https:") and (answer.geturl() or "").startswith("http:"):
                    raise FetchError(f"{what}: {host} sends us on to an address that is not encrypted")
                yield answer
            finally:
                # A body that was not read to its end would be taken for the next answer.
                answer.close()
                answer.release_conn()

    def document(self, address: Address, what: str) -> tuple[bytes, Mapping[str, str]]:
        """A small body, whole, and its headers. Raises as `open`."""
        with self.open(address, what) as answer:
            body = answer.read(MAX_DOCUMENT + 1)
            if len(body) > MAX_DOCUMENT:
                raise FetchError(f"{what}: the answer is longer than {MAX_DOCUMENT >> 20} MB")
            return body, answer.headers

    def _pool_of(self, url: str) -> PoolManager:
        parts = urlsplit(url)
        around = urllib.request.proxy_bypass(parts.hostname or "")
        return self._pools[None if around else self._proxies.get(parts.scheme)]

    def _pool(self, proxy: str | None) -> PoolManager:
        if proxy is None:
            return PoolManager(num_pools=16, maxsize=self._connections, block=False)
        parts = urlsplit(proxy)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        words = urllib3.make_headers(proxy_basic_auth=login)
        return ProxyManager(proxy, proxy_headers=words, num_pools=16, maxsize=self._connections, block=False)


@contextmanager
def plainly(what: str, host: str) -> Iterator[None]:
    """urllib3's errors, which may quote a signed address, in our words."""
    try:
        yield
    except urllib3.exceptions.MaxRetryError as error:
        if isinstance(error.reason, urllib3.exceptions.SSLError):
            raise FetchError(f"{what}: {host} has no certificate that is trusted here: is SSL_CERT_FILE set?") from None
        raise BrokenError(f"{what}: {host} cannot be reached ({_kind(error.reason)})") from None
    except HTTPError as error:
        raise BrokenError(f"{what}: the connection to {host} broke ({_kind(error)})") from None


def check(answer: BaseHTTPResponse, what: str, host: str) -> None:
    """Raises BrokenError or FetchError for a status that is no success."""
    status = answer.status
    if 200 <= status < 300:
        return
    if status in UNWELL:
        raise BrokenError(f"{what}: {host} answered {status}", retry_after(answer.headers.get("Retry-After")))
    if status in DENIED:
        denied = f"{what}: {host} answered {status}: check {SECRET}, and whether it may read this"
        raise DeniedError(denied, answer.headers.get("WWW-Authenticate", ""))
    if status in (404, 410):
        raise FetchError(f"{what}: {host} answered {status}: there is no such thing, or it is not shown to us")
    raise FetchError(f"{what}: {host} answered {status}")


class DeniedError(FetchError):
    """401 or 403."""

    def __init__(self, message: str, challenge: str = "") -> None:
        super().__init__(message)
        self.challenge = challenge
        """The `WWW-Authenticate` header of the answer."""


def retry_after(text: str | None) -> float | None:
    """Seconds that a server asked for; None for a date, and where it asked for none."""
    try:
        return max(0.0, min(float(text or ""), 300.0))
    except ValueError:
        return None


def pause(failures: int, chance: float) -> float:
    """Seconds before the next try after `failures` in a row: each thrice the last, and spread by `chance` (0 to 1)."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 3.0 ** min(failures - 1, 16)) * (0.5 + 0.5 * chance)


def persist(act: Callable[[], Result], progress: Progress, moved: Callable[[], int] = lambda: 0) -> Result:
    """`act()`, again and again while it raises BrokenError; failures count anew whenever `moved()` has grown.

    Raises the last BrokenError after eight in a row, and CancelledError.
    """
    failures, at = 0, moved()
    while True:
        progress.check()
        try:
            return act()
        except BrokenError as error:
            now = moved()
            failures, at = (1 if now > at else failures + 1), now
            if failures >= FAILURES:
                raise
            chance = random.random()  # noqa: S311 - spreads retries, keeps no secret
            progress.pause(error.retry_after if error.retry_after is not None else pause(failures, chance))


def mark(headers: Mapping[str, str]) -> str | None:
    """What tells one state of a file from another: its ETag, else the time of its last change."""
    return headers.get("ETag") or headers.get("Last-Modified")


def next_page(headers: Mapping[str, str], url: str) -> str | None:
    """The address that a `Link` header calls the next; None on the last page, and where it leaves the host."""
    for part in headers.get("Link", "").split(","):
        target, _, relation = part.partition(";")
        if 'rel="next"' in relation.replace(" ", ""):
            following = urljoin(url, target.strip().strip("<>"))
            return following if urlsplit(following).netloc == urlsplit(url).netloc else None
    return None


def _kind(error: BaseException | None) -> str:
    """A short name of what happened, without the address."""
    cause = error
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(error).__name__.removesuffix("Error") if error else "no answer"
