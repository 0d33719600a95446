"""A budget per minute: a bucket of so many, filled evenly. Pure; `now` is any clock that only goes forward, in seconds.

A full bucket may be spent at once, so that a minute sees twice the limit at most, and any longer time hardly more than
the limit. What is only known afterwards (the tokens of an answer) may take it below zero: the debt is waited for. Used
by `gate.py`.
"""

import math

MINUTE = 60.0
_DUST = 1e-6
"""What sums of fractions may be off by."""


class Bucket:
    __slots__ = ("_at", "_level", "capacity")

    def __init__(self, per_minute: int, now: float) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """What is left. Negative: a debt."""
        return min(float(self.capacity), self._level + (now - self._at) * self.capacity / MINUTE)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; infinite for what never can, since the bucket is too small."""
        if amount > self.capacity:
            return math.inf
        missing = amount - self.level(now)
        return 0.0 if missing <= _DUST else missing * MINUTE / self.capacity

    def take(self, amount: float, now: float) -> None:
        """Below zero where there is not as much. A negative amount is given back."""
        self._level = min(float(self.capacity), self.level(now) - amount)
        self._at = now

    def resized(self, per_minute: int | None, now: float) -> "Bucket | None":
        """The bucket under another limit: what was spent stays spent."""
        if per_minute is None:
            return None
        changed = Bucket(per_minute, now)
        changed.take(self.capacity - self.level(now), now)
        return changed


def resized(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    """The bucket for a limit that may be new, changed or gone."""
    if bucket is not None:
        return bucket.resized(per_minute, now)
    return None if per_minute is None else Bucket(per_minute, now)
