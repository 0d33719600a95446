"""Who sleeps, and what wakes them: one long poll for each gateway of each deployment that sleeps. No kopf in here.

A pass that finds its deployment asleep says which gateways to listen to, and any later pass says so again, or says that
there is nobody to listen to any more; so nothing is lost with this process but some seconds. A request, however many
come at once, ends the poll and wakes the worker once: the pass decides what to do, and whether to listen on. Kept by
`worker.py`, which it shares the loop with.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from headrace_operator.cluster import Runtime
from headrace_runtime.contract import GatewayFigures

logger = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 1.0
"""Between two polls of one gateway at the least: one that cannot be waited for answers at once."""
LONGEST_PAUSE_SECONDS: Final = 15.0
"""Between two tries to reach a gateway that gives no answer."""


class Sleepers:
    """`wake` is given the uid of a deployment."""

    def __init__(self, runtime: Runtime, wake: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._wake = wake
        self._polls: dict[str, dict[str, asyncio.Task[None]]] = {}
        """By uid and address."""

    def __len__(self) -> int:
        """Polls under way."""
        return sum(not task.done() for polls in self._polls.values() for task in polls.values())

    def listen(self, uid: str, gateways: Mapping[str, GatewayFigures | None]) -> None:
        """Wake this deployment once one of these gateways, by address, has had a request since it said this, and listen
        to no others of it."""
        polls = self._polls.pop(uid, {})
        for address in polls.keys() - gateways.keys():
            polls.pop(address).cancel()
        for address, seen in gateways.items():
            if address not in polls or polls[address].done():
                polls[address] = asyncio.create_task(self._poll(uid, address, seen), name=f"poll {address}")
        if polls:
            self._polls[uid] = polls

    async def close(self) -> None:
        """End all polls and wait until they have ended."""
        tasks = [task for polls in self._polls.values() for task in polls.values()]
        for uid in list(self._polls):
            self.listen(uid, {})
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self, uid: str, address: str, seen: GatewayFigures | None) -> None:
        pause = PAUSE_SECONDS
        while True:
            told = await self._runtime.next_request(address, seen)
            if told is not None and (seen is None or _news(seen, told)):
                logger.info("%s: the gateway at %s has news", uid, address)
                self._wake(uid)
                return
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause) if told is None else PAUSE_SECONDS
            await asyncio.sleep(pause)


def _news(seen: GatewayFigures, told: GatewayFigures) -> bool:
    """A request has come, or waits, or it is another process, of which that is not known."""
    before, after = (one.demand.requests if one.demand is not None else 0 for one in (seen, told))
    return told.start != seen.start or after > before or told.waiting > 0
