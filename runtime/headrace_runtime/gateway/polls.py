"""Long polls on the admin port: `GET /figures?start=…&requests=…&wait=…` is answered once a request has come.

So an operator hears at once of the first request to a deployment that sleeps, over the connection that it made itself:
no port of the operator's is opened, and the gateway needs no right to write anything. Who polls says what it saw last
(`start`, `requests`), so that nothing is missed between two polls. Told by `telemetry.py`, asked by `serve.py`.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from pydantic import Field

from headrace_runtime.contract import Frozen, GatewayFigures

LONGEST_SECONDS: Final = 60.0
MOST: Final = 32
"""Polls at a time. One more is answered at once: whoever reaches the port can hold no more than this."""


class Poll(Frozen):
    """What the one who asks has seen."""

    start: str = ""
    """Of the process."""
    requests: int = Field(default=0, ge=0)
    """Of `GatewayFigures.demand`."""
    wait: float = Field(default=0.0, ge=0, le=LONGEST_SECONDS)
    """Seconds, at the most."""

    def sees_news(self, told: GatewayFigures) -> bool:
        """Whether a request came since, or waits."""
        requests = told.demand.requests if told.demand is not None else 0
        return told.start != self.start or requests > self.requests or told.waiting > 0


class Polls:
    """Made inside the event loop that it is used in."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    async def answer(self, poll: Poll, reading: Callable[[], GatewayFigures]) -> GatewayFigures:
        """The reading once it has news, or as it is when the wait is over."""
        told = reading()
        if self._closed or poll.sees_news(told) or len(self._waiting) >= MOST:
            return told
        # Counted again after each wake: a request that is in no figure wakes too.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll.wait):
                while not (poll.sees_news(told) or self._closed):
                    await self._news()
                    told = reading()
        return reading()

    def tell(self) -> None:
        """A request came."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Answer all who wait, and from now on at once: the process ends."""
        self._closed = True
        self.tell()

    async def _news(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
