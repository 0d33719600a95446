"""A request's way through the gateway: who asks → parse → a place → journey (up to the first token) → delivery.

Before the first token everything can be tried again on another engine: `journey.py`. After it the bytes have gone to
the client, and another engine goes on from there: `delivery.py`. Scenarios, referred to in both:

 A. The engine refuses the connection, resets it, answers 5xx, or sends an error event as its first inside HTTP 200
    (vLLM's way to refuse admission): another engine is asked.
 B. The prefill engine fails or takes too long: the decode engine computes the prompt itself (Recompute), or the client
    gets an error (Fail).
 C. The decode engine was handed transfer parameters and fails, or sends no token in time (a cut link gives no error for
    minutes): asked again elsewhere, without a transfer. Parameters are used once: the blocks behind them may be gone.
 D. The client goes away: the handler is cancelled, and the engine's connection closed, which frees its slot.
 E. The engine is lost in the midst of a stream (its connection ends, an error event inside HTTP 200, silence): another
    replays what was delivered and goes on, several times if need be.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

from headrace_runtime.gateway.admission import Admission, Place
from headrace_runtime.gateway.affinity import Affinity
from headrace_runtime.gateway.delivery import deliver
from headrace_runtime.gateway.errors import NoEngineError, RequestError
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.http import Answer, Request
from headrace_runtime.gateway.journey import Journey, served_by
from headrace_runtime.gateway.kept import Allowance
from headrace_runtime.gateway.means import Means
from headrace_runtime.gateway.reload import Live
from headrace_runtime.gateway.request import Facts, parse, salted, trace_of
from headrace_runtime.gateway.share import side
from headrace_runtime.gateway.sharing import salt_of
from headrace_runtime.gateway.telemetry import Record, Telemetry
from headrace_runtime.gateway.upstream import Pool

CANARY_HEADER = "x-headrace-canary"
EXPLAIN_HEADER = "x-headrace-explain"
"""A request that has it, with any value but 0, is told why it was routed as it was: `x-headrace-routing`."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Handler of the engines' routes (`request.ROUTES`)."""

    live: Live
    admission: Admission
    fleet: Fleet
    pool: Pool
    telemetry: Telemetry
    turn: "itertools.count[int]" = field(default_factory=itertools.count)
    arrivals: "itertools.count[int]" = field(default_factory=itertools.count)
    """Of requests while a canary is under way."""
    kept: Allowance = field(default_factory=Allowance)
    affinity: Affinity = field(default_factory=Affinity)

    async def __call__(self, request: Request, answer: Answer) -> None:
        record = Record(answer.request_id, request.path, time.monotonic())
        self.telemetry.in_flight.inc()
        self.telemetry.figures.arrivals += 1
        try:
            caller = self.admission.caller(request.headers)
            record.key = caller.key
            record.explain = request.headers.get(EXPLAIN_HEADER, "0") != "0"
            canary, trace = request.headers.get(CANARY_HEADER), trace_of(request.headers)
            contract = self.live.contract
            facts = parse(request.path, request.body, contract.served_name, canary, trace, contract.adapters)
            if contract.kv_sharing == "Key" and facts.computed:
                facts = salted(facts, salt_of(contract, caller.key, caller.exempt, facts.document.get("cache_salt")))
            record.stream, record.prompt_tokens, record.own = facts.stream, facts.prompt_tokens, canary is not None
            record.demands = facts.computed and not record.own
            if contract.canary is not None and canary is None:
                record.side = side(contract.canary, next(self.arrivals))
            async with self.admission.admitted(caller, record, len(request.body)) as place:
                answer.also = place.limits
                while not await self._answered(facts, record, answer, place):
                    pass
        except RequestError as error:
            record.outcome = "refused" if error.status < 500 else "failed"
            answer.send_error(error, served_by(record))
        except asyncio.CancelledError:
            record.outcome = "left"
            raise
        finally:
            record.status = answer.status
            self.telemetry.in_flight.dec()
            self.telemetry.finished(record, time.monotonic())

    async def _answered(self, facts: Facts, record: Record, answer: Answer, place: Place) -> bool:
        """False: no engine was left, and one is there again after a wait."""
        try:
            await deliver(Journey(self._means(), facts, record), answer)
        except NoEngineError:
            if not await place.held():
                raise
            return False
        return True

    def _means(self) -> Means:
        return Means(self.live.contract, self.fleet, self.pool, self.telemetry, self.turn, self.kept, self.affinity)
