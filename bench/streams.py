"""Thousands of streams open at once through one relay on one core: chunks/s, memory of a stream, and the worst delay.

The engine is *simulated* (`bench/crowd.py`) and shares a process and the other cores with the clients. Each repeat
measures that process alone, which is the ceiling; then the gateway; then vllm-router. A delay is the time from the
engine's write to the client's read. Memory is what the relay's resident memory grew by while all streams were opened,
after a first crowd had warmed it up; the kernel's socket buffers are not in it.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import orjson
from rich.progress import Progress

from bench.crowd import Arrived
from bench.engines import gateway
from bench.peers import vllm_router
from bench.programs import cores, cpu_seconds, pin, resident_bytes
from bench.report import Options, Report, at_least, at_most, spread
from headrace_runtime.contract import Endpoint, FixedDiscovery

STREAMS = 10_000
SPARE_FILES = 300
"""Open files of a relay beside two for each stream."""
WARM_UP_STREAMS = 200
LONGEST_DELAY = 0.25
"""Seconds that the relay may hold a chunk back."""
MODEL = "tiny"
CEILING, OURS, ROUTER = "clients and engine alone", "Headrace gateway", "vllm-router"


@dataclass
class Arm:
    """All runs of one relay, or of none."""

    name: str
    arrived: list[Arrived] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    kilobytes: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        return [one.events / one.seconds for one in self.arrived]

    def column(self) -> list[str]:
        """In the order of ROWS."""

        def times(of: str) -> str:
            return spread([getattr(one, of) * 1e3 for one in self.arrived])

        return [
            spread([one.streams for one in self.arrived], 0),
            spread([one.offered / one.seconds for one in self.arrived], 0),
            spread(self.rates, 0),
            spread(self.cpu_us) if self.cpu_us else "-",
            spread(self.kilobytes) if self.kilobytes else "-",
            *map(times, ("delay_p50", "delay_p99", "delay_max", "opening_delay_max")),
        ]


ROWS = (
    "streams open",
    "chunks/s offered",
    "chunks/s arrived",
    "relay, µs CPU a chunk",
    "relay, KB a stream",
    "delay p50 ms",
    "delay p99 ms",
    "delay max ms",
    "delay max while they open, ms",
)


def run(options: Options) -> Report:
    streams = min(STREAMS, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES) // 2)
    repeats, seconds = (1, 3.0) if options.quick else (5, 8.0)
    interval = streams / 40_000
    arms = [Arm(CEILING), Arm(OURS), Arm(ROUTER)]
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=repeats * len(arms))
        for _ in range(repeats):
            for arm in arms:
                progress.update(task, description=arm.name)
                measure(arm, streams, interval, seconds)
                progress.update(task, advance=1)
    return judged(arms, streams, repeats)


def judged(arms: list[Arm], streams: int, repeats: int) -> Report:
    report = Report(
        "streams",
        f"{repeats} alternating repeats, median (min..max)",
        ("*simulated* engine, the relay on one core", *(arm.name for arm in arms)),
        [list(row) for row in zip(ROWS, *(arm.column() for arm in arms), strict=True)],
    )
    if streams < STREAMS:
        report.notes.append(f"{streams} streams: the hard limit of open files (`ulimit -Hn`) allows no more here")
    ceiling, ours, _ = arms
    if max(one.delay_max for one in ceiling.arrived) > LONGEST_DELAY:
        report.notes.append("clients and engine alone were late by more than the limit: this machine has other work")
    worst = max(max(one.delay_max, one.opening_delay_max) for one in ours.arrived)
    report.checks = [
        at_least("chunks/s relayed on one core", median(ours.rates), 30_000),
        at_least("streams open", min(one.streams for one in ours.arrived), streams),
        at_most("streams cut", max(one.cut for one in ours.arrived), 0),
        at_most("KB a stream", median(ours.kilobytes), 60),
        at_most("longest delay of a chunk that the engine did not cause, ms", worst * 1e3, LONGEST_DELAY * 1e3),
    ]
    return report


def measure(arm: Arm, streams: int, interval: float, seconds: float) -> None:
    """One run: a relay that has just been started, and the crowd."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, ExitStack() as stack:
        crowd = stack.enter_context(_crowd(streams, interval, seconds))
        if arm.name == CEILING:
            arm.arrived.append(crowd.go(""))
            return
        relay = stack.enter_context(_relay(arm.name, crowd.engine, Path(name)))
        with _crowd(WARM_UP_STREAMS, 0.05, 1.0) as first:
            first.go(relay.url)
        memory = resident_bytes(relay.pid)
        crowd.open(relay.url)
        arm.kilobytes.append((resident_bytes(relay.pid) - memory) / streams / 1e3)
        before = cpu_seconds(relay.pid)
        arrived = crowd.arrived()
        arm.cpu_us.append((cpu_seconds(relay.pid) - before) / max(arrived.events, 1) * 1e6)
        arm.arrived.append(arrived)


@dataclass(frozen=True)
class Crowd:
    """The process of engine and clients."""

    engine: str
    """The simulated engine's URL."""
    program: "subprocess.Popen[str]"

    def go(self, url: str) -> Arrived:
        """Open all streams at `url` (empty: the engine itself) and measure."""
        self.open(url)
        return self.arrived()

    def open(self, url: str) -> None:
        """Returns once all have begun."""
        assert self.program.stdin is not None
        self.program.stdin.write(f"{url}\n")
        self.program.stdin.flush()
        self._line()

    def arrived(self) -> Arrived:
        return Arrived(**orjson.loads(self._line()))

    def _line(self) -> str:
        """Raises RuntimeError where the process has ended."""
        assert self.program.stdout is not None
        if line := self.program.stdout.readline():
            return line.strip()
        raise RuntimeError(f"the crowd's process ended with status {self.program.wait()}")


@contextmanager
def _crowd(streams: int, interval: float, seconds: float) -> Iterator[Crowd]:
    argv = [sys.executable, "-m", "bench.crowd", "--streams", str(streams), "--model", MODEL]
    argv += ["--interval", str(interval), "--seconds", str(seconds)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            pin(program.pid, cores().others)
            assert program.stdout is not None
            yield Crowd(program.stdout.readline().strip(), program)
        finally:
            program.kill()


@dataclass(frozen=True)
class Relay:
    url: str
    pid: int


@contextmanager
def _relay(name: str, engine: str, folder: Path) -> Iterator[Relay]:
    """Alone on its core."""
    endpoint = Endpoint(name="engine", url=engine, role="serve", revision="bench")
    with ExitStack() as stack:
        if name == OURS:
            front = stack.enter_context(gateway(folder, MODEL, FixedDiscovery(endpoints=(endpoint,)), engines=1))
            relay = Relay(front.url, front.pid)
        else:
            peer = stack.enter_context(vllm_router(folder, ["--worker-urls", engine, "--policy", "round_robin"]))
            relay = Relay(peer.url, peer.pid)
        pin(relay.pid, cores().relay)
        yield relay
