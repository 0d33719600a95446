"""While there is no engine: who waits for one, who is refused, and what becomes of them once there is one. Time is an
argument."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import Admission, Hold, KeyRule, Limit
from headrace_runtime.gateway.gate import NO_KEY, Gate, State, Ticket

HOLD = Hold(requests=3, seconds=100.0)


def shut(rules: Admission | None = None, hold: Hold = HOLD) -> Gate:
    gate = Gate(rules or Admission(), 0.0)
    gate.hold(hold, 0.0)
    return gate


def states(*tickets: Ticket) -> list[State]:
    return [ticket.state for ticket in tickets]


def cause(ticket: Ticket) -> str:
    assert ticket.refusal is not None
    return ticket.refusal.cause


def test_an_engine_that_comes_to_nobody_changes_nothing() -> None:
    gate = shut()
    gate.hold(None, 1.0)
    assert (gate.shut, len(gate.line), gate.due(1.0), list(gate.changed())) == (False, 0, None, [])


def test_all_wait_and_go_in_their_order_once_an_engine_is_there() -> None:
    gate = shut(Admission(keys={"urgent": KeyRule(priority="High")}))
    first, urgent, last = (gate.arrive(name, 1, float(now)) for now, name in enumerate(["a", "urgent", "a"]))
    assert states(first, urgent, last) == [State.WAITING] * 3
    gate.hold(None, 50.0)
    assert list(gate.changed()) == [urgent, first, last]
    assert gate.running == 3


def test_more_than_may_wait_are_refused_and_told_when_the_first_will_have_waited_its_time() -> None:
    gate = shut()
    held = [gate.arrive(NO_KEY, 1, 10.0) for _ in range(3)]
    refused = gate.arrive(NO_KEY, 1, 30.0)
    assert states(*held) == [State.WAITING] * 3
    assert refused.refusal is not None
    assert (cause(refused), refused.refusal.limit, refused.refusal.seconds) == ("hold_full", 3, 80.0)


def test_one_waits_for_an_engine_as_long_as_it_may_and_not_as_long_as_for_a_turn() -> None:
    gate = shut(Admission(queue_seconds=1.0))
    held = gate.arrive(NO_KEY, 1, 10.0)
    assert gate.due(10.0) == 100.0
    gate.tick(109.0)
    assert held.state is State.WAITING
    gate.tick(110.0)
    assert (held.state, cause(held)) == (State.REFUSED, "hold_wait")


def test_one_that_leaves_makes_room_and_is_charged_nothing() -> None:
    gate = shut(Admission(each_key=KeyRule(limits=Limit(requests_per_minute=3))))
    first, *_ = (gate.arrive("a", 1, 0.0) for _ in range(3))
    gate.leave(first, 1.0)
    assert gate.arrive("a", 1, 1.0).state is State.WAITING


def test_nobody_who_was_held_is_refused_because_an_engine_came() -> None:
    """Though fewer may wait for a turn, and for a shorter time."""
    gate = shut(Admission(total=Limit(max_concurrent=1), queue_length=1, queue_seconds=30.0))
    held = [gate.arrive(NO_KEY, 1, 0.0) for _ in range(3)]
    gate.hold(None, 90.0)
    assert states(*held) == [State.RUNNING, State.WAITING, State.WAITING]
    assert cause(gate.arrive(NO_KEY, 1, 91.0)) == "queue_full"
    gate.tick(119.0)
    gate.leave(held[0], 119.0)
    gate.leave(held[1], 119.0)
    assert states(*held) == [State.GONE, State.GONE, State.RUNNING]
    later = [gate.arrive(NO_KEY, 1, 119.0) for _ in range(2)]
    assert states(*later) == [State.WAITING, State.REFUSED]  # the queue has its own length again


def test_nobody_who_waited_for_a_turn_is_refused_because_the_last_engine_went() -> None:
    gate = Gate(Admission(total=Limit(max_concurrent=1), queue_length=5, queue_seconds=10.0), 0.0)
    running, *waiting = (gate.arrive(NO_KEY, 1, 0.0) for _ in range(6))
    gate.hold(HOLD, 9.0)
    gate.leave(running, 9.0)
    gate.tick(20.0)
    assert states(*waiting) == [State.WAITING] * 5
    assert cause(gate.arrive(NO_KEY, 1, 20.0)) == "hold_full"


def test_what_was_let_in_and_has_no_answer_waits_again_and_is_charged_once() -> None:
    gate = Gate(Admission(total=Limit(requests_per_minute=60)), 0.0)
    ticket = gate.arrive(NO_KEY, 5, 0.0)
    assert not gate.again(ticket, 0.0)  # an engine is there
    before = gate.budgets(ticket)[0]
    assert before is not None
    level = before.level(0.0)
    gate.hold(HOLD, 0.0)
    assert gate.again(ticket, 0.0)
    assert (ticket.state, gate.running, len(gate.line)) == (State.WAITING, 0, 1)
    gate.hold(None, 0.0)
    assert (ticket.state, gate.running, before.level(0.0)) == (State.RUNNING, 1, level)


def test_a_gateway_that_ends_refuses_who_is_held() -> None:
    gate = shut()
    held = gate.arrive(NO_KEY, 1, 0.0)
    gate.turn_away(1.0)
    assert cause(held) == "leaving"


def test_bounds_that_change_hold_for_who_waits() -> None:
    gate = shut(hold=Hold(requests=10, seconds=100.0))
    held = [gate.arrive(NO_KEY, 1, 0.0) for _ in range(4)]
    gate.hold(Hold(requests=2, seconds=100.0), 1.0)
    assert states(*held) == [State.WAITING, State.WAITING, State.REFUSED, State.REFUSED]


@pytest.mark.parametrize("length", [0, 3])
@settings(deadline=None)
@given(steps=st.lists(st.sampled_from(["arrive", "leave", "engine", "none", "again", "tick"]), max_size=60))
def test_whatever_comes_and_goes_the_line_is_bounded_and_places_are_counted(length: int, steps: list[str]) -> None:
    gate, tickets, now = Gate(Admission(total=Limit(max_concurrent=2), queue_length=length), 0.0), [], 0.0
    for step in steps:
        now += 1.0
        held = [ticket for ticket in tickets if ticket.state is State.WAITING]
        if step == "arrive":
            tickets.append(gate.arrive(NO_KEY, 1, now))
        elif step == "leave" and tickets:
            gate.leave(tickets.pop(0), now)
        elif step in ("engine", "none"):
            gate.hold(HOLD if step == "none" else None, now)
            assert all(ticket.state is not State.REFUSED for ticket in held)
        elif step == "again" and tickets:
            gate.again(tickets[-1], now)
        elif step == "tick":
            gate.tick(now)
        waiting = [ticket for ticket in tickets if ticket.state is State.WAITING]
        assert len(gate.line) == len(waiting) <= max(HOLD.requests, length)
        assert gate.running == sum(ticket.state is State.RUNNING for ticket in tickets) <= 2
        assert gate.shut or not waiting or gate.running == 2
