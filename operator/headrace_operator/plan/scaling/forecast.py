"""How much will come by the time that an engine started now can serve: rates of the last minutes in, a rate out. Pure.

No seasons: the gateways keep minutes, not days. What is foreseen is the larger of the present level and of a rising
trend that stands out from the noise, and on top of it as much as the load rose within such a time lately.
"""

import math
from collections.abc import Sequence
from typing import Final

from headrace_operator.plan.scaling.inputs import Window

MOST_RISE: Final = 1.5
"""Most that is added for what the load may do unforeseen."""
_CLEAR: Final = 2.0
"""Standard errors that a trend must stand out by."""
_SPREAD: Final = 1.0
"""Of moments, in seconds²: windows that lie on one another have no trend."""


Points = list[tuple[float, float]]
"""Age of the middle and rate of each window that has one, newest first."""


def level(windows: Sequence[Window]) -> float | None:
    """Requests a second at present: of the two newest windows, one of which alone is half noise."""
    return _level(_points(windows))


def ahead(windows: Sequence[Window], horizon: float) -> float | None:
    """Requests a second to be ready for, `horizon` seconds from now. None: nothing is known of any."""
    points = _points(windows)
    now = _level(points)
    if now is None:
        return None
    return max(now, _trend(points, horizon)) * _rise(points, windows[0].seconds, horizon)


def _points(windows: Sequence[Window]) -> Points:
    return [(w.age + w.seconds / 2, w.requests / w.seconds) for w in windows if w.requests is not None]


def _level(points: Points) -> float | None:
    known = [rate for _, rate in points[:2]]
    return sum(known) / len(known) if known else None


def _trend(points: Points, horizon: float) -> float:
    """Where a straight line through the rates arrives; 0 where none stands out. At most twice what there is."""
    if len(points) < 4:
        return 0.0
    ages, values = [-age for age, _ in points], [rate for _, rate in points]
    middle, mean = sum(ages) / len(ages), sum(values) / len(values)
    spread = sum([(age - middle) ** 2 for age in ages])
    if spread < _SPREAD:
        return 0.0
    slope = sum([(age - middle) * (value - mean) for age, value in zip(ages, values, strict=True)]) / spread
    rest = sum([(value - mean - slope * (age - middle)) ** 2 for age, value in zip(ages, values, strict=True)])
    error = math.sqrt(rest / (len(points) - 2) / spread)
    if slope <= _CLEAR * error:
        return 0.0
    return min(2 * max(values[:2]), mean + slope * (horizon - middle))


def _rise(points: Points, seconds: float, horizon: float) -> float:
    """How many times as much came as `horizon` seconds before, at its worst but for the worst tenth: of pairs of
    windows, each `seconds` long, so that one that is full by chance counts half."""
    if len(points) < 6:
        return 1.0
    smooth = [(points[i][1] + points[i + 1][1]) / 2 for i in range(len(points) - 1)]
    lag = max(1, min(len(smooth) - 2, round(horizon / max(1e-9, seconds))))
    ratios = sorted([new / old for new, old in zip(smooth, smooth[lag:], strict=False) if old > 0])
    return min(MOST_RISE, max(1.0, ratios[int(0.9 * (len(ratios) - 1))])) if ratios else 1.0
