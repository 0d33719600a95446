"""What a number of engines makes of a load: times to first token and between tokens; and how that is learnt. Pure.

Prefill is a queue in front of n equal servers (M/G/n, with Sakasegawa's formula for the chance to wait and the
Allen-Cunneen correction for prompts of unequal length): an engine computes prompts at its pace, one after the other.
Decode is a batch: a step takes longer with each request in it and with each token of their context; how many there are
follows from Little's law. The first token of a prompt that was computed elsewhere waits for steps of the decode engine
too (`HAND_OVER_STEPS`), which no prefill engine makes shorter. A `serve` engine does both, and what prefill takes of
its time is missing for decode.

Nothing of this is exact. `fit` therefore compares with what clients saw, window by window, and follows it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

from headrace_operator.plan.scaling.inputs import ENOUGH_REQUESTS, Aim, Model, Role, Target, Window

USUAL_SPREAD: Final = 3.0
"""A long prompt against the mean one, where nobody says."""
STEADY_WINDOWS: Final = 3
HAND_OVER_STEPS: Final = 2.5
"""Of a decode engine, between a computed prompt and its first token: half of one until the engine looks, one while the
blocks are fetched, one to write the token."""
ABOUT: Final = 1.1
"""As good as."""
LEAST_PACE: Final = 1e-7
MOST_PACE: Final = 1.0
LEAST_QUEUEING: Final = 0.5
MOST_QUEUEING: Final = 3.0
_UP: Final = 0.3
_DOWN: Final = 0.1
"""How fast the model follows bad news, and good ones."""


@dataclass(frozen=True)
class Load:
    """What comes: requests a second, and their mean lengths in tokens."""

    rate: float
    prompt: float
    long_prompt: float
    cached: float
    output: float
    batch: float = 0.0
    """Mean answers that a decode engine writes at a time, as far as was measured."""

    @property
    def computed(self) -> float:
        """Prompt tokens of a request that an engine has to compute."""
        return self.prompt * (1 - self.cached)

    @property
    def context(self) -> float:
        """Mean tokens that a request holds while its answer is written."""
        return self.prompt + self.output / 2

    @property
    def variation(self) -> float:
        """Squared coefficient of variation of prompts, taken from the long ones."""
        return min(4.0, max(0.0, (self.long_prompt / max(self.prompt, 1.0) - 1) / 1.645) ** 2)


def first_token(model: Model, load: Load, engines: int, share: float) -> float:
    """Time that `share` of the requests get their first token in. Infinite where the queue only grows."""
    mean = max(load.computed * model.pace, 1e-9)
    longest = max(mean, load.long_prompt * (1 - load.cached) * model.pace)
    if engines <= 0:
        return math.inf
    busy = load.rate * mean / engines
    if busy >= 1:
        return math.inf
    waits = math.pow(busy, math.sqrt(2 * (engines + 1)) - 1)
    each = mean * (1 + load.variation) / 2 / (engines * (1 - busy))
    # Of two quantiles the sum is too much: either the prompt is long or the wait is.
    tail = max(0.0, math.log(waits / (1 - share))) * each if waits > 0 else 0.0
    return max(longest + model.queueing * waits * each, mean + model.queueing * tail)


def between_tokens(model: Model, load: Load, engines: int, share: float) -> float:
    """Time between tokens that `share` of the requests keep. Infinite where answers come faster than they go."""
    if engines <= 0:
        return math.inf
    slope = model.per_request + model.per_token * load.context
    tokens = load.rate * load.output / engines
    if slope * tokens >= 1:
        return math.inf
    batch = tokens * model.step / (1 - slope * tokens)
    return model.step + slope * _high(batch, share)


def _high(batch: float, share: float) -> float:
    """The batch is now larger, now smaller: requests come by chance."""
    return batch + max(0.0, NormalDist().inv_cdf(share)) * math.sqrt(batch)


def predicted(model: Model, load: Load, role: Role, engines: int, aim: Aim) -> tuple[float | None, float | None]:
    """Times to first token and between tokens that so many engines of the role give; None: not the role's, or no
    target."""
    ttft, itl = aim.ttft, aim.itl
    if role.name == "prefill":
        return (_hand_over(model, load) + first_token(model, load, engines, ttft.share) if ttft else None), None
    if role.name == "decode":
        return None, (between_tokens(model, load, engines, itl.share) if itl else None)
    # Both on one engine: each phase has what the other leaves.
    slope = model.per_request + model.per_token * load.context
    prefill = load.rate * load.computed * model.pace / max(engines, 1)
    decode = load.rate * load.output * slope / max(engines, 1)
    slowed = replace(model, pace=model.pace / max(1e-9, 1 - decode)) if decode < 1 else None
    late = max(1e-9, 1 - prefill)
    crowded = replace(model, step=model.step / late, per_request=model.per_request / late)
    crowded = replace(crowded, per_token=model.per_token / late)
    return (
        None if ttft is None else first_token(slowed, load, engines, ttft.share) if slowed else math.inf,
        None if itl is None else between_tokens(crowded, load, engines, itl.share) if prefill < 1 else math.inf,
    )


def pressure(model: Model, load: Load, role: Role, engines: int, aim: Aim) -> float:
    """The worse of the role's predicted times against its target: at most 1 is good."""
    pairs: tuple[tuple[float | None, Target | None], ...] = tuple(
        zip(predicted(model, load, role, engines, aim), (aim.ttft, aim.itl), strict=True)
    )
    return max((time / target.seconds for time, target in pairs if time is not None and target), default=0.0)


def need(model: Model, load: Load, role: Role, aim: Aim, most: float = 1.0) -> int | None:
    """Fewest engines whose pressure is at most `most`. None: no number of them within the role's bounds."""
    if load.rate <= 0:
        return role.least
    return _fewest(role, lambda engines: pressure(model, load, role, engines, aim) <= most)


def best(model: Model, load: Load, role: Role, aim: Aim) -> int:
    """Where no number is enough: the fewest that are about as good as the largest. More would cost and not help."""
    reachable = pressure(model, load, role, role.most, aim)
    if math.isinf(reachable):
        return role.most
    found = _fewest(role, lambda engines: pressure(model, load, role, engines, aim) <= ABOUT * reachable)
    return role.most if found is None else found


def _fewest(role: Role, enough: Callable[[int], bool]) -> int | None:
    """Pressure never rises with the number of engines."""
    low, high = max(role.least, 1), role.most
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def load_of(windows: Sequence[Window], rate: float) -> Load | None:
    """A rate, with the lengths of the requests in the windows, each window by how many it had. None: no window has
    lengths."""
    told = [w for w in windows if w.requests and w.prompt is not None and w.output is not None]
    total = sum(w.requests or 0.0 for w in told)
    if not total:
        return None

    def mean(values: list[float]) -> float:
        return sum(value * (w.requests or 0.0) for value, w in zip(values, told, strict=True)) / total

    prompt = mean([w.prompt or 0.0 for w in told])
    long = mean([USUAL_SPREAD * (w.prompt or 0.0) if w.long_prompt is None else w.long_prompt for w in told])
    batch = mean([(w.writing or 0.0) / max(1.0, w.engines.get("decode", 1.0)) for w in told])
    cached, output = mean([w.cached or 0.0 for w in told]), mean([w.output or 0.0 for w in told])
    return Load(rate, prompt, max(prompt, long), cached, output, batch)


def fit(model: Model, windows: Sequence[Window], aim: Aim) -> Model:
    """The model after what the newest window measured.

    One with few requests says nothing about how long things take, nor does one in which a queue was growing about times
    to first token, nor the first ones after a role changed its size: answers that end then began before.
    """
    newest = windows[0] if windows else None
    if newest is None or (newest.requests or 0) < ENOUGH_REQUESTS:
        return model
    fitted = model
    if aim.itl is not None and _steady(windows, "decode"):
        fitted = _fit_decode(fitted, newest, aim.itl)
    if _steady(windows, "prefill"):
        fitted = _fit_pace(fitted, newest, aim)
    if aim.ttft is not None and _steady(windows, "prefill"):
        fitted = _fit_first(fitted, newest, aim.ttft)
    return replace(fitted, fitted=model.fitted or fitted != model)


def _steady(windows: Sequence[Window], role: str) -> bool:
    """As many engines of the role, or of `serve`, in the newest windows. False while there are too few of these."""
    counts = [window.engines.get(role, window.engines.get("serve", 0.0)) for window in windows[:STEADY_WINDOWS]]
    return len(counts) == 1 or (len(counts) == STEADY_WINDOWS and max(counts) - min(counts) < 0.01)


def _fit_pace(model: Model, window: Window, aim: Aim) -> Model:
    """The pace at which half of the prompts would have taken what they took, their wait included: found by halving.

    Pace and wait rise together, and the wait without bound: so a queue that grew for another reason makes engines look
    almost busy, and never slower than what they did.
    """
    engines, load = window.engines.get("prefill", window.engines.get("serve")), load_of([window], window.rate or 0.0)
    patience = aim.ttft.seconds if aim.ttft else math.inf
    if not engines or load is None or window.usual_ttft is None or (window.waiting or 0.0) > patience:
        return model
    even, usual = replace(load, long_prompt=load.prompt), _before_hand_over(model, load, window.usual_ttft, window)
    low, high = math.log(LEAST_PACE), math.log(MOST_PACE)
    while high - low > 0.01:
        middle = (low + high) / 2
        tried = replace(model, pace=math.exp(middle), queueing=1.0)
        if first_token(tried, even, max(1, round(engines)), 0.5) > usual:
            high = middle
        else:
            low = middle
    ratio = math.exp(low) / model.pace
    return replace(model, pace=model.pace * (math.pow(ratio, _gain(ratio)) if model.fitted else ratio))


def _fit_decode(model: Model, window: Window, target: Target) -> Model:
    """All of a decode step scaled alike. What its two parts are to each other is prior knowledge: large and small
    batches that would tell them apart are rare, and a policy that takes noise for the fixed part starts engines without
    end, since no number of them makes that smaller."""
    engines, load = window.engines.get("decode", window.engines.get("serve")), load_of([window], window.rate or 0.0)
    if not engines or load is None or not window.itl:
        return model
    writing = load.rate * load.output * window.itl if window.writing is None else window.writing
    said = model.step + (model.per_request + model.per_token * load.context) * _high(writing / engines, target.share)
    ratio = min(100.0, max(0.01, window.itl / said))
    scale = math.pow(ratio, _gain(ratio)) if model.fitted else ratio
    return replace(
        model,
        step=model.step * scale,
        per_request=model.per_request * scale,
        per_token=model.per_token * scale,
    )


def _fit_first(model: Model, window: Window, target: Target) -> Model:
    """What waiting takes against what the queue's formula says; the more there is of it, the more that says."""
    engines, load = window.engines.get("prefill", window.engines.get("serve")), load_of([window], window.rate or 0.0)
    if not engines or load is None or window.ttft is None or (window.waiting or 0.0) > target.seconds:
        return model
    longest = load.long_prompt * (1 - load.cached) * model.pace
    measured = _before_hand_over(model, load, window.ttft, window)
    said = first_token(replace(model, queueing=1.0), load, max(1, round(engines)), target.share) - longest
    if not math.isfinite(said) or said <= 0:
        return model
    ratio = min(MOST_QUEUEING, max(LEAST_QUEUEING, (measured - longest) / said)) / model.queueing
    return replace(model, queueing=model.queueing * math.pow(ratio, _gain(ratio) * said / (said + longest)))


def _hand_over(model: Model, load: Load) -> float:
    return HAND_OVER_STEPS * (model.step + (model.per_request + model.per_token * load.context) * load.batch)


def _before_hand_over(model: Model, load: Load, ttft: float, window: Window) -> float:
    """What of a time to first token prefill engines took. Never nothing: the steps are an estimate."""
    return max(ttft / 10, ttft - _hand_over(model, load)) if "prefill" in window.engines else ttft


def _gain(ratio: float) -> float:
    return _UP if ratio > 1 else _DOWN
