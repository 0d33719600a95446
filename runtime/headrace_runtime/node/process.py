"""Programs that the agent starts: watched, and ended with everything they started themselves.

Each program leads a session of its own, so that `Program.kill` finds all of it (Ray puts its workers into process
groups of their own, but never into another session), and asks the kernel for SIGKILL when its parent dies: no program
outlives its agent. The exit status of a program is a fact to show, never a verdict: vLLM leaves with 0 when its
EngineCore was killed. Linux only. Called by `launch.py`, `raylet.py`, `head/` and `local.py`; knows neither vLLM nor
Ray.
"""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from headrace_runtime.node.sessions import GUARD, members, send

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Program:
    """One started program: the leader of a session, by the id of its process.

    `ended` resolves to a short sentence about how the leader ended; the rest of its session may live on until `kill`.
    """

    def __init__(self, pid: int, gone: Callable[[], None]) -> None:
        """`gone` is called when nothing of its session is left."""
        self.pid = pid
        self._gone = gone
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note_end(self, how: str) -> None:
        if not self.ended.done():
            self.ended.set_result(how)

    def terminate(self) -> None:
        """SIGTERM to the leader alone: it ends its children in its own order and removes what it shares with them."""
        send(self.pid, signal.SIGTERM)

    def kill_now(self) -> None:
        """SIGKILL to the leader; what the leader started dies with it, where it asked the kernel for that."""
        send(self.pid, signal.SIGKILL)

    async def kill(self, seconds: float = 5.0) -> bool:
        """SIGKILL to the whole session until nothing of it is left; False if something still is after `seconds`.

        What does not die (a process stuck in a device driver) still holds its device: the caller tries again later and
        starts nothing in its place.
        """
        deadline = time.monotonic() + seconds
        while alive := members(self.pid):
            if time.monotonic() > deadline:
                log.error("processes %s do not end", sorted(alive))
                return False
            for pid in alive:
                send(pid, signal.SIGKILL)
            await asyncio.sleep(0.02)
        self._gone()
        return True


class Children:
    """Starts programs and reaps whatever ends: its own, and orphans that the kernel hands to pid 1 or a subreaper."""

    def __init__(self) -> None:
        self._popen: dict[int, subprocess.Popen[bytes]] = {}
        self._programs: dict[int, Program] = {}
        self._guard: int | None = None

    def guard(self) -> None:
        """Have a process of its own end what is started from now on, should this one be killed. Not needed by pid 1."""
        if os.getpid() == 1:
            return
        read, self._guard = os.pipe()
        guard = subprocess.Popen(GUARD, stdin=read, start_new_session=True)
        os.close(read)
        self._popen[guard.pid] = guard

    def adopt_orphans(self) -> None:
        """Reap on every SIGCHLD, and become the parent of orphaned descendants even where this is not pid 1."""
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Program:
        """Start `argv` in a session of its own; `env` replaces the whole environment. OSError if it cannot be started.

        The kernel's death signal follows the parent's *thread*, so this is called from the main thread only.
        """
        popen = subprocess.Popen(
            argv,
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),  # noqa: PLW1509 - prctl alone: nothing that another thread could hold
        )
        self._popen[popen.pid] = popen
        program = self._programs[popen.pid] = self.take(popen.pid)
        return program

    def take(self, pid: int) -> Program:
        """The program whose first process is `pid`, guarded. For one that another forked, who will tell its end."""

        def gone() -> None:
            self.reap()
            self._tell_guard(f"-{pid}\n")

        self._tell_guard(f"+{pid}\n")
        return Program(pid, gone)

    def _tell_guard(self, line: str) -> None:
        if self._guard is not None:
            os.write(self._guard, line.encode())

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if popen := self._popen.pop(pid, None):
                popen.returncode = os.waitstatus_to_exitcode(status)  # or Popen would warn of a child still running
                if program := self._programs.pop(pid, None):
                    program.note_end(describe(popen.returncode))


def die_with(parent: int) -> Callable[[], None]:
    """For a child between fork and exec: SIGKILL when `parent` dies, or at once if it already has."""

    def ask() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def describe(code: int) -> str:
    """An exit code, or minus the number of a signal, in words as they stand in messages."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
