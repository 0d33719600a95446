"""A `Profile` from what was measured of real engines: least squares, no cost below nothing. Pure.

Errors are relative, but for hand-overs: these are small differences of measured times, and all equally unsure.

What is measured are lone requests and even batches, never a load with its chances: that is what a fitted profile is
checked against (`python -m bench fidelity`). What a step takes by itself is taken to be the same with and without
prompts in it; what a lone prompt takes beyond that is `front`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import median

from simulator.profile import Profile


@dataclass(frozen=True)
class Prompt:
    """The time to the first token of one request alone, its prompt no longer than a step has room for."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """The time between two tokens while so many answers are written. `context`: tokens of all of them."""

    requests: int
    context: float
    seconds: float


@dataclass(frozen=True)
class HandOver:
    """How much later the first token of one request alone comes from another engine than that of its prompt."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """Everything that a profile is made of. `crowded`: the same while another engine of the machine is busy."""

    prompts: Sequence[Prompt]
    steps: Sequence[Step]
    hand_overs: Sequence[HandOver]
    crowded: Sequence[Prompt | Step]
    kv_tokens: int
    batch_tokens: int
    batch_requests: int


@dataclass(frozen=True)
class Residual:
    """One measurement beside what the profile says of it, in seconds."""

    what: str
    measured: float
    fitted: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.fitted / self.measured - 1


@dataclass(frozen=True)
class Fitted:
    profile: Profile
    residuals: tuple[Residual, ...]


def fit(measured: Measured) -> Fitted:
    """Raises ValueError where the measurements leave a cost open, and names what is missing."""
    if len({one.tokens for one in measured.prompts}) < 3:
        raise ValueError("prompts: at least three lengths are needed")
    if len({one.requests for one in measured.steps}) < 2 or len({one.context for one in measured.steps}) < 3:
        raise ValueError("steps: at least two batches and three contexts are needed")
    if len({one.tokens for one in measured.hand_overs}) < 2:
        raise ValueError("hand-overs: at least two lengths are needed")
    if min(one.seconds for one in (*measured.prompts, *measured.steps, *measured.crowded)) <= 0:
        raise ValueError("a prompt or a step took no time")
    step, per_request, per_token = _least_squares(
        [(1.0, one.requests, one.context) for one in measured.steps], [one.seconds for one in measured.steps]
    )
    lone, pace, attention = _least_squares(
        [(1.0, one.tokens, one.tokens**2 / 2) for one in measured.prompts], [one.seconds for one in measured.prompts]
    )
    later = [one.seconds - step - per_request - per_token * one.tokens for one in measured.hand_overs]
    transfer_base, transfer = _least_squares([(1.0, one.tokens) for one in measured.hand_overs], later, relative=False)
    alone = Profile(
        overhead=min(step, lone),
        pace=pace,
        step=step,
        per_request=per_request,
        per_token=per_token,
        kv_tokens=measured.kv_tokens,
        batch_tokens=measured.batch_tokens,
        batch_requests=measured.batch_requests,
        transfer_base=transfer_base,
        transfer=transfer,
        attention=attention,
        front=max(0.0, lone - step),
    )
    crowding = median([one.seconds / _said(alone, one) for one in measured.crowded]) - 1 if measured.crowded else 0.0
    profile = Profile(**{**vars(alone), "crowding": max(0.0, crowding)})
    return Fitted(profile, tuple(_residuals(profile, measured)))


def _said(profile: Profile, one: Prompt | Step) -> float:
    if isinstance(one, Step):
        return profile.step_seconds(one.requests, one.context)
    return profile.front + profile.overhead + profile.prompt_seconds(one.tokens)


def _residuals(profile: Profile, measured: Measured) -> list[Residual]:
    found = [Residual(_name(one), one.seconds, _said(profile, one)) for one in measured.prompts]
    found += [Residual(_name(one), one.seconds, _said(profile, one)) for one in measured.steps]
    for hand in measured.hand_overs:
        moved = profile.transfer_base + profile.transfer * hand.tokens + profile.step_seconds(1, hand.tokens)
        whole = profile.front + profile.overhead + profile.prompt_seconds(hand.tokens)
        found.append(Residual(f"prompt of {hand.tokens} tokens, handed over", whole + hand.seconds, whole + moved))
    for one in measured.crowded:
        said = (1 + profile.crowding) * _said(profile, one)
        found.append(Residual(f"{_name(one)}, beside another", one.seconds, said))
    return found


def _name(one: Prompt | Step) -> str:
    if isinstance(one, Prompt):
        return f"prompt of {one.tokens} tokens"
    return f"step of {one.requests} answers, {one.context:.0f} tokens of context"


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float], *, relative: bool = True) -> list[float]:
    """One coefficient for each column, none below 0, with the least squares of errors. Exact, for the few columns there
    are: of all choices of columns that may be used, the best whose coefficients are all above 0."""
    weights = [1 / value if relative else 1.0 for value in values]
    scaled = [[cell * weight for cell in row] for row, weight in zip(rows, weights, strict=True)]
    aims = [value * weight for value, weight in zip(values, weights, strict=True)]
    columns = range(len(rows[0]))
    best, least = [0.0 for _ in columns], sum(aim**2 for aim in aims)
    for used in chain.from_iterable(combinations(columns, count) for count in range(1, len(columns) + 1)):
        found = _solved([[row[column] for column in used] for row in scaled], aims)
        if found is None or min(found) < 0:
            continue
        whole = [0.0 for _ in columns]
        for column, coefficient in zip(used, found, strict=True):
            whole[column] = coefficient
        said = [sum(c * cell for c, cell in zip(whole, row, strict=True)) for row in scaled]
        error = sum((one - aim) ** 2 for one, aim in zip(said, aims, strict=True))
        if error < least:
            best, least = whole, error
    return best


def _solved(rows: Sequence[Sequence[float]], aims: Sequence[float]) -> list[float] | None:
    """Coefficients that bring the rows closest to the aims: the normal equations, by elimination. None: several do."""
    size = len(rows[0])
    # Columns differ by many orders of magnitude: tokens, and their squares.
    scale = [max(abs(row[column]) for row in rows) or 1.0 for column in range(size)]
    left = [[sum(row[a] / scale[a] * row[b] / scale[b] for row in rows) for b in range(size)] for a in range(size)]
    right = [sum(row[a] / scale[a] * aim for row, aim in zip(rows, aims, strict=True)) for a in range(size)]
    for pivot in range(size):
        swap = max(range(pivot, size), key=lambda at: abs(left[at][pivot]))
        left[pivot], left[swap], right[pivot], right[swap] = left[swap], left[pivot], right[swap], right[pivot]
        if abs(left[pivot][pivot]) < 1e-12:
            return None
        for below in range(pivot + 1, size):
            times = left[below][pivot] / left[pivot][pivot]
            right[below] -= times * right[pivot]
            left[below] = [cell - times * above for cell, above in zip(left[below], left[pivot], strict=True)]
    found = [0.0] * size
    for at in reversed(range(size)):
        known = sum(left[at][column] * found[column] for column in range(at + 1, size))
        found[at] = (right[at] - known) / left[at][at]
    return [coefficient / times for coefficient, times in zip(found, scale, strict=True)]
