"""The cap of accelerators: what one step does for want of room, and that it is passed at no moment of any change."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from headrace_operator.history import devices, words_of
from headrace_operator.plan.rollout import Bounds, Count, Step, next_step, usable
from headrace_operator.plan.room import Cap, accelerators, cap_of, fitted, sentence, surges
from headrace_operator.state import Pod
from headrace_operator.testing import Sample

GPU = {"nvidia.com/gpu"}


def step(counts: dict[str, Count], cap: Cap, bounds: Bounds | None = None) -> dict[str, Step]:
    bounds = bounds or Bounds()
    above = surges(counts, bounds, cap)
    return fitted(counts, next_step(counts, bounds, surges=above), bounds, above, cap)


def pair(prefill: Count, decode: Count, each: int = 1) -> dict[str, Count]:
    weigh = {"accelerators": each, "old_accelerators": each}
    return {"prefill": replace(prefill, **weigh), "decode": replace(decode, **weigh)}


def test_nothing_is_done_where_all_is_as_wanted() -> None:
    assert set(step(pair(Count(2, 2), Count(2, 2)), Cap(6, 4)).values()) == {Step()}


def test_without_a_cap_every_role_has_the_bounds_own_surge() -> None:
    assert surges(pair(Count(2), Count(2)), Bounds(3, 0), None) == {"prefill": 3, "decode": 3}


def test_what_the_cap_leaves_is_dealt_out_in_turns() -> None:
    counts = {"prefill": Count(2, accelerators=1), "decode": Count(2, accelerators=4)}
    assert surges(counts, Bounds(3, 0), Cap(15)) == {"prefill": 1, "decode": 1}
    assert surges(counts, Bounds(3, 0), Cap(17)) == {"prefill": 3, "decode": 1}
    assert surges(counts, Bounds(3, 0), Cap(100)) == {"prefill": 3, "decode": 3}


def test_on_cpu_nothing_is_counted() -> None:
    counts = {"prefill": Count(2, old_ready=2), "decode": Count(2, accelerators=4, old_ready=2, old_accelerators=4)}
    assert surges(counts, Bounds(3, 0), Cap(8)) == {"prefill": 3, "decode": 0}
    assert {role: one.create for role, one in step(counts, Cap(8, 8)).items()} == {"prefill": 1, "decode": 0}


def test_a_role_on_cpu_waits_for_nobody() -> None:
    counts = {"prefill": Count(2), "decode": Count(2, new_ready=2, accelerators=4)}
    assert step(counts, Cap(4, held=8))["prefill"] == Step(create=2)


def test_an_engine_is_made_only_once_those_that_end_are_gone() -> None:
    counts = pair(Count(1, 1), Count(3, 1))
    assert step(counts, Cap(6, held=5, ending=3))["decode"] == Step(create=1, lacks=1)
    assert step(counts, Cap(6, held=6, ending=4))["decode"] == Step(lacks=2)
    assert step(counts, Cap(6, held=2))["decode"] == Step(create=2)


def test_the_role_that_is_furthest_behind_comes_first() -> None:
    made = step(pair(Count(4), Count(2)), Cap(20, held=17, ending=17))
    assert {role: one.create for role, one in made.items()} == {"prefill": 2, "decode": 1}


def test_a_role_whose_size_was_lowered_gives_back_what_the_other_cannot_do_without() -> None:
    counts = pair(Count(4, new_ready=3, old_ready=4), Count(2, old_ready=2))
    assert step(counts, Cap(8, held=9))["prefill"].end_new_ready == 2
    assert step(counts, Cap(12, held=9))["prefill"] == Step()


def test_a_role_that_left_gives_way_engine_by_engine_and_the_last_only_to_a_whole_pair() -> None:
    serve = Count(0, old_ready=4, old_accelerators=1, leaving=True)
    begun = pair(Count(1), Count(3)) | {"serve": serve}
    assert step(begun, Cap(6, held=4))["serve"] == Step()
    counts = pair(Count(1, new_ready=1), Count(3, new_ready=1)) | {"serve": serve}
    assert step(counts, Cap(6, held=6))["serve"] == Step(end_old_ready=1)
    last = pair(Count(1, new_ready=1), Count(3)) | {"serve": replace(serve, old_ready=1)}
    assert step(last, Cap(2, held=2))["serve"] == Step()
    assert step(last, Cap(2, held=2), Bounds(1, 1))["serve"] == Step(end_old_ready=1)


def test_a_role_that_left_gives_no_way_while_others_drain_or_start() -> None:
    serve = {"serve": Count(0, old_ready=4, old_accelerators=1, leaving=True)}
    assert step(pair(Count(1, new_waiting=1), Count(3, 1)) | serve, Cap(6, held=6))["serve"] == Step()
    assert step(pair(Count(1, 1), Count(3, 1)) | serve, Cap(6, held=6, ending=1))["serve"] == Step()


def test_old_engines_above_a_cap_that_was_lowered_go_at_once() -> None:
    counts = {"serve": Count(2, old_ready=2, accelerators=1, old_accelerators=4)}
    assert step(counts, Cap(4, held=8))["serve"].end_old_ready == 1
    assert step(counts, Cap(8, held=8))["serve"] == Step(lacks=1)


def test_what_waits_says_so_with_the_numbers() -> None:
    counts = pair(Count(1, 1), Count(3, 1), each=2)
    cap = Cap(12, held=11, ending=4)
    assert sentence(counts, step(counts, cap), cap) == (
        "Engines wait for room: 2 of decode, 2 accelerators the next; 11 of scaling.maxAccelerators 12 are held, "
        "4 of them by engines that are ending."
    )
    assert sentence(counts, step(counts, Cap(100, 11)), Cap(100, 11)) == ""


def test_what_would_wait_for_ever_says_what_to_do() -> None:
    counts = {"serve": Count(2, old_ready=2, accelerators=1, old_accelerators=4)}
    assert sentence(counts, step(counts, Cap(8, 8)), Cap(8, 8)).endswith(
        "8 of scaling.maxAccelerators 8 are held. Nothing that is there ends by itself: raise it, or "
        "rollout.maxUnavailable."
    )


def pod(name: str, **facts: object) -> Pod:
    return replace(
        Pod(name, "engine", "serve", "r", devices=(("nvidia.com/gpu", 2), ("rdma/ib", 1))),
        **facts,  # type: ignore[arg-type]
    )


def test_pods_hold_what_they_are_given_until_they_are_gone() -> None:
    pods = [pod("a"), pod("b", going=True), pod("c", failed=True), pod("d", devices=())]
    assert cap_of(9, pods, GPU) == Cap(9, held=4, ending=2)
    assert cap_of(9, pods, GPU | {"rdma/ib"}) == Cap(9, held=6, ending=3)


@pytest.mark.parametrize(
    ("device", "of_decode", "named"),
    [
        (None, None, {"nvidia.com/gpu"}),
        ("amd.com/gpu", None, {"amd.com/gpu"}),
        ("cpu", None, set()),
        ("cpu", "amd.com/gpu", {"amd.com/gpu"}),
        (None, "amd.com/gpu", {"amd.com/gpu", "nvidia.com/gpu"}),
    ],
)
def test_a_revision_of_the_history_says_what_its_engines_hold(
    device: str | None, of_decode: str | None, named: set[str]
) -> None:
    sample = Sample().split().set("engine", {"device": {"resource": device}} if device else {})
    if of_decode:
        sample.set("roles.1.engine", {"device": {"resource": of_decode}})
    assert devices(words_of(sample.spec())) == named


def test_an_engine_over_several_pods_holds_what_it_will_take_when_whole() -> None:
    ranks = [pod("e", gang="e", rank=0, ranks=3), pod("e-r1", gang="e", rank=1, ranks=3)]
    assert cap_of(9, ranks, GPU) == Cap(9, held=6)
    assert accelerators(ranks[1], GPU) == 6
    assert cap_of(9, [ranks[0], replace(ranks[1], failed=True)], GPU) == Cap(9, held=2, ending=2)


# Whole changes. Engines become ready, fail and drain in an order that hypothesis chooses.


@dataclass
class Fleet:
    """Roles on their way under a cap, and the accelerators of every engine that was told to end."""

    counts: dict[str, Count]
    bounds: Bounds
    most: int
    draining: list[int] = field(default_factory=list)

    @property
    def held(self) -> int:
        live = sum(c.new * c.accelerators + (c.total - c.new) * c.old_accelerators for c in self.counts.values())
        return live + sum(self.draining)

    def advance(self) -> bool:
        """One step of every role. Whether anything was done."""
        cap = Cap(self.most, self.held, sum(self.draining))
        steps = step(self.counts, cap, self.bounds)
        made = sum(self.counts[role].accelerators * one.create for role, one in steps.items())
        # Creations are sent first.
        assert made == 0 or self.held + made <= self.most
        was = self.serving()
        for role, one in steps.items():
            self.counts[role] = self.taken(self.counts[role], one)
        for role, count in self.counts.items():
            least = count.size - self.bounds.unavailable
            assert count.leaving or self.serving()[role] >= min(was[role], least)
        return any(one.create or one.ends for one in steps.values())

    def serving(self) -> dict[str, int]:
        """Ready engines that have their share of the other role beside them."""
        present = [count for count in self.counts.values() if not count.leaving]
        return {role: count.old_ready + usable(count, present) for role, count in self.counts.items()}

    def taken(self, count: Count, one: Step) -> Count:
        after = replace(
            count,
            new_ready=count.new_ready - one.end_new_ready,
            new_waiting=count.new_waiting - one.end_new_waiting + one.create,
            old_ready=count.old_ready - one.end_old_ready,
            old_waiting=count.old_waiting - one.end_old_waiting,
        )
        assert min(after.new_ready, after.new_waiting, after.old_ready, after.old_waiting) >= 0
        self.draining += [count.accelerators] * (one.end_new_ready + one.end_new_waiting)
        self.draining += [count.old_accelerators] * (one.end_old_ready + one.end_old_waiting)
        return after

    def resize(self, sizes: dict[str, int], *, new_revision: bool) -> None:
        for role, c in self.counts.items():
            ready, waiting = c.new_ready + c.old_ready, c.new_waiting + c.old_waiting
            kept = (
                c if not new_revision else replace(c, new_ready=0, new_waiting=0, old_ready=ready, old_waiting=waiting)
            )
            self.counts[role] = replace(kept, size=sizes[role])

    def happen(self, data: st.DataObject) -> bool:
        """Something outside: an engine becomes ready, one fails, or some that drain are gone. Whether it could."""
        waiting = [role for role, c in self.counts.items() if c.new_waiting]
        things = ["ready"] * bool(waiting) + ["gone"] * bool(self.draining)
        if not things:
            return False
        if data.draw(st.sampled_from(things)) == "gone":
            del self.draining[: data.draw(st.integers(1, len(self.draining)))]
        else:
            role = data.draw(st.sampled_from(waiting))
            c = self.counts[role]
            self.counts[role] = replace(c, new_waiting=c.new_waiting - 1, new_ready=c.new_ready + 1)
        return True

    def lose(self, data: st.DataObject) -> None:
        """A ready new engine is gone, as if its node were."""
        ready = [role for role, c in self.counts.items() if c.new_ready]
        if ready:
            role = data.draw(st.sampled_from(ready))
            self.counts[role] = replace(self.counts[role], new_ready=self.counts[role].new_ready - 1)

    def done(self) -> bool:
        return all((c.new_ready, c.total) == ((0, 0) if c.leaving else (c.size, c.size)) for c in self.counts.values())

    def settle(self, data: st.DataObject) -> None:
        for _ in range(600):
            moved = self.advance()
            if not moved and not self.happen(data):
                break
        assert self.done(), (self.counts, self.most, self.held)
        assert not self.advance()


few = st.integers(0, 4)
weights = st.tuples(*[st.sampled_from([1, 1, 2, 4])] * 3)
bounds = st.tuples(st.integers(0, 3), st.integers(0, 2)).filter(any).map(lambda both: Bounds(*both))
pairs = st.fixed_dictionaries({"prefill": few, "decode": few})


def room_for(sizes: dict[str, int], each: dict[str, int], bounds: Bounds) -> int:
    """What a spec with these sizes must allow at least."""
    spare = 0 if bounds.unavailable else sum(each.values())
    return sum(size * each[role] for role, size in sizes.items()) + spare


def fitting(sizes: dict[str, int], each: dict[str, int], bounds: Bounds, most: int) -> dict[str, int]:
    """The sizes as a policy may have them under the cap."""
    sizes = dict(sizes)
    while room_for(sizes, each, bounds) > most:
        sizes[max(sizes, key=lambda role: sizes[role])] -= 1
    return sizes


@settings(max_examples=100, deadline=None)
@given(weights, bounds, st.lists(st.tuples(pairs, st.booleans(), few, few), min_size=1, max_size=5), st.data())
def test_no_change_passes_the_cap_or_the_floor_and_every_one_comes_to_rest(
    weights: tuple[int, int, int],
    bounds: Bounds,
    edits: list[tuple[dict[str, int], bool, int, int]],
    data: st.DataObject,
) -> None:
    """Sizes, revision and cap are edited half-way: a cap that is lowered is kept from then on."""
    each = {"prefill": weights[0], "decode": weights[1]}
    least = room_for({"prefill": 1, "decode": 1}, each, bounds)
    counts = {role: Count(0, accelerators=size, old_accelerators=size) for role, size in each.items()}
    fleet = Fleet(counts, bounds, least)
    for sizes, new_revision, turns, extra in edits:
        fleet.most = least + 2 * extra
        fleet.resize(fitting(sizes, each, bounds, fleet.most), new_revision=new_revision)
        for _ in range(3 * turns):
            fleet.advance()
            fleet.happen(data)
        if turns == 1:
            fleet.lose(data)
    fleet.settle(data)


@settings(max_examples=40, deadline=None)
@given(weights, bounds, pairs, st.integers(1, 4), few, st.data())
def test_a_role_that_leaves_makes_room_for_its_successors(
    weights: tuple[int, int, int],
    bounds: Bounds,
    sizes: dict[str, int],
    served: int,
    extra: int,
    data: st.DataObject,
) -> None:
    each, serve = {"prefill": weights[0], "decode": weights[1]}, weights[2]
    most = max(room_for(sizes, each, bounds), served * serve, sum(weights)) + extra
    left = Count(0, old_ready=served, old_accelerators=serve, leaving=True)
    new = {role: Count(sizes[role], accelerators=size) for role, size in each.items()}
    fleet = Fleet({**new, "serve": left}, bounds, most)
    whole = False
    for _ in range(600):
        before = fleet.counts["serve"].old_ready
        whole = whole or all(fleet.counts[role].new_ready for role, size in sizes.items() if size)
        moved = fleet.advance()
        if before and not fleet.counts["serve"].old_ready and not bounds.unavailable:
            assert whole, "the last one went before its successors could answer"
        if not moved and not fleet.happen(data):
            break
    assert fleet.done(), fleet.counts


@settings(max_examples=40, deadline=None)
@given(weights, bounds, pairs, pairs, st.integers(1, 24), st.data())
def test_whatever_was_there_and_whatever_the_cap_is_nothing_is_made_beyond_it(
    weights: tuple[int, int, int],
    bounds: Bounds,
    there: dict[str, int],
    sizes: dict[str, int],
    most: int,
    data: st.DataObject,
) -> None:
    """Old engines may take more than new ones, and the cap may be too small for all: then it waits, or lowers them."""
    new, old, _ = weights
    counts = {
        role: Count(sizes[role], old_ready=ready, accelerators=new, old_accelerators=old)
        for role, ready in there.items()
    }
    fleet = Fleet(counts, replace(bounds, unavailable=4), most)
    for _ in range(200):
        if not fleet.advance() and not fleet.happen(data):
            break
    event("at rest" if fleet.done() else "waits")
    assert fleet.held <= most


@pytest.mark.parametrize("unavailable", [0, 1])
def test_two_roles_swap_their_sizes_at_a_full_cap(unavailable: int) -> None:
    bounds = Bounds(1, unavailable)
    counts = pair(Count(2, new_ready=8), Count(8, new_ready=2), each=4)
    fleet = Fleet(counts, bounds, 40 + (0 if unavailable else 8))
    fleet.advance()
    assert (fleet.counts["prefill"].new_ready, sum(fleet.draining)) == (2, 24)
    assert fleet.counts["decode"].new_waiting == (0 if unavailable else 2)
    fleet.draining.clear()
    fleet.advance()
    assert fleet.counts["decode"].new == 8
