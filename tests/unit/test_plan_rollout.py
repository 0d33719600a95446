"""One step of a rollout, as tables; and what must hold over whole simulated rollouts."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.plan.rollout import Bounds, Count, Step, next_step

NOTHING = Step()


def step(count: Count, bounds: Bounds | None = None) -> Step:
    return next_step({"serve": count}, bounds or Bounds())["serve"]


@pytest.mark.parametrize(
    ("sentence", "count", "bounds", "expected"),
    [
        ("does nothing where all is as wanted", Count(2, new_ready=2), Bounds(), NOTHING),
        ("creates everything at once at first", Count(3), Bounds(), Step(create=3)),
        ("waits for what starts", Count(2, new_ready=1, new_waiting=1), Bounds(), NOTHING),
        ("surges by one", Count(2, old_ready=2), Bounds(), Step(create=1)),
        ("waits for the surge", Count(2, new_waiting=1, old_ready=2), Bounds(), NOTHING),
        ("ends an old one for a new one", Count(2, new_ready=1, old_ready=2), Bounds(), Step(end_old_ready=1)),
        ("ends first without surge", Count(2, old_ready=2), Bounds(0, 1), Step(end_old_ready=1)),
        ("fills the gap without surge", Count(2, old_ready=1), Bounds(0, 1), Step(create=1)),
        (
            "ends what never was ready",
            Count(2, old_ready=1, old_waiting=1),
            Bounds(),
            Step(create=1, end_old_waiting=1),
        ),
        ("scales up at once", Count(4, new_ready=1), Bounds(), Step(create=3)),
        ("scales down, waiting ones first", Count(1, 2, 1), Bounds(), Step(end_new_waiting=1, end_new_ready=1)),
        ("replaces one that was lost", Count(3, new_ready=2), Bounds(), Step(create=1)),
        ("scales to nothing", Count(0, new_ready=2, new_waiting=1), Bounds(), Step(0, 1, 2)),
        ("scales old ones to nothing too", Count(0, old_ready=2), Bounds(), Step(end_old_ready=2)),
        ("ends all old ones in one step", Count(1, new_ready=1, old_ready=3), Bounds(), Step(end_old_ready=3)),
    ],
)
def test_takes_one_step(sentence: str, count: Count, bounds: Bounds, expected: Step) -> None:
    assert step(count, bounds) == expected, sentence


def test_keeps_old_prefill_until_decode_has_come_as_far() -> None:
    counts = {"prefill": Count(1, new_ready=1, old_ready=1), "decode": Count(1, new_waiting=1, old_ready=1)}
    assert next_step(counts, Bounds()) == {"prefill": NOTHING, "decode": NOTHING}


def test_ends_both_old_roles_when_both_new_ones_are_there() -> None:
    counts = {"prefill": Count(1, new_ready=1, old_ready=1), "decode": Count(1, new_ready=1, old_ready=1)}
    assert next_step(counts, Bounds()) == {"prefill": Step(end_old_ready=1), "decode": Step(end_old_ready=1)}


def test_a_role_that_left_the_spec_serves_until_its_successors_are_there() -> None:
    serve = Count(0, old_ready=2, old_waiting=1, leaving=True)
    starting = {"serve": serve, "prefill": Count(1, new_ready=1), "decode": Count(1, new_waiting=1)}
    assert next_step(starting, Bounds())["serve"] == Step(end_old_waiting=1)
    there = {"serve": serve, "prefill": Count(1, new_ready=1), "decode": Count(1, new_ready=1)}
    assert next_step(there, Bounds())["serve"] == Step(end_old_waiting=1, end_old_ready=2)


def test_bounds_that_allow_no_step_are_refused() -> None:
    with pytest.raises(ValueError, match="both be zero"):
        Bounds(0, 0)


# Whole rollouts. Pods become ready, or fail, in an order that hypothesis chooses.


@dataclass
class Fleet:
    """Roles on their way, with the bounds checked after every step."""

    counts: dict[str, Count]
    bounds: Bounds

    def advance(self) -> bool:
        """One step of every role. Whether anything was done."""
        steps = next_step(self.counts, self.bounds)
        for role, taken in steps.items():
            before = self.counts[role]
            after = apply(before, taken)
            self.check(before, after, taken)
            self.counts[role] = after
        return any(taken != NOTHING for taken in steps.values())

    def check(self, before: Count, after: Count, taken: Step) -> None:
        assert min(after.new_ready, after.new_waiting, after.old_ready, after.old_waiting) >= 0
        if taken.create:
            assert before.total + taken.create <= before.size + self.bounds.surge
        if taken.end_new_ready or taken.end_old_ready:
            assert after.new_ready + after.old_ready >= before.size - self.bounds.unavailable

    def done(self) -> bool:
        return all(c == Count(c.size, new_ready=c.size, leaving=c.leaving) for c in self.counts.values())


def apply(count: Count, taken: Step) -> Count:
    return replace(
        count,
        new_ready=count.new_ready - taken.end_new_ready,
        new_waiting=count.new_waiting - taken.end_new_waiting + taken.create,
        old_ready=count.old_ready - taken.end_old_ready,
        old_waiting=count.old_waiting - taken.end_old_waiting,
    )


def revised(count: Count, size: int) -> Count:
    """What is seen after the spec has changed: everything there is of an old revision."""
    return Count(size, old_ready=count.new_ready + count.old_ready, old_waiting=count.new_waiting + count.old_waiting)


few = st.integers(0, 5)
counts = st.builds(Count, size=few, new_ready=few, new_waiting=few, old_ready=few, old_waiting=few)
bounds = st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(sum).map(lambda pair: Bounds(*pair))
fleets = st.dictionaries(st.sampled_from(["prefill", "decode"]), counts, min_size=1)


@settings(max_examples=100, deadline=None)
@given(fleets, bounds, st.data())
def test_every_rollout_ends_within_its_bounds_whatever_becomes_ready_first(
    start: dict[str, Count], bounds: Bounds, data: st.DataObject
) -> None:
    fleet = Fleet(dict(start), bounds)
    for _ in range(300):
        moved = fleet.advance()
        if fleet.done():
            break
        waiting = [role for role, c in fleet.counts.items() if c.new_waiting]
        assert moved or waiting, f"stuck: {fleet.counts}"
        if waiting:
            role = data.draw(st.sampled_from(waiting))
            c = fleet.counts[role]
            fleet.counts[role] = replace(c, new_waiting=c.new_waiting - 1, new_ready=c.new_ready + 1)
    assert fleet.done()
    assert not fleet.advance()


@settings(max_examples=100, deadline=None)
@given(fleets, bounds, st.lists(st.tuples(st.booleans(), few), max_size=6))
def test_a_spec_that_changes_again_half_way_never_passes_the_bounds(
    start: dict[str, Count], bounds: Bounds, changes: list[tuple[bool, int]]
) -> None:
    fleet = Fleet(dict(start), bounds)
    for new_revision, size in changes:
        fleet.advance()
        for role, c in fleet.counts.items():
            moved = revised(c, size) if new_revision else replace(c, size=size)
            fleet.counts[role] = replace(moved, new_ready=moved.new, new_waiting=0)
    for _ in range(100):
        fleet.advance()
        fleet.counts = {r: replace(c, new_ready=c.new, new_waiting=0) for r, c in fleet.counts.items()}
    assert fleet.done()


@settings(max_examples=100, deadline=None)
@given(fleets, bounds)
def test_while_decode_of_the_new_revision_is_missing_old_pairs_stay_whole(
    start: dict[str, Count], bounds: Bounds
) -> None:
    held = {role: replace(c, size=max(1, c.size), new_ready=0) for role, c in start.items()}
    held["decode"] = Count(2, old_ready=2)
    for role, taken in next_step(held, bounds).items():
        left = held[role].old_ready - taken.end_old_ready
        assert left >= min(held[role].old_ready, held[role].size - bounds.unavailable)
