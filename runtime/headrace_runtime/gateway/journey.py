"""Up to the first token: choose engines, prefill, decode, and try again while trying again is invisible to the client.

`Journey.first_token` is that loop; the scenarios are described in `flow.py`. Decides nothing about which engine is
best (`routing.py`) and knows nothing of the client's connection. Called by `delivery.py`.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import orjson

from headrace_runtime.contract import Endpoint, Resume
from headrace_runtime.gateway import errors
from headrace_runtime.gateway.affinity import UNPLACED, Placed, Unplaced
from headrace_runtime.gateway.ask import First, Question
from headrace_runtime.gateway.errors import EngineAnsweredError
from headrace_runtime.gateway.means import Means
from headrace_runtime.gateway.request import Facts, body_with_token_ids, decode_body, prefill_body
from headrace_runtime.gateway.routing import Choice
from headrace_runtime.gateway.selection import Phase, Selection
from headrace_runtime.gateway.telemetry import Record
from headrace_runtime.gateway.upstream import UNSENT, Cause, EngineError

log = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.05
BACKOFF_LIMIT_SECONDS = 1.0
FRONT_END_SECONDS = 30.0
"""Of what an engine answers without computing: its silence is not watched for."""

Transfer = dict[str, Any]


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
        self._selection = Selection(means, facts, record, tried)
        self._prefills_failed = 0

    def lost(self, failure: EngineError) -> None:
        """The engine that wrote the answer failed after its first token."""
        if self._decode is not None:
            self.means.fleet.failed(self._decode, failure.cause)
            self.means.telemetry.figures.failed_by(self._decode)

    @asynccontextmanager
    async def first_token(self) -> AsyncIterator[First]:
        """The first engine to give one, counted as busy while the block runs. Raises RequestError,
        EngineAnsweredError."""
        last: EngineError | None = None
        attempt, until = 0, time.monotonic() + self._contract.engine_wait_seconds
        while True:
            if attempt:
                await asyncio.sleep(backoff(attempt))
            choice = await self._selection.next(last) if attempt <= self._contract.max_retries else None
            if choice is None:
                # The operator's canary wants to know how things are now.
                if self.facts.canary is not None or not await self.means.fleet.back(until - time.monotonic()):
                    break
                attempt = 0
                self._selection.forget()
                continue
            attempt += 1
            self.record.tries += 1
            self._decode = choice.decode
            with self._using(choice.decode, fetched=choice.prefill is not None) as placed:
                try:
                    first = await self._first_token(choice, placed)
                except EngineError as error:
                    last = error
                    continue
                placed.computed()
                self._learn(first)
                if first.status == 200 and self.facts.computed:
                    self.means.fleet.gave_token(choice.decode)
                with self._question.watched(choice.decode, first.exchange, self.facts.computed):
                    yield first
                return
        if last is None or (self._contract.hold is not None and not self.means.fleet.serves):
            raise errors.no_engine(self.facts.canary)
        if last.status == 404:
            raise errors.adapter_not_loaded(self.facts.adapter)
        failed = errors.engines_failed(self.record.tries, last.cause)
        if last.body:
            raise EngineAnsweredError(failed, last.status, last.body)
        raise failed

    @contextmanager
    def _using(self, engine: Endpoint, fetched: bool = False) -> Iterator[Placed | Unplaced]:
        """The engine is busy with this request while the block runs. `fetched`: its blocks come from a prefill
        engine."""
        with self.means.fleet.using(engine):
            if self._selection.prompt is None:
                yield UNPLACED
                return
            with self.means.affinity.placed(self._selection.prompt, engine.name, fetched) as placed:
                yield placed

    def _learn(self, first: First) -> None:
        if self._selection.prompt is not None and not self._selection.prompt.known:
            self.means.affinity.learn(self.facts, first.payload)

    async def _first_token(self, choice: Choice, placed: Placed | Unplaced) -> First:
        """Ask the chosen engines. Raises EngineError (try again) or RequestError (give up)."""
        if choice.prefill is None:
            return await self._computed(choice.decode, placed)
        prefill = self._selection.link(choice)
        if prefill is None:
            return await self._computed(choice.decode)
        try:
            transfer = await self._prefill(prefill)
            if transfer is None:
                return await self._computed(choice.decode)
            self.record.prefill = prefill.name
            return await self._transferred(prefill, choice.decode, transfer, placed)
        finally:
            self.means.fleet.links.ended(prefill, choice.decode)

    async def _computed(self, engine: Endpoint, placed: Placed | Unplaced = UNPLACED) -> First:
        """The decode engine computes the prompt itself, or loads it. `placed`: as this was foreseen."""
        self.record.prefill, self.record.decode, self.record.revision = "", engine.name, engine.revision
        self.record.role, self.record.cached = engine.role, placed.cached
        body = body_with_token_ids(self.facts) if self.resume is not None and self.facts.stream else self.facts.body
        seconds = None if self.facts.computed else FRONT_END_SECONDS
        if not self.facts.stream:
            self.means.telemetry.handed(self.record)
        began = time.monotonic()
        first = await self._ask(engine, body, self.facts.stream, seconds)
        if first.streaming:
            seconds = time.monotonic() - began
            self.means.fleet.computed(engine, self.facts.prompt_tokens, seconds)
            placed.took(seconds)
        return first

    async def _transferred(
        self, prefill: Endpoint, engine: Endpoint, transfer: Transfer, placed: Placed | Unplaced
    ) -> First:
        """The decode engine fetches the prompt's KV blocks from `prefill`."""
        self.record.decode, self.record.revision, self.record.role = engine.name, engine.revision, engine.role
        links, body = self.means.fleet.links, decode_body(self.facts, transfer, token_ids=self.resume is not None)
        seconds = links.deadline(prefill, engine, self.facts.prompt_tokens, self._contract.transfer_seconds)
        began = time.monotonic()
        try:
            async with links.waiting(prefill, engine, seconds):
                first = await self._ask(engine, body, streamed=True)
        except TimeoutError:
            failure = EngineError("timeout", f"no token within {time.monotonic() - began:.1f} s of the transfer")
            self._selection.failed(failure, engine, "decode")
            self._transfer_lost(failure.cause)
            raise failure from None
        except EngineError as error:
            self._transfer_lost(error.cause)
            raise
        if first.status == 200:
            seconds = time.monotonic() - began
            links.passed(prefill, engine, seconds)
            placed.took(seconds)
        self.means.telemetry.transferred("completed")
        return first if self.facts.stream or self.resume is not None else await self._collect(engine, first)

    def _transfer_lost(self, cause: Cause) -> None:
        if cause not in UNSENT:  # else the parameters were not used: a new pair may be tried
            self.means.telemetry.transferred("given_up")
            self._compute_again("decode", cause)

    async def _prefill(self, engine: Endpoint) -> Transfer | None:
        """Have the prompt computed; gives the transfer parameters, or None where decode is to compute it (scenario B).

        One engine that fails at once is replaced by another, by raising EngineError; after that no more time is lost.
        """
        began = time.monotonic()
        try:
            with self._using(engine) as placed:
                self.record.cached = placed.cached
                prompt = self._selection.prompt
                body = prefill_body(self.facts, token_ids=prompt is not None and not prompt.known)
                first = await self._ask(engine, body, False, self._contract.prefill_seconds, "prefill")
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
        seconds = time.monotonic() - began
        self.means.fleet.gave_token(engine)
        self.means.fleet.computed(engine, self.facts.prompt_tokens, seconds)
        placed.took(seconds)
        self._learn(first)
        return transfer

    def _another_prefill(self) -> bool:
        choice = self._selection.choose()
        return choice is not None and choice.prefill is not None

    def _compute_again(self, phase: Phase, cause: str) -> None:
        """From here on the decode engine computes the prompt, or the request fails, as the deployment wants it."""
        if self._contract.on_transfer_failure == "Fail" and cause != "refused":
            raise errors.transfer_failed(phase, cause)
        self.means.telemetry.fell_back(f"{phase}_{cause}")
        self._selection.split = False

    async def _ask(
        self, engine: Endpoint, body: bytes, streamed: bool, seconds: float | None = None, phase: Phase = "decode"
    ) -> First:
        """Ask one engine. Raises EngineError, noted."""
        if not self.record.own:
            self.means.telemetry.figures.asked(engine)
        try:
            async with asyncio.timeout(seconds):
                return await self._question.ask(engine, body, streamed)
        except TimeoutError:
            failure = EngineError("timeout", f"no token within {seconds} s")
        except EngineError as error:
            failure = error
        self._selection.failed(failure, engine, phase)
        raise failure

    async def _collect(self, engine: Endpoint, first: First) -> First:
        try:
            return await self._question.collect(engine, first)
        except EngineError as failure:
            self._selection.failed(failure, engine, "decode")
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
