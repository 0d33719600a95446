"""How well KV blocks to evict are chosen: hit ratio by blocks on a trace (*simulated*), beside the known policies, with
Belady's choice and unlimited room as ceilings.

Hits stop at a prompt's first missing block. The size is a share of the trace's distinct blocks. What was tuned, was on
the first half; the second is scored, with what the cache holds from the first. The product's own functions decide,
asked as the store asks them. Without a folder of traces only the made-up patterns run.
"""

import json
import lzma
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from rich.progress import Progress

from bench.caches import Arc, Belady, Cache, Lru, Ordered, S3Fifo, TwoQueues, Unlimited, hits
from bench.report import Options, Report, at_least, at_most
from headrace_runtime.kv.eviction import ORDERS, Block

TRACE: Final = "mooncake_conversation.jsonl.xz"
BLOCK: Final = 512
"""Tokens of a block of the trace."""
SIZES: Final = (0.01, 0.02, 0.05, 0.10, 0.20)
GAP_SIZES: Final = (0.02, 0.05, 0.10)
UNDER_LRU: Final = 0.005
GAP: Final = 0.25
PROBATIONS: Final = (0.25, 0.5)
OURS: Final = "Default"


@dataclass(frozen=True, slots=True)
class Prompt:
    at: float
    keys: tuple[int, ...]
    whole: int
    """Blocks that are full: all, or all but the last."""


def read(file: Path) -> list[Prompt]:
    """A trace in Mooncake's format, compressed. Requests of the same moment come a microsecond apart."""
    prompts = []
    with lzma.open(file, "rt") as lines:
        for number, line in enumerate(lines):
            said = json.loads(line)
            at = said["timestamp"] / 1e3 + number * 1e-6
            prompts.append(Prompt(at, tuple(said["hash_ids"]), said["input_length"] // BLOCK))
    return prompts


def ratio(cache: Cache, prompts: Sequence[Prompt], scored_from: float = 0.0) -> float:
    """Share of blocks that were hits, of the requests from that moment on."""
    hit = asked = 0
    for prompt in prompts:
        if prompt.at >= scored_from:
            hit += hits(cache, prompt.keys)
            asked += len(prompt.keys)
        cache.admit(prompt.keys, prompt.whole, prompt.at)
    return hit / max(1, asked)


def run(options: Options) -> Report:
    sizes = (0.05,) if options.quick else SIZES
    report = Report("eviction", "hit ratio by blocks, second half of the trace (simulated)", _columns(sizes))
    with Progress(transient=True) as progress:
        task = progress.add_task("cost of an order", total=None)
        _cost(report)
        progress.update(task, description="made-up patterns")
        _patterns(report)
        trace = options.traces / TRACE if options.traces is not None else None
        if trace is None or not trace.exists():
            report.notes.append(f"no replay: --traces names no folder with {TRACE}")
            return report
        _replay(report, read(trace), sizes, lambda what: progress.update(task, description=what))
    return report


def _columns(sizes: Sequence[float]) -> list[str]:
    return ["policy", *(f"{size:.0%} of the blocks\n(simulated)" for size in sizes)]


def _replay(report: Report, prompts: Sequence[Prompt], sizes: Sequence[float], tell: Callable[[str], None]) -> None:
    half = prompts[-1].at / 2
    blocks = len({key for prompt in prompts for key in prompt.keys})
    keys = [prompt.keys for prompt in prompts]
    policies: dict[str, Callable[[int], Cache]] = {
        "LRU, tail first": Lru,
        "the same by the store's order": lambda size: Ordered(size, ORDERS["LRU"]),
        "S3-FIFO": S3Fifo,
        "ARC": Arc,
        **{f"2Q, probation {share:.0%}": partial(TwoQueues, probation=share) for share in PROBATIONS},
        OURS: lambda size: Ordered(size, ORDERS[OURS]),
        f"{OURS}, forgets what it evicted": lambda size: Ordered(size, ORDERS[OURS], ghosts=0),
        f"{OURS}, not told which blocks are full": lambda size: Ordered(size, ORDERS[OURS], knows_whole=False),
        "Belady": lambda size: Belady(size, keys),
    }
    found: dict[str, list[float]] = {}
    for name, make in policies.items():
        tell(name)
        found[name] = [ratio(make(int(size * blocks)), prompts, half) for size in sizes]
        report.rows.append([name, *(f"{one:.4f}" for one in found[name])])
    unlimited = ratio(Unlimited(), prompts, half)
    report.rows.append(["unlimited", *(f"{unlimited:.4f}" for _ in sizes)])
    report.notes.append(f"{len(prompts)} requests, {blocks} distinct blocks; scored: from {half:.0f} s on")
    lru, ours, best = found["LRU, tail first"], found[OURS], found["Belady"]
    gaps = [(a - b) / (c - b) for a, b, c in zip(ours, lru, best, strict=True)]
    report.rows.append([f"{OURS}: of the gap from LRU to Belady", *(f"{gap:.0%}" for gap in gaps)])
    for size, a, b, gap in zip(sizes, ours, lru, gaps, strict=True):
        report.checks.append(at_most(f"{size:.0%}: share under LRU (simulated)", 1 - a / b, UNDER_LRU))
        if size in GAP_SIZES:
            report.checks.append(at_least(f"{size:.0%}: share of the gap (simulated)", gap, GAP))


# Patterns that are easy to lose on


def flood(seconds: int = 2000) -> Iterator[Prompt]:
    """Ten conversations that go on every 100 s, and all the while prompts that never return."""
    fresh = iter(range(1_000_000, 9_000_000))
    for second in range(seconds):
        talker, turn = second % 100, second // 100
        if talker < 10:
            yield Prompt(second, tuple(talker * 1000 + place for place in range(10 + 2 * turn)), 10 + 2 * turn)
        yield Prompt(second + 0.5, tuple(next(fresh) for _ in range(10)), 10)


def loop(seconds: int = 3000) -> Iterator[Prompt]:
    """Fifty prompts, one after the other, again and again: more than there is room for."""
    for second in range(seconds):
        first = second % 50 * 100
        yield Prompt(float(second), tuple(range(first, first + 20)), 20)


def _patterns(report: Report) -> None:
    for name, made, size in (("one-shot flood", flood(), 600), ("loop", loop(), 500)):
        prompts = list(made)
        half = prompts[-1].at / 2
        lru, ours = (ratio(Ordered(size, ORDERS[order]), prompts, half) for order in ("LRU", OURS))
        best = ratio(Belady(size, [prompt.keys for prompt in prompts]), prompts, half)
        report.notes.append(f"{name} (simulated), {size} blocks: LRU {lru:.4f}, {OURS} {ours:.4f}, Belady {best:.4f}")
        report.checks.append(at_least(f"{name}: hit ratio beyond LRU's (simulated)", ours - lru, 0.0))


def _cost(report: Report) -> None:
    """Real seconds, on this machine."""
    blocks = [
        Block(number.to_bytes(4, "big"), number % 20, number // 20 / 10, number // 20 / 10, 0, 4096)
        for number in range(100_000)
    ]
    took = []
    for _ in range(5):
        began = time.process_time()
        ORDERS[OURS](blocks, 600.0)
        took.append(time.process_time() - began)
    report.checks.append(at_most("processor seconds to order 100,000 blocks (real)", min(took), 0.5))
