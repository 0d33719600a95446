"""One client's connection on the public port: HTTP/1.1 in, handlers' answers out.

Reads requests (bounded in size and time), gives each to its route's handler as a task, and holds an answer back while
the client reads slowly. One request of a connection is served at a time; pipelined ones wait. A client that goes away
cancels its handler. Made by `port.py`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import httptools

from headrace_runtime.gateway import errors
from headrace_runtime.gateway.errors import RequestError
from headrace_runtime.gateway.http import Answer, Limits, Request, Routes, handler_of
from headrace_runtime.gateway.turns import Turns

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
"""How long a connection that is to be closed still reads: closing with unread bytes would destroy the answer under
way."""
PIPELINED = 32
"""Requests of one connection that may wait for an earlier one's answer."""
SMALL_BYTES = 16 * 1024
"""Bodies up to this size are read even when others fill the memory that is meant for them."""


class Port(Protocol):
    """What all connections share: `port.Server`."""

    routes: Routes
    limits: Limits
    draining: bool
    held: int
    turns: Turns

    def joined(self, connection: "ClientConnection") -> None: ...
    def left(self, connection: "ClientConnection") -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client connection: reading a request, serving one (`_answer`), or lingering before it closes."""

    def __init__(self, server: Port) -> None:
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
            await handler_of(self._server.routes, request)(request, answer)
        except RequestError as error:
            answer.send_error(error)
        except Exception:
            log.exception("request %s failed", answer.request_id)
            if answer.status:
                answer.cut()
            else:
                answer.close_after()
                answer.send_error(errors.internal())

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
