"""Ten thousand connections at once, then a request from each at once, while a few streams are relayed.

The engine is *simulated*; the gateway has one core, and the crowd a process beside that of the good streams, so that
its own work is not taken for the gateway's. The delay is that of the good streams' events, from the engine's write to
the client's read.
"""

import asyncio
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.crowd import Client, Count, request_of
from bench.engines import gateway
from bench.programs import cores, pin, resident_bytes
from bench.report import Options, Report, at_least, at_most, spread
from bench.simulated import Pace, SimulatedEngine
from headrace_runtime.contract import Endpoint, FixedDiscovery

CONNECTIONS = 9_990
"""With the good streams, below the gateway's own limit of 10,000."""
SPARE_FILES = 300
GOOD = 5
MODEL = "tiny"
INTERVAL = 0.01
ASK = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
PHASES = ("before", "all connect", "all ask", "all leave")
SETTLE_SECONDS = 2.0
ANSWER_SECONDS = 20.0


@dataclass
class Seen:
    """Of all repeats: the good streams' longest delay in milliseconds, by phase."""

    delays: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    answers: list[int] = field(default_factory=list)
    kilobytes: list[float] = field(default_factory=list)


def run(options: Options) -> Report:
    connections = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES)
    repeats = 1 if options.quick else 5
    seen = Seen()
    for _ in range(repeats):
        uvloop.run(_once(seen, connections))
    rows = [[f"good streams, longest delay, ms: {phase}", spread(seen.delays[phase])] for phase in PHASES]
    rows += [["answers", spread(seen.answers, 0)], ["gateway, KB a connection", spread(seen.kilobytes)]]
    report = Report(
        "burst", f"{connections} connections at once, *simulated* engine, {repeats} repeats", ("", ""), rows
    )
    worst = max(median(seen.delays[phase]) for phase in PHASES)
    report.checks = [
        at_most("longest delay of the good streams, ms", worst, 250),
        at_least("answers", min(seen.answers), connections),
        at_most("KB a connection", median(seen.kilobytes), 60),
    ]
    return report


async def _once(seen: Seen, connections: int) -> None:
    pin(0, cores().others)
    engine = SimulatedEngine(Pace(INTERVAL))
    endpoint = Endpoint(name="engine", url=f"http://127.0.0.1:{await engine.listen()}", role="serve", revision="bench")
    running = asyncio.create_task(engine.run())
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        relay = gateway(Path(folder), MODEL, FixedDiscovery(endpoints=(endpoint,)), engines=1)
        front = await asyncio.to_thread(relay.__enter__)
        try:
            pin(front.pid, cores().relay)
            with _crowd(front.url, connections) as crowd:
                await _phases(seen, front.url, front.pid, crowd, connections)
        finally:
            await asyncio.to_thread(relay.__exit__, None, None, None)
            running.cancel()
            pin(0, cores().all)


async def _phases(seen: Seen, url: str, pid: int, crowd: "subprocess.Popen[str]", connections: int) -> None:
    loop, (host, port), count = asyncio.get_running_loop(), _address(url), Count(GOOD)
    for _ in range(GOOD):
        await loop.create_connection(lambda: Client(count, request_of(MODEL, 64)), host, port)
    await count.all_begun.wait()
    memory = resident_bytes(pid)
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    for phase in PHASES:
        count.delays.clear()
        if phase != PHASES[0]:
            crowd.stdin.write("go\n")
            crowd.stdin.flush()
            said = await asyncio.to_thread(crowd.stdout.readline)
            if phase == "all ask":
                seen.answers.append(int(said))
                seen.kilobytes.append((resident_bytes(pid) - memory) / connections / 1e3)
        await asyncio.sleep(SETTLE_SECONDS)
        seen.delays[phase].append(max(count.delays) / 1e3)


@contextmanager
def _crowd(url: str, connections: int) -> Iterator["subprocess.Popen[str]"]:
    """The process of the many: one step for each line it reads."""
    argv = [sys.executable, "-m", "bench.burst", url, str(connections)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            pin(program.pid, cores().others)
            yield program
        finally:
            program.kill()


class _One(asyncio.Protocol):
    """One of the many."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 200 ") and not self.answered.done():
            self.answered.set_result(None)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


async def _many(url: str, connections: int) -> None:
    loop, (host, port) = asyncio.get_running_loop(), _address(url)
    await loop.run_in_executor(None, sys.stdin.readline)
    made = await asyncio.gather(
        *(loop.create_connection(_One, host, port) for _ in range(connections)), return_exceptions=True
    )
    clients = [one[1] for one in made if not isinstance(one, BaseException)]
    print(len(clients), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    for client in clients:
        client.transport.write(ASK)
    await asyncio.wait([client.answered for client in clients], timeout=ANSWER_SECONDS)
    print(sum(client.answered.done() for client in clients), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    for client in clients:
        client.transport.abort()
    print(0, flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    uvloop.run(_many(sys.argv[1], int(sys.argv[2])))
