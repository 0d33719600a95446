"""What this gateway counts by role and revision, for the operator: `GET /figures` on the admin port.

Touched a few times for each request and never for a token. The shapes, and what each number means, are in
`contract/figures.py`. Filled by `telemetry.py` (first tokens, requests that ended), `journey.py` and `selection.py`
(engines that were asked, or failed) and `flow.py` (arrivals). What is asked of all roles together is in `demand.py`.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace_runtime.contract import (
    CanaryFigures,
    CanaryShare,
    Endpoint,
    GatewayFigures,
    RoleFigures,
    RoleName,
    Sketch,
)
from headrace_runtime.contract.sketch import bucket
from headrace_runtime.gateway.demand import Demand

KEPT: Final = 32
"""Roles of revisions that are told of. Of more, the first are forgotten: a process outlives many rollouts."""


@dataclass(slots=True)
class _Tally:
    """One role of one revision."""

    requests: int = 0
    errors: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    looked_up_tokens: int = 0
    cached_tokens: int = 0
    answers: int = 0
    output_tokens: int = 0
    ttft: Counter[int] = field(default_factory=Counter)
    itl: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Step:
    """Since when a canary's step holds, and what was counted before it."""

    share: CanaryShare
    began: float
    before: tuple[RoleFigures, ...]


class Figures:
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.arrivals = self.answered = self.failed = self.broken = 0
        self.demand = Demand(clock)
        self._clock = clock
        self._start = secrets.token_hex(8)
        self._began = clock()
        self._tallies: dict[tuple[RoleName, str], _Tally] = {}
        self._step: _Step | None = None

    def asked(self, engine: Endpoint) -> None:
        self._of(engine.role, engine.revision).requests += 1

    def failed_by(self, engine: Endpoint) -> None:
        self._of(engine.role, engine.revision).errors += 1

    def computed(self, role: RoleName, revision: str, ttft: float, tokens: int, cached: float | None) -> None:
        """A streamed answer's prompt. `cached`: the share of it that the engine was known to hold; None where that was
        not known."""
        tally = self._of(role, revision)
        tally.prompts += 1
        tally.prompt_tokens += tokens
        tally.ttft[bucket(ttft)] += 1
        if cached is not None:
            tally.looked_up_tokens += tokens
            tally.cached_tokens += round(cached * tokens)

    def wrote(self, role: RoleName, revision: str, tokens: int, itl: float | None) -> None:
        """A whole answer. `itl`: the mean time between its tokens; None where there was none between, or the client
        wanted it in one piece."""
        tally = self._of(role, revision)
        tally.answers += 1
        tally.output_tokens += tokens
        if itl is not None:
            tally.itl[bucket(itl)] += 1

    def share(self, share: CanaryShare | None) -> None:
        """The contract says so now. Another step than before: what was counted so far is put aside."""
        if share is None:
            self._step = None
        elif self._step is None or self._step.share != share:
            self._step = _Step(share, self._clock(), self.roles())

    def reading(self, running: int, waiting: int, oldest_wait: float, holds: int = 0) -> GatewayFigures:
        now, step = self._clock(), self._step
        return GatewayFigures(
            start=self._start,
            seconds=now - self._began,
            arrivals=self.arrivals,
            answered=self.answered,
            failed=self.failed,
            broken=self.broken,
            running=running,
            waiting=waiting,
            oldest_wait=oldest_wait,
            holds=holds,
            roles=self.roles(),
            canary=CanaryFigures(share=step.share, seconds=now - step.began, before=step.before) if step else None,
            demand=self.demand.told(),
        )

    def _of(self, role: RoleName, revision: str) -> _Tally:
        tally = self._tallies.get((role, revision))
        if tally is None:
            tally = self._tallies[role, revision] = _Tally()
            if len(self._tallies) > KEPT:
                del self._tallies[next(iter(self._tallies))]
        return tally

    def roles(self) -> tuple[RoleFigures, ...]:
        return tuple(
            RoleFigures(
                role=role,
                revision=revision,
                requests=tally.requests,
                errors=tally.errors,
                prompts=tally.prompts,
                prompt_tokens=tally.prompt_tokens,
                looked_up_tokens=tally.looked_up_tokens,
                cached_tokens=tally.cached_tokens,
                answers=tally.answers,
                output_tokens=tally.output_tokens,
                ttft=Sketch(counts=dict(tally.ttft)),
                itl=Sketch(counts=dict(tally.itl)),
            )
            for (role, revision), tally in sorted(self._tallies.items())
        )


class FiguresCollector(Collector):
    """Requests and errors by role and revision for Prometheus: of as many revisions as are kept."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> list[Metric]:
        labels = ["role", "revision"]
        asked = CounterMetricFamily(
            "headrace_gateway_engine_requests", "Requests that engines were asked", labels=labels
        )
        failed = CounterMetricFamily("headrace_gateway_engine_errors", "Of these, those they failed", labels=labels)
        for seen in self._figures.roles():
            asked.add_metric([seen.role, seen.revision], seen.requests)
            failed.add_metric([seen.role, seen.revision], seen.errors)
        return [asked, failed]
