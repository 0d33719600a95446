"""Turns for work of which only so much may go on at once: the most urgent goes first, then who has waited longest.

With it an edit by a user never stands behind a thousand objects that are only looked at again. Urgency is never raised
by waiting: what is not urgent waits for as long as there is something urgent. Used by `worker.py`.
"""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum


class Urgency(IntEnum):
    """What a pass is for. Lower goes first."""

    EDIT = 0
    """A user wrote something new."""
    CHANGE = 1
    """Something of the object changed, or it was there when the operator started."""
    ROUTINE = 2
    """Time has passed: a resync, something that starts, another try."""


class Turns:
    """At most `size` at once. One `key` waits for one turn at a time."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._numbers = itertools.count()
        self._line: list[tuple[Urgency, int, asyncio.Future[None]]] = []
        self._waiting: dict[str, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def turn(self, key: str, urgency: Urgency) -> AsyncIterator[None]:
        """Waits for a turn, and gives it back at the end of the block."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(key, urgency)
        try:
            yield
        finally:
            self._pass_on()

    def hurry(self, key: str, urgency: Urgency) -> None:
        """What waits under this key is at least so urgent from now on. Nothing waits: nothing happens."""
        if (turn := self._waiting.get(key)) is not None:
            # A second place in the line: whichever comes up first is taken, the other one is passed over.
            heapq.heappush(self._line, (urgency, next(self._numbers), turn))

    async def _wait(self, key: str, urgency: Urgency) -> None:
        turn = self._waiting[key] = asyncio.get_running_loop().create_future()
        self.hurry(key, urgency)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            raise
        finally:
            del self._waiting[key]

    def _pass_on(self) -> None:
        while self._line:
            _, _, turn = heapq.heappop(self._line)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
