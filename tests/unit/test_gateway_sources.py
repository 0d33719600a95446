"""What a token costs by where its KV blocks come from, learnt from times."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway.sources import LEARNT_TOKENS, LEAST, MOST, USUAL, Rates, Work, faded, learned, paced

amounts = st.floats(0, 10_000)
works = st.builds(Work, amounts, amounts, amounts, amounts)


def test_no_work_costs_nothing_and_teaches_nothing() -> None:
    assert USUAL.cost(Work()) == 0
    assert learned(USUAL, Work(), 5.0) == USUAL
    assert paced(0.5, Work(), 5.0) == 0.5


def test_work_that_is_too_short_teaches_nothing() -> None:
    assert learned(USUAL, Work(disk=LEARNT_TOKENS - 1), 9999.0) == USUAL
    assert paced(0.0, Work(computed=LEARNT_TOKENS - 1), 1.0) == 0.0


def test_seconds_of_a_computed_token_are_those_of_work_that_is_little_else() -> None:
    assert paced(0.0, Work(computed=1000), 2.0) == pytest.approx(0.002)
    assert paced(0.0, Work(computed=1000, disk=1000), 2.0) == 0.0
    pace = 0.002
    for _ in range(40):
        pace = paced(pace, Work(computed=1000), 1.0)
    assert pace == pytest.approx(0.001, rel=0.01)


@pytest.mark.parametrize("true", [Rates(0.01, 0.05, 0.3), Rates(0.5, 3.0, 0.02)])
def test_comes_to_what_the_times_say(true: Rates) -> None:
    rates = USUAL
    kinds = [Work(disk=4000), Work(computed=300, disk=2000), Work(host=4000), Work(fetched=4000, computed=16)]
    for turn in range(400):
        work = kinds[turn % len(kinds)]
        rates = learned(rates, work, true.cost(work))
    assert (rates.host, rates.disk, rates.fetched) == (
        pytest.approx(true.host, rel=0.05),
        pytest.approx(true.disk, rel=0.05),
        pytest.approx(true.fetched, rel=0.05),
    )


def test_a_disk_that_holds_less_than_it_said_comes_to_cost_as_much_as_computing() -> None:
    rates = USUAL
    for _ in range(30):
        rates = learned(rates, Work(disk=2000), 2000.0)
    assert rates.disk == pytest.approx(1.0, rel=0.01)
    assert rates.host == USUAL.host


def test_what_went_before_has_its_share_of_the_blame() -> None:
    work = Work(disk=2000)
    alone, behind = learned(USUAL, work, 4000.0), learned(USUAL, work, 4000.0 + 8000.0, ahead=2000.0)
    assert USUAL.disk < behind.disk < alone.disk
    assert learned(USUAL, work, 2000.0 + USUAL.cost(work), ahead=2000.0) == USUAL
    assert paced(0.0, Work(computed=1000), 1.0, ahead=500) == 0.0


def test_what_costs_much_is_half_forgotten_until_it_is_asked_for_again() -> None:
    rates = Rates(disk=4.0)
    for _ in range(6):
        rates = faded(rates)
    assert rates.disk == pytest.approx(USUAL.disk, rel=0.05)
    assert faded(USUAL).cost(Work(1, 2, 3, 4)) == pytest.approx(USUAL.cost(Work(1, 2, 3, 4)))


@settings(deadline=None)
@given(st.lists(st.tuples(works, st.floats(0, 1e6)), max_size=20))
def test_costs_stay_within_their_bounds_whatever_the_times(told: list[tuple[Work, float]]) -> None:
    rates, pace = USUAL, 0.0
    for work, took in told:
        rates, pace = learned(rates, work, took), paced(pace, work, took)
        assert all(LEAST <= rate <= MOST for rate in (rates.host, rates.disk, rates.fetched))
        assert pace >= 0


@settings(deadline=None)
@given(works, st.floats(0.1, 1e6))
def test_an_error_is_made_smaller_and_never_turned_round(work: Work, took: float) -> None:
    before, after = USUAL.cost(work), learned(USUAL, work, took).cost(work)
    if took >= before:
        assert before * 0.999 <= after <= took * 1.001 or after == pytest.approx(before)
    else:
        assert took * 0.999 <= after <= before * 1.001
