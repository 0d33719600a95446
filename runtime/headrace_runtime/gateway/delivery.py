"""What happens to an answer once its first token is there: relayed to the client as it comes, and resumed at another
engine when its own is lost.

`relay.py` passes on whole events and keeps them. When an engine is lost, another is asked for the same answer and told
to replay the tokens that were delivered; `resume.py` cuts what the client has from what it says. An answer that the
client wants in one piece, but that is streamed inside (`request.decode_body`), goes the same way into memory. What
cannot be resumed truthfully ends with an error event, and is counted. Called by `flow.py`.
"""

import asyncio
import logging
import sys
import time
from contextlib import AsyncExitStack

from headrace_runtime.gateway import assemble, errors
from headrace_runtime.gateway.ask import First
from headrace_runtime.gateway.errors import EngineAnsweredError, RequestError
from headrace_runtime.gateway.http import Answer
from headrace_runtime.gateway.journey import Journey, backoff, served_by
from headrace_runtime.gateway.kept import Allowance, Kept
from headrace_runtime.gateway.relay import Relay
from headrace_runtime.gateway.request import RESPONSES, Facts, continuation
from headrace_runtime.gateway.resume import Delivered, Splice, read, rest_without_engine, without_prompt_ids
from headrace_runtime.gateway.telemetry import ResumeResult
from headrace_runtime.gateway.upstream import EngineError

log = logging.getLogger(__name__)

REFUSALS = 3
"""Rounds through all engines in which the last one answered a continuation with an error of its own, after which it is
not asked again. One that is dying answers so for less than a second."""


class LostError(Exception):
    """An answer that began cannot be completed. `result` labels the metric."""

    def __init__(self, result: ResumeResult, detail: str) -> None:
        super().__init__(detail)
        self.result = result


async def deliver(journey: Journey, answer: Answer) -> None:
    """Answer the request. Raises RequestError before anything was answered."""
    try:
        await _deliver(journey, answer)
    except EngineAnsweredError as failed:  # the engine's own words say more than ours
        answer.send(failed.status, [*failed.error.headers(), *served_by(journey.record)], failed.body)


async def _deliver(journey: Journey, answer: Answer) -> None:
    async with journey.first_token() as first:
        if not first.streaming:
            _send(journey, answer, first)
            return
        delivery = Delivery(journey, answer, first)
        failure = await delivery.begin(first)
    try:
        while failure is not None:
            failure = await delivery.resume(failure)
        delivery.finish()
    except LostError as lost:
        delivery.give_up(lost)
    finally:
        delivery.release()


def _send(journey: Journey, answer: Answer, first: First) -> None:
    record = journey.record
    record.first_token = time.monotonic()
    record.outcome = "answered" if first.status < 400 else "refused"
    record.tokens = usage(first.payload, "total_tokens")
    record.output_tokens = usage(first.payload, "output_tokens" if record.path == RESPONSES else "completion_tokens")
    answer.send(first.status, [("content-type", "application/json"), *served_by(record)], first.payload)


class Delivery:
    """One streamed answer on its way to its client, through as many engines as it takes."""

    def __init__(self, journey: Journey, answer: Answer, first: First) -> None:
        self._journey = journey
        self._facts = journey.facts
        self._record = journey.record
        self._answer = answer
        self._settings = journey.resume
        self._kept: Kept | None = None
        if not self._facts.stream:
            self._kept = Kept(Allowance(), sys.maxsize)  # the answer itself
        elif self._settings is not None:
            self._kept = Kept(journey.means.kept, self._settings.kept_bytes)
        headers = [("content-type", first.exchange.content_type), *served_by(self._record)]
        self._relay = Relay(answer if self._facts.stream else None, headers, self._kept)
        self._writer = journey
        """Of the engine that writes now."""
        self._lost: list[str] = []
        """Engines by name, once for each loss."""
        self._prompt_tokens: int | None = None
        self._first_events = first.payload.count(b"\n\n")

    async def begin(self, first: First) -> EngineError | None:
        """Relay the first engine's answer; gives what became of the engine where that was not the whole answer."""
        self._journey.means.telemetry.began(self._record, time.monotonic())
        self._answer.source = self._relay
        payload = first.payload
        if self._settings is not None and not self._facts.wants_token_ids:
            payload, self._prompt_tokens = without_prompt_ids(payload)
        return await self._relay.run(first.exchange, payload)

    async def resume(self, failure: EngineError) -> EngineError | None:
        """Go on at another engine; gives what became of that. Raises LostError, or EngineAnsweredError where an engine
        refuses an answer of which the client has nothing yet."""
        log.warning("request %s: %s was lost after its first token: %s", *self._who(), failure)
        if self._relay.mismatch is not None:
            raise LostError("mismatch", str(self._relay.mismatch))
        if 400 <= failure.status < 500:
            self._record.outcome = "refused"
            raise EngineAnsweredError(errors.malformed(str(failure)), failure.status, failure.body)
        self._writer.lost(failure)
        delivered = await self._delivered(failure)
        rest = rest_without_engine(delivered, self._wants_usage())
        if rest is not None:
            self._journey.means.telemetry.resumed("completed")
            self._relay.add(rest)
            return None
        if delivered.finished:
            raise LostError("not_resumable", "its usage is missing, and the engine did not say the prompt's length")
        return await self._go_on(continuation(self._facts, delivered.token_ids), Splice(delivered))

    def finish(self) -> None:
        """The whole answer is there. Raises RequestError, for an answer in one piece that is none."""
        self._record.outcome = "broken" if self._relay.said_error else "answered"
        self._measure()
        if self._facts.stream:
            self._relay.finish()
            return
        assert self._kept is not None
        try:
            body = assemble.one_answer(self._facts.path, self._kept.read(), self._facts.wants_token_ids)
        except ValueError as error:
            log.warning("request %s: the answer of %s is none: %s", *self._who(), error)
            raise errors.engines_failed(self._record.tries, "error_event") from error
        self._answer.send(200, [("content-type", "application/json"), *served_by(self._record)], body)

    def give_up(self, lost: LostError) -> None:
        """End with an error. Raises RequestError where nothing was answered yet."""
        log.warning("request %s: the answer of %s stays incomplete: %s", *self._who(), lost)
        self._journey.means.telemetry.resumed(lost.result)
        if not self._facts.stream:
            raise errors.engines_failed(self._record.tries, lost.result)
        self._record.outcome = "broken"
        self._answer.close_after()
        self._relay.add(errors.stream_broken().event())
        self._relay.finish()

    def release(self) -> None:
        prompt = self._facts.prompt_tokens if self._prompt_tokens is None else self._prompt_tokens
        self._record.tokens = prompt + self._relay.events
        if self._kept is not None:
            self._kept.release()

    def _measure(self) -> None:
        """A whole stream, by its first and its last event: nothing is timed in between."""
        record, ends = self._record, 1 + self._wants_usage()  # [DONE], and the event that tells the usage
        if record.outcome == "answered" and self._facts.resumable:
            record.output_tokens = max(0, self._relay.events - ends)
            if record.stream:
                record.last_token = time.monotonic()
                record.gaps = record.output_tokens - self._first_events

    def _who(self) -> tuple[str, str]:
        return self._record.request_id, self._record.decode

    def _wants_usage(self) -> bool:
        options = self._facts.document.get("stream_options")
        return not self._facts.stream or bool(isinstance(options, dict) and options.get("include_usage"))

    async def _delivered(self, failure: EngineError) -> Delivered:
        kept = self._kept
        if self._settings is None or kept is None:
            raise LostError("not_resumable", str(failure))
        try:
            # 14 µs a token: in a thread, since other streams go on and many are lost at once.
            delivered = await asyncio.to_thread(lambda: read(kept.read()))
        except ValueError as error:
            raise LostError("too_long", str(error)) from error
        delivered.prompt_tokens = delivered.prompt_tokens or self._prompt_tokens
        self._lost.append(self._record.decode)
        if len(self._lost) > self._settings.max_attempts:
            raise LostError("too_often", f"{len(self._lost)} engines were lost")
        return delivered

    async def _go_on(self, facts: Facts, splice: Splice) -> EngineError | None:
        """Wait for an engine that takes the request, and relay what it adds. Raises LostError."""
        assert self._settings is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.wait_seconds
        tried = frozenset(self._lost)
        attempt = refusals = 0
        while True:
            attempt += 1
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout_at(deadline):
                        journey = Journey(self._journey.means, facts, self._record, tried)
                        first = await stack.enter_async_context(journey.first_token())
                except (RequestError, EngineAnsweredError, TimeoutError) as error:
                    refusals += isinstance(error, EngineAnsweredError)
                    if loop.time() >= deadline or refusals == REFUSALS:
                        result: ResumeResult = "refused" if refusals == REFUSALS else "no_engine"
                        raise LostError(result, f"none goes on with it: {error}") from error
                else:
                    self._writer = journey
                    return await self._spliced(first, splice)
            tried = frozenset()  # whoever was lost may be back
            await asyncio.sleep(min(backoff(attempt), max(0.0, deadline - loop.time())))

    async def _spliced(self, first: First, splice: Splice) -> EngineError | None:
        if not first.streaming:
            raise LostError("refused", f"HTTP {first.status} for the continuation")
        self._record.resumed += 1
        failure = await self._relay.run(first.exchange, first.payload, splice)
        if self._relay.mismatch is None:
            self._journey.means.telemetry.resumed("resumed" if splice.passed else "lost_again")
        return failure


def usage(answer: bytes, field: str) -> int | None:
    """Tokens, as the `usage` of a whole answer says. Inside of a string the quotes would be escaped, so that nothing
    has to be parsed."""
    _, _, after = answer.rpartition(b'"%s":' % field.encode())
    digits = after[:16].lstrip()
    number = digits[: len(digits) - len(digits.lstrip(b"0123456789"))]
    return int(number) if number else None
