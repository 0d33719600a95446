"""Which engines one request goes to next: what `routing.py` says, less what was tried, while there is time.

Remembers who failed the request and whether it may still be split. Asks nobody; called by `journey.py`.
"""

import asyncio
import logging
from typing import Literal

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.explain import explain
from headrace_runtime.gateway.means import Means
from headrace_runtime.gateway.request import Facts
from headrace_runtime.gateway.routing import Choice, Need, rank
from headrace_runtime.gateway.share import engines_of
from headrace_runtime.gateway.telemetry import Record
from headrace_runtime.gateway.upstream import UNSENT, Cause, EngineError

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 0.02
LOOKS = 100
"""Discovery answers, and a health check ends, well before."""
LOST: frozenset[Cause] = UNSENT | {"reset", "silent"}
"""What says that the engine went, rather than that it refused."""
SAYS_NOTHING = frozenset({404, 501})
"""Statuses after which another engine is asked, and that say nothing of the engine's health: an adapter that it has yet
to load, and what it does not implement."""

Phase = Literal["prefill", "decode"]


class Selection:
    """`split`: prefill and decode may be two engines."""

    def __init__(self, means: Means, facts: Facts, record: Record, tried: frozenset[str]) -> None:
        long_enough = facts.prompt_tokens >= means.contract.min_prompt_tokens or facts.canary is not None
        self.split = facts.splittable and long_enough
        aware = means.contract.routing == "PrefixAware" and facts.computed
        self.prompt = means.affinity.read(facts) if aware else None
        """None: nothing is asked of what engines hold."""
        self._means, self._facts, self._record = means, facts, record
        self._tried = tried
        self._avoid: frozenset[str] = frozenset()

    async def next(self, last: EngineError | None) -> Choice | None:
        """Whom to ask now. Where nobody is left who did not fail already, and the last was lost under the request: all
        of them anew, as they may be other processes by now."""
        choice = await self._chosen()
        if choice is None and self._tried and last is not None and last.cause in LOST:
            self.forget()
            choice = await self._chosen()
        return choice

    def choose(self) -> Choice | None:
        contract, facts, means = self._means.contract, self._facts, self._means
        short = contract.min_prompt_tokens if facts.canary is None else 0
        prompt = means.affinity.prompt(self.prompt, short) if self.prompt is not None else None
        need = Need(self.split, facts.canary, self._tried, self._avoid, prompt)
        policy, engines = contract.routing, means.fleet.engines()
        if self._record.side is not None:
            engines = [*engines_of(self._record.side, engines, self._tried)]
        ranked = rank(need, engines, policy, next(means.turn))
        if self._record.explain:
            self._record.routing = explain(need, engines, ranked, policy)
        return ranked[0] if ranked else None

    def link(self, choice: Choice) -> Endpoint | None:
        """The prefill engine of the choice, unless blocks do not pass from it to the decode engine."""
        if choice.prefill is None or self._means.contract.on_transfer_failure == "Fail" or self._facts.canary:
            return choice.prefill
        if self._means.fleet.links.open(choice.prefill, choice.decode):
            return choice.prefill
        self._means.telemetry.fell_back("link")
        return None

    def forget(self) -> None:
        """Who was tried may be asked again."""
        self._tried = frozenset()

    def failed(self, failure: EngineError, engine: Endpoint, phase: Phase) -> None:
        """Remember for the next try, and tell, that this engine failed."""
        self._means.telemetry.retried(phase, failure.cause)
        log.info("request %s: %s at %s: %s", self._record.request_id, phase, engine.name, failure)
        if not self._record.own and failure.status not in SAYS_NOTHING:
            self._means.telemetry.figures.failed_by(engine)
        if failure.cause == "timeout" and phase == "decode":
            self._avoid |= {engine.name}
            return
        self._tried |= {engine.name}
        if failure.status not in SAYS_NOTHING:
            self._means.fleet.failed(engine, failure.cause)

    async def _chosen(self) -> Choice | None:
        """A gateway that has just started does not refuse what engines can serve that it has yet to ask."""
        for _ in range(LOOKS):
            choice = self.choose()
            if choice is not None or not self._means.fleet.unheard:
                return choice
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        return self.choose()
