"""Whether a deployment sleeps: of every figure that gateways may tell, and of those that they do not."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.status import ScalingStatus
from headrace_operator.api.v1alpha1 import CanaryStatus, Condition, InferenceDeploymentStatus, RevisionStatus
from headrace_operator.plan.sleep import Scene, rest
from headrace_operator.state import Pod, Rest, Target
from headrace_operator.testing import Sample
from headrace_operator.wakings import ALL_ENGINES, FIRST_ENGINE, FIRST_REQUEST, of_sleep, timed
from headrace_runtime.contract import DemandFigures, GatewayFigures

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
AFTER = 600.0


def told(idle: float = 1e4, requests: int = 5, holds: int = 10, **fields: Any) -> GatewayFigures:
    return GatewayFigures(
        start="a", seconds=1e5, holds=holds, demand=DemandFigures(requests=requests, idle=idle), **fields
    )


def engine(number: int, **fields: Any) -> Pod:
    facts = {"role": "serve", "revision": "r1", "ready": True, **fields}
    return Pod(f"chat-serve-r1-{number}", "engine", **facts)


def scene(gateways: Mapping[str, GatewayFigures | None] | None = None, **fields: Any) -> Scene:
    """A deployment of two engines that is whole, and has not been asked for long."""
    zero = {"after": f"{AFTER:.0f}s", "holdTimeout": "120s"}
    spec = Sample().serve(2).set("scaling.toZero", zero).spec()
    ready = Condition(type="Ready", status="True", reason="Answered", observed_generation=1, last_transition_time=NOW)
    previous = InferenceDeploymentStatus(
        revision=RevisionStatus(current="r1"),
        canary=CanaryStatus(revision="r1", answered_at=NOW, decode="chat-serve-r1-0"),
        conditions=(ready,),
    )
    found = Scene(
        target=Target(spec, None, "r1"),
        previous=previous,
        engines=(engine(0), engine(1)),
        sizes={"serve": 2},
        told={"10.0.0.1": told()} if gateways is None else gateways,
        now=NOW,
    )
    return replace(found, **fields)


def sleeping(found: Scene, seconds: float = 3600.0) -> Scene:
    """The same, that has slept for so long."""
    scaling = ScalingStatus(asleep_since=found.now - timedelta(seconds=seconds))
    return replace(found, engines=(), previous=found.previous.model_copy(update={"scaling": scaling}))


def spec_of(found: Scene, **fields: Any) -> Scene:
    spec = found.target.spec.model_copy(update=fields)
    return replace(found, target=replace(found.target, spec=spec))


def test_where_nothing_is_said_of_it_nothing_sleeps() -> None:
    plain = spec_of(scene(), scaling=Sample().spec().scaling)
    assert rest(plain) == Rest()


def test_what_has_been_quiet_for_long_enough_sleeps_and_says_what_it_went_by() -> None:
    found = rest(scene())
    assert (found.since, found.carried_out) == (NOW, False)
    assert [(one.role, one.from_, one.to, one.inputs) for one in found.decisions] == [
        ("serve", 2, 0, {"quiet": "10000 s"})
    ]


def test_what_is_not_quiet_for_long_enough_is_looked_at_when_it_will_have_been() -> None:
    assert rest(scene({"a": told(idle=AFTER - 20)})) == Rest(look=20.0)
    assert rest(scene({"a": told(idle=0.0)})) == Rest(look=60.0)
    assert rest(scene({"a": None})) == Rest(look=60.0)


@pytest.mark.parametrize(
    "why",
    [
        {"gateways": {}},
        {"gateways": {"a": told(), "b": None}},
        {"gateways": {"a": told(), "b": told(idle=AFTER - 1)}},
        {"gateways": {"a": told(), "b": told(holds=0)}},
        {"gateways": {"a": GatewayFigures(start="a", seconds=1e5, holds=10)}},
        {"gateways": {"a": told(waiting=1)}},
        {"gateways": {"a": told(running=1)}},
        {"engines": (engine(0),)},
        {"engines": (engine(0), engine(1), engine(2))},
        {"engines": (engine(0), engine(1, ready=False))},
        {"engines": (engine(0), engine(1, going=True))},
        {"engines": (engine(0), engine(1, revision="r0"))},
        {"sizes": {"serve": 0}, "engines": ()},
    ],
)
def test_what_is_unknown_or_not_whole_does_not_sleep(why: dict[str, Any]) -> None:
    assert rest(scene(**why)).since is None


def test_what_changes_or_was_not_seen_to_work_does_not_sleep() -> None:
    whole = scene()
    said = whole.previous
    for update in (
        {"canary": None},
        {"canary": CanaryStatus(revision="r0", answered_at=NOW, decode="x")},
        {"conditions": ()},
        {"revision": None},
        {"revision": RevisionStatus(current="r0", updating="r1")},
    ):
        assert rest(replace(whole, previous=said.model_copy(update=update))).since is None
    assert rest(replace(whole, target=replace(whole.target, held=True))).since is None
    assert rest(spec_of(whole, suspend=True)).since is None
    assert rest(spec_of(whole, paused=True)).since is None


def test_asleep_it_listens_to_its_gateways_and_does_nothing() -> None:
    found = sleeping(scene())
    assert rest(found) == Rest(found.since, carried_out=True, listen=found.told)


@pytest.mark.parametrize(
    ("one", "wakes"),
    [
        (told(waiting=1), True),
        (told(running=1), True),
        (told(idle=3000.0), True),
        (told(idle=3600.0 + AFTER), False),
        (told(idle=100.0, requests=0), False),  # a process that has just begun
        (None, False),
        (GatewayFigures(start="a", seconds=5), False),
    ],
)
def test_one_gateway_that_was_asked_is_enough_to_wake(one: GatewayFigures | None, wakes: bool) -> None:
    found = rest(sleeping(scene({"a": told(idle=1e5), "b": one})))
    assert (found.since is None, bool(found.decisions), found.waking) == (wakes, wakes, wakes)


def test_before_the_first_engine_goes_all_gateways_have_to_say_once_more_that_nobody_asks() -> None:
    awake = scene({"a": told(), "b": None})
    begun = replace(sleeping(awake, 0.5), engines=awake.engines)
    assert rest(begun).since is None
    assert rest(replace(begun, engines=())).carried_out
    assert rest(replace(begun, told={"a": told(), "b": told()})).carried_out


def test_waking_is_timed_from_the_first_request_on() -> None:
    woken = rest(sleeping(scene({"a": told(waiting=2, oldest_wait=1.5)})))
    (one,) = woken.decisions
    assert (one.from_, one.to, one.inputs) == (0, 2, {FIRST_REQUEST: "2026-06-01T11:59:58.500Z"})

    def later(seconds: float, *engines: Pod) -> Rest:
        begun = scene()
        said = begun.previous.model_copy(update={"scaling": ScalingStatus(last_decisions=(one,))})
        return rest(replace(begun, previous=said, engines=engines, now=NOW + timedelta(seconds=seconds)))

    starting = (engine(0, ready=False), engine(1, ready=False))
    assert (later(10, *starting).waking, later(10, *starting).took) == (True, {})
    assert later(12, engine(0), starting[1]).took == {FIRST_ENGINE: "13.5 s"}
    whole = later(20, engine(0), engine(1))
    assert (whole.waking, whole.took) == (False, {FIRST_ENGINE: "21.5 s", ALL_ENGINES: "21.5 s"})
    assert not later(119, *starting).waking  # nobody waits any more
    (now,) = timed((one,), whole.took)
    assert (now.inputs[ALL_ENGINES], of_sleep(now)) == ("21.5 s", True)


@pytest.mark.parametrize("said", ["", "nobody's", "-3 s", "2026-06-01", "9" * 400, "0001-01-01T00:00:00+14:00", "NaN"])
def test_what_somebody_else_wrote_into_the_status_is_no_crash(said: str) -> None:
    (one,) = rest(sleeping(scene({"a": told(waiting=1)}))).decisions
    odd = one.model_copy(update={"inputs": {FIRST_REQUEST: said}})
    begun = scene()
    said_before = begun.previous.model_copy(update={"scaling": ScalingStatus(last_decisions=(odd,))})
    assert rest(replace(begun, previous=said_before)) is not None


FIGURES = st.builds(
    told,
    idle=st.floats(0, 2**53, allow_nan=False),
    requests=st.integers(0, 3),
    holds=st.integers(0, 2),
    waiting=st.integers(0, 2),
    running=st.integers(0, 2),
    oldest_wait=st.floats(0, 2**53, allow_nan=False),
)
GATEWAYS = st.dictionaries(st.sampled_from("abc"), st.none() | FIGURES, max_size=3)


@settings(deadline=None)
@given(gateways=GATEWAYS, slept=st.none() | st.floats(-1e6, 1e6), engines=st.integers(0, 2))
def test_whatever_gateways_say_nobody_who_asks_is_slept_upon(
    gateways: Mapping[str, GatewayFigures | None], slept: float | None, engines: int
) -> None:
    begun = scene(gateways)
    if slept is not None:
        begun = sleeping(begun, slept)
    begun = replace(begun, engines=(engine(0), engine(1))[:engines])
    found = rest(begun)
    here = any(one is not None and (one.waiting or one.running) for one in gateways.values())
    unknown = not gateways or None in gateways.values()
    if here:
        assert found.since is None
    if unknown and engines:
        assert found.since is None
    if found.since is not None and slept is None:
        assert all(one is not None and one.demand is not None and one.holds for one in gateways.values())
        assert all(one.demand.idle >= AFTER for one in gateways.values() if one is not None and one.demand is not None)
    # What is carried out was written before, and one role's decision is never without the other's.
    assert not found.carried_out or (slept is not None and found.since == begun.since)
    assert (found.since is None) == (slept is not None) if found.decisions else found.since == begun.since
