"""How a role gets from the pods it has to the pods it shall have: arithmetic on counts, one step at a time.

Called by `make_plan`. No pod, clock or memory in here: a step follows from the counts alone, so an operator that was
restarted, or a spec that was taken back half-way, goes on from what is there.

Bounds that hold at every step, for each role of size D:
- live pods never pass D + surge by a creation;
- ready pods are never ended below D - unavailable;
- how far a role may go above D under a cap of accelerators, and what then waits for room, says `room.py`;
- a ready pod of the new revision counts towards that floor only as far as the *other* roles have come too, since
  prefill and decode work together within one revision only. The role that is furthest behind is never held back by
  this, so a rollout always goes on as long as new pods become ready.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Count:
    """Live pods of one role: *new* are of the wanted revision, *waiting* are not ready."""

    size: int
    new_ready: int = 0
    new_waiting: int = 0
    old_ready: int = 0
    old_waiting: int = 0
    leaving: bool = False
    """The role is no longer in the spec."""
    accelerators: int = 0
    """Of one new engine. Counted only under a cap, as the next."""
    old_accelerators: int = 0
    """Of the old engine that has most."""

    @property
    def new(self) -> int:
        return self.new_ready + self.new_waiting

    @property
    def total(self) -> int:
        return self.new + self.old_ready + self.old_waiting

    @property
    def settled(self) -> bool:
        """All of it is there, ready and new."""
        return self.new_ready >= self.size


@dataclass(frozen=True)
class Bounds:
    """How far a change may go beyond a role's size in either direction. Both zero would allow no step at all."""

    surge: int = 1
    unavailable: int = 0

    def __post_init__(self) -> None:
        if self.surge < 0 or self.unavailable < 0 or self.surge + self.unavailable == 0:
            raise ValueError("surge and unavailable must not be negative, and not both be zero")


@dataclass(frozen=True)
class Hold:
    """How far a canary lets a role go: so many new pods, and so many old ones that stay."""

    new: int
    old: int


@dataclass(frozen=True)
class Step:
    """What to do with one role now. All zero: nothing, or nothing until something becomes ready."""

    create: int = 0
    end_new_waiting: int = 0
    end_new_ready: int = 0
    end_old_waiting: int = 0
    end_old_ready: int = 0
    lacks: int = 0
    """Engines that would be created too, were there room."""

    @property
    def ends(self) -> int:
        return self.end_new_waiting + self.end_new_ready + self.end_old_waiting + self.end_old_ready


def next_step(
    counts: Mapping[str, Count],
    bounds: Bounds,
    *,
    held: bool = False,
    holds: Mapping[str, Hold] | None = None,
    surges: Mapping[str, int] | None = None,
) -> dict[str, Step]:
    """The next step of every role, by name. *Held*: nothing is created, and nothing old goes that could not come back
    then, be it only not ready for the moment. `holds`: of a canary, by role. `surges`: by role, where the bounds' own
    is not what every role may have."""
    until, above = holds or {}, surges or {}
    present = [count for count in counts.values() if not count.leaving]
    arrived = all(count.settled for count in present)
    bounds = Bounds(surge=1, unavailable=0) if held else bounds
    steps = {
        role: _leave(count, arrived)
        if count.leaving
        else _advance(
            count, usable(count, present), above.get(role, bounds.surge), bounds, until.get(role, Hold(count.size, 0))
        )
        for role, count in counts.items()
    }
    return {role: replace(step, create=0, end_old_waiting=0) for role, step in steps.items()} if held else steps


def usable(count: Count, present: list[Count]) -> int:
    """Ready new pods of a role that have their share of the other roles beside them."""
    shares = [other.new_ready * count.size // other.size for other in present if other.size]
    return min([count.new_ready, *shares])


def _leave(count: Count, arrived: bool) -> Step:
    """A role that left the spec serves until the roles that replace it are all there."""
    if not arrived:
        return Step(end_old_waiting=count.old_waiting, end_new_waiting=count.new_waiting)
    return Step(0, count.new_waiting, count.new_ready, count.old_waiting, count.old_ready)


def _advance(count: Count, useful: int, surge: int, bounds: Bounds, hold: Hold) -> Step:
    floor = max(0, count.size - bounds.unavailable)
    old = count.old_ready + count.old_waiting
    # They serve nobody, and their successors may be waiting for their devices.
    end_old_waiting = max(0, min(count.old_waiting, old - hold.old))
    end_old_ready = max(0, min(count.old_ready, count.old_ready + useful - floor, old - end_old_waiting - hold.old))
    # Old pods cannot be made again: one that is lost during a canary is replaced by a new one.
    most = min(count.size, max(hold.new, count.size - old))
    surplus = max(0, count.new - count.size)
    end_new_waiting = min(surplus, count.new_waiting)
    spare = max(0, count.new_ready + count.old_ready - end_old_ready - floor)
    return Step(
        # Against the pods that are there *before* this step ends any: creations are sent first.
        create=max(0, min(most - count.new, count.size + surge - count.total)),
        end_new_waiting=end_new_waiting,
        end_new_ready=min(surplus - end_new_waiting, spare),
        end_old_waiting=end_old_waiting,
        end_old_ready=end_old_ready,
    )
