"""A request's way through the gateway: route → prefill → decode → relay, and what happens when one of them fails.

Before the first token everything can be tried again on another engine; `Journey.run` is that loop. After it the bytes
have gone to the client, and a broken stream ends with an error event. Scenarios, referred to below:

 A. The engine refuses the connection, resets it, answers 5xx, or sends an error event as its first inside HTTP 200
 (vLLM's way
    to refuse admission): another engine is asked.
 B. The prefill engine fails or takes too long: the decode engine computes the prompt itself (Recompute), or the
 client gets
    an error (Fail).
 C. The decode engine was handed transfer parameters and fails, or sends no token in time (a cut link gives no error for
    minutes): asked again elsewhere, without a transfer. Parameters are used once: the blocks behind them may be gone.
 D. The client goes away: the handler is cancelled, and the engine's connection closed, which frees its slot.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from headrace_runtime.contract import Endpoint, GatewayContract
from headrace_runtime.gateway import assemble, errors
from headrace_runtime.gateway.errors import RequestError
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.http import Answer, Request
from headrace_runtime.gateway.request import Facts, decode_body, parse, prefill_body
from headrace_runtime.gateway.routing import Choice, Need, rank
from headrace_runtime.gateway.telemetry import Record, Telemetry
from headrace_runtime.gateway.upstream import Cause, EngineError, Exchange, Pool

log = logging.getLogger(__name__)

CANARY_HEADER = "x-headrace-canary"
BACKOFF_SECONDS = 0.05
BACKOFF_LIMIT_SECONDS = 1.0

Transfer = dict[str, Any]
Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class First:
    """An engine's answer up to its first token: an error (4xx), a whole answer, or (`streaming`) the begin of one."""

    exchange: Exchange
    status: int
    payload: bytes
    streaming: bool


@dataclass(frozen=True, slots=True)
class Flow:
    """Handler of `/v1/chat/completions` and `/v1/completions`."""

    contract: GatewayContract
    fleet: Fleet
    pool: Pool
    telemetry: Telemetry
    turn: "itertools.count[int]" = field(default_factory=itertools.count)

    async def __call__(self, request: Request, answer: Answer) -> None:
        record = Record(answer.request_id, request.path, time.monotonic())
        self.telemetry.in_flight.inc()
        try:
            facts = parse(request.path, request.body, self.contract.served_name, request.headers.get(CANARY_HEADER))
            record.stream, record.prompt_tokens = facts.stream, facts.prompt_tokens
            await Journey(self, facts, answer, record).run()
        except RequestError as error:
            record.outcome = "refused" if error.status < 500 else "failed"
            answer.send_error(error, _served_by(record))
        except asyncio.CancelledError:
            record.outcome = "left"
            raise
        finally:
            record.status = answer.status
            self.telemetry.in_flight.dec()
            self.telemetry.finished(record, time.monotonic())


class Journey:
    """One request under way: what was tried, and whether it may still be split."""

    def __init__(self, flow: Flow, facts: Facts, answer: Answer, record: Record) -> None:
        self._flow = flow
        self._contract = flow.contract
        self._facts = facts
        self._answer = answer
        self._record = record
        long_enough = facts.prompt_tokens >= flow.contract.min_prompt_tokens or facts.canary is not None
        self._split = facts.splittable and long_enough
        self._tried: frozenset[str] = frozenset()
        self._avoid: frozenset[str] = frozenset()
        self._prefills_failed = 0

    async def run(self) -> None:
        """Answer the request, or raise RequestError before anything was answered."""
        last: EngineError | None = None
        for attempt in range(self._contract.max_retries + 1):
            if attempt:
                await asyncio.sleep(_backoff(attempt))
            choice = self._choose()
            if choice is None:
                break
            self._record.tries += 1
            with self._flow.fleet.using(choice.decode):
                try:
                    first = await self._first_token(choice)
                except EngineError as error:
                    last = error
                    continue
                await self._deliver(first)
                return
        if last is None:
            raise errors.no_engine(self._facts.canary)
        failed = errors.engines_failed(self._record.tries, last.cause)
        if not last.body:
            raise failed
        headers = [*failed.headers(), *_served_by(self._record)]
        self._answer.send(last.status, headers, last.body)  # the engine's own words say more

    def _choose(self) -> Choice | None:
        need = Need(self._split, self._facts.canary, self._tried, self._avoid)
        ranked = rank(need, self._flow.fleet.engines(), self._contract.routing, next(self._flow.turn))
        return ranked[0] if ranked else None

    async def _first_token(self, choice: Choice) -> First:
        """Ask the chosen engines. Raises EngineError (try again) or RequestError (give up)."""
        transfer = await self._prefill(choice.prefill) if choice.prefill is not None else None
        self._record.prefill = choice.prefill.name if choice.prefill is not None and transfer is not None else ""
        self._record.decode, self._record.revision = choice.decode.name, choice.decode.revision
        if transfer is None:
            return await self._ask(choice.decode, self._facts.body, self._facts.stream)
        body = decode_body(self._facts, transfer)
        try:
            first = await self._ask(choice.decode, body, streamed=True, seconds=self._contract.transfer_seconds)
        except EngineError as error:
            if error.cause != "connect":  # else the parameters were not used: a new pair may be tried
                self._flow.telemetry.transferred("given_up")
                self._compute_again("decode", error.cause)
            raise
        self._flow.telemetry.transferred("completed")
        return first if self._facts.stream else await self._collect(choice.decode, first)

    async def _prefill(self, engine: Endpoint) -> Transfer | None:
        """Have the prompt computed; gives the transfer parameters, or None where decode is to compute it (scenario B).

        One engine that fails at once is replaced by another, by raising EngineError; after that no more time is lost.
        """
        try:
            with self._flow.fleet.using(engine):
                first = await self._ask(
                    engine,
                    prefill_body(self._facts),
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
        return transfer

    def _another_prefill(self) -> bool:
        choice = self._choose()
        return choice is not None and choice.prefill is not None

    def _compute_again(self, phase: Phase, cause: str) -> None:
        """From here on the decode engine computes the prompt, or the request fails, as the deployment wants it."""
        if self._contract.on_transfer_failure == "Fail" and cause != "refused":
            raise errors.transfer_failed(phase, cause)
        self._flow.telemetry.fell_back(f"{phase}_{cause}")
        self._split = False

    async def _ask(
        self, engine: Endpoint, body: bytes, streamed: bool, seconds: float | None = None, phase: Phase = "decode"
    ) -> First:
        """Ask one engine. Raises EngineError, noted."""
        try:
            async with asyncio.timeout(seconds):
                return await self._ask_twice(engine, body, streamed)
        except TimeoutError:
            failure = EngineError("timeout", f"no token within {seconds} s")
        except EngineError as error:
            failure = error
        self._note(failure, engine, phase)
        raise failure

    def _note(self, failure: EngineError, engine: Endpoint, phase: Phase) -> None:
        """Remember for the next try, and tell, that this engine failed."""
        self._flow.telemetry.retried(phase, failure.cause)
        log.info("request %s: %s at %s: %s", self._answer.request_id, phase, engine.name, failure)
        if failure.cause == "connect":
            self._flow.fleet.refused(engine)
        if failure.cause == "timeout" and phase == "decode":
            self._avoid |= {engine.name}
        else:
            self._tried |= {engine.name}

    async def _ask_twice(self, engine: Endpoint, body: bytes, streamed: bool) -> First:
        """The engine may close an idle connection just as we write on it: that says nothing of the engine."""
        pool, path, request_id = self._flow.pool, self._facts.path, self._answer.request_id
        exchange = await pool.post(engine.url, path, body, request_id)
        try:
            return await self._begin(engine, exchange, streamed)
        except EngineError as error:
            if not exchange.reused or exchange.status or error.cause != "reset":
                raise
        return await self._begin(engine, await pool.post(engine.url, path, body, request_id, fresh=True), streamed)

    async def _begin(self, engine: Endpoint, exchange: Exchange, streamed: bool) -> First:
        with self._guarded(engine, exchange):
            await exchange.head()
            if exchange.status != 200 or not streamed:
                return _whole(exchange, exchange.status, await exchange.whole())
            payload = await exchange.first_event()
            error = assemble.error_of(payload)
            if error is None:
                return First(exchange, 200, payload, streaming=True)
            exchange.abort()
            return _whole(exchange, *error, cause="error_event")

    async def _collect(self, engine: Endpoint, first: First) -> First:
        """The rest of a streamed answer, as the one piece that the client asked for."""
        if not first.streaming:
            return first
        try:
            with self._guarded(engine, first.exchange):
                stream = first.payload + await first.exchange.whole()
            return First(first.exchange, 200, assemble.one_answer(self._facts.path, stream), streaming=False)
        except ValueError as error:
            failure = EngineError("error_event", str(error))
        except EngineError as error:
            failure = error
        self._note(failure, engine, "decode")
        raise failure

    @contextmanager
    def _guarded(self, engine: Endpoint, exchange: Exchange) -> Iterator[None]:
        """Close the exchange when this ends badly; end it when the engine falls silent."""
        silent = EngineError("silent", f"{engine.name} answers no health checks")
        try:
            with self._flow.fleet.waiting(engine, lambda: exchange.fail(silent)):
                yield
        except BaseException:
            exchange.abort()
            raise

    async def _deliver(self, first: First) -> None:
        """Send the answer. From here on nothing is tried again."""
        record, answer, exchange = self._record, self._answer, first.exchange
        record.first_token = time.monotonic()
        headers = [
            ("content-type", exchange.content_type if first.streaming else "application/json"),
            *_served_by(record),
        ]
        record.outcome = "answered" if first.status < 400 else "refused"
        if not first.streaming:
            answer.send(first.status, headers, first.payload)
            return
        answer.source = exchange
        answer.start(first.status, headers, first.payload)
        try:
            await exchange.relay(answer)
        except EngineError as error:
            log.warning("request %s: %s was lost after its first token: %s", answer.request_id, record.decode, error)
            record.outcome = "broken"
            answer.write(b"\n\n" + errors.stream_broken().event())
            answer.close_after()
        finally:
            exchange.abort()
        answer.finish()


def _whole(exchange: Exchange, status: int, payload: bytes, cause: Cause = "status") -> First:
    """An answer in one piece. Raises EngineError for 5xx: another engine may do better."""
    if status >= 500:
        raise EngineError(cause, f"HTTP {status}", status, payload)
    return First(exchange, status, payload, streaming=False)


def _transfer_of(first: First) -> Transfer | None:
    """The transfer parameters of a prefill engine's answer, where it gave some."""
    try:
        transfer = orjson.loads(first.payload)["kv_transfer_params"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return transfer if first.status == 200 and isinstance(transfer, dict) else None


def _served_by(record: Record) -> list[tuple[str, str]]:
    """Which engines took part, as headers of the answer."""
    found = [("x-headrace-revision", record.revision), ("x-headrace-decode", record.decode)]
    found.append(("x-headrace-prefill", record.prefill))
    return [(name, value) for name, value in found if value]


def _backoff(attempt: int) -> float:
    """Seconds before try `attempt` (from 1): doubled up to a limit, and spread so that many do not come at once."""
    limit = min(BACKOFF_SECONDS * 2.0 ** (attempt - 1), BACKOFF_LIMIT_SECONDS)
    return random.uniform(limit / 2, limit)  # noqa: S311
