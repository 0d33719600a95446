"""Sizes decided by the operator's own policy on traces, beside fixed fleets and other policies, over cold starts:
share of requests within their targets, engine-seconds, and how often sizes change. All *simulated* (`simulator/`).

Engines are `SLOWER` times as slow as an 8B model on an H200, and the trace of one hour is laid over itself, so that a
fleet of some ten engines is busy. The rivals are our own short implementations (`simulator/scalers.py`). The mixed load
is both traces joined: short prompts, then long ones that have beginnings in common.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from rich.progress import Progress

from bench.report import Check, Options, Report, at_least, at_most
from headrace_operator.plan.scaling import Aim, Ask, Role, Target
from headrace_operator.plan.scaling.model import need
from simulator import load
from simulator.fleet import ROLES, Fleet, Outcome, Scaler, Setting
from simulator.profile import H200_8B
from simulator.request import Request
from simulator.scalers import Oracle, PlusMinusOne, Product, Static, hpa, kpa, load_of, truth

AZURE: Final = "azure_2023_conv.csv.xz"
MOONCAKE: Final = "mooncake_conversation.jsonl.xz"
SLOWER: Final = 12
COLD_STARTS: Final = (0.0, 60.0, 120.0, 300.0)
AIM: Final = Aim(Target(3.0, 0.99), Target(0.12))
CLIFF: Final = 0.95
"""A policy holds up to the longest cold start at which so many requests keep their targets."""
MIX_REQUESTS: Final = 2400
"""Of each trace in the mixed load."""

COLUMNS: Final = (
    "load, cold start, policy",
    "within targets %\n(simulated)",
    "engine-seconds\n(simulated)",
    "changes of size\n(simulated)",
    "TTFT p50, p95 s\n(simulated)",
    "token gap p95 ms\n(simulated)",
)


@dataclass(frozen=True)
class Fleets:
    """Sizes that a person could have chosen beforehand."""

    mean: Mapping[str, int]
    peak: Mapping[str, int]
    each: Mapping[str, float]
    """Requests a second that one engine is good for, at the mean."""


def run(options: Options) -> Report:
    report = Report("autoscale", "sizes by the policy, on one hour of chat", COLUMNS)
    traces = options.traces
    if traces is None or not (traces / AZURE).exists():
        report.notes.append(f"--traces names no folder with {AZURE}; nothing was measured")
        return report
    requests = load.denser(load.read(traces / AZURE), 2)
    if options.quick:
        requests = requests[:6000]
    report.notes.append("engines, cold starts and transfers are modelled; the figures compare policies with each other")
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=None)
        fleets = sized(requests)
        progress.update(task, description="fixed fleets")
        static = [once(requests, fleet, 0.0, fleets) for fleet in fixed(fleets, 2 if options.quick else 6)]
        report.rows += [row("chat, any", one) for one in static]
        held: dict[str, float] = {}
        for cold in COLD_STARTS[1:2] if options.quick else COLD_STARTS:
            found = []
            for scaler in scalers(requests, fleets, cold):
                progress.update(task, description=f"cold start {cold:.0f} s, {scaler.name}")
                found.append(once(requests, scaler, cold, fleets))
                report.rows.append(row(f"chat, {cold:.0f} s", found[-1]))
            report.checks += judged(f"{cold:.0f} s: ", found, static)
            held |= {one.scaler: cold for one in found if one.attained() >= CLIFF}
        report.notes.append(f"longest cold start with {CLIFF:.0%} within targets: {held}")
        if (traces / MOONCAKE).exists() and not options.quick:
            progress.update(task, description="mixed load")
            _mixed(report, traces)
    return report


def sized(requests: Sequence[Request], cached: float = 0.0, aim: Aim = AIM) -> Fleets:
    """By an engine's true times: for the mean, and for the worst half minute."""
    whole = load_of(requests, max(1.0, requests[-1].at), cached)
    profile, roles = H200_8B.slower(SLOWER), [Role(name, 1, 1, 64) for name in ROLES]
    mean = {role.name: need(truth(profile, [whole]), whole, role, aim) or role.most for role in roles}
    knowing = Oracle(requests, profile, aim, 0.0, cached)
    ask = Ask(aim, tuple(roles))
    spans = [knowing.at(ask, at * knowing.every) for at in range(int(requests[-1].at // knowing.every))]
    peak = {name: max(span[name] for span in spans) for name in ROLES}
    return Fleets(mean, peak, {name: whole.rate / mean[name] for name in ROLES})


def scalers(requests: Sequence[Request], fleets: Fleets, cold: float, cached: float = 0.0) -> Iterator[Scaler]:
    yield Product(startup=max(15.0, cold))
    yield PlusMinusOne()
    yield hpa(fleets.each)
    yield kpa(fleets.each)
    yield Oracle(requests, H200_8B.slower(SLOWER), AIM, cold, cached)


def once(requests: Sequence[Request], scaler: Scaler, cold: float, fleets: Fleets, aim: Aim = AIM) -> Outcome:
    start = scaler.fixed if isinstance(scaler, Static) else fleets.mean
    setting = Setting(H200_8B.slower(SLOWER), aim, start, cold_start=cold)
    return Fleet(setting, scaler).run(requests)


def row(where: str, of: Outcome) -> list[str]:
    return [
        f"{where}: {of.scaler}",
        f"{100 * of.attained():.2f}",
        f"{of.replica_seconds:.0f}",
        f"{of.moments}",
        f"{of.ttft(0.5):.2f} {of.ttft(0.95):6.2f}",
        f"{1e3 * of.itl(0.95):.0f}",
    ]


def fixed(fleets: Fleets, steps: int) -> list[Static]:
    """Fleets from that for the mean to that for the peak, both roles growing alike. The best of them can only be known
    afterwards."""
    sizes = [
        {name: round(low + (fleets.peak[name] - low) * step / (steps - 1)) for name, low in fleets.mean.items()}
        for step in range(steps)
    ]
    return [Static(one, name) for name, one in {_split(one): one for one in sizes}.items()]


def judged(where: str, found: Sequence[Outcome], static: Sequence[Outcome]) -> list[Check]:
    """`static` ends with the fleet for the peak."""
    by = {one.scaler: one for one in found}
    ours, peak, rival = by["builtin"], static[-1], by[PlusMinusOne().name]
    cheapest = min(one.replica_seconds for one in static if one.attained() >= ours.attained() - 0.001)
    lost = 100 * (peak.attained() - ours.attained())
    spent = ours.replica_seconds / peak.replica_seconds
    return [
        at_most(f"{where}points of requests within targets below static peak (simulated)", lost, 1.0),
        at_most(f"{where}engine-seconds against static peak (simulated)", spent, 0.6),
        at_most(f"{where}engine-seconds against best static (simulated)", ours.replica_seconds / cheapest, 1.0),
        at_most(f"{where}changes of size against ±1 (simulated)", ours.moments / max(1, rival.moments), 0.5),
    ]


def _mixed(report: Report, traces: Path) -> None:
    """As many engines at all times in each arm: what counts is how they are divided, and that a role can change."""
    chat = load.denser(load.read(traces / AZURE), 2)[:MIX_REQUESTS]
    long = load.read(traces / MOONCAKE)[: MIX_REQUESTS // 3]
    requests = load.joined(chat, long)
    aim = replace(AIM, ttft=Target(12.0), cap=12, role_change=True)
    total = aim.cap or 0
    fleets = [{"prefill": count, "decode": total - count} for count in range(2, total - 1)]
    middle = Fleets({"prefill": total // 2, "decode": total - total // 2}, {}, {})
    static = [once(requests, Static(sizes, _split(sizes)), 60.0, middle, aim) for sizes in fleets]
    ours = once(requests, Product(startup=60.0), 60.0, middle, aim)
    best, usual = max(one.attained() for one in static), median([one.attained() for one in static])
    report.rows += [row("mixed, 60 s", one) for one in (*static, ours)]
    report.checks += [
        at_least("mixed: within targets against the best static split (simulated)", ours.attained() / best, 1.05),
        at_least("mixed: against the median static split (simulated)", ours.attained() / max(usual, 1e-9), 1.5),
    ]


def _split(sizes: Mapping[str, int]) -> str:
    return f"static {sizes['prefill']}P{sizes['decode']}D"
