"""From readings of gateways to the windows that a policy is told: what they say, and when they say nothing."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.plan.scaling import Aim, Target, Window
from headrace_operator.plan.scaling.inputs import Ask, Role
from headrace_operator.plan.scaling.measure import Percentiles
from headrace_operator.plan.scaling.policy import decide
from headrace_operator.readings import EVERY_SECONDS, KEPT, LONGEST_SECONDS, Readings
from headrace_runtime.contract import DemandFigures, GatewayFigures, RoleFigures, Sketch
from headrace_runtime.contract.sketch import ERROR, bucket

AIM = Aim(Target(2.0, 0.95), Target(0.05, 0.90))
READY = {"prefill": 1, "decode": 2}


@dataclass
class Gateway:
    """One that counts."""

    start: str = "a"
    seconds: float = 1000.0
    requests: int = 500
    prompt_tokens: int = 50_000
    prompts: Sketch = field(default_factory=Sketch)
    writing: float = 0.0
    decode: dict[str, Any] = field(default_factory=dict)
    now: dict[str, Any] = field(default_factory=dict)
    """What is told of the moment."""

    def served(self, count: int, *, prompt: int = 100, output: int = 20, ttft: float = 0.5, itl: float = 0.02) -> None:
        self.requests += count
        self.prompt_tokens += count * prompt
        one = self.decode
        for name, more in (("answers", count), ("output_tokens", count * output), ("requests", count)):
            one[name] = one.get(name, 0) + more
        self.prompts = self.prompts.plus(sketch(prompt / 1000, count))
        for name, value in (("ttft", ttft), ("itl", itl)):
            one[name] = one.get(name, Sketch()).plus(sketch(value, count))
        self.writing += count * output * itl

    def reading(self, **fields: Any) -> GatewayFigures:
        demand = DemandFigures(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            prompts=self.prompts,
            writing=self.writing,
            **{name: value for name, value in self.now.items() if name in ("unanswered", "idle")},
        )
        told = {"start": self.start, "seconds": self.seconds, "arrivals": self.requests, "demand": demand}
        told["roles"] = (RoleFigures(role="decode", revision="r1", **self.decode),)
        told |= {name: value for name, value in self.now.items() if name in ("running", "waiting")}
        return GatewayFigures.model_validate(told | fields)


def sketch(value: float, count: int) -> Sketch:
    return Sketch(counts={bucket(value): count} if count else {})


@dataclass
class Operator:
    """Reads all gateways every half minute."""

    readings: Readings = field(default_factory=Readings)
    now: float = 5000.0
    gateways: dict[str, Gateway] = field(default_factory=lambda: {"gw-0": Gateway()})
    aim: Aim = AIM

    def pass_time(self, seconds: float = EVERY_SECONDS) -> None:
        self.now += seconds
        for gateway in self.gateways.values():
            gateway.seconds += seconds

    def read(self, **instead: GatewayFigures | None) -> tuple[Window, ...]:
        told = {name: gateway.reading() for name, gateway in self.gateways.items()}
        told |= {name.replace("_", "-"): reading for name, reading in instead.items()}  # type: ignore[misc]
        self.readings.note("uid", self.now, told, READY)
        return self.windows()

    def windows(self) -> tuple[Window, ...]:
        return self.readings.windows("uid", self.now, self.aim)


def requests(windows: tuple[Window, ...]) -> list[float | None]:
    return [window.requests for window in windows]


def close(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= ERROR * wanted * 1.001


def test_nothing_is_known_of_a_deployment_that_was_never_read() -> None:
    readings = Readings()
    assert readings.due("uid", 5.0)
    assert readings.windows("uid", 5.0, AIM) == ()
    assert readings.newest("uid") is None
    readings.forget("uid")


def test_one_reading_is_no_window() -> None:
    assert Operator().read() == ()


def test_a_window_tells_what_came_between_two_readings() -> None:
    operator = Operator()
    gateway = operator.gateways["gw-0"]
    operator.read()
    gateway.served(90, prompt=100)
    gateway.served(10, prompt=5000, ttft=4.0, itl=0.08)
    gateway.now = {"unanswered": 1.5}
    operator.pass_time()
    (window,) = operator.read()
    assert (window.age, window.seconds, window.requests, window.rate) == (0.0, 30.0, 100.0, 100 / 30)
    assert (window.prompt, window.output, window.waiting) == (590.0, 20.0, 1.5)
    assert window.cached is None
    assert close(window.usual_ttft, 0.5)
    assert close(window.ttft, 4.0)
    assert close(window.itl, 0.02)
    assert close(window.long_prompt, 5000)
    assert window.writing == pytest.approx((90 * 20 * 0.02 + 10 * 20 * 0.08) / 30)
    assert window.engines == {"prefill": 1.0, "decode": 2.0}


def test_another_percentile_is_another_figure_of_the_same_window() -> None:
    operator = Operator()
    operator.read()
    operator.gateways["gw-0"].served(90)
    operator.gateways["gw-0"].served(10, ttft=4.0, itl=0.08)
    operator.pass_time()
    operator.read()
    operator.aim = Aim(Target(2.0, 0.80), Target(0.05, 0.99))
    (window,) = operator.windows()
    assert close(window.ttft, 0.5)
    assert close(window.itl, 0.08)
    operator.aim = Aim()
    (window,) = operator.windows()
    assert (window.ttft, window.itl, window.long_prompt, window.requests) == (None, None, None, 100.0)


def test_gateways_are_added_up() -> None:
    operator = Operator(gateways={"gw-0": Gateway(), "gw-1": Gateway(start="b")})
    operator.read()
    operator.gateways["gw-0"].served(10)
    operator.gateways["gw-1"].served(30)
    operator.gateways["gw-0"].now = {"unanswered": 0.5}
    operator.gateways["gw-1"].now = {"unanswered": 0.2}
    operator.pass_time()
    (window,) = operator.read()
    assert (window.requests, window.waiting) == (40, 0.5)
    assert window.writing == pytest.approx(40 * 20 * 0.02 / 30)


def test_no_traffic_is_a_known_zero_however_the_figures_jitter() -> None:
    operator = Operator()
    operator.read()
    for place in range(4):
        operator.gateways["gw-0"].now = {"idle": 10.0 * place}
        operator.pass_time(29.2 + 0.4 * place)
        windows = operator.read()
    assert {(w.requests, w.prompt, w.long_prompt, w.output, w.ttft, w.itl, w.waiting, w.writing) for w in windows} == {
        (0.0, None, None, None, None, None, 0.0, 0.0)
    }


def test_it_is_time_again_after_half_a_minute_and_at_once_where_the_clock_fell() -> None:
    operator = Operator()
    operator.read()
    due = operator.readings.due
    assert [due("uid", operator.now + seconds) for seconds in (0, 15, 28.9, 29, 300, -1)] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
    assert due("another", operator.now)


@pytest.mark.parametrize(
    ("sentence", "instead"),
    [
        ("gives no answer", None),
        ("began anew", {"start": "another", "seconds": 5.0}),
        ("does not tell", {"demand": None}),
        ("counts backwards", {"arrivals": 3}),
        ("has a clock that stands still", {"seconds": 1000.0}),
        ("has a clock that jumped back", {"seconds": 900.0}),
        ("has a clock that jumped on", {"seconds": 1500.0}),
        ("says what no process can answer", {"arrivals": 10**12}),
        ("lost what it counted of a role", {"roles": (RoleFigures(role="decode", revision="r1"),)}),
    ],
)
def test_a_window_is_unknown_as_a_whole_where_one_gateway(sentence: str, instead: dict[str, Any] | None) -> None:
    operator = Operator(gateways={"gw-0": Gateway(), "gw-1": Gateway(start="b")})
    operator.gateways["gw-1"].served(3)
    operator.read()
    for gateway in operator.gateways.values():
        gateway.served(10)
    operator.pass_time()
    lie = None if instead is None else operator.gateways["gw-1"].reading(**instead)
    (window,) = operator.read(gw_1=lie)
    assert window == Window(age=0.0, seconds=30.0, engines={"prefill": 1.0, "decode": 2.0}), sentence


def test_an_answer_that_was_late_once_is_made_good_by_the_next() -> None:
    operator = Operator(gateways={"gw-0": Gateway(), "gw-1": Gateway(start="b")})
    operator.read()
    for instead in ({"gw_1": None}, {}):
        operator.gateways["gw-0"].served(10)
        operator.gateways["gw-1"].served(20)
        operator.gateways["gw-1"].now = {"unanswered": 0.7}
        operator.pass_time()
        windows = operator.read(**instead)
    assert requests(windows) == [30, 30]
    assert [window.waiting for window in windows] == [0.7, None]
    assert all(window.prompt == 100 and window.output == 20 and close(window.ttft, 0.5) for window in windows)
    assert [window.writing for window in windows] == [pytest.approx(30 * 20 * 0.02 / 30)] * 2


def test_one_that_stays_silent_for_long_is_never_made_good() -> None:
    operator = Operator()
    operator.read()
    for _ in range(4):
        operator.gateways["gw-0"].served(10)
        operator.pass_time()
        operator.read(gw_0=None)
    operator.pass_time()
    assert requests(operator.read()) == [None] * 5
    operator.pass_time()
    assert requests(operator.read()) == [0.0, *[None] * 5]


def test_one_that_was_silent_and_began_anew_is_not_new() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    operator.read(gw_0=None)
    operator.pass_time()
    operator.gateways["gw-0"] = Gateway(start="again", seconds=3.0, requests=2)
    assert requests(operator.read()) == [None, None]


def test_one_that_was_silent_at_first_is_unknown_until_it_has_told_twice() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    operator.gateways["gw-1"] = Gateway(start="b", seconds=10.0, requests=7)
    operator.read(gw_1=None)
    operator.pass_time()
    assert requests(operator.read()) == [None, None]
    operator.gateways["gw-1"].served(5)
    operator.pass_time()
    assert requests(operator.read()) == [5.0, None, None]


def test_nothing_is_made_good_where_one_came_and_went_untold() -> None:
    operator = Operator()
    operator.read()
    for told in ({"gw_0": None, "gw_1": None}, {}):
        operator.pass_time()
        windows = operator.read(**told)
    assert requests(windows) == [None, None]


def test_a_gateway_that_is_new_counts_from_its_start() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    operator.gateways["gw-1"] = Gateway(start="b", seconds=12.0, requests=7, prompt_tokens=700, prompts=sketch(0.1, 7))
    assert requests(operator.read()) == [7.0]
    operator.gateways["gw-1"].served(4)
    operator.pass_time()
    assert requests(operator.read()) == [4.0, 7.0]


def test_a_gateway_that_was_there_before_and_is_told_of_for_the_first_time_is_unknown_once() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    operator.gateways["gw-1"] = Gateway(start="b", seconds=300.0, requests=7)
    assert requests(operator.read()) == [None]
    operator.pass_time()
    assert requests(operator.read()) == [0.0, None]


def test_gateways_that_are_replaced_leave_unknown_windows_and_then_known_ones() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    operator.gateways = {"gw-9": Gateway(start="z", seconds=10.0, requests=2)}
    assert requests(operator.read()) == [None]
    operator.gateways["gw-9"].served(5)
    operator.pass_time()
    assert requests(operator.read()) == [5.0, None]


def test_no_gateway_at_all_is_no_figure_and_not_no_load() -> None:
    operator = Operator(gateways={})
    operator.read()
    operator.pass_time()
    assert requests(operator.read()) == [None]


def test_asked_twice_at_the_same_moment_is_one_reading() -> None:
    operator = Operator()
    operator.read()
    operator.gateways["gw-0"].served(5)
    operator.read()
    operator.pass_time()
    (window,) = operator.read()
    assert (window.requests, window.seconds) == (5.0, 30.0)
    assert operator.read() == (window,)


def test_a_clock_that_fell_begins_anew() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    assert len(operator.read()) == 1
    operator.now -= 1000
    assert operator.read() == ()
    operator.gateways["gw-0"].served(5)
    operator.pass_time()
    assert requests(operator.read()) == [5.0]


def test_readings_far_apart_make_no_window_and_earlier_ones_grow_old() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    operator.read()
    operator.gateways["gw-0"].served(500)
    operator.pass_time(LONGEST_SECONDS + 1)
    (window,) = operator.read()
    assert (window.requests, window.age) == (0.0, LONGEST_SECONDS + 1)


def test_some_minutes_are_kept_and_a_deployment_can_be_forgotten() -> None:
    operator = Operator()
    for _ in range(3 * KEPT):
        operator.pass_time()
        windows = operator.read()
    assert len(windows) == KEPT
    assert [window.age for window in windows] == [30.0 * place for place in range(KEPT)]
    operator.readings.forget("uid")
    assert operator.windows() == ()
    assert operator.readings.newest("uid") is None


def test_the_moment_of_the_newest_reading_is_known() -> None:
    operator = Operator()
    operator.read()
    operator.pass_time()
    operator.read(gw_0=None)
    assert operator.readings.newest("uid") == operator.now


counts = st.integers(0, 2**53)
times = st.floats(0, 2**53)
sketches = st.dictionaries(st.integers(-100, 100), counts, max_size=3).map(lambda found: Sketch(counts=found))
demands = st.builds(
    DemandFigures,
    requests=counts, prompt_tokens=counts, prompts=sketches, unanswered=times, writing=times, idle=times,
)  # fmt: skip
roles = st.builds(
    RoleFigures,
    role=st.sampled_from(["serve", "decode"]), revision=st.just("r1"), requests=counts, prompt_tokens=counts,
    looked_up_tokens=counts, cached_tokens=counts, answers=counts, output_tokens=counts, ttft=sketches, itl=sketches,
)  # fmt: skip
anything = st.builds(
    GatewayFigures,
    start=st.sampled_from("ab"), seconds=times, arrivals=counts, running=counts, waiting=counts, oldest_wait=times,
    roles=st.lists(roles, max_size=2).map(tuple), demand=st.none() | demands,
)  # fmt: skip
tellings = st.dictionaries(st.sampled_from(["gw-0", "gw-1"]), st.none() | anything, max_size=2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 200), tellings), max_size=8), st.floats(0, 1))
def test_whatever_gateways_say_is_no_crash_and_the_policy_stays_within_bounds(
    told: list[tuple[float, dict[str, GatewayFigures | None]]], share: float
) -> None:
    readings, now, aim = Readings(), 1000.0, Aim(Target(1.0, share), Target(0.1, share))
    for seconds, telling in told:
        now += seconds
        readings.due("uid", now)
        readings.note("uid", now, telling, READY)
        windows = readings.windows("uid", now, aim)
        answer = decide(Ask(AIM, (Role("prefill", 1, 1, 4), Role("decode", 2, 1, 4)), windows))
        assert all(1 <= size <= 4 for size in answer.sizes.values())
        readings.newest("uid")


happenings = st.tuples(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=2, max_size=2),
    st.sampled_from(["", "restart", "replace", "unready"]),
    st.floats(20, 70),
)


@settings(deadline=None)
@given(st.lists(happenings, max_size=12))
def test_windows_never_say_fewer_requests_than_were_counted_in_their_time(
    happened: list[tuple[list[tuple[int, bool]], str, float]],
) -> None:
    operator = Operator(gateways={"gw-0": Gateway(), "gw-1": Gateway(start="b")})
    operator.read()
    came: list[int] = []
    unready = False
    for turn, (gateways, event, seconds) in enumerate(happened):
        operator.pass_time(seconds)
        silent: dict[str, None] = {}
        for (name, gateway), (count, answers) in zip(list(operator.gateways.items()), gateways, strict=True):
            gateway.served(count)
            silent |= {} if answers else {name.replace("-", "_"): None}
        came.insert(0, sum(count for count, _ in gateways))
        last = list(operator.gateways)[-1]
        # One that is not ready comes back first: what it counts meanwhile is not told.
        unready, back = event == "unready" and not unready, unready
        if event == "restart" and not back:
            operator.gateways[last] = Gateway(start=f"again {turn}", seconds=3.0, requests=0, prompt_tokens=0)
        elif event == "replace" and not back:
            del operator.gateways[last]
            operator.gateways[f"new-{turn}"] = Gateway(start=f"n{turn}", seconds=3.0, requests=0, prompt_tokens=0)
        hidden = {last: operator.gateways.pop(last)} if unready else {}
        said = requests(operator.read(**{k: v for k, v in silent.items() if k.replace("_", "-") in operator.gateways}))
        operator.gateways |= hidden
        known = [place for place, window in enumerate(said) if window is not None]
        # Each known stretch is as a whole what came in it: within a shared one, requests have moved.
        for first, after in runs(known):
            assert sum(said[place] or 0 for place in range(first, after)) >= sum(came[first:after]) - 1e-6


def runs(places: list[int]) -> list[tuple[int, int]]:
    """Neighbours as stretches."""
    found: list[tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


@settings(deadline=None)
@given(st.dictionaries(st.integers(-150, 130), st.integers(1, 1000), min_size=1, max_size=20))
def test_the_percentiles_that_are_kept_are_those_of_the_sketch(counts: dict[int, int]) -> None:
    kept, whole = Percentiles(Sketch(counts=counts)), Sketch(counts=counts)
    for percent in range(1, 100):
        assert kept.at(percent / 100) == pytest.approx(whole.quantile(percent / 100 - 1e-9), rel=1e-6)
