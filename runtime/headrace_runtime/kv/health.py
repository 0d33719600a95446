"""Whether the disk is well enough to be asked, and what to say when it is not.

Three things can be unwell apart from each other: reading, writing, and growing (a full disk takes no new extent, but
what is on it can be read and overwritten). Each has a breaker (`breaker.py`). What the store does goes through `Health`
so that no error of a disk is ever raised into the engine, none is swallowed unsaid, and a call that never comes back
counts too. Messages name no path.
"""

import errno
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final, Literal

from headrace_runtime.contract import KvReason
from headrace_runtime.kv.breaker import Breaker, is_slow
from headrace_runtime.kv.budget import BusyError, UnmeasurableError

Part = Literal["read", "write", "grow"]

HUNG_SECONDS: Final = 5.0
"""A call that has not come back by then: no other is begun."""
UPKEEP_SECONDS: Final = 60.0
"""The same for work that is many calls: a large store is opened in some seconds."""

_REASONS: Final[dict[int | None, KvReason]] = {
    errno.ENOSPC: "DiskFull",
    errno.EDQUOT: "DiskFull",
    errno.EROFS: "DiskReadOnly",
    errno.EACCES: "DiskDenied",
    errno.EPERM: "DiskDenied",
    errno.ENOENT: "DiskGone",
    errno.EEXIST: "DiskGone",  # a file in place of the folder
    errno.ENOTDIR: "DiskGone",
    errno.ESTALE: "DiskGone",
    errno.ENODEV: "DiskGone",
    errno.ENXIO: "DiskGone",
}
_WORDS: Final[dict[KvReason, str]] = {
    "DiskFull": "the disk is full before the budget is used up: free some of it, or lower kvCache.disk.size",
    "DiskReadOnly": "the disk is mounted read-only",
    "DiskDenied": "no permission to read and write the cache's folder",
    "DiskGone": "the cache's folder is gone",
    "DiskFailing": "the disk answers with errors",
    "DiskSlow": "the disk is slower than computing the blocks anew",
    "DiskUnmeasurable": "what the cache takes of the disk cannot be measured, so nothing is added to it",
}


def reason_of(error: OSError) -> KvReason:
    if isinstance(error, UnmeasurableError):
        return "DiskUnmeasurable"
    return _REASONS.get(error.errno, "DiskFailing")


def describe(error: OSError) -> str:
    words = _WORDS[reason_of(error)]
    return f"{words} ({os.strerror(error.errno)})" if error.errno else words


@dataclass(frozen=True, slots=True)
class _Begun:
    """An operation that has not come back."""

    part: Part
    at: float
    hung_at: float


class Health:
    """Thread-safe. `ticks` is a clock in seconds that never goes back."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._mutex = Lock()
        self._breakers: dict[Part, Breaker] = {"read": Breaker(), "write": Breaker(), "grow": Breaker()}
        self._messages: dict[Part, str] = {}
        self._begun: dict[int, _Begun] = {}
        self._numbers = itertools.count()

    def lets_through(self, part: Part) -> bool:
        """Whether `begin` would answer with a number."""
        with self._mutex:
            return self._lets_through(part)

    def begin(self, part: Part, *, always: bool = False) -> int | None:
        """A number for the operation that may begin, to be ended with `end`, `failed` or `proved_nothing`; None: leave
        the disk alone. `always`: only a call that hangs keeps it from beginning."""
        with self._mutex:
            if self._find_hung(part) or not (always or self._lets_through(part)):
                return None
            now = self._ticks()
            if not always:
                self._breakers[part] = self._breakers[part].trying(now)
            number = next(self._numbers)
            self._begun[number] = _Begun(part, now, now + (UPKEEP_SECONDS if always else HUNG_SECONDS))
            return number

    def end(self, number: int, size: int = 0) -> None:
        """It went well, if it was quick enough for so many bytes."""
        with self._mutex:
            begun = self._begun.pop(number)
            if is_slow(self._ticks() - begun.at, size):
                self._bad(begun.part, "DiskSlow", _WORDS["DiskSlow"], lasting=False)
            else:
                self._breakers[begun.part] = self._breakers[begun.part].went_well()

    def proved_nothing(self, number: int) -> None:
        """It went well, but would have on a disk that is not."""
        with self._mutex:
            del self._begun[number]

    def failed(self, number: int, error: OSError, *, lasting: bool = False) -> None:
        """`lasting`: nothing can be done until it goes well; else single errors are borne."""
        with self._mutex:
            part = self._begun.pop(number).part
            if isinstance(error, BusyError):
                return  # no fault of the disk's
            reason = reason_of(error)
            self._bad(part, reason, describe(error), lasting=lasting or reason != "DiskFailing")

    def verdict(self) -> tuple[KvReason, str]:
        """Why the disk is not well, and in words; empty where it is."""
        with self._mutex:
            for part in ("read", "write", "grow"):
                self._find_hung(part)
                if self._breakers[part].reason:
                    return self._breakers[part].reason, self._messages[part]
            return "", ""

    def unwell(self) -> list[Part]:
        """The parts that are due for another try."""
        with self._mutex:
            return [part for part, breaker in self._breakers.items() if breaker.reason and self._lets_through(part)]

    def _lets_through(self, part: Part) -> bool:
        return not self._find_hung(part) and self._breakers[part].lets_through(self._ticks())

    def _find_hung(self, part: Part) -> bool:
        now = self._ticks()
        hung = any(begun.part == part and now > begun.hung_at for begun in self._begun.values())
        if hung and not self._breakers[part].reason:
            self._bad(part, "DiskSlow", _WORDS["DiskSlow"], lasting=True)
        return hung

    def _bad(self, part: Part, reason: KvReason, message: str, *, lasting: bool) -> None:
        self._breakers[part] = self._breakers[part].went_badly(self._ticks(), reason, lasting=lasting)
        self._messages[part] = message
