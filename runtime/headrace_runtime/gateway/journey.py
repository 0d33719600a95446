"""Up to the first token: choose engines, prefill, decode, and try again while trying again is invisible to the client.

`Journey.first_token` is that loop; the scenarios are described in `flow.py`. Decides nothing about which engine is
best (`routing.py`) and knows nothing of the client's connection. Called by `delivery.py`.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from headrace_runtime.contract import Endpoint, GatewayContract, Resume
from headrace_runtime.gateway import errors
from headrace_runtime.gateway.affinity import Affinity
from headrace_runtime.gateway.ask import First, Question
from headrace_runtime.gateway.errors import EngineAnsweredError
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.kept import Allowance
from headrace_runtime.gateway.request import Facts, body_with_token_ids, decode_body, prefill_body
from headrace_runtime.gateway.routing import FETCH_WEIGHT, Choice, Need, explain, rank
from headrace_runtime.gateway.telemetry import Record, Telemetry
from headrace_runtime.gateway.upstream import Cause, EngineError, Pool

log = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.05
BACKOFF_LIMIT_SECONDS = 1.0
FRONT_END_SECONDS = 30.0
"""Of what an engine answers without computing: its silence is not watched for."""
LOOK_AGAIN_SECONDS = 0.02
LOOKS = 100
"""Discovery answers, and a health check ends, well before."""
LOST: frozenset[Cause] = frozenset({"connect", "reset", "silent"})
"""What says that the engine went, rather than that it refused."""
NOT_IMPLEMENTED = 501
"""A 5xx that says nothing of the engine's health."""

Transfer = dict[str, Any]
Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Means:
    """What every journey of a gateway shares."""

    contract: GatewayContract
    fleet: Fleet
    pool: Pool
    telemetry: Telemetry
    turn: "itertools.count[int]"
    kept: Allowance
    affinity: Affinity


class Journey:
    """One request under way: what was tried, and whether it may still be split."""

    def __init__(self, means: Means, facts: Facts, record: Record, tried: frozenset[str] = frozenset()) -> None:
        self.facts = facts
        self.record = record
        self.means = means
        self.resume: Resume | None = means.contract.resume if facts.resumable else None
        """How the answer goes on when its engine is lost; None where it does not."""
        self._contract = means.contract
        headers = (("x-request-id", record.request_id), *facts.trace)
        self._question = Question(facts, means.fleet, means.pool, headers)
        self._decode: Endpoint | None = None
        long_enough = facts.prompt_tokens >= means.contract.min_prompt_tokens or facts.canary is not None
        self._split = facts.splittable and long_enough
        self._tried = tried
        self._avoid: frozenset[str] = frozenset()
        self._prefills_failed = 0
        aware = means.contract.routing == "PrefixAware" and facts.computed
        self._prompt = means.affinity.read(facts) if aware else None

    def lost(self, failure: EngineError) -> None:
        """The engine that wrote the answer failed after its first token."""
        if self._decode is not None:
            self.means.fleet.failed(self._decode, failure.cause)

    @asynccontextmanager
    async def first_token(self) -> AsyncIterator[First]:
        """The first engine to give one, counted as busy while the block runs. Raises RequestError,
        EngineAnsweredError."""
        last: EngineError | None = None
        attempt, until = 0, time.monotonic() + self._contract.engine_wait_seconds
        while True:
            if attempt:
                await asyncio.sleep(backoff(attempt))
            choice = await self._next(last) if attempt <= self._contract.max_retries else None
            if choice is None:
                # The operator's canary wants to know how things are now.
                if self.facts.canary is not None or not await self.means.fleet.back(until - time.monotonic()):
                    break
                attempt, self._tried = 0, frozenset()
                continue
            attempt += 1
            self.record.tries += 1
            self._decode = choice.decode
            with self._using(choice.decode, 1.0 if choice.prefill is None else FETCH_WEIGHT) as computed:
                try:
                    first = await self._first_token(choice)
                except EngineError as error:
                    last = error
                    continue
                computed()
                self._learn(first)
                if first.status == 200 and self.facts.computed:
                    self.means.fleet.gave_token(choice.decode)
                with self._question.watched(choice.decode, first.exchange, self.facts.computed):
                    yield first
                return
        if last is None:
            raise errors.no_engine(self.facts.canary)
        failed = errors.engines_failed(self.record.tries, last.cause)
        if last.body:
            raise EngineAnsweredError(failed, last.status, last.body)
        raise failed

    async def _next(self, last: EngineError | None) -> Choice | None:
        """Whom to ask now. Where nobody is left who did not fail already, and the last was lost under the request: all
        of them anew, as they may be other processes by now."""
        choice = await self._chosen()
        if choice is None and self._tried and last is not None and last.cause in LOST:
            self._tried = frozenset()
            choice = await self._chosen()
        return choice

    async def _chosen(self) -> Choice | None:
        """A gateway that has just started does not refuse what engines can serve that it has yet to ask."""
        for _ in range(LOOKS):
            choice = self._choose()
            if choice is not None or not self.means.fleet.unheard:
                return choice
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        return self._choose()

    def _choose(self) -> Choice | None:
        short = self._contract.min_prompt_tokens if self.facts.canary is None else 0
        prompt = self.means.affinity.prompt(self._prompt, short) if self._prompt is not None else None
        need = Need(self._split, self.facts.canary, self._tried, self._avoid, prompt)
        engines, policy = self.means.fleet.engines(), self._contract.routing
        ranked = rank(need, engines, policy, next(self.means.turn))
        if self.record.explain:
            self.record.routing = explain(need, engines, ranked, policy)
        return ranked[0] if ranked else None

    @contextmanager
    def _using(self, engine: Endpoint, to_do: float = 1.0) -> Iterator[Callable[[], None]]:
        """The engine is busy with this request while the block runs; call what is given when the prompt is computed.
        `to_do`: cost of a token that the engine lacks."""
        with self.means.fleet.using(engine):
            if self._prompt is None:
                yield lambda: None
                return
            with self.means.affinity.placed(self._prompt, engine.name, to_do) as placed:
                yield placed.computed

    def _learn(self, first: First) -> None:
        if self._prompt is not None and not self._prompt.known:
            self.means.affinity.learn(self.facts, first.payload)

    def _link(self, choice: Choice) -> Endpoint | None:
        """The prefill engine of the choice, unless blocks do not pass from it to the decode engine."""
        if choice.prefill is None or self._contract.on_transfer_failure == "Fail" or self.facts.canary is not None:
            return choice.prefill
        if self.means.fleet.links.open(choice.prefill, choice.decode):
            return choice.prefill
        self.means.telemetry.fell_back("link")
        return None

    async def _first_token(self, choice: Choice) -> First:
        """Ask the chosen engines. Raises EngineError (try again) or RequestError (give up)."""
        prefill = self._link(choice)
        if prefill is None:
            return await self._computed(choice.decode)
        try:
            transfer = await self._prefill(prefill)
            if transfer is None:
                return await self._computed(choice.decode)
            self.record.prefill = prefill.name
            return await self._transferred(prefill, choice.decode, transfer)
        finally:
            self.means.fleet.links.ended(prefill, choice.decode)

    async def _computed(self, engine: Endpoint) -> First:
        """The decode engine computes the prompt itself."""
        self.record.prefill, self.record.decode, self.record.revision = "", engine.name, engine.revision
        body = body_with_token_ids(self.facts) if self.resume is not None and self.facts.stream else self.facts.body
        seconds = None if self.facts.computed else FRONT_END_SECONDS
        began = time.monotonic()
        first = await self._ask(engine, body, self.facts.stream, seconds)
        if first.streaming:
            self.means.fleet.computed(engine, self.facts.prompt_tokens, time.monotonic() - began)
        return first

    async def _transferred(self, prefill: Endpoint, engine: Endpoint, transfer: Transfer) -> First:
        """The decode engine fetches the prompt's KV blocks from `prefill`."""
        self.record.decode, self.record.revision = engine.name, engine.revision
        links, body = self.means.fleet.links, decode_body(self.facts, transfer, token_ids=self.resume is not None)
        seconds = links.deadline(prefill, engine, self.facts.prompt_tokens, self._contract.transfer_seconds)
        began = time.monotonic()
        try:
            async with links.waiting(prefill, engine, seconds):
                first = await self._ask(engine, body, streamed=True)
        except TimeoutError:
            failure = EngineError("timeout", f"no token within {time.monotonic() - began:.1f} s of the transfer")
            self._note(failure, engine, "decode")
            self._transfer_lost(failure.cause)
            raise failure from None
        except EngineError as error:
            self._transfer_lost(error.cause)
            raise
        if first.status == 200:
            links.passed(prefill, engine, time.monotonic() - began)
        self.means.telemetry.transferred("completed")
        return first if self.facts.stream or self.resume is not None else await self._collect(engine, first)

    def _transfer_lost(self, cause: Cause) -> None:
        if cause != "connect":  # else the parameters were not used: a new pair may be tried
            self.means.telemetry.transferred("given_up")
            self._compute_again("decode", cause)

    async def _prefill(self, engine: Endpoint) -> Transfer | None:
        """Have the prompt computed; gives the transfer parameters, or None where decode is to compute it (scenario B).

        One engine that fails at once is replaced by another, by raising EngineError; after that no more time is lost.
        """
        began = time.monotonic()
        try:
            with self._using(engine):
                first = await self._ask(
                    engine,
                    prefill_body(self.facts, token_ids=self._prompt is not None and not self._prompt.known),
                    streamed=False,
                    seconds=self._contract.prefill_seconds,
                    phase="prefill",
                )
        except EngineError as error:
            self._prefills_failed += 1
            if error.cause not in ("timeout", "silent") and self._prefills_failed == 1 and self._another_prefill():
                raise
            self._compute_again("prefill", error.cause)
            return None
        transfer = _transfer_of(first)
        if transfer is None:
            # Refused (4xx), which decode will say too and in the client's own terms; or nothing to hand over.
            self._compute_again("prefill", "refused" if first.status != 200 else "no_parameters")
            return None
        self.means.fleet.gave_token(engine)
        self.means.fleet.computed(engine, self.facts.prompt_tokens, time.monotonic() - began)
        self._learn(first)
        return transfer

    def _another_prefill(self) -> bool:
        choice = self._choose()
        return choice is not None and choice.prefill is not None

    def _compute_again(self, phase: Phase, cause: str) -> None:
        """From here on the decode engine computes the prompt, or the request fails, as the deployment wants it."""
        if self._contract.on_transfer_failure == "Fail" and cause != "refused":
            raise errors.transfer_failed(phase, cause)
        self.means.telemetry.fell_back(f"{phase}_{cause}")
        self._split = False

    async def _ask(
        self, engine: Endpoint, body: bytes, streamed: bool, seconds: float | None = None, phase: Phase = "decode"
    ) -> First:
        """Ask one engine. Raises EngineError, noted."""
        try:
            async with asyncio.timeout(seconds):
                return await self._question.ask(engine, body, streamed)
        except TimeoutError:
            failure = EngineError("timeout", f"no token within {seconds} s")
        except EngineError as error:
            failure = error
        self._note(failure, engine, phase)
        raise failure

    def _note(self, failure: EngineError, engine: Endpoint, phase: Phase) -> None:
        """Remember for the next try, and tell, that this engine failed."""
        self.means.telemetry.retried(phase, failure.cause)
        log.info("request %s: %s at %s: %s", self.record.request_id, phase, engine.name, failure)
        if failure.cause == "timeout" and phase == "decode":
            self._avoid |= {engine.name}
            return
        self._tried |= {engine.name}
        if failure.status != NOT_IMPLEMENTED:
            self.means.fleet.failed(engine, failure.cause)

    async def _collect(self, engine: Endpoint, first: First) -> First:
        try:
            return await self._question.collect(engine, first)
        except EngineError as failure:
            self._note(failure, engine, "decode")
            raise


def _transfer_of(first: First) -> Transfer | None:
    """The transfer parameters of a prefill engine's answer, where it gave some."""
    try:
        transfer = orjson.loads(first.payload)["kv_transfer_params"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return transfer if first.status == 200 and isinstance(transfer, dict) else None


def served_by(record: Record) -> list[tuple[str, str]]:
    """Which engines took part, as headers of the answer."""
    found = [("x-headrace-revision", record.revision), ("x-headrace-decode", record.decode)]
    found += [("x-headrace-prefill", record.prefill), ("x-headrace-routing", record.routing)]
    return [(name, value) for name, value in found if value]


def backoff(attempt: int) -> float:
    """Seconds before try `attempt` (from 1): doubled up to a limit, and spread so that many do not come at once."""
    limit = min(BACKOFF_SECONDS * 2.0 ** (attempt - 1), BACKOFF_LIMIT_SECONDS)
    return random.uniform(limit / 2, limit)  # noqa: S311
