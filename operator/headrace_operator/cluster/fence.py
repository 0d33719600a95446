"""The right to write, as a moment of this machine's clock after which it is gone. No I/O.

`election.py` moves the moment forward each time the Lease was renewed; the client asks before every write and gives it
no longer than what is left. So a process that was held up past its term writes nothing when it goes on, whatever its
tasks believe.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace_operator.errors import Fenced

CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def awake_or_not() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(CLOCK)


class Fence:
    """Closed until it is opened, and closed for good once `close` was called."""

    def __init__(self, clock: Callable[[], float] = awake_or_not) -> None:
        self._clock = clock
        self._until = float("-inf")
        self._closed = False
        self._writing = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def seconds(self) -> float:
        """For how long writes may still go out; 0 where none may."""
        return 0.0 if self._closed else max(0.0, self._until - self._clock())

    def open(self, until: float) -> None:
        """Writes may go out until then, by this fence's clock. A moment before the last one changes nothing."""
        self._until = max(self._until, until)

    def close(self) -> None:
        """No further write begins."""
        self._closed = True

    @contextmanager
    def writing(self, call: str) -> Iterator[float]:
        """Around one write; gives the seconds it may take. Fenced: it may not be sent."""
        seconds = self.seconds
        if seconds <= 0:
            raise Fenced(call, 0, "NotLeading", "another operator may lead by now")
        self._writing += 1
        self._quiet.clear()
        try:
            yield seconds
        finally:
            self._writing -= 1
            if not self._writing:
                self._quiet.set()

    async def quiet(self, seconds: float) -> bool:
        """Whether all writes under way came to their end within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True
