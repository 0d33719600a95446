"""What gateways told in the last minutes, of each deployment whose sizes are decided: the memory that windows are made
of. Called by sizing.

It lives in the process and nowhere else: an operator that starts anew knows no load for two readings and no minutes of
it for some, and while figures are missing no role gets smaller. Of each deployment it holds one or two readings of each
gateway and some minutes of windows: about 100 kB with two gateways. All moments are of one monotonic clock, in seconds.

A gateway that was too busy to answer once has still counted: with its next answer both windows are known, as one that
is shared out evenly.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from headrace_operator.plan import scaling
from headrace_operator.plan.scaling.measure import Measured, Told, measure

EVERY_SECONDS: Final = 30.0
"""Length of a window."""
KEPT: Final = 24
"""Windows of one deployment: 12 minutes, more than the policy ever looks back."""
EARLY_SECONDS: Final = 1.0
"""So much before its time a reading is due: a pass that comes just then need not come again."""
LONGEST_SECONDS: Final = 3 * EVERY_SECONDS
"""Readings further apart make no window, nor are windows filled from them: a mean would hide what happened."""


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    told: Told
    ready: Mapping[str, int]

    def until(self, later: "_Reading") -> Measured:
        return measure(self.told, later.told, (self.ready, later.ready), later.at - self.at)


@dataclass(slots=True)
class _Deployment:
    newest: _Reading
    known: _Reading
    """What was counted up to this one is in the windows; what came after it is in none."""
    since: frozenset[str] = frozenset()
    """Gateways that were there after it."""
    windows: deque[tuple[float, Measured]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """By the moments of their ends, newest first."""

    def note(self, reading: _Reading) -> None:
        window = self.newest.until(reading)
        if window.seconds <= LONGEST_SECONDS:
            self.windows.appendleft((reading.at, window))
        late = reading.at - self.known.at > LONGEST_SECONDS
        told = window.requests is not None or (not late and self._fill(reading))
        self.newest, self.since = reading, self.since | reading.told.keys()
        if told or late:
            self.known, self.since = reading, frozenset()

    def _fill(self, reading: _Reading) -> bool:
        """The windows since `known` become parts of the one that covers them all. False: that is unknown too. One that
        came meanwhile and did not tell may have begun anew."""
        whole = self.known.until(reading)
        if whole.requests is None or not self.since <= self.known.told.keys():
            return False
        lacking = [(at, window) for at, window in self.windows if at > self.known.at]
        for place, (at, window) in enumerate(lacking):
            part = whole.part(window)
            self.windows[place] = (at, part if place else replace(part, waiting=whole.waiting))
        return True


class Readings:
    """By the uid of the deployment."""

    def __init__(self) -> None:
        self._known: dict[str, _Deployment] = {}

    def due(self, uid: str, now: float) -> bool:
        """It is time for the next reading."""
        known = self._known.get(uid)
        return known is None or not known.newest.at <= now < known.newest.at + EVERY_SECONDS - EARLY_SECONDS

    def note(self, uid: str, now: float, told: Told, ready: Mapping[str, int]) -> None:
        """A reading of all ready gateways, by pod, and how many engines of each role were ready then.

        One within a second of the last is passed over: nothing can be said of so short a time.
        """
        known, reading = self._known.get(uid), _Reading(now, dict(told), dict(ready))
        if known is None or now < known.newest.at:
            self._known[uid] = _Deployment(reading, reading)
        elif now - known.newest.at >= scaling.inputs.LEAST_SECONDS:
            known.note(reading)

    def windows(self, uid: str, now: float, aim: scaling.Aim) -> tuple[scaling.Window, ...]:
        """What was measured, newest first."""
        known = self._known.get(uid)
        found = known.windows if known is not None else ()
        return tuple(measured.window(max(0.0, now - ended), aim) for ended, measured in found)

    def newest(self, uid: str) -> float | None:
        """The moment of the last reading. None: there was none."""
        known = self._known.get(uid)
        return known.newest.at if known is not None else None

    def forget(self, uid: str) -> None:
        """The deployment is no more, or its sizes are no longer decided."""
        self._known.pop(uid, None)
