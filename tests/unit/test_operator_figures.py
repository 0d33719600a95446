"""Readings of gateways as windows: what came between two, of several gateways together, and what cannot be known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace_operator.figures import NOTHING, Demand, RevisionFigures, Window, between, in_step, merged, since_start
from headrace_runtime.contract import CanaryFigures, CanaryShare, DemandFigures, GatewayFigures, RoleFigures, Sketch

SHARE = CanaryShare(revision="r2", percent=10, step="10@1")


def role(requests: int, revision: str = "r1", **fields: object) -> RoleFigures:
    return RoleFigures.model_validate({"role": "decode", "revision": revision, "requests": requests, **fields})


def reading(seconds: float, *roles: RoleFigures, start: str = "a", **fields: object) -> GatewayFigures:
    return GatewayFigures.model_validate({"start": start, "seconds": seconds, "roles": roles, **fields})


def test_a_window_is_what_came_between_two_readings() -> None:
    before = reading(10, role(5, ttft=Sketch(counts={0: 5})), arrivals=6)
    after = reading(
        40, role(8, ttft=Sketch(counts={0: 6, 3: 2})), role(1, "r2"), arrivals=12, waiting=2, oldest_wait=0.5
    )
    found = between(before, after)
    assert found is not None
    assert (found.seconds, found.arrivals, found.arrival_rate) == (30, 6, 0.2)
    assert (found.waiting, found.oldest_wait) == (2, 0.5)
    assert found.of_revision("r1") == RevisionFigures(requests=3, ttft=Sketch(counts={0: 1, 3: 2}))
    assert found.of_revision("r2").requests == 1
    assert found.of_role("decode").requests == 4
    assert found.of_role("prefill") == NOTHING


@pytest.mark.parametrize(
    ("sentence", "before", "after"),
    [
        ("a reading is missing", reading(10), None),
        ("there was none before", None, reading(10)),
        ("the process is another", reading(10), reading(40, start="b")),
        ("the later one is the earlier", reading(40), reading(10)),
        ("no time has passed", reading(10), reading(10)),
        ("a count fell", reading(10, role(5)), reading(40, role(4))),
        ("a sketch fell", reading(10, role(5, itl={"counts": {1: 1}})), reading(40, role(5))),
        ("arrivals fell", reading(10, arrivals=5), reading(40, arrivals=4)),
    ],
)
def test_is_unknown_and_never_zero_where(
    sentence: str, before: GatewayFigures | None, after: GatewayFigures | None
) -> None:
    assert between(before, after) is None, sentence


def test_a_gateway_counts_from_its_start() -> None:
    found = since_start(reading(10, role(5)))
    assert found is not None
    assert (found.seconds, found.of_revision("r1").requests) == (10, 5)
    assert since_start(None) is None


def test_a_step_is_what_was_counted_since_it_holds() -> None:
    canary = CanaryFigures(share=SHARE, seconds=20, before=(role(5),))
    found = in_step(reading(100, role(9), role(2, "r2"), canary=canary), SHARE)
    assert found is not None
    assert (found.seconds, found.of_revision("r1").requests, found.of_revision("r2").requests) == (20, 4, 2)


@pytest.mark.parametrize(
    "held", [None, SHARE.model_copy(update={"step": "10@0"}), SHARE.model_copy(update={"percent": 5})]
)
def test_a_gateway_that_has_yet_to_take_up_the_step_is_unknown(held: CanaryShare | None) -> None:
    canary = CanaryFigures(share=held, seconds=20) if held is not None else None
    assert in_step(reading(100, role(9), canary=canary), SHARE) is None
    assert in_step(None, SHARE) is None


def test_shares_and_means_of_nothing_are_unknown() -> None:
    assert (NOTHING.error_share, NOTHING.cached_share, NOTHING.prompt_mean, NOTHING.output_mean) == (None,) * 4
    some = RevisionFigures(
        requests=4,
        errors=1,
        prompts=2,
        prompt_tokens=30,
        looked_up_tokens=20,
        cached_tokens=5,
        answers=2,
        output_tokens=8,
    )
    assert (some.error_share, some.cached_share, some.prompt_mean, some.output_mean) == (0.25, 0.25, 15, 4)
    assert Window(0.0).arrival_rate is None
    assert merged([]) is None


counts = st.integers(0, 1000)
sketches = st.dictionaries(st.integers(-50, 50), st.integers(1, 9), max_size=5).map(lambda found: Sketch(counts=found))
figures = st.builds(RevisionFigures, requests=counts, errors=counts, prompts=counts, ttft=sketches, itl=sketches)
keys = st.tuples(st.sampled_from(["prefill", "decode"]), st.sampled_from(["r1", "r2"]))
windows = st.builds(
    Window, st.floats(0, 100), st.dictionaries(keys, figures, max_size=4), counts, counts, counts, st.floats(0, 9)
)


@settings(deadline=None)
@given(st.lists(windows, min_size=1, max_size=5))
def test_windows_merge_in_any_order(found: list[Window]) -> None:
    whole = merged(found)
    assert whole == merged([*reversed(found)])
    assert whole is not None
    assert whole.arrivals == sum(window.arrivals for window in found)
    assert whole.of_revision("r1").requests == sum(window.of_revision("r1").requests for window in found)


@pytest.mark.parametrize(
    "said",
    [
        '{"start": "a", "seconds": NaN}',
        '{"start": "a", "seconds": Infinity}',
        '{"start": "a", "seconds": -1}',
        '{"start": "a", "seconds": 1, "arrivals": -1}',
        '{"start": "a", "seconds": 1, "arrivals": 1e300}',
        '{"start": "a", "seconds": 1, "demand": {"requests": -1}}',
        '{"start": "a", "seconds": 1, "demand": {"writing": 1e300}}',
        '{"start": "a", "seconds": 1, "demand": {"prompts": {"counts": {"0": -3}}}}',
        '{"start": "a", "seconds": 1, "roles": [{"role": "decode", "revision": "r", "requests": NaN}]}',
        '{"start": "a", "seconds": 1, "roles": [{"role": "other", "revision": "r"}]}',
        '{"seconds": 1}',
    ],
)
def test_a_gateway_that_lies_is_not_read(said: str) -> None:
    with pytest.raises(ValidationError):
        GatewayFigures.model_validate_json(said)


def test_a_gateway_of_another_version_is_understood() -> None:
    newer = GatewayFigures.model_validate_json(
        '{"start": "a", "seconds": 1, "new": 1, "demand": {"requests": 2, "new": 1}, '
        '"roles": [{"role": "decode", "revision": "r", "new": 1}]}'
    )
    assert newer.demand == DemandFigures(requests=2)
    found = since_start(GatewayFigures.model_validate_json('{"start": "a", "seconds": 1, "arrivals": 3}'))
    assert found is not None
    assert (found.arrivals, found.demand) == (3, None)


def test_demand_is_what_came_between_and_how_it_is_at_the_end() -> None:
    before = reading(10, demand=DemandFigures(requests=5, prompt_tokens=50, writing=3, unanswered=9))
    after = DemandFigures(requests=7, prompt_tokens=90, prompts=Sketch(counts={2: 2}), writing=4, unanswered=1)
    found = between(before, reading(40, demand=after))
    assert found is not None
    assert found.demand == Demand(2, 40, Sketch(counts={2: 2}), 1, 1)
    assert between(reading(40, demand=after), reading(70, demand=before.demand)) is None
    assert between(before, reading(40)) is None
