"""One HTTP exchange with a client, as a handler sees it: its `Request`, and the `Answer` that it writes.

`port.py` listens, `connection.py` reads requests and calls handlers. Knows nothing of engines or of OpenAI's API but
the shape of its errors.
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from headrace_runtime.gateway import errors
from headrace_runtime.gateway.errors import RequestError

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_-]{1,128}")
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Limits:
    connections: int = 10_000
    head_bytes: int = 32 * 1024
    body_bytes: int = 16 * 1024 * 1024
    held_bytes: int = 256 * 1024 * 1024
    """Of the bodies of all connections, from their first byte to the end of their answers."""
    waiting_bytes: int = 64 * 1024
    """Of requests that a client sends while an earlier one is being served."""
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 75.0
    unread_seconds: float = 60.0
    """How long a client may leave a full buffer unread before its answer is cut: an engine's slot waits with it."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case; of repeated ones the last."""
    body: bytes
    keep_alive: bool
    http_1_0: bool


class Source(Protocol):
    """What fills an answer, and can be held back while the client reads slowly."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Connection(Protocol):
    """What an answer is written to: `connection.ClientConnection`."""

    closing: bool
    """No further request will be served on it."""

    def write(self, data: bytes) -> None: ...
    def chunk_writer(self) -> Callable[[bytes], None]: ...
    def abort(self) -> None: ...
    def answered(self, keep_alive: bool) -> None:
        """The answer is written."""


class Answer:
    """The answer to one request: either `send` once, or `start`, any number of `write`, `finish`."""

    __slots__ = (
        "_chunked", "_connection", "_head_only", "_keep_alive", "also", "finished", "request_id", "source", "status",
    )  # fmt: skip

    def __init__(self, connection: Connection, request: Request) -> None:
        self.request_id = _request_id(request.headers.get("x-request-id"))
        self.status = 0
        """0 until the head is written."""
        self.finished = False
        self.also: Sequence[tuple[str, str]] = ()
        """Headers of this answer, whatever it will be."""
        self.source: Source | None = None
        self._connection = connection
        self._keep_alive = request.keep_alive
        self._head_only = request.method == "HEAD"
        self._chunked = not request.http_1_0

    def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """The whole answer."""
        head = self._head(status, [*headers, ("content-length", str(len(body)))])
        self._connection.write(head if self._head_only else head + body)
        self._end()

    def send_error(self, error: RequestError, headers: list[tuple[str, str]] | None = None) -> None:
        self.send(error.status, [*error.headers(), *(headers or [])], error.body())

    def start(self, status: int, headers: list[tuple[str, str]], first: bytes) -> None:
        """Head and first piece of an answer of unknown length."""
        if self._chunked:
            headers = [*headers, ("transfer-encoding", "chunked")]
        else:
            self._keep_alive = False  # an HTTP/1.0 client knows the end by the connection's end
        self._connection.write(self._head(status, headers))
        self.write(first)

    def write(self, data: bytes) -> None:
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def chunk_writer(self) -> Callable[[bytes], None] | None:
        """Takes whole HTTP chunks, in place of `write`; None for an HTTP/1.0 client."""
        return self._connection.chunk_writer() if self._chunked else None

    def finish(self) -> None:
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self._end()

    def close_after(self) -> None:
        """Close the connection once this answer is written."""
        self._keep_alive = False

    def cut(self) -> None:
        """End the connection without ending the answer: the client sees that it is incomplete."""
        self.finished = True
        self._connection.abort()

    def _head(self, status: int, headers: list[tuple[str, str]]) -> bytes:
        self.status = status
        keep = self._keep_alive and not self._connection.closing
        self._keep_alive = keep
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}", f"x-request-id: {self.request_id}"]
        lines += [f"{name}: {value}" for name, value in (*headers, *self.also)]
        lines.append(f"connection: {'keep-alive' if keep else 'close'}\r\n\r\n")
        return "\r\n".join(lines).encode("latin-1")

    def _end(self) -> None:
        self.finished = True
        self._connection.answered(self._keep_alive)


Handler = Callable[[Request, Answer], Awaitable[None]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path → method → handler."""


def handler_of(routes: Routes, request: Request) -> Handler:
    """Raises RequestError (404, 405)."""
    methods = routes.get(request.path)
    if methods is None:
        raise errors.unknown_route(request.path)
    handler = methods.get(request.method)
    if handler is None:
        raise errors.method_not_allowed(request.method, request.path)
    return handler


def _request_id(given: str | None) -> str:
    """The client's own id where it is a plain word, else a new one: it goes into headers and logs."""
    return given if given and _PLAIN_WORD.fullmatch(given) else secrets.token_hex(16)
