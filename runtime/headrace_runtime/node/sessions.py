"""Sessions of processes: who is in one, how to end one, and a guard that ends them when their agent is killed.

The kernel's death signal reaches only what an agent started itself; Ray's helpers, and vLLM's where it spawns them, ask
for none. In a pod they go with pid 1. Elsewhere a guard, `python -m headrace_runtime.node.sessions`, reads lines `+ID`
and `-ID` from its agent and, when those end, kills every session that is left. Standard library only: the guard stays
small.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

GUARD = (sys.executable, "-m", "headrace_runtime.node.sessions")
GUARD_SECONDS = 30.0
"""After which the guard leaves what cannot be killed (a process stuck in a device driver)."""


def members(session: int) -> set[int]:
    """Living processes of a session, zombies not counted (they hold nothing and wait for their parent)."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        state, _parent, _group, of_session = stat.rpartition(")")[2].split()[:4]
        if int(of_session) == session and state not in "ZX":
            found.add(int(entry.name))
    return found


def send(pid: int, what: signal.Signals) -> None:
    """A signal to one process; nothing happens if it is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guarded: set[int] = set()
    for line in sys.stdin:
        session = int(line[1:])
        guarded.add(session) if line[0] == "+" else guarded.discard(session)
    deadline = time.monotonic() + GUARD_SECONDS
    while (left := {pid for session in guarded for pid in members(session)}) and time.monotonic() < deadline:
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
