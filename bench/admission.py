"""The way in: processor time of a request (real), and what one key with too many requests costs others (*simulated*).

The simulation is of time alone: the gateway's own state machine, asked at moments of a made-up clock, beside one queue
for all that drops what comes last. Both have the same capacity and the same bounds.
"""

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Protocol

import uvloop
from prometheus_client import CollectorRegistry

from bench.report import Options, Report, at_least, at_most, percentile, spread
from headrace_runtime.contract import Admission, GatewayContract, KeyRule, Limit
from headrace_runtime.gateway import keys
from headrace_runtime.gateway.admission import Admission as Entrance
from headrace_runtime.gateway.gate import Gate, State, Ticket
from headrace_runtime.gateway.reload import Live
from headrace_runtime.gateway.telemetry import Record, Telemetry

PLACES: Final = 32
QUEUE: Final = 256
WAIT_SECONDS: Final = 30.0
SERVICE_SECONDS: Final = 1.0
"""Mean time of a request, exponentially spread: 32 of them end in a second."""
GREEDY_RATE: Final = 200.0
"""Requests per second of one key: six times what the deployment can do."""
MODEST_RATE: Final = 2.0
MODEST: Final = 4
"""Keys that ask so often: together a quarter of what the deployment can do."""
NO_LIMIT: Final = 10**9

COLUMNS = ("", "answered of the modest (simulated)", "their wait p50 s", "p99 s", "answered per s, of all")


def run(options: Options) -> Report:
    summary = f"{MODEST} keys of {MODEST_RATE:g} requests/s beside one of {GREEDY_RATE:g}, {PLACES} at a time"
    report = Report("admission", summary, COLUMNS)
    _cost(report, 3 if options.quick else 9)
    seeds = range(2 if options.quick else 7)
    seconds = 30.0 if options.quick else 120.0
    fair = [simulate(Fair(), seed, seconds) for seed in seeds]
    plain = [simulate(Plain(), seed, seconds) for seed in seeds]
    for name, runs in (("in turn between keys", fair), ("one queue for all", plain)):
        report.rows.append(
            [
                name,
                spread([one.share for one in runs], 2),
                spread([percentile(one.waits, 0.5) for one in runs], 2),
                spread([percentile(one.waits, 0.99) for one in runs], 2),
                spread([one.answered / seconds for one in runs]),
            ]
        )
    report.checks.append(at_least("share of the modest keys' requests answered", min(one.share for one in fair), 0.99))
    kept = median([ours.answered / other.answered for ours, other in zip(fair, plain, strict=True)])
    report.checks.append(at_least("answered in all, times those of one queue", kept, 0.98))
    return report


# Processor time


def _cost(report: Report, repeats: int) -> None:
    full = Limit(max_concurrent=1000, requests_per_minute=NO_LIMIT, tokens_per_minute=NO_LIMIT)
    arms = {
        "neither keys nor limits": (None, Admission()),
        "keys": ("/keys", Admission()),
        "keys, and every limit there is": ("/keys", Admission(total=full, each_key=KeyRule(limits=full))),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, (folder, rules) in arms.items():
            found[name].append(uvloop.run(_microseconds(folder, rules)))
    report.notes.append("µs of processor time for a request's admission (real):")
    report.notes += [f"  {name}: {spread(values)}" for name, values in found.items()]
    report.checks.append(at_most("µs for a request with keys and every limit (real)", median(found[name]), 20.0))


async def _microseconds(folder: str | None, rules: Admission, calls: int = 4000) -> float:
    contract = GatewayContract(namespace="n", deployment="d", served_name="s", keys_folder=folder, admission=rules)
    live = Live(contract)
    live.keys = {keys.digest("sk-1"): "one"}
    entrance = Entrance(live, Telemetry(CollectorRegistry()))
    headers = {"authorization": "Bearer sk-1"}
    record = Record("id", "/v1/chat/completions", 0.0, prompt_tokens=100)
    record.tokens = 150
    began = time.process_time()
    for _ in range(calls):
        async with entrance.admitted(entrance.caller(headers), record, 1000):
            pass
    elapsed = time.process_time() - began
    await asyncio.sleep(0)
    return elapsed / calls * 1e6


# Simulated


@dataclass(slots=True)
class Request:
    key: str
    came: float
    ticket: Ticket | None = None


class Queue(Protocol):
    """Who may run, told of everything that happens; gives those who begin."""

    def come(self, request: Request, now: float) -> list[Request]: ...
    def end(self, request: Request, now: float) -> list[Request]: ...


class Fair:
    """The gateway's own."""

    def __init__(self) -> None:
        rules = Admission(total=Limit(max_concurrent=PLACES), queue_length=QUEUE, queue_seconds=WAIT_SECONDS)
        self._gate = Gate(rules, 0.0)
        self._waiting: dict[Ticket, Request] = {}

    def come(self, request: Request, now: float) -> list[Request]:
        self._gate.tick(now)
        ticket = request.ticket = self._gate.arrive(request.key, 0, now)
        self._waiting[ticket] = request
        at_once = [self._waiting.pop(ticket)] if ticket.state is State.RUNNING else []
        return at_once + self._begun()

    def end(self, request: Request, now: float) -> list[Request]:
        assert request.ticket is not None
        self._gate.tick(now)
        self._gate.leave(request.ticket, now)
        return self._begun()

    def _begun(self) -> list[Request]:
        changed = [(ticket, self._waiting.pop(ticket, None)) for ticket in self._gate.changed()]
        return [request for ticket, request in changed if request is not None and ticket.state is State.RUNNING]


class Plain:
    """First come, first served; what finds the queue full is dropped, and what waited too long."""

    def __init__(self) -> None:
        self._running = 0
        self._line: deque[Request] = deque()

    def come(self, request: Request, now: float) -> list[Request]:
        if len(self._line) < QUEUE:
            self._line.append(request)
        return list(self._next(now))

    def end(self, request: Request, now: float) -> list[Request]:
        self._running -= 1
        return list(self._next(now))

    def _next(self, now: float) -> Iterator[Request]:
        while self._line and self._line[0].came + WAIT_SECONDS <= now:
            self._line.popleft()
        while self._line and self._running < PLACES:
            self._running += 1
            yield self._line.popleft()


@dataclass
class Outcome:
    asked: int = 0
    """By the modest keys."""
    waits: list[float] = field(default_factory=list)
    """Of their requests that were served."""
    answered: int = 0
    """Of all."""

    @property
    def share(self) -> float:
        return len(self.waits) / max(1, self.asked)


def simulate(queue: Queue, seed: int, seconds: float) -> Outcome:
    """Arrivals for so long, at random moments; then what waits is still served."""
    chance, order, outcome = random.Random(seed), itertools.count(), Outcome()
    events: list[tuple[float, int, Request, bool]] = []
    for key, rate in [("greedy", GREEDY_RATE), *((f"modest-{number}", MODEST_RATE) for number in range(MODEST))]:
        now = chance.expovariate(rate)
        while now < seconds:
            heapq.heappush(events, (now, next(order), Request(key, now), True))
            now += chance.expovariate(rate)
    while events:
        now, _, request, comes = heapq.heappop(events)
        modest = request.key != "greedy"
        outcome.asked += comes and modest
        for begun in queue.come(request, now) if comes else queue.end(request, now):
            outcome.answered += now < seconds
            if begun.key != "greedy":
                outcome.waits.append(now - begun.came)
            done = now + chance.expovariate(1 / SERVICE_SECONDS)
            heapq.heappush(events, (done, next(order), begun, False))
    return outcome
