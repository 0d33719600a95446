"""When a disk is left alone, and when it is tried again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.kv.breaker import BAD_OF_WINDOW, FIRST_PAUSE, LONGEST_PAUSE, WINDOW, Breaker, is_slow


def test_a_disk_that_does_well_is_always_let_through() -> None:
    breaker = Breaker()
    for now in range(100):
        assert breaker.lets_through(now)
        breaker = breaker.trying(now).went_well()
    assert breaker == Breaker()


def test_a_lasting_fault_opens_it_at_once_and_one_good_operation_closes_it() -> None:
    breaker = Breaker().went_badly(10.0, "DiskReadOnly", lasting=True)
    assert breaker.reason == "DiskReadOnly"
    assert not breaker.lets_through(10.0 + FIRST_PAUSE / 2)
    assert breaker.lets_through(10.0 + FIRST_PAUSE)
    assert breaker.went_well() == Breaker()


def test_while_it_is_open_one_at_a_time_is_let_through() -> None:
    breaker = Breaker().went_badly(0.0, "DiskGone", lasting=True)
    breaker = breaker.trying(FIRST_PAUSE)
    assert not breaker.lets_through(FIRST_PAUSE)
    assert breaker.lets_through(2 * FIRST_PAUSE)


def test_pauses_double_up_to_the_longest() -> None:
    breaker, now, pauses = Breaker().went_badly(0.0, "DiskGone", lasting=True), 0.0, []
    for _ in range(8):
        now = breaker.again_at
        breaker = breaker.trying(now).went_badly(now, "DiskGone", lasting=True)
        pauses.append(breaker.again_at - now)
    assert pauses == [2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


@settings(deadline=None)
@given(outcomes=st.lists(st.booleans(), max_size=40))
def test_single_errors_open_it_when_there_are_too_many_of_late(outcomes: list[bool]) -> None:
    breaker, recent = Breaker(), []
    for good in outcomes:
        recent = [*recent, good][-WINDOW:]
        breaker = breaker.went_well() if good else breaker.went_badly(0.0, "DiskFailing", lasting=False)
        if not good and recent.count(False) >= BAD_OF_WINDOW:
            assert breaker.reason == "DiskFailing"
            return
        assert not breaker.reason


@pytest.mark.parametrize(
    ("seconds", "size", "slow"),
    [(0.9, 0, False), (1.1, 0, True), (1.1, 8 * 1024**2, False), (1.2, 8 * 1024**2, True)],
)
def test_how_long_a_block_may_take_depends_on_its_size(seconds: float, size: int, slow: bool) -> None:
    assert is_slow(seconds, size) is slow
