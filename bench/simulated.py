"""A *simulated* engine that costs next to nothing, for loads that no model on this machine could give.

It speaks what the gateway needs of vLLM's HTTP: `/health` and streamed completions, one event per token, every token of
all streams on a clock of its own (open loop: a slow reader is not waited for). Each event carries the microsecond in
which it was written, so that a client can tell the relay's delay from the engine's. Its counterpart for tests, with
faults and real shapes, is `headrace_runtime.engine.fake`. Run alone: `python -m bench.simulated --port 8000`.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import click
import orjson
import uvloop

STAMP = b'"text":" '
"""Followed by sixteen digits: microseconds of the monotonic clock."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds: from one token of a stream to its next, and from the request to the first."""

    interval: float
    first: float = 0.0
    batches: int = 1
    """The streams are as many batches, each at a time of its own in the interval: the tokens of one are written one
    after another, as an engine does after each step. So many engines are simulated."""


class SimulatedEngine:
    """Its streams. `sent` counts events; `late` is the most that its own clock was behind, in seconds."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.sent = 0
        self.late = 0.0
        self._batches: list[set[_Stream]] = [set() for _ in range(pace.batches)]
        self._joined = 0

    async def listen(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """Gives the port."""
        server = await asyncio.get_running_loop().create_server(lambda: _Stream(self), host, port, backlog=20_000)
        return int(server.sockets[0].getsockname()[1])

    async def run(self) -> None:
        """Write every stream's tokens until cancelled."""
        loop = asyncio.get_running_loop()
        step = self.pace.interval / self.pace.batches
        due, turn = loop.time(), 0
        while True:
            due += step
            await asyncio.sleep(max(0.0, due - loop.time()))
            late = loop.time() - due
            self.late = max(self.late, late)
            if late > self.pace.interval:
                due = loop.time()  # a backlog of whole rounds would only be written in one gulp
            self._write(self._batches[turn % len(self._batches)])
            turn += 1

    def begin(self, stream: "_Stream") -> None:
        self._batches[self._joined % len(self._batches)].add(stream)
        self._joined += 1

    def end(self, stream: "_Stream") -> None:
        for batch in self._batches:
            batch.discard(stream)

    def _write(self, streams: set["_Stream"]) -> None:
        if not streams:
            return
        plain, with_ids = event(ids=False), event(ids=True)
        for stream in streams:
            stream.token(with_ids if stream.wants_ids else plain)
        self.sent += len(streams)
        for stream in [stream for stream in streams if not stream.left]:
            streams.discard(stream)
            stream.finish()


class _Stream(asyncio.Protocol):
    """One connection of the engine, with one answer at a time."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.left = 0
        self.wants_ids = False
        self._engine = engine
        self._received = b""
        self._transport: asyncio.Transport
        self._write: Callable[[bytes], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write

    def connection_lost(self, error: Exception | None) -> None:
        if self.left:
            self._engine.end(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        request = orjson.loads(body)
        self.left, self.wants_ids = int(request["max_tokens"]), bool(request.get("return_token_ids"))
        asyncio.get_running_loop().call_later(self._engine.pace.first, self._begin)

    def token(self, data: bytes) -> None:
        self._write(data)
        self.left -= 1

    def finish(self) -> None:
        self._write(END)

    def _begin(self) -> None:
        """The first token at its own time, the others with those of all streams."""
        if self._transport.is_closing():  # the client has left before
            return
        self._write(HEAD + event(self.wants_ids))
        self._engine.sent += 1
        self.left -= 1
        if self.left:
            self._engine.begin(self)
        else:
            self.finish()


def event(ids: bool) -> bytes:
    """One token as vLLM sends it, in a chunk of HTTP: some 190 bytes."""
    choice = b'{"index":0,%b%016d","logprobs":null,"finish_reason":null,"stop_reason":null%b}' % (
        STAMP,
        time.monotonic_ns() // 1000,
        b',"token_ids":[11742]' if ids else b"",
    )
    data = (
        b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"tiny",'
        b'"choices":[%b]}\n\n' % choice
    )
    return b"%x\r\n%b\r\n" % (len(data), data)


def _length(head: bytes) -> int:
    """The body's, as the head says; 0 where it says none."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


@click.command(help="Run a lean simulated engine until it is interrupted.")
@click.option("--port", default=8000, show_default=True)
@click.option("--interval", default=0.02, show_default=True, help="Seconds between the tokens of a stream.")
@click.option("--batches", default=1, show_default=True, help="Engines simulated, each writing at once.")
@click.option("--first", default=0.0, show_default=True, help="Seconds to a stream's first token.")
def main(port: int, interval: float, batches: int, first: float) -> None:
    async def serve() -> None:
        engine = SimulatedEngine(Pace(interval, first, batches))
        await engine.listen(port)
        await engine.run()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
