"""Health checks of the engines: `GET /health` of each, every second, each with its own deadline.

Writes what it finds into the fleet and decides nothing. vLLM answers 200 there while it drains and for seconds after
its core died, so this only finds engines that are gone or silent; failing requests are found by the retries in
`flow.py`.
"""

import asyncio
import logging

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.upstream import EngineError, Pool

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
DEADLINE_SECONDS = 1.0


async def watch_health(
    fleet: Fleet, pool: Pool, every: float = EVERY_SECONDS, deadline: float = DEADLINE_SECONDS
) -> None:
    """Runs until cancelled. New engines are checked at once. A slow engine delays no other's check."""
    woken = asyncio.Event()
    fleet.on_new(lambda _: woken.set())
    while True:
        woken.clear()
        await asyncio.gather(*(_check(fleet, pool, slot.endpoint, deadline) for slot in fleet.slots()))
        try:
            async with asyncio.timeout(every):
                await woken.wait()
        except TimeoutError:
            continue


async def _check(fleet: Fleet, pool: Pool, endpoint: Endpoint, deadline: float) -> None:
    healthy = await is_healthy(pool, endpoint.url, deadline)
    if healthy:
        fleet.answered(endpoint)
    else:
        fleet.failed(endpoint)


async def is_healthy(pool: Pool, url: str, deadline: float = DEADLINE_SECONDS) -> bool:
    """One check. A failure is an answer here: it is logged, never raised."""
    try:
        async with asyncio.timeout(deadline):
            exchange = await pool.get(url, "/health")
            try:
                await exchange.whole()
            finally:
                exchange.abort()
    except TimeoutError:
        log.debug("%s gave no health within %s s", url, deadline)
        return False
    except EngineError as error:
        log.debug("%s: %s", url, error)
        return False
    return exchange.status == 200
