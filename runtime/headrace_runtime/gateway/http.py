"""The client side of the relay: HTTP/1.1 on the public port.

Reads requests (bounded in size and time), gives each to its route's handler as a task, and writes the answer through an
`Answer`. One request of a connection is served at a time; pipelined ones wait. A client that goes away cancels its
handler. Knows nothing of engines or of OpenAI's API but the shape of its errors.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from headrace_runtime.gateway import errors
from headrace_runtime.gateway.errors import RequestError
from headrace_runtime.gateway.turns import Turns

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
"""How long a connection that is to be closed still reads: closing with unread bytes would destroy the answer under
way."""
PIPELINED = 32
"""Requests of one connection that may wait for an earlier one's answer."""
REFUSED_CONNECTIONS = 1024
"""Above the limit, so many connections are told so; more are closed without a word."""
SMALL_BYTES = 16 * 1024
"""Bodies up to this size are read even when others fill the memory that is meant for them."""
ROOM_SECONDS = 0.5
"""Idle connections are closed for new ones no oftener, since finding them means looking at all."""

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


class Answer:
    """The answer to one request: either `send` once, or `start`, any number of `write`, `finish`."""

    __slots__ = (
        "_chunked", "_connection", "_head_only", "_keep_alive", "also", "finished", "request_id", "source", "status",
    )  # fmt: skip

    def __init__(self, connection: "ClientConnection", request: Request) -> None:
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


class Server:
    """The public port. `routes` are served until `drain`."""

    def __init__(self, routes: Routes, limits: Limits | None = None) -> None:
        self.routes = routes
        self.limits = limits or Limits()
        self.draining = False
        self.held = 0
        """Bytes of bodies that are being read, wait, or are being answered."""
        self.connections: set[ClientConnection] = set()
        self._room_made = 0.0
        self.turns = Turns()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._left = asyncio.Event()

    def joined(self, connection: "ClientConnection") -> None:
        """Takes a connection, or refuses it. At the limit, a tenth of those that wait for nothing make room."""
        self.connections.add(connection)
        limit, now = self.limits.connections, asyncio.get_running_loop().time()
        if len(self.connections) <= limit:
            return
        if now - self._room_made > ROOM_SECONDS:
            self._room_made = now
            idle = sorted((one for one in self.connections - {connection} if one.idle), key=lambda one: one.since)
            for one in idle[: max(1, limit // 10)]:
                one.abort()
                self.connections.discard(one)
        if len(self.connections) > limit + REFUSED_CONNECTIONS:
            connection.abort()
        elif len(self.connections) > limit:
            connection.refuse(errors.too_many_connections(limit))

    def left(self, connection: "ClientConnection") -> None:
        self.connections.discard(connection)
        self._left.set()

    async def listen(self, host: str, port: int) -> int:
        """Start; gives the port, which the system chooses where `port` is 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: ClientConnection(self), host, port, backlog=4096)
        self._sweeper = asyncio.create_task(self._sweep())
        return int(self._listener.sockets[0].getsockname()[1])

    async def drain(self, seconds: float) -> int:
        """Accept nothing more, let answers end, close; gives how many were cut after `seconds`."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        with contextlib.suppress(TimeoutError):  # the deadline is an answer: those still busy are counted and cut
            async with asyncio.timeout(seconds):
                while self.connections:
                    self._left.clear()
                    await self._left.wait()
        cut = sum(connection.busy for connection in self.connections)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        return cut

    async def _sweep(self) -> None:
        """One timer for all connections costs less than one each."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            now = loop.time()
            for connection in [one for one in self.connections if one.deadline < now]:
                connection.expire()


class ClientConnection(asyncio.Protocol):
    """One client connection: reading a request, serving one (`_answer`), or lingering before it closes."""

    def __init__(self, server: Server) -> None:
        self.closing = False
        """No further request will be served on this connection."""
        self.since = self.deadline = 0.0
        """When it came into its state, and when that must end."""
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._waiting = bytearray()
        self._answer: Answer | None = None
        self._task: asyncio.Task[None] | None = None
        self._lingering = False
        self._refusal: RequestError | None = None
        self._in_body = False
        self._head_bytes = 0
        self._held = 0
        self._served_bytes = 0
        self._begin()

    @property
    def busy(self) -> bool:
        return self._answer is not None

    @property
    def idle(self) -> bool:
        """Nothing of a request has come, and nothing is under way."""
        return not (self.busy or self._lingering or self._head_bytes or self._in_body)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def chunk_writer(self) -> Callable[[bytes], None]:
        return self._transport.write

    def abort(self) -> None:
        self._transport.abort()

    def close_when_idle(self) -> None:
        self.closing = True
        if self._answer is None and not self._ready:
            self._transport.close()

    def answered(self, keep_alive: bool) -> None:
        """Called by the answer at its end: serve the next request, or close."""
        self._answer = None
        self._hold(-self._served_bytes)
        self._served_bytes = 0
        if not keep_alive or self.closing or self._server.draining:
            self._linger()
            return
        self._resume_reading()
        self._set_deadline(self._limits.idle_seconds)
        self._serve_next()
        if self._answer is None and self._waiting and not self._lingering:
            waiting, self._waiting = bytes(self._waiting), bytearray()
            self._feed(waiting)

    def expire(self) -> None:
        """The deadline has passed: of an idle or lingering connection, of a request's head or of its body, or of an
        answer that is not read."""
        if self._lingering or self.busy or (not self._head_bytes and not self._in_body):
            self._transport.abort()
        elif self._in_body:
            self.refuse(errors.too_slow("body", self._limits.body_seconds))
        else:
            self.refuse(errors.too_slow("head", self._limits.head_seconds))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._set_deadline(self._limits.head_seconds)
        self._server.joined(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.left(self)
        self._hold(-self._held)
        self._served_bytes = 0
        self._answer = None
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._answer is None:
            self._feed(data)
            return
        self._waiting += data
        if len(self._waiting) > self._limits.waiting_bytes:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        if self._answer is None:
            return
        self._set_deadline(self._limits.unread_seconds)
        if self._answer.source is not None:
            self._answer.source.pause()

    def resume_writing(self) -> None:
        if self._answer is not None:
            self.deadline = float("inf")
        if self._answer is not None and self._answer.source is not None:
            self._answer.source.resume()

    # httptools.HttpRequestParser

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head, or of a trailer behind a chunked body."""
        self._count_head(len(name) + len(value) + len(b": \r\n"))
        if self._refusal is None:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._head_bytes = 0
        self._set_deadline(self._limits.body_seconds)
        length = self._headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            self._refusal = errors.body_too_large(self._limits.body_bytes)
        elif self._headers.get("expect", "").lower() == "100-continue" and self._answer is None and not self._ready:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        self._unread_bytes = 0
        if self._refusal is not None:
            return
        self._body.append(piece)
        self._body_bytes += len(piece)
        self._hold(len(piece))
        if self._server.held > self._limits.held_bytes and self._body_bytes > SMALL_BYTES:
            self._refusal = errors.too_much_held()
            self._body.clear()
        if self._body_bytes > self._limits.body_bytes:
            self._refusal = errors.body_too_large(self._limits.body_bytes)
            self._body.clear()

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._refusal is not None:
            return
        method = self._parser.get_method().decode("latin-1")
        old = self._parser.get_http_version() == "1.0"
        keep_alive = self._parser.should_keep_alive()
        path = self._url.partition(b"?")[0].decode("latin-1")
        if len(self._ready) == PIPELINED:
            self._refusal = errors.malformed(f"More than {PIPELINED} requests wait on this connection.")
            return
        self._ready.append(Request(method, path, self._headers, b"".join(self._body), keep_alive, old))

    # inside

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._named_bytes = 0
        """Of the URL, the headers and the trailers that were read."""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._unread_bytes = 0
        """Received since the body last grew: ends of chunks, trailers, or none of these."""

    def _hold(self, size: int) -> None:
        self._held += size
        self._server.held += size

    def _count_head(self, size: int) -> None:
        self._named_bytes += size
        if self._named_bytes > self._limits.head_bytes:
            self._refusal = self._refusal or errors.head_too_large(self._limits.head_bytes)

    def _set_deadline(self, seconds: float) -> None:
        self.since = self._loop.time()
        self.deadline = self.since + seconds

    def _feed(self, data: bytes) -> None:
        if not self._in_body:
            if not self._head_bytes:
                self._set_deadline(self._limits.head_seconds)
            self._head_bytes += len(data)
        self._unread_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.closing = True  # the request itself is served, without the upgrade it offers
        except httptools.HttpParserError as error:
            self._refusal = self._refusal or errors.malformed(f"This is not an HTTP request: {error}.")
        if self._ready:
            self._head_bytes = 0
        elif max(self._head_bytes, self._unread_bytes) > self._limits.head_bytes:
            self._refusal = self._refusal or errors.head_too_large(self._limits.head_bytes)
        self._serve_next()

    def _serve_next(self) -> None:
        """Requests that came whole, in their order; then, if what followed them is refused, that."""
        if self._answer is not None:
            return
        if self._ready:
            request = self._ready.popleft()
            self._served_bytes = len(request.body)
            self._answer = Answer(self, request)
            self.deadline = float("inf")
            self._server.turns.take(partial(self._begin_serving, request, self._answer))
        elif self._refusal is not None:
            self.refuse(self._refusal)

    def _begin_serving(self, request: Request, answer: Answer) -> None:
        if self._answer is answer:  # else the client has left while it waited for its turn
            self._task = self._loop.create_task(self._serve(request, answer))

    async def _serve(self, request: Request, answer: Answer) -> None:
        try:
            await self._handler(request)(request, answer)
        except RequestError as error:
            answer.send_error(error)
        except Exception:
            log.exception("request %s failed", answer.request_id)
            if answer.status:
                answer.cut()
            else:
                answer.close_after()
                answer.send_error(errors.internal())

    def _handler(self, request: Request) -> Handler:
        methods = self._server.routes.get(request.path)
        if methods is None:
            raise errors.unknown_route(request.path)
        handler = methods.get(request.method)
        if handler is None:
            raise errors.method_not_allowed(request.method, request.path)
        return handler

    def refuse(self, error: RequestError) -> None:
        """Answer and close, whatever else the client is sending."""
        answer = Answer(self, Request("", "", self._headers, b"", keep_alive=False, http_1_0=False))
        answer.send_error(error)

    def _linger(self) -> None:
        """Send what is written, then wait for the client's end of the connection."""
        self.closing = True
        self._lingering = True
        self._set_deadline(LINGER_SECONDS)
        self._resume_reading()
        if not self._transport.is_closing():
            self._transport.write_eof()

    def _resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


def _request_id(given: str | None) -> str:
    """The client's own id where it is a plain word, else a new one: it goes into headers and logs."""
    return given if given and _PLAIN_WORD.fullmatch(given) else secrets.token_hex(16)
