"""Brings an engine to life: on CPU by a fork of a warm parent (`engine/zygote.py`), elsewhere as a plain program.

Both ways the engine leads a session of its own and dies with this agent. `warm` touches no weights, so it may run while
those are still being verified. Called by `engine.py`.
"""

import asyncio
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from headrace_runtime.engine.arguments import Command
from headrace_runtime.node.process import Children, Program, describe

log = logging.getLogger(__name__)


class LaunchError(Exception):
    """The engine did not come to life. The message is fit for a status."""


class Launcher(Protocol):
    async def warm(self) -> None:
        """Do ahead of the first launch what can be; done again by `launch` if it failed."""

    async def launch(self, command: Command, output: Path) -> Program:
        """Start the engine, its output going to `output`. Raises LaunchError."""

    async def close(self) -> None:
        """End what `warm` started, and every engine of it. A later launch starts anew."""


class PlainLauncher:
    """Runs a program anew each time: where a device must not be inherited through a fork."""

    def __init__(self, children: Children, program: Sequence[str]) -> None:
        """`program`: the words before those of the engine's command."""
        self._children, self._program = children, program

    async def warm(self) -> None:
        return

    async def launch(self, command: Command, output: Path) -> Program:
        descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
        argv, env = [*self._program, *command.argv], {**os.environ, **command.env}
        try:
            return self._children.start(argv, env, stdout=descriptor, stderr=descriptor)
        except OSError as error:
            raise LaunchError(f"{argv[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        return


class ZygoteLauncher:
    """Keeps one warm parent and has it fork the engine. A parent that ended is replaced at the next launch."""

    def __init__(self, children: Children, program: Sequence[str], env: Mapping[str, str]) -> None:
        """`program` is the parent's own command line; `env` is added to its environment."""
        self._children, self._program = children, program
        self._env = {**os.environ, **env}
        self._zygote: _Zygote | None = None
        self._one_at_a_time = asyncio.Lock()

    async def warm(self) -> None:
        async with self._one_at_a_time:
            if self._zygote is None or self._zygote.program.ended.done():
                self._zygote = await _Zygote.start(self._children, self._program, self._env)

    async def launch(self, command: Command, output: Path) -> Program:
        await self.warm()
        zygote = self._zygote
        assert zygote is not None
        order = {"argv": list(command.argv), "env": dict(command.env), "log": str(output)}
        return await zygote.fork(order)

    async def close(self) -> None:
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()


class _Zygote:
    """One warm parent and the engines it forked; the protocol is that of `engine/zygote.py`."""

    def __init__(self, children: Children, program: Program, orders: asyncio.WriteTransport) -> None:
        self.program = program
        self._children = children
        self._orders = orders
        self._started: asyncio.Queue[Program | None] = asyncio.Queue()
        self._engines: dict[int, Program] = {}
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, children: Children, argv: Sequence[str], env: Mapping[str, str]) -> "_Zygote":
        loop = asyncio.get_running_loop()
        orders_in, orders_out = os.pipe()
        reports_in, reports_out = os.pipe()
        try:
            program = children.start(argv, env, stdin=orders_in, stdout=reports_out)
        except OSError as error:
            raise LaunchError(f"{argv[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(orders_in)
            os.close(reports_out)
        orders, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(orders_out, "wb", 0))
        reports = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reports), os.fdopen(reports_in, "rb", 0))
        zygote = cls(children, program, orders)
        zygote._listening = asyncio.create_task(zygote._listen(reports))
        return zygote

    async def fork(self, order: Mapping[str, object]) -> Program:
        self._orders.write(json.dumps({"start": order}).encode() + b"\n")
        engine = await self._started.get()
        if engine is None:
            raise LaunchError(f"the engine's parent {await self.program.ended}")
        return engine

    async def close(self) -> None:
        await self.program.kill()
        if self._listening is not None:
            await self._listening
        await asyncio.sleep(0)  # the pipe to it is closed in the loop's next turn

    async def _listen(self, reports: asyncio.StreamReader) -> None:
        while line := await reports.readline():
            match json.loads(line):
                case {"ready": seconds}:
                    log.info("engine imported in %s s", seconds)
                case {"started": int(pid)}:
                    self._engines[pid] = engine = self._children.take(pid)
                    self._started.put_nowait(engine)
                case {"exited": int(pid), "status": int(status)}:
                    self._engines.pop(pid).note_end(describe(status))
        # It is gone, and its engines with it: the kernel saw to that.
        for engine in self._engines.values():
            engine.note_end("ended with its parent")
        self._started.put_nowait(None)
        self._orders.close()
