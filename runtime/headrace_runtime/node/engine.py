"""One life of the engine, from its launch to the end of everything it started.

Turns what happens into the facts that `decide.py` judges; takes no decision itself. The agent makes a new `EngineLife`
for each start.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from headrace_runtime.engine.arguments import Command
from headrace_runtime.node.decide import EngineSeen
from headrace_runtime.node.gang import Gang
from headrace_runtime.node.launch import Launcher, LaunchError
from headrace_runtime.node.output import Output
from headrace_runtime.node.process import Program
from headrace_runtime.node.pulse import Pulse, look
from headrace_runtime.node.readiness import Asked, Health, Intervals, watch, watch_quiet


@dataclass(frozen=True)
class EngineParts:
    """What every life of the pod's engine is made of."""

    command: Callable[[str | None], Command]
    """What starts it, by the digest of the weights; None where nobody read them."""
    launcher: Launcher
    client: Asked
    output: Output
    intervals: Intervals
    gang: Gang | None = None
    """The other pods of an engine that is spread over several."""


class EngineLife:
    """Starts an engine at once; `seen` tells how it is."""

    def __init__(self, parts: EngineParts, weights: str | None, now: Callable[[], float]) -> None:
        """`weights`: their digest, where they were read."""
        self._parts, self._weights, self._now = parts, weights, now
        self._started_at = now()
        self._health = Health()
        self._ended = ""
        self._terminated_at: float | None = None
        self._program: Program | None = None
        self._pulse: Pulse | None = None
        parts.output.forget()
        self._running = asyncio.create_task(self._run())
        self._watching: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def pid(self) -> int | None:
        return self._program.pid if self._program else None

    @property
    def ready_seconds(self) -> float | None:
        """From the start to the first token."""
        return None if self._health.ready_at is None else self._health.ready_at - self._started_at

    def seen(self, now: float) -> EngineSeen:
        """The facts. Raises what broke the watching itself: a bug of ours, which must not pass for silence."""
        for task in (self._running, self._watching):
            if task is not None and task.done() and not task.cancelled():
                task.result()
        health = self._health
        return EngineSeen(
            started_at=self._started_at,
            ready_at=health.ready_at,
            ended=self._ended,
            health_failures=health.failures,
            still_seconds=self._pulse.still(health.owing(now), now) if self._pulse else 0.0,
            stalled_seconds=now - health.progressed_at if health.ready_at is not None else 0.0,
            quiet_seconds=now - health.quiet_since if health.quiet_since is not None else 0.0,
            requests=health.requests,
            terminated_at=self._terminated_at,
        )

    def why(self) -> str:
        """The last error that the engine printed, or that its health showed; empty if none."""
        return self._parts.output.last_error() or self._health.error

    def drain(self) -> None:
        """From now on measure when it has no request left; ask it for no token any more. Safe to repeat."""
        if not self._draining and self._watching is not None:
            self._draining = True
            self._watch(watch_quiet)

    def terminate(self) -> None:
        if self._program is not None:
            self._terminated_at = self._now()
            self._program.terminate()

    async def kill(self) -> bool:
        """End everything of it. False if something is still left: call again."""
        for task in (self._running, self._watching):
            if task is not None:
                task.cancel()
        if self._program is None:
            await self._parts.launcher.close()  # an order may be on its way: nobody would own what comes of it
            return True
        return await self._program.kill()

    async def _run(self) -> None:
        parts = self._parts
        try:
            self._program = await parts.launcher.launch(parts.command(self._weights), parts.output.path)
        except LaunchError as error:
            self._ended = f"did not start: {error}"
            return
        self._pulse = Pulse(partial(look, self._program.pid))
        self._watch(watch)
        self._ended = await asyncio.shield(self._program.ended)

    def _watch(
        self, how: Callable[[Asked, Health, Intervals, Callable[[], float]], Coroutine[None, None, None]]
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = asyncio.create_task(how(self._parts.client, self._health, self._parts.intervals, self._now))
