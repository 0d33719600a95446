"""Keeps one program running: started again, after a growing delay, whenever it ends.

For what the engine does not need: the raylet, and on the head Ray itself and the fleet. Knows nothing of what it runs.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from headrace_runtime.node.process import Children, Program

log = logging.getLogger(__name__)

SHORTEST_DELAY, LONGEST_DELAY = 1.0, 15.0
STEADY_SECONDS = 60.0
"""A program that lived this long ended for a new reason: the delay starts small again."""
STOP_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""


class Keeper:
    """`run` goes on until cancelled; then `stop` ends what still runs."""

    def __init__(
        self,
        children: Children,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """`before` is called before each start."""
        self.name = name
        self.restarts = 0
        self._children, self._argv, self._env, self._before = children, argv, env, before
        self._program: Program | None = None

    @property
    def runs(self) -> bool:
        return self._program is not None and not self._program.ended.done()

    async def run(self) -> None:
        loop, delay = asyncio.get_running_loop(), 0.0
        while True:
            began = loop.time()
            self._before()
            self._program = self._children.start(self._argv, self._env)
            log.info("%s started, pid %d", self.name, self._program.pid)
            ended = await asyncio.shield(self._program.ended)
            await self._program.kill()
            steady = loop.time() - began > STEADY_SECONDS
            delay = SHORTEST_DELAY if steady or not delay else min(delay * 2, LONGEST_DELAY)
            log.warning("%s %s; it starts again in %.0f s", self.name, ended, delay)
            await asyncio.sleep(delay)
            self.restarts += 1

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to whatever is left a little later."""
        if self._program is None:
            return
        if self.runs:
            self._program.terminate()
            await asyncio.wait([self._program.ended], timeout=STOP_SECONDS)
        await self._program.kill()
