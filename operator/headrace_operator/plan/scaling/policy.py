"""The built-in policy: an `Ask` in, an `Answer` out. Pure, and the same code in the operator and in the simulator.

Sizes follow from the load and from what an engine can do (`model.py`), not from how late answers are: so an engine that
is still starting counts from its creation, and one that never starts keeps nothing else waiting. The time to first
token moves prefill, the time between tokens moves decode.

- Up at once, for the load that is foreseen when an engine started now can serve (`forecast.py`), and for what waits.
- A change of role first, where the other role has an engine to spare: it takes milliseconds.
- Down only with complete figures, once the fewer engines would have been enough for everything seen in `quiet` seconds.
- Nothing goes down whose target clients see missed in the newest window, as long as the model says it can be kept.
- Missing or late figures: nothing goes down. Bounds and the cap hold whatever is measured (`bounds.py`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from headrace_operator.api.conditions import Reason
from headrace_operator.plan.scaling.bounds import granted, rested, room, too_small
from headrace_operator.plan.scaling.forecast import ahead, level
from headrace_operator.plan.scaling.inputs import (
    ENOUGH_REQUESTS,
    LATE_SECONDS,
    Answer,
    Ask,
    Decision,
    Model,
    Role,
    Window,
    sane,
)
from headrace_operator.plan.scaling.model import Load, best, fit, load_of, need, predicted, pressure

SPARE: Final = 0.9
"""Of a target: fewer engines must be able to keep this much of it."""
LEAST_QUIET: Final = 180.0
MOST_QUIET: Final = 600.0
MOST_DOUBLINGS: Final = 4
LEAST_DRAIN: Final = 60.0
"""What waits is to be gone after a start-up, and not faster than this."""


def quiet(model: Model) -> float:
    """How long fewer engines must have been enough: a mistake costs a start-up, so the longer that is, the longer."""
    return min(MOST_QUIET, max(LEAST_QUIET, 2 * model.startup))


@dataclass(frozen=True)
class _Wish:
    """What one role needs for what is foreseen, where it may go down to, and whether its target can be kept at all."""

    up: int
    down: int
    reachable: bool = True


def decide(ask: Ask) -> Answer:
    """One decision for all roles. Any figures give an answer within all bounds."""
    ask = sane(ask)
    windows = ask.windows
    if not windows or windows[0].age > LATE_SECONDS:
        return _hold(ask, Reason.FIGURES_MISSING, "No figures of the last 90 s: no role gets smaller.")
    now, foreseen = level(windows), ahead(windows, ask.model.startup)
    lengths = load_of(windows[:6], 1.0) or load_of(windows, 1.0)
    if now is None or foreseen is None:
        return _hold(ask, Reason.FIGURES_MISSING, "The rate of requests is not known: no role gets smaller.")
    if lengths is None:
        if now > 0:
            return _hold(ask, Reason.FIGURES_MISSING, "The lengths of requests are not known: no role gets smaller.")
        lengths = Load(0.0, 1.0, 1.0, 0.0, 1.0)
    model = fit(ask.model, windows, ask.aim)
    # What waits came on top of what comes, and is to be gone when an engine started now can help.
    backlog = foreseen * min(windows[0].waiting or 0.0, model.startup) / max(LEAST_DRAIN, model.startup)
    load = replace(lengths, rate=foreseen + backlog)
    worst = _worst(windows, quiet(model), model.startup)
    wishes = {role.name: _wish(ask, model, role, load, worst) for role in ask.roles}
    wants, swap = _wants(ask, wishes)
    sizes = granted(wants, ask.roles, ask.aim, lambda role, engines: pressure(model, load, role, engines, ask.aim))
    inputs = _inputs(ask, model, load, now)
    decisions = tuple(_decisions(ask, sizes, swap, model, load))
    verdict, message = _verdict(ask, model, load, sizes, wishes)
    return Answer(sizes, verdict, message, decisions, inputs, model)


def _wish(ask: Ask, model: Model, role: Role, load: Load, worst: float | None) -> _Wish:
    """`worst`: the rate that fewer engines must be enough for; None: it is not known, and there are none fewer."""
    enough = need(model, load, role, ask.aim)
    reachable = enough is not None
    if enough is None:
        up = best(model, load, role, ask.aim)
    elif enough > role.size:
        # Once it has to grow, by some more: the next minute would ask for that.
        up = need(model, load, role, ask.aim, SPARE) or enough
    else:
        up = enough
    if reachable and _late(ask, role):
        up = max(up, role.size)
    if worst is None:
        return _Wish(up, role.size, reachable)
    lengths = [w.prompt for w in ask.windows if w.age < quiet(model) and w.prompt is not None]
    prompt = min(max(lengths, default=load.prompt), 2 * load.prompt)
    heavy = replace(load, rate=max(worst, load.rate), prompt=max(load.prompt, prompt))
    down = need(model, heavy, role, ask.aim, SPARE)
    if not _settled(ask, role.name, quiet(model)):
        down = role.size
    return _Wish(up, up if down is None else down, reachable)


def _late(ask: Ask, role: Role) -> bool:
    """Clients see a target missed that this role is there to keep: whatever is computed, it gets no smaller now."""
    newest = ask.windows[0]
    if (newest.requests or 0) < ENOUGH_REQUESTS:
        return False
    prefills, writes = role.name != "decode", role.name != "prefill"
    pairs = ((newest.ttft, ask.aim.ttft if prefills else None), (newest.itl, ask.aim.itl if writes else None))
    return any(seen is not None and target is not None and seen > target.seconds for seen, target in pairs)


def _settled(ask: Ask, role: str, seconds: float) -> bool:
    """Not made larger lately. Each time that it was made smaller and soon larger again, it is kept twice as long: where
    a load lies just between two sizes, that ends in the larger one."""
    mine = [change for change in ask.changes if change.role == role and not change.swap]
    grown = [change for change in mine if change.after > change.before]
    regretted = sum(
        newer.after > newer.before and older.after < older.before and older.age - newer.age < MOST_QUIET
        for newer, older in pairwise(mine)
    )
    return not grown or grown[0].age >= seconds * 2 ** min(regretted, MOST_DOUBLINGS)


def _worst(windows: Sequence[Window], seconds: float, startup: float) -> float | None:
    """The highest rate that was to be foreseen at any time in the last `seconds`. None: not all of it was measured."""
    lately = [window for window in windows if window.age < seconds]
    covered = sum(window.seconds for window in lately if window.rate is not None)
    if covered < 0.9 * seconds or any(window.rate is None for window in lately):
        return None
    return max((ahead(windows[place:], startup) or 0.0 for place in range(len(lately))), default=0.0)


def _wants(ask: Ask, wishes: Mapping[str, _Wish]) -> tuple[dict[str, int], bool]:
    """The sizes that are wished for, and whether engines change their role for it."""
    wants = {role.name: _want(role, wishes[role.name]) for role in ask.roles}
    growing = [role for role in ask.roles if wants[role.name] > role.size]
    if not ask.aim.role_change or len(growing) != 1 or len(ask.roles) != 2 or not rested(ask):
        return wants, False
    taker = growing[0]
    giver = next(role for role in ask.roles if role.name != taker.name)
    enough = wishes[giver.name].up
    spare = giver.size - max(enough, giver.least)
    moved = min(spare, wants[taker.name] - taker.size)
    if moved <= 0:
        return wants, False
    # The giver is not made smaller twice, and what the taker still lacks is started.
    return wants | {giver.name: min(wants[giver.name], giver.size - moved)}, True


def _want(role: Role, wish: _Wish) -> int:
    if wish.up > role.size:
        return _leap(role, wish.up)
    return min(role.size, max(wish.up, wish.down))


def _leap(role: Role, size: int) -> int:
    """At most twice as many at a time: one odd minute is then not a fleet."""
    return min(size, max(2 * role.size, role.size + 2))


def _decisions(ask: Ask, sizes: Mapping[str, int], swap: bool, model: Model, load: Load) -> Iterator[Decision]:
    for role in ask.roles:
        after = sizes[role.name]
        if after == role.size:
            continue
        way = "more" if after > role.size else "fewer"
        why = f"{load.rate:.2f} requests/s foreseen in {model.startup:.0f} s"
        said = " and ".join(_said(ask, model, load, role, after)) or "within its bounds"
        yield Decision(role.name, role.size, after, f"{abs(after - role.size)} {way}: {why}, {said}.", swap)


def _said(ask: Ask, model: Model, load: Load, role: Role, engines: int) -> Iterator[str]:
    """What so many engines are expected to give against the targets."""
    times = predicted(model, load, role, engines, ask.aim)
    for name, time, target in zip(("first token", "token gap"), times, (ask.aim.ttft, ask.aim.itl), strict=True):
        if time is not None and target is not None:
            at = "without bound" if math.isinf(time) else _seconds(time)
            yield f"{name} {at} (p{target.share * 100:.0f}, target {_seconds(target.seconds)}) with {engines}"


def _verdict(
    ask: Ask, model: Model, load: Load, sizes: Mapping[str, int], wishes: Mapping[str, _Wish]
) -> tuple[str, str]:
    if too_small(ask.roles, ask.aim):
        return Reason.CAP_TOO_SMALL, (
            f"maxAccelerators {ask.aim.cap} is less than the least size of all roles takes: raise it or lower min."
        )
    lacking = [role for role in ask.roles if not wishes[role.name].reachable]
    capped = [role for role in ask.roles if role not in lacking and sizes[role.name] < wishes[role.name].up]
    held = [r for r in capped if ask.aim.cap is not None and _full(ask, sizes, r)]
    if not lacking and not held:
        said = "; ".join(f"{r.name} {sizes[r.name]}" for r in ask.roles)
        return Reason.SIZED, f"Sized for {_few(load.rate)} requests/s: {said}."
    bad = [*lacking, *held]
    said = "; ".join(f"{role.name}: {_reachable(ask, model, load, role, sizes[role.name])}" for role in bad)
    limit = "the cap of accelerators" if held else "the largest size"
    return Reason.TARGET_OUT_OF_REACH, f"No size up to {limit} keeps the target. Best within reach: {said}."


def _full(ask: Ask, sizes: Mapping[str, int], role: Role) -> bool:
    used = sum(sizes[one.name] * one.accelerators for one in ask.roles)
    return used + role.accelerators > room(ask.roles, ask.aim)


def _reachable(ask: Ask, model: Model, load: Load, role: Role, granted_size: int) -> str:
    size = role.most if ask.aim.cap is None else granted_size
    return " and ".join(_said(ask, model, load, role, size))


def _hold(ask: Ask, verdict: str, message: str) -> Answer:
    """Every role as it is, but within the bounds of the spec."""
    wants = {role.name: role.size for role in ask.roles}
    sizes = granted(wants, ask.roles, ask.aim, lambda role, engines: -engines)
    moved = tuple(
        Decision(role.name, role.size, sizes[role.name], "Back within the bounds of the spec.")
        for role in ask.roles
        if sizes[role.name] != role.size
    )
    return Answer(sizes, verdict, message, moved, {}, ask.model)


def _inputs(ask: Ask, model: Model, load: Load, now: float) -> dict[str, str]:
    """What decided, for people: lengths in tokens, times in seconds."""
    newest = ask.windows[0]
    said = {
        "rate": f"{now:.2f}/s",
        "foreseen": f"{load.rate:.2f}/s",
        "prompt": f"{load.prompt:.0f}",
        "cached": f"{load.cached:.2f}",
        "output": f"{load.output:.0f}",
        "ttft": _measured(newest.ttft),
        "itl": _measured(newest.itl),
        "waiting": _measured(newest.waiting),
        "pace": f"{1 / model.pace:.0f} tokens/s",
        "step": f"{model.step * 1e3:.1f} ms",
        "startup": f"{model.startup:.0f} s",
        "engines": ", ".join(f"{r.name} {r.ready} ready, {len(r.starting)} starting" for r in ask.roles),
    }
    return said


def _measured(value: float | None) -> str:
    return "unknown" if value is None else _seconds(value)


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def _few(rate: float) -> str:
    """Two figures: a condition's message is not to change with every request."""
    return f"{rate:.2g}"
