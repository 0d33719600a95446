"""How long a silent engine is waited for: long prompts and slow machines get time, a hung engine gets little."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway.patience import (
    TOKEN_SECONDS_LEAST,
    UNKNOWN,
    WINDOW_SECONDS,
    Longest,
    Pace,
    computed,
    patience,
    silence_ended,
    transfer_deadline,
)

LEAST = 3.0


def waited(pace: Pace = UNKNOWN, prompt_tokens: int = 0, writing: bool = False, alone: bool = False) -> float:
    return patience(pace, LEAST, prompt_tokens, writing, alone)


def test_an_engine_of_which_nothing_is_known_and_asked_gets_the_least() -> None:
    assert waited() == LEAST


def test_a_hung_engine_with_usual_prompts_is_found_within_five_seconds() -> None:
    quick = silence_ended(UNKNOWN, 0.5, 1000, now=1.0)
    assert waited(prompt_tokens=256) < 5.0
    assert waited(quick, prompt_tokens=1500) < 5.0


def test_a_long_prompt_gets_the_time_that_such_prompts_took() -> None:
    slow = silence_ended(UNKNOWN, 12.0, 3000, now=1.0)
    assert waited(slow, prompt_tokens=3000) >= 2 * 12.0
    assert waited(prompt_tokens=30_000) > 60.0


def test_prompts_that_are_answered_at_once_teach_it_too_and_those_that_queued_do_not() -> None:
    quick = computed(UNKNOWN, 0.2, 1000, now=1.0)
    assert waited(quick, prompt_tokens=1000) == LEAST + 2 * TOKEN_SECONDS_LEAST * 1000
    assert computed(UNKNOWN, 20.0, 1000, now=1.0) == computed(UNKNOWN, 0.2, 10, now=1.0) == UNKNOWN


def test_between_two_tokens_lies_a_step_and_not_a_whole_prompt() -> None:
    assert waited(prompt_tokens=200_000, writing=True) < waited(prompt_tokens=200_000)
    assert waited(prompt_tokens=2000, writing=True) == waited(prompt_tokens=2000)


def test_an_engine_that_was_silent_and_came_back_by_itself_gets_longer_but_not_for_ever() -> None:
    starved = silence_ended(UNKNOWN, 2.5, 10, now=1.0)
    assert waited(starved) == 7.5
    assert waited(silence_ended(UNKNOWN, 500.0, 10, now=1.0)) == 9.0


def test_cached_prompts_do_not_make_the_next_one_look_quick() -> None:
    cached = silence_ended(UNKNOWN, 0.25, 100_000, now=1.0)
    assert waited(cached, prompt_tokens=100_000) >= 2 * TOKEN_SECONDS_LEAST * 100_000


def test_where_nobody_could_take_over_there_is_more_time() -> None:
    assert waited(alone=True) == 4 * waited()


def test_the_longest_is_forgotten_after_two_windows() -> None:
    held = Longest().noted(9.0, now=1000.0).noted(1.0, now=1001.0)
    assert held.value == 9.0
    assert held.noted(1.0, now=1001.0 + WINDOW_SECONDS).value == 9.0
    assert held.noted(1.0, now=1001.0 + WINDOW_SECONDS).noted(1.0, now=1002.0 + 2 * WINDOW_SECONDS).value == 1.0
    assert held.noted(1.0, now=1001.0 + 2 * WINDOW_SECONDS).value == 1.0


def test_a_transfer_between_engines_that_know_each_other_is_given_up_sooner() -> None:
    assert transfer_deadline(0.1, 3000) < 2.5 < transfer_deadline(None, 0) < 4.0
    assert transfer_deadline(1.0, 0) == 5.5


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 600), st.integers(0, 200_000), st.floats(0, 300)), max_size=30),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
    st.booleans(),
)
def test_never_less_than_the_least_and_never_less_for_a_longer_prompt(
    silences: list[tuple[float, int, float]], tokens: int, more: int, writing: bool
) -> None:
    pace, now = UNKNOWN, 0.0
    for seconds, prompt, wait in silences:
        now += wait
        pace = silence_ended(pace, seconds, prompt, now)
    assert LEAST <= waited(pace, tokens, writing) <= waited(pace, tokens + more, writing)
