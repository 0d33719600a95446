"""How far a fetch has come: written by the threads that download, read by whoever shows it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Event, Lock

from headrace_runtime.models.errors import CancelledError

RATE_SECONDS = 10.0
"""What the rate is the mean of."""


class Progress:
    """Bytes of one model, of all its files together. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.cancelled = Event()
        """Set it, and the fetch ends with CancelledError at its next step."""
        self._clock, self._lock = clock, Lock()
        self._fetched = self._total = 0
        self._marks: deque[tuple[float, int]] = deque()

    @property
    def fetched(self) -> int:
        return self._fetched

    @property
    def total(self) -> int:
        """0 until the source has said what there is; grows where it does not say sizes."""
        return self._total

    def show(self, fetched: int, total: int) -> None:
        """Set both: at the start of a download, and while another process downloads."""
        with self._lock:
            self._fetched, self._total = fetched, max(total, fetched)
            self._mark()

    def add(self, count: int) -> None:
        """Raises CancelledError."""
        with self._lock:
            self._fetched += count
            self._total = max(self._total, self._fetched)
            self._mark()
        self.check()

    def check(self) -> None:
        """Raises CancelledError."""
        if self.cancelled.is_set():
            raise CancelledError

    def pause(self, seconds: float) -> None:
        """Wait. Raises CancelledError."""
        self.cancelled.wait(seconds)
        self.check()

    def rate(self) -> float:
        """Bytes per second, over the last ten seconds."""
        with self._lock:
            self._mark()
            (began, first), (now, last) = self._marks[0], self._marks[-1]
        return max(0.0, (last - first) / (now - began)) if now > began else 0.0

    def _mark(self) -> None:
        now = self._clock()
        if self._marks and now - self._marks[-1][0] < RATE_SECONDS / 50 and len(self._marks) > 1:
            self._marks.pop()
        self._marks.append((now, self._fetched))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_SECONDS:
            self._marks.popleft()
