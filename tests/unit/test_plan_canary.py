"""A canary judged by figures, and the engines that its share needs."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.lifecycle import Canary
from headrace_operator.api.v1alpha1 import CanaryStep
from headrace_operator.figures import RevisionFigures, Window
from headrace_operator.plan.canary import Verdict, at_least, hold, judge
from headrace_operator.plan.rollout import Bounds, Count, Hold, Step, next_step
from headrace_runtime.contract import Sketch
from headrace_runtime.contract.sketch import bucket

CANARY = Canary.model_validate({"steps": [10, 100], "interval": "60s"})
STEP = CanaryStep(revision="new", step=10, share=10, since=datetime(2026, 1, 1, tzinfo=UTC))


def figures(requests: int, errors: int = 0, ttft: float = 0.2, itl: float = 0.02) -> RevisionFigures:
    return RevisionFigures(
        requests=requests,
        errors=errors,
        ttft=Sketch(counts={bucket(ttft): requests}),
        itl=Sketch(counts={bucket(itl): requests}),
    )


def window(new: RevisionFigures, old: RevisionFigures, seconds: float = 60) -> Window:
    return Window(seconds, {("decode", "new"): new, ("decode", "old"): old})


def verdict(*windows: Window | None) -> Verdict:
    return judge(CANARY, STEP, "old", windows, "new")


@pytest.mark.parametrize(
    ("sentence", "new", "old", "expected"),
    [
        ("passes what is as good", figures(200), figures(1800), "Passed"),
        ("passes what is better", figures(200, ttft=0.1), figures(1800, 9), "Passed"),
        ("fails what fails its requests", figures(200, 20), figures(1800), "Failed"),
        ("fails what answers nothing, by few requests", figures(3, 3), figures(2000), "Failed"),
        ("lets a single error be", figures(200, 1), figures(1800), "Passed"),
        ("fails what is slow to begin", figures(200, ttft=0.4), figures(1800), "Failed"),
        ("fails what is slow to go on", figures(200, itl=0.03), figures(1800), "Failed"),
        ("lets a little slowness be", figures(200, ttft=0.24, itl=0.022), figures(1800), "Passed"),
        ("lets be what nobody sees", figures(200, ttft=0.03), figures(1800, ttft=0.01), "Passed"),
        ("compares errors with those of the current one", figures(200, 20), figures(1800, 180), "Passed"),
        ("goes by time with too few", figures(20, ttft=9), figures(180), "Passed"),
        ("goes by time without any traffic", RevisionFigures(), RevisionFigures(), "Passed"),
        ("waits for one that does not take its share", figures(10), figures(5000), "Going"),
    ],
)
def test_at_the_end_of_its_step_it(sentence: str, new: RevisionFigures, old: RevisionFigures, expected: str) -> None:
    found = verdict(window(new, old))
    assert found.state == expected, f"{sentence}: {found.message}"


def test_says_the_figures_of_both() -> None:
    message = verdict(window(figures(200, 100, ttft=1.0), figures(1800))).message
    assert message.startswith("more errors: 10 % of requests: 200 asked of it, 1800 of the current revision")
    assert "failed 50.0 % against 0.0 %, TTFT p95 970 ms against 204 ms, ITL p95 20 ms against 20 ms" in message


def test_says_that_there_was_too_little_traffic() -> None:
    assert verdict(window(figures(2), figures(18))).message.startswith("by time, with too few")


def test_is_not_passed_before_its_time_and_may_fail_before_it() -> None:
    assert verdict(window(figures(200), figures(1800), 59)) == Verdict("Going", 10)
    assert verdict(window(figures(200, ttft=9), figures(1800), 59)).state == "Going"
    assert verdict(window(figures(200, 50), figures(1800), 1)).state == "Failed"


def test_waits_for_gateways_that_have_not_told_their_figures() -> None:
    good = window(figures(200), figures(1800))
    for windows in ((), (None,), (good, None)):
        found = verdict(*windows)
        assert (found.state, bool(found.message)) == ("Going", True)
    assert verdict(window(figures(200, 50), figures(1800)), None).state == "Failed"


def test_judges_all_gateways_together() -> None:
    each = window(figures(60, ttft=0.6), figures(540))
    assert verdict(each).message.startswith("by time")
    assert verdict(each, each).state == "Failed"


def test_time_counts_where_the_share_has_held_longest() -> None:
    """A gateway that has just started is no reason to begin anew."""
    assert verdict(window(figures(200), figures(1800)), window(figures(0), figures(0), 1)).state == "Passed"


@pytest.mark.parametrize(
    "step",
    [
        STEP.model_copy(update={"step": 100}),
        STEP.model_copy(update={"revision": "other"}),
    ],
)
def test_judges_nothing_but_a_step_of_the_revision_that_is_tried(step: CanaryStep) -> None:
    found = judge(CANARY, step, "old", [window(figures(200, 200), figures(1800))], "new")
    assert found.state == "None"


def test_waits_until_every_gateway_has_heard_that_it_gets_nothing() -> None:
    announced = STEP.model_copy(update={"share": 0, "since": None})
    nothing = Window(0.0)
    for windows in ((), (None,), (nothing, None)):
        found = judge(CANARY, announced, "old", windows, "new")
        assert (found.state, bool(found.message)) == ("None", True)
    assert judge(CANARY, announced, "old", (nothing, nothing), "new") == Verdict("Going")


def test_may_fail_but_not_pass_while_the_engines_of_its_next_step_start() -> None:
    between = STEP.model_copy(update={"since": None})
    good, bad = window(figures(200), figures(1800), 999), window(figures(200, 100), figures(1800), 5)
    assert judge(CANARY, between, "old", [good], "new") == Verdict("Going", 10)
    assert judge(CANARY, between, "old", [bad], "new").state == "Failed"


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.001, 0.999))
def test_the_chance_of_errors_is_that_of_the_binomial(errors: int, more: int, rate: float) -> None:
    requests = errors + more
    terms = (math.comb(requests, k) * rate**k * (1 - rate) ** (requests - k) for k in range(errors, requests + 1))
    expected = 1.0 if errors <= requests * rate else math.fsum(terms)
    assert at_least(errors, requests, rate) == pytest.approx(expected, rel=1e-6)


def test_the_chance_of_many_errors_is_soon_told() -> None:
    assert at_least(900_000, 1_000_000, 0.01) == 0.0
    assert 1e-12 < at_least(10_700, 1_000_000, 0.01) < 1e-10


@settings(deadline=None)
@given(st.integers(0, 5000), st.floats(0.0, 0.009))
def test_an_error_rate_below_what_is_allowed_never_fails_it(requests: int, rate: float) -> None:
    found = verdict(window(figures(requests, int(requests * rate)), figures(requests * 9)))
    assert found.state == "Passed"


sizes, shares, surges = st.integers(1, 20), st.integers(1, 99), st.integers(0, 5)


@settings(deadline=None)
@given(sizes, shares, surges)
def test_both_sides_have_engines_for_their_shares_within_the_surge(size: int, share: int, surge: int) -> None:
    both = hold(size, share, surge)
    assert both.new >= 1
    assert both.new + both.old <= size + surge
    if size + surge >= 2:
        assert both.old >= 1
    if surge:
        assert both == Hold(math.ceil(size * share / 100), math.ceil(size * (100 - share) / 100))


@settings(deadline=None)
@given(sizes, shares, surges, st.integers(0, 3))
def test_a_rollout_comes_to_its_canary_and_keeps_within_its_bounds(
    size: int, share: int, surge: int, unavailable: int
) -> None:
    bounds, both = Bounds(max(surge, not unavailable), unavailable), hold(size, share, max(surge, not unavailable))
    count = Count(size, old_ready=size)
    for _ in range(4 * size + 4):
        step = next_step({"serve": count}, bounds, holds={"serve": both})["serve"]
        ready = count.new_ready + count.old_ready - step.end_old_ready - step.end_new_ready
        assert count.total + step.create <= size + bounds.surge or not step.create
        assert ready >= min(size - unavailable, count.new_ready + count.old_ready)
        count = Count(
            size,
            new_ready=count.new_ready - step.end_new_ready + step.create,
            old_ready=count.old_ready - step.end_old_ready,
            old_waiting=count.old_waiting - step.end_old_waiting,
        )
        assert count.old_ready >= min(both.old, size)
    assert count.new_ready >= min(both.new, size)
    assert next_step({"serve": count}, bounds, holds={"serve": both})["serve"] == Step()


def test_an_old_engine_that_is_not_ready_for_a_moment_is_kept_while_its_share_needs_it() -> None:
    count = Count(4, new_ready=1, old_ready=2, old_waiting=1)
    assert next_step({"serve": count}, Bounds(), holds={"serve": Hold(1, 3)})["serve"] == Step()
    assert next_step({"serve": count}, Bounds())["serve"].end_old_waiting == 1
