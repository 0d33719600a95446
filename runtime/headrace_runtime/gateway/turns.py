"""Requests begin a few at a time: thousands that come together leave turns of the event loop to the streams under way.

A loop reads all its sockets before it writes to any, and runs all tasks that are ready before it reads again. Used by
`connection.py` for every request; costs nothing while few come.
"""

import asyncio
from collections import deque
from collections.abc import Callable

AT_ONCE = 64


class Turns:
    """Of one event loop."""

    def __init__(self) -> None:
        self._begun = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, begin: Callable[[], None]) -> None:
        """Call `begin` at once, or some turns of the loop later; in the order of the calls."""
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next)
        if self._begun < AT_ONCE:
            self._begun += 1
            begin()
        else:
            self._waiting.append(begin)

    def _next(self) -> None:
        self._begun = min(len(self._waiting), AT_ONCE)
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next)
        for _ in range(self._begun):
            self._waiting.popleft()()
