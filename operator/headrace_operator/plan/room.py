"""How a step keeps within `spec.scaling.maxAccelerators`: arithmetic on counts. Pure; called by `make_plan`.

The cap holds at every moment: an engine is made only where there is room beside all that hold accelerators now, those
included that are told to end and still drain. That it never comes to a stand follows from shares: of what the cap
leaves beside the roles' sizes each role has its part (`surges`), and what others hold for longer comes back.

What waits for room says so in its step (`Step.lacks`). Where old engines take more accelerators than their successors,
or somebody else lowered the cap, a rollout may have to wait for the user: no ready engine is ended below its floor to
make room, unless the cap itself is passed.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

from headrace_operator.plan.rollout import Bounds, Count, Step, usable
from headrace_operator.state import Pod


@dataclass(frozen=True)
class Cap:
    """Accelerators of all engines together."""

    most: int
    held: int = 0
    """Of all engines that are there. A live one that lacks a pod holds what that will take."""
    ending: int = 0
    """Of these, of the ones that are told to end."""


def accelerators(pod: Pod, resources: Set[str]) -> int:
    """Of one engine whose pod this is, or any of its pods, when it is whole."""
    return pod.ranks * sum(amount for resource, amount in pod.devices if resource in resources)


def cap_of(most: int, pods: Iterable[Pod], resources: Set[str]) -> Cap:
    """What all engine pods hold, `resources` being the names of accelerators. A pod whose phase is final holds none."""
    engines: dict[str, list[Pod]] = {}
    for pod in pods:
        engines.setdefault(pod.engine, []).append(pod)
    held = ending = 0
    for ranks in engines.values():
        if all(pod.live for pod in ranks):
            held += accelerators(ranks[0], resources)
        else:
            parts = sum(accelerators(pod, resources) // pod.ranks for pod in ranks if not pod.failed)
            held, ending = held + parts, ending + parts
    return Cap(most, held, ending)


def sentence(counts: Mapping[str, Count], steps: Mapping[str, Step], cap: Cap) -> str:
    """Which engines wait for room, for people; empty where none does."""
    waits = [f"{step.lacks} of {role}" for role, step in steps.items() if step.lacks]
    if not waits:
        return ""
    need = min(counts[role].accelerators for role, step in steps.items() if step.lacks)
    ending = f", {cap.ending} of them by engines that are ending" if cap.ending else ""
    told = (
        f"Engines wait for room: {', '.join(waits)}, {need} accelerators the next; {cap.held} of "
        f"scaling.maxAccelerators {cap.most} are held{ending}."
    )
    stands = _still(steps) and not _starting(counts) and not cap.ending
    return f"{told} Nothing that is there ends by itself: raise it, or rollout.maxUnavailable." if stands else told


def surges(counts: Mapping[str, Count], bounds: Bounds, cap: Cap | None) -> dict[str, int]:
    """Engines of each role above its size during a change: as many as the bounds allow, while all roles have as many
    as fit the cap. They are dealt out in turns, so that no role takes the room that another one cannot do without."""
    present = {role: count for role, count in counts.items() if not count.leaving}
    if cap is None:
        return dict.fromkeys(present, bounds.surge)
    free = cap.most - sum(count.size * count.accelerators for count in present.values())
    found = {role: 0 if count.accelerators and count.size else bounds.surge for role, count in present.items()}
    for turn in range(bounds.surge):
        for role, count in present.items():
            if found[role] == turn and count.accelerators <= free:
                found[role] += 1
                free -= count.accelerators
    return found


def narrowed(bounds: Bounds, allowed: Mapping[str, int]) -> Bounds:
    """The bounds that every role can have: what a canary is held with."""
    surge = min(allowed.values(), default=bounds.surge)
    return replace(bounds, surge=surge if bounds.unavailable else max(1, surge))


def fitted(
    counts: Mapping[str, Count], steps: Mapping[str, Step], bounds: Bounds, allowed: Mapping[str, int], cap: Cap
) -> dict[str, Step]:
    """The steps as far as there is room for them, and what is ended to make room. `allowed`: as `surges` says."""
    made = dict(_with_room(counts, steps, cap))
    waits = any(step.lacks for step in made.values())
    if waits or cap.held > cap.most:
        made = {role: _given_back(counts, role, step, allowed, bounds) for role, step in made.items()}
    if waits and _still(made) and not _starting(counts) and not cap.ending:
        made = _given_way(counts, made, bounds, cap)
    return _lowered(counts, made, cap)


def _still(steps: Mapping[str, Step]) -> bool:
    return not any(step.create or step.ends for step in steps.values())


def _starting(counts: Mapping[str, Count]) -> bool:
    return any(count.new_waiting for count in counts.values() if not count.leaving)


def _with_room(counts: Mapping[str, Count], steps: Mapping[str, Step], cap: Cap) -> Iterator[tuple[str, Step]]:
    """One engine after the other, of the role that is furthest behind."""
    free = cap.most - cap.held
    made = dict.fromkeys(steps, 0)
    while True:
        able = [role for role, step in steps.items() if made[role] < step.create and _fits(counts[role], free)]
        if not able:
            break
        role = min(able, key=lambda role: (counts[role].new + made[role]) / max(1, counts[role].size))
        made[role] += 1
        free -= counts[role].accelerators
    for role, step in steps.items():
        yield role, replace(step, create=made[role], lacks=step.create - made[role])


def _fits(count: Count, free: int) -> bool:
    return count.accelerators == 0 or count.accelerators <= free


def _given_back(counts: Mapping[str, Count], role: str, step: Step, allowed: Mapping[str, int], bounds: Bounds) -> Step:
    """New engines that a role has beyond its share, since its size or the cap was lowered during the change: those
    that serve nobody yet, because the other role has not come as far."""
    count = counts[role]
    if count.leaving:
        return step
    above = count.total + step.create - step.ends - count.size - allowed[role]
    waiting = min(max(0, above), count.new_waiting - step.end_new_waiting)
    ready = count.new_ready + count.old_ready - step.end_new_ready - step.end_old_ready
    present = [other for other in counts.values() if not other.leaving]
    idle = count.new_ready - step.end_new_ready - usable(count, present)
    idle = min(idle, ready - max(0, count.size - bounds.unavailable))
    return replace(
        step,
        end_new_waiting=step.end_new_waiting + waiting,
        end_new_ready=step.end_new_ready + min(max(0, above - waiting), max(0, idle)),
    )


def _given_way(counts: Mapping[str, Count], steps: Mapping[str, Step], bounds: Bounds, cap: Cap) -> dict[str, Step]:
    """Engines of a role that left the spec go as room is needed for one of its successors; the last one only once each
    of these has an engine, or where none of a role need be available."""
    made = dict(steps)
    present = [count for count in counts.values() if not count.leaving and count.size]
    fewest = 0 if bounds.unavailable or all(count.new_ready for count in present) else 1
    lacking = min(counts[role].accelerators for role, step in steps.items() if step.lacks) - (cap.most - cap.held)
    for role, count in sorted(counts.items(), key=lambda entry: -entry[1].total):
        if count.leaving and count.old_accelerators and lacking > 0:
            ended = min(count.old_ready - fewest, -(-lacking // count.old_accelerators))
            if ended > 0:
                made[role] = replace(made[role], end_old_ready=ended)
                lacking -= ended * count.old_accelerators
    return made


def _lowered(counts: Mapping[str, Count], steps: Mapping[str, Step], cap: Cap) -> dict[str, Step]:
    """Old engines that are above the cap, as after somebody lowered it, go at once: those of roles that left the spec
    first, and those that are not ready before the others. New ones fit, as the spec was accepted."""
    made = dict(steps)
    above = cap.held - cap.ending - cap.most
    for role, step in steps.items():
        count = counts[role]
        above -= (step.end_new_waiting + step.end_new_ready) * count.accelerators
        above -= (step.end_old_waiting + step.end_old_ready) * count.old_accelerators
    for role, count in sorted(counts.items(), key=lambda entry: not entry[1].leaving):
        each, step = count.old_accelerators, made[role]
        if above > 0 and each:
            needed = -(-above // each)
            waiting = min(needed, count.old_waiting - step.end_old_waiting)
            ready = min(needed - waiting, count.old_ready - step.end_old_ready)
            above -= (waiting + ready) * each
            made[role] = replace(
                step, end_old_waiting=step.end_old_waiting + waiting, end_old_ready=step.end_old_ready + ready
            )
    return made
