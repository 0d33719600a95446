"""Prefix-aware routing: what a decision and idling cost (real), and what it reuses of prompts on a trace (*simulated*)
beside round-robin, least-loaded and Dynamo's KV router in Dynamo's own replay of the same file.

The simulated figures stand on two legs: round-robin replayed in our model of the engines and in Dynamo's must agree,
and what we routed is replayed by Dynamo's engines as well. Without a folder of traces only the real part runs.
"""

import tempfile
from pathlib import Path
from statistics import median
from unittest.mock import patch

from rich.progress import Progress

from bench import decisions, dynamo, replay
from bench.dynamo import Replayed
from bench.enginemodel import BLOCK, BLOCKS
from bench.replay import ENGINES, Outcome
from bench.report import Check, Options, Report, at_least, at_most, spread
from headrace_runtime.gateway import routing
from headrace_runtime.gateway.routing import Policy
from simulator.load import read_mooncake

TRACE = "mooncake_conversation.jsonl.xz"
SPEEDS = (1.0, 3.0)
OVERLOAD = 10.0
WEIGHTS = (0.0, 0.2, 1.0)
"""Of answers under way, against `routing.WRITING_WEIGHT`."""
AGREES = 0.03
"""Most that round-robin may differ between the two simulators."""

COLUMNS = (
    "speed of the trace, routing",
    "reuse\n(simulated)",
    "TTFT mean, p50, p90, p99 ms\n(simulated)",
    "gap ms\n(simulated)",
)


def run(options: Options) -> Report:
    report = Report("routing", f"{ENGINES} engines of {BLOCKS} blocks of {BLOCK} tokens, one hour of chat", COLUMNS)
    repeats = 2 if options.quick else 7
    with Progress(transient=True) as progress:
        task = progress.add_task("decisions", total=None)
        _decisions(report, repeats)
        progress.update(task, description="listening to idle engines")
        share = decisions.idle_share(100, 5.0 if options.quick else 30.0)
        report.checks.append(at_most("share of a core to listen to 100 idle engines (real)", share, 0.01))
        trace = options.traces / TRACE if options.traces is not None else None
        if trace is None or not trace.exists():
            report.notes.append(f"no replay: --traces names no folder with {TRACE}; nothing simulated was measured")
            return report
        report.notes.append(f"weight: of answers under way; {routing.WRITING_WEIGHT:g} where none is named")
        for speed in SPEEDS[:1] if options.quick else SPEEDS:
            progress.update(task, description=f"replay, {speed:g} times as fast")
            _replay(report, trace, speed, 1 if options.quick else 5)
        if not options.quick:
            progress.update(task, description="replay, overloaded")
            _overload(report, trace)
    return report


def _decisions(report: Report, repeats: int) -> None:
    report.notes.append(
        "µs for a decision (real), where all engines hold a third of the prompt and one holds all of it;"
    )
    report.notes.append(
        "naive: a set of blocks for each engine, and a walk along the prompt's blocks of 16 tokens in each"
    )
    for timed in decisions.decisions(repeats):
        ratio = median([naive / ours for ours, naive in zip(timed.ours, timed.naive, strict=True)])
        where = f"{timed.engines} engines, {timed.depth} blocks"
        report.notes.append(f"  {where}: {spread(timed.ours)}, naive {spread(timed.naive)}, {ratio:.2f} times as fast")
        if timed.engines == 100:
            report.checks.append(at_most(f"µs for a decision (real), {where}", median(timed.ours), 100.0))
        if timed.engines == 100 and timed.depth == max(decisions.DEPTHS):
            report.checks.append(at_least(f"times as fast as the naive way (real), {where}", ratio, 10.0))
    report.notes.append(f"memory of the index: {decisions.memory_per_block():.0f} bytes for a block of an engine")


def _replay(report: Report, trace: Path, speed: float, repeats: int) -> None:
    requests = read_mooncake(trace, speed)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        rivals = [dynamo.replay(requests, "kv_router", folder) for _ in range(repeats)]
        theirs = dynamo.replay(requests, "round_robin", folder)
        policies: tuple[Policy, ...] = ("RoundRobin", "LeastLoaded", "PrefixAware")
        robin, least, ours = (replay.replay(requests, policy) for policy in policies)
        score = dynamo.score(ours.routed, folder)
    rival = Replayed(*(median(getattr(one, field) for one in rivals) for field in Replayed.__slots__))
    at = f"x{speed:g} "
    report.rows += [
        _row(f"{at}round-robin, Dynamo's", theirs),
        _row(f"{at}round-robin, ours", robin),
        _row(f"{at}least-loaded, ours", least),
        _row(f"{at}KV router, Dynamo's", rival),
        _row(f"{at}PrefixAware, ours", ours),
        [f"{at}the same, Dynamo's engines", f"{score.reuse:.4f}", f"{score.mean:.0f}    -    -     -", "-"],
    ]
    for weight in WEIGHTS:
        with patch.object(routing, "WRITING_WEIGHT", weight):
            row = _row(f"{at}PrefixAware, weight {weight:g}", replay.replay(requests, "PrefixAware"))
        report.rows.append(row)
    report.notes.append(
        f"{at}ceilings of reuse: {replay.unlimited(requests):.4f} with unlimited memory; all engines' memory in one: "
        f"{replay.pooled(requests):.4f} (LRU), {replay.pooled(requests, belady=True):.4f} (Belady)"
    )
    report.notes.append(
        f"{at}Dynamo's KV router, {repeats} repeats: reuse {spread([one.reuse for one in rivals], 4)}, "
        f"p99 {spread([one.p99 for one in rivals])}; ours is the same each time"
    )
    report.checks += _agreement(at, robin, theirs)
    best_rival, least_p99 = max(one.reuse for one in rivals), min(one.p99 for one in rivals)
    report.checks += [
        at_least(f"{at}reuse against Dynamo's best (simulated)", ours.reuse / best_rival, 1.05),
        at_least(f"{at}the same, counted by Dynamo's engines (simulated)", score.reuse / best_rival, 1.05),
        at_most(
            f"{at}p99 TTFT, corrected by what round-robin differs, against Dynamo's best (simulated)",
            ours.p99 * theirs.p99 / robin.p99 / least_p99,
            1.0,
        ),
    ]


def _overload(report: Report, trace: Path) -> None:
    """Where more comes than all engines can compute: printed, not judged."""
    requests = read_mooncake(trace, OVERLOAD)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        rival = dynamo.replay(requests, "kv_router", Path(folder))
    report.rows.append(_row(f"x{OVERLOAD:g} KV router, Dynamo's", rival))
    report.rows.append(_row(f"x{OVERLOAD:g} PrefixAware, ours", replay.replay(requests, "PrefixAware")))


def _agreement(at: str, ours: Outcome, theirs: Replayed) -> list[Check]:
    """Round-robin in both simulators."""
    return [
        at_most(
            f"{at}round-robin: our {what} and Dynamo's differ by (simulated)",
            abs(getattr(ours, what) / getattr(theirs, what) - 1),
            AGREES,
        )
        for what in ("reuse", "mean", "p99", "gap")
    ]


def _row(name: str, of: Outcome | Replayed) -> list[str]:
    times = f"{of.mean:.0f} {of.median:4.0f} {of.p90:4.0f} {of.p99:5.0f}"
    return [name, f"{of.reuse:.4f}", times, f"{of.gap:.2f}"]
