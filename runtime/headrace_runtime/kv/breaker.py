"""When a disk that fails or is slow is left alone, and when it is tried again. Pure: values in, values out.

A fault that will not pass by trying again (full, read-only, gone, denied) opens the breaker at once; errors and slow
answers, which come singly on a disk that is well, open it when they are three of the last eight. While it is open one
operation is let through now and then: if that goes well the breaker is closed again, otherwise the pause doubles.
"""

from dataclasses import dataclass, replace
from typing import Final

from headrace_runtime.contract import KvReason

WINDOW: Final = 8
BAD_OF_WINDOW: Final = 3
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0

ALLOWED_SECONDS: Final = 1.0
ALLOWED_BYTES_PER_SECOND: Final = 50e6
"""Slower than that, and a block is computed anew as fast as it is read."""


def is_slow(seconds: float, size: int) -> bool:
    return seconds > ALLOWED_SECONDS + size / ALLOWED_BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Breaker:
    """Closed as it is made. Times are of a clock that never goes back."""

    reason: KvReason = ""
    """Why it is open; empty: it is closed."""
    again_at: float = 0.0
    """When it lets the next operation through."""
    pause: float = 0.0
    recent: tuple[bool, ...] = ()
    """Of the last operations while it was closed: which went badly."""

    def lets_through(self, now: float) -> bool:
        return not self.reason or now >= self.again_at

    def trying(self, now: float) -> "Breaker":
        """An operation begins: if it is open, no other is let through for another pause."""
        return replace(self, again_at=now + self.pause) if self.reason else self

    def went_well(self) -> "Breaker":
        if self.reason:
            return Breaker()
        return replace(self, recent=(*self.recent, False)[-WINDOW:]) if self.recent else self

    def went_badly(self, now: float, reason: KvReason, *, lasting: bool) -> "Breaker":
        """`lasting`: the next operation would meet the same."""
        recent = (*self.recent, True)[-WINDOW:]
        if not self.reason and not lasting and sum(recent) < BAD_OF_WINDOW:
            return replace(self, recent=recent)
        pause = min(LONGEST_PAUSE, self.pause * 2) if self.reason else FIRST_PAUSE
        return Breaker(reason, now + pause, pause)
