"""The operator's side of a process that runs an own policy (`child.py`): start it, ask it, end it.

Lives on the event loop that asks; nothing of it blocks. What comes from the process is not trusted: its lines are
limited in length and read strictly. Whatever goes wrong is a `Failure`, never an exception. Called by `policies.py`.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from headrace_operator.plan.scaling import Answer, Ask
from headrace_operator.plan.scaling.wire import WireError, answer_from_json, ask_to_json

START_SECONDS: Final = 30.0
"""For Python, our modules and the policy's own imports, on a machine that is busy with other things."""
IDLE_SECONDS: Final = 600.0
"""A process that was not asked for so long is used by nothing any more."""
LINE_BYTES: Final = 256 * 1024
CLAUSE: Final = 500
"""Characters of what it says that are said again."""
_END_SECONDS: Final = 5.0
_GRACE: Final = 10.0
"""After its limit the process ends itself, if we are not there to end it."""


@dataclass(frozen=True)
class Limits:
    """What a process of a policy may take, and where it finds the policy."""

    seconds: float = 1.0
    """Of an answer."""
    memory_bytes: int = 256 * 1024**2
    """Private memory, as RLIMIT_DATA counts it: about 25 MiB of it are Python's and ours."""
    folder: str = ""
    """Added to Python's path, at its end."""
    start_seconds: float = START_SECONDS


@dataclass(frozen=True)
class Failure:
    """Why there is no answer."""

    kind: Literal["NotLoaded", "Raised", "TooSlow", "Ended", "Nonsense", "Busy"]
    cause: str
    """A clause that follows the policy's name. The same for the same cause: it stands in the status."""
    detail: str = ""
    """More for the log; may be another each time."""
    over: bool = False
    """The process has ended, or was ended, for it."""


class Child:
    """A process that answers for one policy, started with the first ask."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name = name
        self._limits = limits
        self._process: Process | None = None
        self._killed = False
        self._number = 0
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, ask: Ask) -> Answer | Failure:
        """One answer. Not to be called again before it is there."""
        if self._idle is not None:
            self._idle.cancel()
        try:
            if self._killed:
                await self.end()
            if self._process is None and (failure := await self._start()) is not None:
                return await self._over(failure)
            told = await self._exchange(ask)
            if isinstance(told, Failure):
                return await self._over(told) if told.over else told
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.kill)
            return told
        except BaseException:
            # Broken off half-way: what it says next would be an answer to nothing.
            self.kill()
            raise

    async def end(self) -> None:
        """End the process, and wait until it is gone."""
        self.kill()
        if self._process is not None:
            with suppress(TimeoutError):
                # What it started and got out of its group may hold its pipes.
                async with asyncio.timeout(_END_SECONDS):
                    await self._process.communicate()
        self._process, self._killed = None, False

    def kill(self) -> None:
        """Tell it to end, with all that it has started."""
        if self._idle is not None:
            self._idle.cancel()
        self._killed = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _over(self, failure: Failure) -> Failure:
        await self.end()
        return failure

    async def _start(self) -> Failure | None:
        limits = self._limits
        times = f"{limits.start_seconds + _GRACE}", f"{limits.seconds + _GRACE}"
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-B", "-m", "headrace_operator.ownpolicy.child"),
                *(self._name, *times, f"{limits.memory_bytes}", limits.folder),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                limit=LINE_BYTES,
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            return Failure("Ended", f"got no process: {error.strerror}", over=True)
        line = await self._line(limits.start_seconds)
        told = line if isinstance(line, Failure) else _object(line)
        if isinstance(told, Failure):
            return told
        if "not_loaded" in told:
            return Failure("NotLoaded", _clause(told["not_loaded"]), over=True)
        return None if told.get("ready") is True else _nonsense("its process does not say that it is ready")

    async def _exchange(self, ask: Ask) -> Answer | Failure:
        self._number += 1
        line = json.dumps({"number": self._number, "ask": ask_to_json(ask)}, allow_nan=False)
        assert self._process is not None
        assert self._process.stdin is not None
        # A process that has just ended is found out by reading.
        self._process.stdin.write(line.encode() + b"\n")
        told = await self._line(self._limits.seconds)
        return told if isinstance(told, Failure) else answer_in(told, self._number)

    async def _line(self, seconds: float) -> bytes | Failure:
        """What it says next."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                line = await self._process.stdout.readline()
                if line.endswith(b"\n"):
                    return line
                return Failure("Ended", f"ended its process ({await self._status()})", over=True)
        except TimeoutError:
            return Failure("TooSlow", f"took more than {seconds:g} s", over=True)
        except ValueError:
            return _nonsense(f"more than {LINE_BYTES} bytes")

    async def _status(self) -> str:
        assert self._process is not None
        code = await self._process.wait()
        return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


def answer_in(line: bytes, number: int) -> Answer | Failure:
    """What a line of the process says to the ask of this number, whatever is in it."""
    told = _object(line)
    if isinstance(told, Failure):
        return told
    if told.get("number") != number:
        return _nonsense("its process answers what it was not asked")
    if "raised" in told:
        spent = told.get("spent") is True
        return Failure("Raised", f"raised {_clause(told['raised'])}", _clause(told.get("said", "")), over=spent)
    if "nonsense" in told:
        return Failure("Nonsense", f"answered nonsense: {_clause(told['nonsense'])}")
    try:
        return answer_from_json(told.get("answer"))
    except WireError as error:
        return Failure("Nonsense", f"answered nonsense: {error}")


def _object(line: bytes) -> dict[str, Any] | Failure:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return _nonsense("no JSON")
    return told if isinstance(told, dict) else _nonsense("no JSON object")


def _clause(told: object) -> str:
    """What the process says, as a part of a sentence of ours."""
    return " ".join(str(told).split())[:CLAUSE]


def _nonsense(what: str) -> Failure:
    return Failure("Nonsense", f"answered nonsense: {what}", over=True)


def _environment() -> dict[str, str]:
    """All that it is given of ours: the way to the modules. One thread, where a library would take one of each core."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.defpath, "LANG": "C.UTF-8", **single}
