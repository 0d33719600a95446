"""Very many streams at once: a *simulated* engine and all its clients in one process, so that a relay can have a core
of its own.

`python -m bench.crowd` prints the engine's URL, reads one line with the URL to ask (empty: the engine itself, which
shows what this process alone can do), opens the streams, prints `open`, measures, and prints one JSON line. The delay
of an event is the time from the engine's write to the client's read: what the engine was late itself is not in it.
Started by `bench streams`.
"""

import asyncio
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import cast
from urllib.parse import urlsplit

import click
import orjson
import uvloop

from bench.report import percentile
from bench.simulated import STAMP, Pace, SimulatedEngine

DIGITS = 16
BATCH = 160
"""Streams of one simulated engine."""
OPENED_PER_SECOND = 1000
OPEN_SECONDS = 60.0


@dataclass(frozen=True)
class Arrived:
    """What came while it was measured. Times in seconds."""

    streams: int
    """That had begun when the measurement did."""
    seconds: float
    offered: int
    """Events that the engine wrote."""
    events: int
    delay_p50: float
    delay_p99: float
    delay_max: float
    opening_delay_max: float
    """The longest of the events that came while streams were still being opened."""
    cut: int
    """Streams that ended, which none should."""


@dataclass
class Count:
    """All clients together. `delays` in microseconds, of the oldest event of each read."""

    wanted: int
    events: int = 0
    begun: int = 0
    cut: int = 0
    delays: list[int] = field(default_factory=list)
    all_begun: asyncio.Event = field(default_factory=asyncio.Event)


class Client(asyncio.Protocol):
    """One stream, asked for at once and not ended by the client before all is measured."""

    def __init__(self, count: Count, request: bytes) -> None:
        self.transport: asyncio.Transport
        self._count = count
        self._request = request
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        count = self._count
        at = data.find(STAMP) + len(STAMP)
        if at < len(STAMP):
            return
        count.delays.append(time.monotonic_ns() // 1000 - int(data[at : at + DIGITS]))
        count.events += data.count(STAMP)
        if not self._begun:
            self._begun = True
            count.begun += 1
            if count.begun == count.wanted:
                count.all_begun.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._count.cut += 1


async def measure(url: str, streams: int, seconds: float, engine: SimulatedEngine, request: bytes) -> Arrived:
    """Open the streams, wait until all have begun and one interval more, then count for `seconds`."""
    loop, count = asyncio.get_running_loop(), Count(streams)
    clients = await _opened(url, count, request)
    opening = max(count.delays, default=0)
    print("open", flush=True)
    await asyncio.sleep(engine.pace.interval)
    count.delays.clear()
    events, sent, since = count.events, engine.sent, loop.time()
    await asyncio.sleep(seconds)
    took = loop.time() - since
    delays = [delay / 1e6 for delay in count.delays]
    arrived = Arrived(
        streams=count.begun,
        seconds=took,
        offered=engine.sent - sent,
        events=count.events - events,
        delay_p50=percentile(delays, 0.5),
        delay_p99=percentile(delays, 0.99),
        delay_max=max(delays, default=0.0),
        opening_delay_max=opening / 1e6,
        cut=count.cut,
    )
    for client in clients:
        client.transport.abort()
    return arrived


async def _opened(url: str, count: Count, request: bytes) -> list[Client]:
    """Spread over some seconds: a burst of connections is another measurement."""
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    host, port, began = parts.hostname or "", parts.port or 80, loop.time()
    clients: list[Client] = []
    while len(clients) < count.wanted:
        _, client = await loop.create_connection(lambda: Client(count, request), host, port)
        clients.append(client)
        await asyncio.sleep(max(0.0, began + len(clients) / OPENED_PER_SECOND - loop.time()))
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            await count.all_begun.wait()
    except TimeoutError:
        print(f"{count.begun} of {count.wanted} streams have begun", file=sys.stderr)
    return clients


def request_of(model: str, prompt_tokens: int) -> bytes:
    """A streamed completion that does not end while it is measured."""
    fields = {"model": model, "prompt": [11742] * prompt_tokens, "max_tokens": 1_000_000, "stream": True}
    body = orjson.dumps(fields)
    lines = ["POST /v1/completions HTTP/1.1", "host: bench", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


@click.command(help="Streams through a relay whose URL is read from standard input; an empty line: without one.")
@click.option("--streams", default=1000, show_default=True)
@click.option("--interval", default=0.25, show_default=True, help="Seconds between the tokens of a stream.")
@click.option("--seconds", default=10.0, show_default=True, help="How long to measure.")
@click.option("--model", default="tiny", show_default=True)
@click.option("--prompt-tokens", default=64, show_default=True)
def main(streams: int, interval: float, seconds: float, model: str, prompt_tokens: int) -> None:
    async def run() -> Arrived:
        engine = SimulatedEngine(Pace(interval, batches=max(1, streams // BATCH)))
        own = f"http://127.0.0.1:{await engine.listen()}"
        running = asyncio.create_task(engine.run())
        print(own, flush=True)
        url = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        try:
            return await measure(url.strip() or own, streams, seconds, engine, request_of(model, prompt_tokens))
        finally:
            running.cancel()

    print(orjson.dumps(asdict(uvloop.run(run()))).decode(), flush=True)


if __name__ == "__main__":
    main()
