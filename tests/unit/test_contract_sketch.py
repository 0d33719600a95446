"""Sketches of times: how far off their quantiles are, and that they add up however they are parted."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace_runtime.contract import Sketch
from headrace_runtime.contract.sketch import ERROR, FIRST, LAST, LEAST, MOST, bucket

times = st.floats(LEAST, MOST)
samples = st.lists(times, max_size=60)


def sketch(seconds: list[float]) -> Sketch:
    counts: dict[int, int] = {}
    for one in seconds:
        counts[bucket(one)] = counts.get(bucket(one), 0) + 1
    return Sketch(counts=counts)


def test_says_nothing_of_nothing() -> None:
    assert (Sketch().samples, Sketch().quantile(0.95)) == (0, None)
    assert Sketch().plus(Sketch()) == Sketch().minus(Sketch()) == Sketch()


@settings(deadline=None)
@given(st.lists(times, min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_that_of_the_samples_within_the_error(seconds: list[float], p: float) -> None:
    exact = sorted(seconds)[max(1, math.ceil(p * len(seconds))) - 1]
    found = sketch(seconds).quantile(p)
    assert found is not None
    assert abs(found - exact) <= ERROR * exact * (1 + 1e-9)


@settings(deadline=None)
@given(samples, samples, samples)
def test_merging_is_exact_in_any_order(a: list[float], b: list[float], c: list[float]) -> None:
    one, two, three = sketch(a), sketch(b), sketch(c)
    whole = sketch(a + b + c)
    assert one.plus(two).plus(three) == one.plus(two.plus(three)) == three.plus(one).plus(two)
    assert one.plus(two).plus(three) == whole.plus(Sketch())


@settings(deadline=None)
@given(samples, samples)
def test_what_came_since_is_the_difference(before: list[float], since: list[float]) -> None:
    assert sketch(before + since).minus(sketch(before)) == sketch(since).plus(Sketch())


def test_a_counter_that_fell_has_no_difference() -> None:
    assert sketch([1.0]).minus(sketch([1.0, 1.0])) is None
    assert sketch([1.0]).minus(sketch([2.0])) is None


@pytest.mark.parametrize(("seconds", "place"), [(0.0, FIRST), (-1.0, FIRST), (math.inf, LAST), (1e9, LAST)])
def test_what_lies_beyond_an_end_counts_as_that_end(seconds: float, place: int) -> None:
    assert abs(bucket(seconds) - place) <= 1


def test_goes_over_the_wire_and_back() -> None:
    said = sketch([0.01, 0.02, 0.02])
    assert Sketch.model_validate_json(said.model_dump_json()) == said


@pytest.mark.parametrize("counts", [{"0": -1}, {"100000": 1}, {"0": "NaN"}, {"0": 1.5}, {"x": 1}])
def test_nonsense_is_refused(counts: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sketch.model_validate({"counts": counts})


@settings(deadline=None)
@given(st.dictionaries(st.integers(FIRST, LAST), st.integers(0, 1000), max_size=20))
def test_percentiles_are_the_quantiles_in_one_go(counts: dict[int, int]) -> None:
    whole = Sketch(counts=counts)
    # 0.07 * 100 is a little more than 7.
    each = [whole.quantile(percent / 100 - 1e-9) for percent in range(1, 100)] if whole.samples else []
    assert whole.percentiles() == each
