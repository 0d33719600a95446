"""Who is let in, who waits, who is refused, and with what word on when to come back. Time is an argument."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import Admission, KeyRule, Limit, Priority
from headrace_runtime.gateway.gate import NO_KEY, Gate, Refusal, State, Ticket
from headrace_runtime.gateway.rates import Bucket, resized


def rules(
    total: Limit | None = None, each_key: Limit | None = None, queue_length: int = 100, **keys: KeyRule
) -> Admission:
    return Admission(
        total=total or Limit(),
        each_key=KeyRule(limits=each_key or Limit()),
        keys=keys,
        queue_length=queue_length,
        queue_seconds=30.0,
    )


def ranked(priority: Priority) -> KeyRule:
    return KeyRule(priority=priority)


def refusal(ticket: Ticket) -> Refusal:
    assert ticket.state is State.REFUSED
    assert ticket.refusal is not None
    return ticket.refusal


ONE_AT_A_TIME = Limit(max_concurrent=1)


def served(gate: Gate, running: Ticket, now: float = 0.0) -> list[Ticket]:
    """All who wait, in the order in which they go when one at a time is served."""
    order: list[Ticket] = []
    while True:
        gate.leave(running, now)
        changed = [ticket for ticket in gate.changed() if ticket.state is State.RUNNING]
        if not changed:
            return order
        (running,) = changed
        order.append(running)


def test_without_limits_everybody_goes_at_once() -> None:
    gate = Gate(Admission(), 0.0)
    tickets = [gate.arrive(NO_KEY, 10**9, 0.0) for _ in range(1000)]
    assert {ticket.state for ticket in tickets} == {State.RUNNING}
    assert (len(gate.line), gate.due(0.0), list(gate.changed())) == (0, None, [])


# In which order


def test_of_one_key_they_go_as_they_came() -> None:
    gate = Gate(rules(ONE_AT_A_TIME), 0.0)
    first, *waiting = [gate.arrive("a", 1, 0.0) for _ in range(5)]
    assert served(gate, first) == waiting


def test_a_key_with_many_waiting_delays_another_by_one() -> None:
    gate = Gate(rules(ONE_AT_A_TIME), 0.0)
    first, *greedy = [gate.arrive("greedy", 1, 0.0) for _ in range(50)]
    modest = [gate.arrive("modest", 1, 0.0) for _ in range(2)]
    order = served(gate, first)
    assert order[:4] == [greedy[0], modest[0], greedy[1], modest[1]]
    assert order[4:] == greedy[2:]


def test_a_higher_class_goes_before_all_of_a_lower() -> None:
    gate = Gate(rules(ONE_AT_A_TIME, urgent=ranked("High"), idle=ranked("Low")), 0.0)
    first = gate.arrive("plain", 1, 0.0)
    waiting = {name: [gate.arrive(name, 1, 0.0) for _ in range(2)] for name in ("idle", "plain", "urgent")}
    assert served(gate, first) == waiting["urgent"] + waiting["plain"] + waiting["idle"]


def test_a_key_at_its_limit_waits_and_lets_others_pass() -> None:
    gate = Gate(rules(Limit(max_concurrent=10), ONE_AT_A_TIME), 0.0)
    first, second = gate.arrive("a", 1, 0.0), gate.arrive("a", 1, 0.0)
    assert gate.arrive("b", 1, 0.0).state is State.RUNNING
    assert second.state is State.WAITING
    gate.leave(first, 1.0)
    assert second.state is State.RUNNING


# The queue's bounds


def test_a_full_queue_refuses_the_newest_of_the_key_that_fills_it() -> None:
    gate = Gate(rules(ONE_AT_A_TIME, queue_length=3), 0.0)
    gate.arrive("greedy", 1, 0.0)
    waiting = [gate.arrive("greedy", 1, 0.0) for _ in range(3)]
    assert refusal(gate.arrive("greedy", 1, 0.0)).cause == "queue_full"
    modest = gate.arrive("modest", 1, 0.0)
    assert modest.state is State.WAITING
    assert refusal(waiting[-1]).cause == "queue_full"
    assert [ticket.state for ticket in waiting[:-1]] == [State.WAITING] * 2


def test_a_queue_is_full_by_the_size_of_what_waits_too() -> None:
    gate = Gate(rules(ONE_AT_A_TIME).model_copy(update={"queue_bytes": 100}), 0.0)
    gate.arrive("a", 1, 0.0, size=1000)
    small, large = gate.arrive("a", 1, 0.0, size=60), gate.arrive("a", 1, 0.0, size=60)
    assert refusal(large).cause == "queue_full"
    assert gate.arrive("b", 1, 0.0, size=40).state is State.WAITING
    gate.leave(small, 0.0)
    assert gate.line.size == 40


def test_a_few_large_requests_drive_out_no_others_small_ones() -> None:
    gate = Gate(rules(ONE_AT_A_TIME).model_copy(update={"queue_bytes": 100}), 0.0)
    gate.arrive("a", 1, 0.0)
    small = [gate.arrive("modest", 1, 0.0, size=1) for _ in range(5)]
    assert gate.arrive("greedy", 1, 0.0, size=90).state is State.WAITING
    assert gate.arrive("greedy", 1, 0.0, size=90).state is State.REFUSED
    assert {ticket.state for ticket in small} == {State.WAITING}


def test_a_full_queue_takes_a_higher_class_in_for_one_of_a_lower() -> None:
    gate = Gate(rules(ONE_AT_A_TIME, queue_length=1, urgent=ranked("High"), idle=ranked("Low")), 0.0)
    gate.arrive("plain", 1, 0.0)
    idle = gate.arrive("idle", 1, 0.0)
    urgent = gate.arrive("urgent", 1, 0.0)
    assert (urgent.state, idle.state) == (State.WAITING, State.REFUSED)
    assert gate.arrive("idle", 1, 0.0).state is State.REFUSED


def test_nobody_waits_longer_than_allowed() -> None:
    gate = Gate(rules(ONE_AT_A_TIME), 0.0)
    gate.arrive("a", 1, 0.0)
    early, late = gate.arrive("a", 1, 1.0), gate.arrive("b", 1, 2.0)
    assert gate.due(2.0) == pytest.approx(29.0)
    gate.tick(31.0)
    assert refusal(early).cause == "queue_wait"
    assert late.state is State.WAITING
    assert gate.due(31.0) == pytest.approx(1.0)


def test_one_who_leaves_the_queue_frees_its_place_and_its_budget() -> None:
    gate = Gate(rules(ONE_AT_A_TIME, Limit(requests_per_minute=2), queue_length=1), 0.0)
    gate.arrive("a", 1, 0.0)
    waiting = gate.arrive("a", 1, 0.0)
    gate.leave(waiting, 0.0)
    assert len(gate.line) == 0
    assert gate.arrive("a", 1, 0.0).state is State.WAITING


def test_a_request_that_its_own_key_holds_up_is_told_so() -> None:
    gate = Gate(rules(Limit(max_concurrent=10), ONE_AT_A_TIME, queue_length=0), 0.0)
    gate.arrive("a", 1, 0.0)
    assert refusal(gate.arrive("a", 1, 0.0)) == Refusal("key_concurrency", 1, pytest.approx(1.0))


def test_at_the_end_all_who_wait_and_all_who_come_are_turned_away() -> None:
    gate = Gate(rules(ONE_AT_A_TIME), 0.0)
    running, waiting = gate.arrive("a", 1, 0.0), gate.arrive("a", 1, 0.0)
    gate.turn_away(1.0)
    assert [refusal(ticket).cause for ticket in (waiting, gate.arrive("b", 1, 1.0))] == ["leaving", "leaving"]
    assert running.state is State.RUNNING


# Rates


def test_above_its_rate_a_key_is_refused_until_the_moment_it_is_told() -> None:
    gate = Gate(rules(each_key=Limit(requests_per_minute=6)), 0.0)
    for _ in range(6):
        gate.arrive("a", 1, 0.0)
    refused = refusal(gate.arrive("a", 1, 0.0))
    assert refused == Refusal("key_requests", 6, pytest.approx(10.0))
    assert gate.arrive("b", 1, 0.0).state is State.RUNNING
    assert gate.arrive("a", 1, 9.9).state is State.REFUSED
    assert gate.arrive("a", 1, 10.0).state is State.RUNNING


def test_tokens_are_charged_as_estimated_and_corrected_when_they_are_known() -> None:
    gate = Gate(rules(each_key=Limit(tokens_per_minute=600)), 0.0)
    ticket = gate.arrive("a", 100, 0.0)
    gate.leave(ticket, 0.0, tokens=700)
    refused = refusal(gate.arrive("a", 50, 0.0))
    assert refused == Refusal("key_tokens", 600, pytest.approx(15.0))  # a debt of 100, and 50, at 10 a second
    assert gate.arrive("a", 50, 15.0).state is State.RUNNING


def test_what_no_minute_allows_is_refused_without_a_time_to_come_back() -> None:
    gate = Gate(rules(each_key=Limit(tokens_per_minute=600)), 0.0)
    assert refusal(gate.arrive("a", 601, 0.0)) == Refusal("too_many_tokens", 600, None)
    assert gate.arrive("a", 600, 0.0).state is State.RUNNING


def test_above_the_rate_of_all_together_requests_wait_for_it() -> None:
    gate = Gate(rules(Limit(requests_per_minute=60)), 0.0)
    for _ in range(60):
        gate.arrive("greedy", 1, 0.0)
    greedy, modest = gate.arrive("greedy", 1, 0.0), gate.arrive("modest", 1, 0.0)
    assert gate.due(0.0) == pytest.approx(1.0)
    gate.tick(1.0)
    assert (greedy.state, modest.state) == (State.RUNNING, State.WAITING)
    gate.tick(2.0)
    assert modest.state is State.RUNNING


# When to come back


def test_the_time_to_come_back_grows_with_those_before_and_the_time_they_take() -> None:
    gate = Gate(rules(Limit(max_concurrent=2), queue_length=4), 0.0)
    for second in range(100):
        gate.leave(gate.arrive("a", 1, 10.0 * second), 10.0 * second + 10)
    for _ in range(2 + 4):
        gate.arrive("a", 1, 1000.0)
    refused = refusal(gate.arrive("a", 1, 1000.0))
    assert refused.seconds == pytest.approx(5 * 10.0 / 2, rel=0.01)


def test_while_nothing_ends_the_time_to_come_back_is_no_shorter_than_that() -> None:
    gate = Gate(rules(ONE_AT_A_TIME, queue_length=1), 0.0)
    gate.arrive("a", 1, 0.0)
    gate.arrive("a", 1, 0.0)
    assert refusal(gate.arrive("b", 1, 25.0)).seconds == pytest.approx(25.0)


# Other rules


def test_other_limits_hold_at_once_and_what_was_spent_stays_spent() -> None:
    gate = Gate(rules(ONE_AT_A_TIME, Limit(requests_per_minute=10)), 0.0)
    for _ in range(3):
        gate.arrive("a", 1, 0.0)
    gate.change(rules(Limit(max_concurrent=3), Limit(requests_per_minute=4)), 0.0)
    assert gate.running == 3
    assert gate.arrive("a", 1, 0.0).state is State.WAITING
    assert gate.arrive("a", 1, 0.0).state is State.REFUSED
    gate.change(Admission(), 0.0)
    assert gate.running == 4
    assert gate.arrive("a", 1, 0.0).state is State.RUNNING


def test_a_shorter_queue_is_kept_to_by_those_who_wait_already() -> None:
    gate = Gate(rules(ONE_AT_A_TIME), 0.0)
    _, *waiting = [gate.arrive("a", 1, 0.0) for _ in range(6)]
    gate.change(rules(ONE_AT_A_TIME, queue_length=2), 0.0)
    assert [ticket.state for ticket in waiting] == [State.WAITING] * 2 + [State.REFUSED] * 3


def test_a_key_that_is_gone_is_forgotten_once_its_requests_are_over() -> None:
    gate = Gate(rules(each_key=Limit(requests_per_minute=1)), 0.0)
    old = gate.arrive("a", 1, 0.0)
    gate.forget_all_but(set())
    assert gate.arrive("a", 1, 0.0).state is State.REFUSED
    gate.leave(old, 0.0)
    gate.forget_all_but(set())
    assert gate.arrive("a", 1, 0.0).state is State.RUNNING


# Whatever happens

KEYS = ("a", "b", "c", "d")
maybe = st.none() | st.integers(1, 4)
limits = st.builds(
    Limit,
    max_concurrent=maybe,
    requests_per_minute=st.none() | st.integers(1, 30),
    tokens_per_minute=st.none() | st.integers(1, 200),
)
admissions = st.builds(
    Admission,
    total=limits,
    each_key=st.builds(KeyRule, limits=limits),
    keys=st.dictionaries(
        st.sampled_from(KEYS), st.builds(KeyRule, priority=st.sampled_from(["High", "Normal", "Low"]), limits=limits)
    ),
    queue_length=st.integers(0, 5),
    queue_seconds=st.floats(0.5, 60),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(KEYS), st.integers(0, 50)),
        st.tuples(st.just("leave"), st.integers(0, 1000), st.none() | st.integers(0, 100)),
        st.tuples(st.just("pass"), st.floats(0, 20), st.none()),
        st.tuples(st.just("change"), admissions, st.none()),
    ),
    max_size=60,
)


class Watched:
    """A gate, and all tickets that are not over."""

    def __init__(self, rules: Admission) -> None:
        self.gate = Gate(rules, 0.0)
        self.now = 0.0
        self.open: list[Ticket] = []

    def do(self, step: tuple[str, object, object]) -> None:
        what, one, other = step
        if what == "arrive":
            assert isinstance(one, str)
            assert isinstance(other, int)
            self.open.append(self.gate.arrive(one, other, self.now))
        elif what == "leave" and self.open:
            assert isinstance(one, int)
            assert other is None or isinstance(other, int)
            self.gate.leave(self.open.pop(one % len(self.open)), self.now, other)
        elif what == "pass":
            assert isinstance(one, float)
            self.now += one
            self.gate.tick(self.now)
        elif what == "change":
            assert isinstance(one, Admission)
            self.gate.change(one, self.now)

    def among(self, state: State) -> list[Ticket]:
        return [ticket for ticket in self.open if ticket.state is state]


@settings(deadline=None)
@given(admissions, steps)
def test_bounds_hold_and_no_place_stays_free_for_one_who_may_have_it(
    rules: Admission, steps: list[tuple[str, object, object]]
) -> None:
    world = Watched(rules)
    gate = world.gate
    for step in steps:
        before = gate.running
        world.do(step)
        running, waiting = world.among(State.RUNNING), world.among(State.WAITING)
        assert gate.running == len(running)
        assert set(waiting) == {ticket for ticket in world.open if ticket in gate.line}
        assert len(gate.line) == len(waiting) <= gate.rules.queue_length
        assert all(world.now < ticket.arrived + gate.rules.queue_seconds for ticket in waiting)
        limit = gate.rules.total.max_concurrent
        if limit is not None and gate.running > before:
            assert gate.running <= limit
        by_key = Counter(ticket.owner.name for ticket in running)
        assert all(ticket.owner.running == by_key[ticket.owner.name] for ticket in world.open)
        may_go = [ticket for ticket in waiting if not ticket.owner.at_its_limit]
        if may_go:
            full = limit is not None and gate.running >= limit
            assert full or (gate.due(world.now) or 0.0) > 0  # else only a budget is in the way, and that passes


@settings(deadline=None)
@given(limits, st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 50)), max_size=30), st.integers(0, 5))
def test_budgets_hold_what_was_spent_and_nothing_else(
    limit: Limit, requests: list[tuple[str, int]], queue_length: int
) -> None:
    gate = Gate(rules(ONE_AT_A_TIME, limit, queue_length), 0.0)
    tickets = [gate.arrive(name, tokens, 0.0) for name, tokens in requests]
    for name in {name for name, _ in requests}:
        charged = [t for t in tickets if t.owner.name == name and t.state in (State.RUNNING, State.WAITING)]
        owner = next(t.owner for t in tickets if t.owner.name == name)
        if owner.tokens is not None:
            assert owner.tokens.level(0.0) == pytest.approx(owner.tokens.capacity - sum(t.tokens for t in charged))
        if owner.requests is not None:
            assert owner.requests.level(0.0) == pytest.approx(owner.requests.capacity - len(charged))
    for ticket in tickets:
        gate.leave(ticket, 0.0, tokens=0)
    for ticket in tickets:
        if ticket.owner.tokens is not None:
            assert ticket.owner.tokens.level(0.0) == pytest.approx(ticket.owner.tokens.capacity)


@settings(deadline=None)
@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=60))
def test_nobody_waits_for_more_than_its_own_and_one_of_each_other_key_per_turn(order: list[str]) -> None:
    gate = Gate(rules(ONE_AT_A_TIME), 0.0)
    first, *waiting = [gate.arrive(name, 1, 0.0) for name in ["z", *order]]
    places = {ticket: place for place, ticket in enumerate(served(gate, first))}
    assert places.keys() == set(waiting)
    for ticket in waiting:
        own = [other for other in waiting if other.owner is ticket.owner]
        turn = own.index(ticket) + 1
        assert places[ticket] < turn * len(set(order))
        assert all(places[other] < places[ticket] for other in own[: turn - 1])


# The bucket itself


@settings(deadline=None)
@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 1000)), max_size=40))
def test_no_minute_sees_more_than_a_full_bucket_and_what_flows_in(
    per_minute: int, wishes: list[tuple[float, int]]
) -> None:
    bucket, now, taken = Bucket(per_minute, 0.0), 0.0, []
    for pause, amount in wishes:
        now += pause
        if bucket.wait(amount, now) == 0:
            bucket.take(amount, now)
            taken.append((now, amount))
    for start, _ in taken:
        assert sum(amount for at, amount in taken if start <= at < start + 60) <= 2 * per_minute + 1e-3


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_a_wait_is_as_long_as_it_says(per_minute: int, spent: int, amount: int) -> None:
    bucket = Bucket(per_minute, 0.0)
    bucket.take(spent, 0.0)
    seconds = bucket.wait(amount, 0.0)
    if amount > per_minute:
        assert seconds == float("inf")
    else:
        assert bucket.wait(amount, seconds) == 0
        assert seconds == 0 or bucket.wait(amount, seconds * 0.99 - 1e-6) > 0


def test_a_limit_that_comes_is_full_and_one_that_goes_is_gone() -> None:
    assert resized(None, None, 0.0) is None
    fresh = resized(None, 60, 5.0)
    assert fresh is not None
    assert fresh.level(5.0) == 60
    assert resized(fresh, None, 5.0) is None
