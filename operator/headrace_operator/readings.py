"""What gateways told in the last minutes, of each deployment whose sizes are decided: the memory that windows are made
of. Called by reconcile.

It lives in the process and nowhere else: an operator that starts anew knows no load for two readings and no minutes of
it for some, and while figures are missing no role gets smaller. Of each deployment it holds the newest reading of each
gateway and some minutes of windows, a few tens of kilobytes. All moments are of one monotonic clock, in seconds.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
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
"""Readings further apart make no window: its mean would hide what happened in it."""


@dataclass(frozen=True)
class Newest:
    """What the gateways told last, all together. None: one of them did not tell."""

    at: float
    running: int | None = None
    """Requests that engines have."""
    waiting: int | None = None
    """Requests that wait for their turn."""
    idle: float | None = None
    """Seconds in which no request was at any gateway."""


@dataclass(slots=True)
class _Deployment:
    at: float
    told: Told
    ready: Mapping[str, int]
    windows: deque[tuple[float, Measured]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """By the moments of their ends, newest first."""


class Readings:
    """By the uid of the deployment."""

    def __init__(self) -> None:
        self._known: dict[str, _Deployment] = {}

    def due(self, uid: str, now: float) -> bool:
        """It is time for the next reading."""
        known = self._known.get(uid)
        return known is None or not known.at <= now < known.at + EVERY_SECONDS - EARLY_SECONDS

    def note(self, uid: str, now: float, told: Told, ready: Mapping[str, int]) -> None:
        """A reading of all ready gateways, by pod, and how many engines of each role were ready then.

        One within a second of the last is passed over: nothing can be said of so short a time.
        """
        known = self._known.get(uid)
        if known is None or now < known.at:
            self._known[uid] = _Deployment(now, dict(told), dict(ready))
            return
        seconds = now - known.at
        if seconds < scaling.inputs.LEAST_SECONDS:
            return
        if seconds <= LONGEST_SECONDS:
            known.windows.appendleft((now, measure(known.told, told, (known.ready, ready), seconds)))
        known.at, known.told, known.ready = now, dict(told), dict(ready)

    def windows(self, uid: str, now: float, aim: scaling.Aim) -> tuple[scaling.Window, ...]:
        """What was measured, newest first."""
        known = self._known.get(uid)
        found = known.windows if known is not None else ()
        return tuple(measured.window(max(0.0, now - ended), aim) for ended, measured in found)

    def newest(self, uid: str) -> Newest | None:
        """What the last reading says of the moment. None: there was none."""
        known = self._known.get(uid)
        if known is None:
            return None
        told = [one for one in known.told.values() if one is not None]
        if not told or len(told) < len(known.told):
            return Newest(known.at)
        idle = [one.demand.idle for one in told if one.demand is not None]
        return Newest(
            at=known.at,
            running=sum(one.running for one in told),
            waiting=sum(one.waiting for one in told),
            idle=min(idle) if len(idle) == len(told) else None,
        )

    def forget(self, uid: str) -> None:
        """The deployment is no more, or its sizes are no longer decided."""
        self._known.pop(uid, None)
