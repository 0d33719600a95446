"""The engine side of the relay: keep-alive connections and one HTTP exchange at a time on each.

`Pool.ask` sends a request and gives an `Exchange`. Until the first token the caller awaits its parts (`head`,
`first_event`, `whole`); then `relay` hands every later piece straight from the socket's callback to the client's
connection: no task wakes for a token. Knows HTTP, and nothing of routing or retries. Answers must be framed by a
length or chunked, as vLLM's are: one that ends with its connection cannot be told from a broken one and counts as
broken.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Literal, Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 2.0
LATE = 1.5
"""A deadline of this process that comes later than by this factor says nothing of others."""
IDLE_SECONDS = 4.0
"""Idle connections older than this are not used again: vLLM's server closes them after 5 s."""

KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
"""A connection whose other end is gone without a word (a node, an entry of a NAT table) ends after 11 s of silence. The
kernel of an engine that is merely hung still answers: that is `patience.py`'s business."""

Cause = Literal["connect", "connect_timeout", "reset", "timeout", "silent", "status", "error_event"]
UNSENT: frozenset[Cause] = frozenset({"connect", "connect_timeout"})
"""The engine never saw the request."""


class EngineError(Exception):
    """An engine gave no usable answer. Bounded causes, since they label metrics; `body` is the engine's own error, if
    any."""

    def __init__(self, cause: Cause, detail: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.status = status
        self.body = body


ChunkWriter = Callable[[bytes], None]


class Sink(Protocol):
    """Where a relayed answer goes."""

    def write(self, data: bytes) -> None:
        """Take a piece of the body."""

    def chunk_writer(self) -> ChunkWriter | None:
        """What takes whole chunks as they stand in HTTP, head and end included; None where the client wants none."""


class Exchange:
    """One request and its answer on one connection."""

    __slots__ = (
        "_connection", "_pieces", "_sink", "_waiter", "beats", "complete", "content_type", "error", "paused", "reused",
        "status",
    )  # fmt: skip

    def __init__(self, connection: "Connection", reused: bool) -> None:
        self.status = 0
        self.content_type = "application/json"
        self.complete = False
        self.error: EngineError | None = None
        self.beats = 0
        """Reads that held a part of the body, so far: whoever looks twice sees whether the engine moves."""
        self.paused = False
        """Nothing is read while the client is slow: silence then says nothing of the engine."""
        self.reused = reused
        """True where the connection had served before: the engine may have closed it just as we wrote."""
        self._connection = connection
        self._pieces: list[bytes] = []
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> None:
        """Until status and headers are there."""
        while not self.status:
            await self._change()

    async def first_event(self) -> bytes:
        """All bytes received once the first server-sent event is among them (or the whole body, where it has none)."""
        while True:
            received = b"".join(self._pieces)
            if b"\n\n" in received or self.complete:
                self._pieces.clear()
                return received
            await self._change()

    async def whole(self) -> bytes:
        """The complete body."""
        while not self.complete:
            await self._change()
        return b"".join(self._pieces)

    async def relay(self, sink: Sink) -> None:
        """Hand the rest of the body to `sink` as it comes; returns when it is complete. Raises EngineError when cut."""
        self._sink = sink
        if self._pieces:
            sink.write(b"".join(self._pieces))
            self._pieces.clear()
        if not self.complete:
            self._connection.forward_chunks(sink.chunk_writer())
        while not self.complete:
            await self._change()

    def abort(self) -> None:
        """Close the connection unless the answer is complete: this is what frees the engine's slot."""
        if not self.complete:
            self._connection.close()

    def fail(self, error: EngineError) -> None:
        """End the exchange from outside: whoever awaits it gets `error`."""
        if not self.complete and self.error is None:
            self.error = error
            self._wake()
            self._connection.close()

    def pause(self) -> None:
        if not self.complete:  # a complete one has given its connection back
            self.paused = True
            self._connection.pause_reading()

    def resume(self) -> None:
        if not self.complete:
            self.paused = False
            self._connection.resume_reading()

    def received(self, data: bytes, complete: bool) -> None:
        """Called by the connection for every read that held a part of the answer."""
        self.complete = complete
        if data:
            self.beats += 1
        if self._sink is None:
            if data:
                self._pieces.append(data)
            self._wake()
            return
        if data:
            self._sink.write(data)
        if complete:
            self._wake()

    async def _change(self) -> None:
        if self.error is not None:
            raise self.error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self.error is not None:
            raise self.error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One TCP connection to an engine. Parses framing and headers; bodies are passed on unread.

    While an answer is relayed, a read of nothing but whole chunks goes to the client as it is, past the parser: one
    that stands between two chunks need not see the chunks it misses. Tokens usually come so, and cost half as much.
    """

    def __init__(self, pool: "Pool", address: tuple[str, int]) -> None:
        self.address = address
        self.idle_since = 0.0
        self.usable = True
        self._pool = pool
        self._transport: asyncio.Transport
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._content_type = ""
        self._complete = False
        self._forward: ChunkWriter | None = None
        self._chunk_ended = False
        """The parser's last event was a chunk's end."""
        self._between_chunks = False

    def send(self, request: bytes, reused: bool) -> Exchange:
        self._exchange = Exchange(self, reused)
        self._complete = False
        self._transport.write(request)
        return self._exchange

    def forward_chunks(self, writer: ChunkWriter | None) -> None:
        """Until the answer is complete, hand whole chunks to `writer` unparsed."""
        self._forward = writer

    def close(self) -> None:
        self.usable = False
        self._transport.abort()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # bytes that nobody asked for
            self.close()
            return
        if self._between_chunks and self._forward is not None and are_whole_chunks(data):
            exchange.beats += 1
            self._forward(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            exchange.fail(EngineError("reset", f"not HTTP: {error}"))
            return
        pieces, self._pieces = self._pieces, []
        # The chunk's end may lie before a part of the next one's head: then the read does not end with its line's end.
        self._between_chunks = self._chunk_ended and data.endswith(b"\r\n")
        if self._complete:
            self._release()
        exchange.received(pieces[0] if len(pieces) == 1 else b"".join(pieces), self._complete)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._pool.forget(self)
        if self._exchange is not None:
            self._exchange.fail(EngineError("reset", str(error) if error else "closed by the engine"))
            self._exchange = None

    # httptools.HttpResponseParser

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._content_type = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()
            self._exchange.content_type = self._content_type

    def on_chunk_header(self) -> None:
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        self._chunk_ended = True

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self._complete = True
        self.usable = self.usable and self._parser.should_keep_alive()

    def _release(self) -> None:
        """The answer is complete: back to the pool, in reading state, if the engine keeps the connection."""
        self._exchange = self._forward = None
        self._between_chunks = self._chunk_ended = False
        self.resume_reading()
        if self.usable:
            self._pool.keep(self)
        else:
            self._transport.close()


class Pool:
    """Idle keep-alive connections to all engines, the last used first."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], dict[Connection, None]] = {}

    async def post(
        self, url: str, target: str, body: bytes, headers: Iterable[tuple[str, str]], fresh: bool = False
    ) -> Exchange:
        """Send a JSON body; on a new connection where `fresh`. `headers` hold nothing that a client could have made up
        freely. Raises EngineError of a cause in `UNSENT`."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"content-type: application/json\r\n{lines}content-length: {len(body)}\r\n"
        return await self._ask(url, f"POST {target}", head, body, fresh)

    async def get(self, url: str, target: str) -> Exchange:
        """Raises EngineError of a cause in `UNSENT`."""
        return await self._ask(url, f"GET {target}", "", b"", fresh=False)

    async def _ask(self, url: str, what: str, headers: str, body: bytes, fresh: bool) -> Exchange:
        address = _address(url)
        connection = None if fresh else self._take(address)
        reused = connection is not None
        if connection is None:
            connection = await self._connect(address)
        host, port = address
        head = f"{what} HTTP/1.1\r\nhost: {host}:{port}\r\n{headers}\r\n"
        return connection.send(head.encode("latin-1") + body, reused)

    def keep(self, connection: Connection) -> None:
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(connection.address, {})[connection] = None

    def forget(self, connection: Connection) -> None:
        idle = self._idle.get(connection.address)
        if idle is not None:
            idle.pop(connection, None)
            if not idle:
                del self._idle[connection.address]

    def close(self) -> None:
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            connection.close()

    def _take(self, address: tuple[str, int]) -> Connection | None:
        idle = self._idle.get(address)
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while idle:
            connection, _ = idle.popitem()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, address: tuple[str, int]) -> Connection:
        """A process that was itself kept from running may have been answered in time: it tries again."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    transport, connection = await loop.create_connection(lambda: Connection(self, address), *address)
            except TimeoutError:
                if loop.time() - began <= LATE * CONNECT_SECONDS:
                    raise EngineError("connect_timeout", f"no connection within {CONNECT_SECONDS:g} s") from None
            except OSError as error:
                raise EngineError("connect", str(error)) from error
            else:
                notice_loss(transport.get_extra_info("socket"))
                return connection


def are_whole_chunks(data: bytes) -> bool:
    """Whether `data`, which begins where a chunk does, is whole chunks and no more, without the last (of size 0)."""
    at, length = 0, len(data)
    while at < length:
        end = data.find(b"\r\n", at, at + 10)
        try:
            size = int(data[at:end], 16) if end > at else 0
        except ValueError:  # a chunk extension, which is the parser's business
            return False
        if size <= 0:
            return False
        at = end + size + 4
    return at == length > 0


def notice_loss(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80
