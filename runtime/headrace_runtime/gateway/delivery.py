"""What happens to an answer once its first token is there: relayed to the client as it comes.

From here on nothing is tried again, since the client has a part of the answer. Called by `flow.py`.
"""

import logging
import time

from headrace_runtime.gateway import errors
from headrace_runtime.gateway.http import Answer
from headrace_runtime.gateway.journey import EngineAnsweredError, First, Journey, served_by
from headrace_runtime.gateway.telemetry import Record
from headrace_runtime.gateway.upstream import EngineError

log = logging.getLogger(__name__)


async def deliver(journey: Journey, answer: Answer) -> None:
    """Answer the request. Raises RequestError before anything was answered."""
    try:
        async with journey.first_token() as first:
            await _relay(first, answer, journey.record)
    except EngineAnsweredError as failed:  # the engine's own words say more than ours
        answer.send(failed.status, [*failed.error.headers(), *served_by(journey.record)], failed.body)


async def _relay(first: First, answer: Answer, record: Record) -> None:
    exchange = first.exchange
    record.first_token = time.monotonic()
    headers = [
        ("content-type", exchange.content_type if first.streaming else "application/json"),
        *served_by(record),
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
