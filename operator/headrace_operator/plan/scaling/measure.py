"""What gateways counted between two readings, as the window that a policy is told. Pure; called by `readings.py`.

A window in which one gateway's counts are missing says how many engines were ready and nothing else: what that gateway
let in nobody knows, and the sum of the others would be a load that fell. Missing are those of a gateway that gave no
answer, went away, began anew, does not tell, or said what cannot be true.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from headrace_operator.figures import NOTHING, Demand, Window, between, merged, since_start
from headrace_operator.plan.scaling import inputs
from headrace_operator.plan.scaling.inputs import Aim, Target
from headrace_runtime.contract import GatewayFigures, Sketch

Told = Mapping[str, GatewayFigures | None]
"""A reading of each gateway, by its pod; None: it gave no usable answer."""

GRACE: Final = 10.0
"""Seconds that a gateway may have counted for more or fewer than passed here: it is asked within a moment of ours, and
answers within two. One beyond it has a clock that stands still or steps."""
MOST_RATE: Final = 1e5
"""Requests a second of one gateway that can be true: a process answers a few thousand."""
_TOKENS: Final = 1000
"""Of a sketch's unit for lengths."""


class Percentiles:
    """Those of a sketch from 1 to 99, which is what targets can name: a tenth of its size."""

    __slots__ = ("_values",)

    def __init__(self, sketch: Sketch) -> None:
        self._values = array("f", sketch.percentiles())

    def at(self, share: float) -> float | None:
        """The value that a share of the samples, 0 to 1, does not exceed. None: there was no sample."""
        return self._values[min(98, max(0, round(share * 100) - 1))] if self._values else None


@dataclass(frozen=True, slots=True)
class Measured:
    """One window, whatever is asked of it. What is None was not measured."""

    seconds: float
    engines: Mapping[str, float]
    """Mean number of ready ones, by role."""
    requests: float | None = None
    prompt: float | None = None
    cached: float | None = None
    output: float | None = None
    waiting: float | None = None
    writing: float | None = None
    prompts: Percentiles | None = None
    """Thousands of tokens."""
    ttft: Percentiles | None = None
    itl: Percentiles | None = None

    def part(self, other: "Measured") -> "Measured":
        """What came in the time of `other`, a part of this window's, if it came evenly. What waited then is not
        known."""
        assert self.requests is not None
        requests = self.requests * other.seconds / self.seconds
        return replace(self, seconds=other.seconds, engines=other.engines, requests=requests, waiting=None)

    def window(self, age: float, aim: Aim) -> inputs.Window:
        """As a policy is told it, with what the targets ask for. `age`: seconds since its end."""
        long_prompt = _at(self.prompts, aim.ttft)
        return inputs.Window(
            age=age,
            seconds=self.seconds,
            requests=self.requests,
            prompt=self.prompt,
            long_prompt=None if long_prompt is None else long_prompt * _TOKENS,
            cached=self.cached,
            output=self.output,
            ttft=_at(self.ttft, aim.ttft),
            itl=_at(self.itl, aim.itl),
            waiting=self.waiting,
            writing=self.writing,
            usual_ttft=_at(self.ttft, Target(0.0, 0.5)),
            engines=self.engines,
        )


def measure(before: Told, after: Told, ready: tuple[Mapping[str, int], Mapping[str, int]], seconds: float) -> Measured:
    """The window between two readings of all gateways, `seconds` apart. `ready`: engines by role at each of the two."""
    engines = {role: (ready[0].get(role, 0) + ready[1].get(role, 0)) / 2 for role in {*ready[0], *ready[1]}}
    counted = counts(before, after, seconds)
    if counted is None or counted.demand is None:
        return Measured(seconds, engines)
    return _measured(seconds, engines, counted, counted.demand)


def counts(before: Told, after: Told, seconds: float) -> Window | None:
    """What all gateways counted together. None: it is not known of one of them, or there is none."""
    if not before.keys() <= after.keys():
        return None
    windows = [
        _of_one(before[name], reading, seconds) if name in before else _of_new(reading, seconds)
        for name, reading in after.items()
    ]
    known = [window for window in windows if window is not None]
    return merged(known) if len(known) == len(windows) else None


def _of_one(before: GatewayFigures | None, after: GatewayFigures | None, seconds: float) -> Window | None:
    window = between(before, after)
    return _possible(window) if window is not None and abs(window.seconds - seconds) <= GRACE else None


def _of_new(reading: GatewayFigures | None, seconds: float) -> Window | None:
    """It counts from its start, if that is so short ago."""
    return _possible(since_start(reading)) if reading is not None and reading.seconds <= seconds + GRACE else None


def _possible(window: Window | None) -> Window | None:
    requests = max(window.arrivals, window.demand.requests if window.demand else 0) if window else 0
    return window if window is not None and requests <= MOST_RATE * max(1.0, window.seconds) else None


def _measured(seconds: float, engines: Mapping[str, float], counted: Window, asked: Demand) -> Measured:
    total = NOTHING
    for found in counted.roles.values():
        total = total.plus(found)
    return Measured(
        seconds=seconds,
        engines=engines,
        requests=float(asked.requests),
        prompt=asked.prompt_tokens / asked.requests if asked.requests else None,
        cached=total.cached_share,
        output=total.output_mean,
        waiting=asked.unanswered,
        writing=asked.writing / seconds,
        prompts=Percentiles(asked.prompts),
        ttft=Percentiles(total.ttft),
        itl=Percentiles(total.itl),
    )


def _at(found: Percentiles | None, target: Target | None) -> float | None:
    return found.at(target.share) if found is not None and target is not None else None
