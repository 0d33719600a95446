"""What a gateway tells of the requests that are here: how many came, who waits for a first token, who is written to."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import DemandFigures
from headrace_runtime.contract.sketch import ERROR
from headrace_runtime.gateway.demand import Demand, Visit


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_tells_of_nothing_where_nobody_came() -> None:
    clock = Clock()
    demand = Demand(clock)
    clock.now += 7
    assert demand.told() == DemandFigures(idle=7.0)


def test_the_oldest_without_a_first_token_tells_how_long_one_waits() -> None:
    clock = Clock()
    demand = Demand(clock)
    first = demand.came(10)
    clock.now += 2
    second = demand.came(10)
    clock.now += 1
    assert demand.told().unanswered == 3
    demand.began(first)
    assert demand.told().unanswered == 1
    demand.left(second)
    assert demand.told().unanswered == 0
    assert demand.told().idle == 0


def test_an_answer_in_one_piece_waits_until_an_engine_has_it_and_is_here_until_it_goes() -> None:
    clock = Clock()
    demand = Demand(clock)
    visit = demand.came(10)
    demand.handed(visit)
    demand.handed(visit)  # another engine was asked
    clock.now += 60
    told = demand.told()
    assert (told.unanswered, told.writing, told.idle) == (0, 0, 0)
    demand.left(visit)
    clock.now += 5
    assert demand.told().idle == 5


def test_answers_under_way_add_up_in_time_whether_or_not_one_looks() -> None:
    clock = Clock()
    demand = Demand(clock)
    one, other = demand.came(10), demand.came(10)
    demand.began(one)
    clock.now += 2
    assert demand.told().writing == 2
    demand.began(other)
    clock.now += 3
    demand.left(one)
    clock.now += 1
    assert demand.told().writing == 2 + 2 * 3 + 1
    demand.left(other)
    clock.now += 100
    assert demand.told().writing == 9


@pytest.mark.parametrize("tokens", [0, 1, 64, 4000, 131_072, 1_000_000])
def test_lengths_are_told_within_the_error_of_a_sketch(tokens: int) -> None:
    demand = Demand(Clock())
    demand.came(tokens)
    length = demand.told().prompts.quantile(0.99)
    assert length is not None
    assert abs(length * 1000 - tokens) <= max(1, ERROR * tokens * 1.001)
    assert demand.told().prompt_tokens == tokens


steps = st.lists(st.tuples(st.sampled_from(["came", "handed", "began", "left"]), st.integers(0, 3), st.floats(0, 1e3)))


@settings(deadline=None)
@given(steps)
def test_counts_only_grow_and_all_is_over_once_everyone_left(taken: list[tuple[str, int, float]]) -> None:
    clock = Clock()
    demand = Demand(clock)
    here: list[Visit] = []
    began: set[Visit] = set()
    told = demand.told()
    for what, which, seconds in taken:
        clock.now += seconds
        visit = here[which % len(here)] if here else None
        if what == "came":
            here.append(demand.came(which))
        elif visit is not None and what == "left":
            here.remove(visit)
            demand.left(visit)
        elif visit is not None and what == "handed":
            demand.handed(visit)
        elif visit is not None and visit not in began:
            began.add(visit)
            demand.began(visit)
        after = demand.told()
        assert after.requests >= told.requests
        assert after.writing >= told.writing
        assert after.prompts.samples == after.requests
        told = after
    for visit in here:
        demand.left(visit)
    clock.now += 10
    after = demand.told()
    assert (after.unanswered, after.idle >= 10) == (0, True)
    clock.now += 10
    assert demand.told().writing == after.writing
