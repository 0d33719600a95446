"""Whether processes that owe an answer do anything at all: what hangs is told from what is only slow.

An engine may take its time over a long prompt or under a high load; it then uses a processor. One that is stopped
(SIGSTOP), or whose threads wait for one another, uses none. Only both together, no answer and no work, are taken for a
hang after a few seconds; an engine that works without ever answering has the longer limit of `decide.py`. Linux only.
Called by `engine.py` while an answer is due; never signals anything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace_runtime.node.sessions import members

Part = Literal["front", "core"]
"""The processes that speak HTTP, or those that compute, with all that these started: a kernel may be compiled while
an answer is due."""

CORE_TITLES = (b"EngineCore", b"Worker")
"""In the titles that vLLM gives its processes (`set_process_title`)."""
TICKS_PER_SECOND = 100
"""Of /proc: USER_HZ, the same on every Linux."""
IDLE_SHARE = 0.01
"""Of one processor. What waits for nothing but a timer uses less, what computes uses far more."""
AT_REST = "ST"
"""States in /proc: sleeping, stopped. A process that waits for a disk (D) may be slow, not hung."""


@dataclass(frozen=True)
class Process:
    state: str
    ticks: int
    """Processor time used so far, of all its threads."""
    part: Part


@dataclass(frozen=True)
class Mark:
    """What was seen when a part was last known to work."""

    at: float
    part: Part
    ticks: Mapping[int, int]
    """By process."""


class Pulse:
    """Of one engine. `still` is to be asked a few times a second while an answer is due."""

    def __init__(self, look: Callable[[], Mapping[int, Process]]) -> None:
        self._look = look
        self._mark: Mark | None = None

    def still(self, owing: Part | None, now: float) -> float:
        """For how many seconds the part that owes an answer has not moved; 0 when nothing is due, or it works."""
        if owing is None:
            self._mark = None
            return 0.0
        seen = {pid: process for pid, process in self._look().items() if process.part == owing}
        if self._mark is None or moved(self._mark, seen, owing, now):
            self._mark = Mark(now, owing, {pid: process.ticks for pid, process in seen.items()})
        return now - self._mark.at


def moved(mark: Mark, seen: Mapping[int, Process], part: Part, now: float) -> bool:
    """Whether these processes did something since `mark`, or are others."""
    if mark.part != part or mark.ticks.keys() != seen.keys() or not seen:
        return True
    if any(process.state not in AT_REST for process in seen.values()):
        return True
    used = sum(process.ticks - mark.ticks[pid] for pid, process in seen.items())
    return used > 2 + IDLE_SHARE * TICKS_PER_SECOND * (now - mark.at)


def look(session: int) -> dict[int, Process]:
    """The processes of a session, by id."""
    stats: dict[int, list[str]] = {}
    cores: set[int] = set()
    for pid in members(session):
        folder = Path(f"/proc/{pid}")
        try:
            stats[pid] = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes().partition(b"\0")[0]
        except (FileNotFoundError, ProcessLookupError):
            stats.pop(pid, None)  # ended while we looked
            continue
        if any(name in title for name in CORE_TITLES):
            cores.add(pid)
    while more := {pid for pid, words in stats.items() if int(words[1]) in cores} - cores:
        cores |= more
    return {
        pid: Process(words[0].upper(), int(words[11]) + int(words[12]), "core" if pid in cores else "front")
        for pid, words in stats.items()
    }
