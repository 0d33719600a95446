"""The policy for sizes: tables, and what must hold whatever is measured."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.conditions import Reason
from headrace_operator.plan.scaling import Aim, Ask, Changed, Model, Role, Target, Window, decide
from headrace_operator.plan.scaling.forecast import ahead
from headrace_operator.plan.scaling.model import HAND_OVER_STEPS, Load, between_tokens, first_token, fit, need

H200 = Model(pace=0.087342 / 4168, startup=60.0, fitted=True)
AIM = Aim(Target(0.5), Target(0.05))


def window(age: float = 0.0, **figures: Any) -> Window:
    """Half a minute of 18 requests a second, as Dynamo's scaling test has them, with figures the model agrees with."""
    usual: dict[str, Any] = {
        "requests": 540.0,
        "prompt": 4000.0,
        "long_prompt": 4000.0,
        "cached": 0.0,
        "output": 150.0,
        "ttft": 0.3,
        "itl": 0.008,
        "usual_ttft": 0.12,
        "waiting": 0.1,
        "engines": {"prefill": 2.0, "decode": 1.0},
    }
    return Window(age, 30.0, **(usual | figures))


def windows(count: int = 20, **figures: Any) -> tuple[Window, ...]:
    return tuple(window(30.0 * place, **figures) for place in range(count))


def roles(prefill: int = 2, decode: int = 1, **fields: Any) -> tuple[Role, ...]:
    common = {"least": 1, "most": 16} | fields
    return tuple(Role(n, size, ready=size, **common) for n, size in (("prefill", prefill), ("decode", decode)))


def ask(seen: tuple[Window, ...] | None = None, aim: Aim = AIM, **fields: Any) -> Ask:
    asked: dict[str, Any] = {"roles": roles(), "model": H200} | fields
    return Ask(aim, windows=windows() if seen is None else seen, **asked)


def sizes(of: Ask) -> tuple[int, int]:
    answer = decide(of)
    return answer.sizes["prefill"], answer.sizes["decode"]


def test_does_nothing_where_all_is_as_wanted() -> None:
    answer = decide(ask())
    assert (answer.sizes, answer.decisions, answer.verdict) == ({"prefill": 2, "decode": 1}, (), Reason.SIZED)


@pytest.mark.parametrize(("rate", "prefill"), [(8, 1), (12, 2), (18, 2), (24, 3), (30, 3), (36, 4)])
def test_the_published_case_of_dynamo_has_the_published_sizes(rate: float, prefill: int) -> None:
    load = Load(rate, 4000, 4000, 0.0, 150)
    wanted = [need(H200, load, role, AIM) for role in roles()]
    assert wanted == [prefill, 1]


def test_a_target_that_a_role_of_fixed_size_does_not_keep_is_said_and_moves_nothing() -> None:
    fixed = Role("prefill", 1, least=1, most=1, ready=1)
    answer = decide(ask(windows(requests=900.0), roles=(fixed, roles()[1])))
    assert (answer.sizes, answer.verdict) == ({"prefill": 1, "decode": 1}, Reason.TARGET_OUT_OF_REACH)
    assert "prefill: first token" in answer.message


def test_late_first_tokens_move_prefill_alone() -> None:
    assert sizes(ask(windows(requests=900.0))) == (3, 1)


def test_slow_tokens_move_decode_alone() -> None:
    slow = replace(AIM, itl=Target(0.006))
    prefill, decode = sizes(ask(aim=slow))
    assert (prefill, decode > 1) == (2, True)


def test_what_is_cached_needs_no_engine() -> None:
    assert sizes(ask(windows(requests=900.0, cached=0.6))) == (2, 1)


def test_without_a_target_a_role_stays_at_its_least() -> None:
    assert sizes(ask(aim=Aim(ttft=Target(0.5)), roles=roles(2, 3))) == (2, 1)


def test_an_engine_that_is_starting_counts() -> None:
    starting = (Role("prefill", 3, 1, 16, ready=2, starting=(500.0,)), roles()[1])
    assert decide(ask(windows(requests=900.0), roles=starting)).decisions == ()


def test_goes_down_only_after_fewer_would_have_been_enough_for_long() -> None:
    quiet = windows(requests=200.0, usual_ttft=0.09, ttft=0.2)
    assert sizes(ask(quiet, roles=roles(3, 1))) == (1, 1)
    assert sizes(ask(quiet[:3], roles=roles(3, 1))) == (3, 1)
    busy_before = (*quiet[:3], *windows()[3:])
    assert sizes(ask(busy_before, roles=roles(2, 1))) == (2, 1)


def test_a_role_whose_target_is_seen_missed_gets_no_smaller_whatever_is_computed() -> None:
    quiet = {"requests": 200.0, "usual_ttft": 0.09, "ttft": 0.2}
    late = (window(**quiet | {"ttft": 0.8}), *windows(**quiet)[1:])
    assert sizes(ask(late, roles=roles(3, 1))) == (3, 1)
    slow = (window(**quiet | {"itl": 0.07}), *windows(**quiet)[1:])
    assert sizes(ask(slow, roles=roles(3, 3)))[0] == 1
    few = (window(**quiet | {"requests": 10.0, "ttft": 0.8}), *windows(**quiet)[1:])
    assert sizes(ask(few, roles=roles(3, 1))) == (1, 1)


@pytest.mark.parametrize(
    "seen",
    [
        (),
        windows(requests=None),
        tuple(window(200.0 + 30.0 * place) for place in range(10)),
        windows(requests=300.0, prompt=None),
        windows(requests=math.nan),
        windows(requests=-5.0),
    ],
    ids=["none", "no rate", "late", "no lengths", "not a number", "negative"],
)
def test_missing_figures_never_make_a_role_smaller(seen: tuple[Window, ...]) -> None:
    answer = decide(ask(seen, roles=roles(5, 5)))
    assert (answer.sizes, answer.verdict) == ({"prefill": 5, "decode": 5}, Reason.FIGURES_MISSING)


def test_a_hole_in_the_figures_keeps_the_size() -> None:
    seen = list(windows(requests=100.0))
    seen[4] = replace(seen[4], requests=None)
    assert sizes(ask(tuple(seen), roles=roles(5, 1))) == (5, 1)


def test_no_traffic_goes_down_to_the_least() -> None:
    idle = tuple(Window(30.0 * place, 30.0, requests=0.0) for place in range(20))
    assert sizes(ask(idle, roles=roles(5, 5))) == (1, 1)


def test_the_cap_is_shared_where_it_is_needed_most_and_said_to_be_in_the_way() -> None:
    capped = decide(ask(windows(requests=2400.0), aim=replace(AIM, cap=4), roles=roles(2, 2)))
    assert sum(capped.sizes.values()) == 4
    assert capped.verdict == Reason.TARGET_OUT_OF_REACH
    assert "cap" in capped.message


def test_a_cap_below_the_least_sizes_is_a_contradiction_and_said() -> None:
    assert decide(ask(aim=replace(AIM, cap=1))).verdict == Reason.CAP_TOO_SMALL


def test_a_target_that_no_size_keeps_is_said_with_the_best_within_reach_and_not_chased() -> None:
    answer = decide(ask(aim=Aim(Target(0.05), Target(0.05))))
    assert answer.verdict == Reason.TARGET_OUT_OF_REACH
    assert "prefill: first token" in answer.message
    assert answer.sizes["prefill"] < 16


def test_a_role_changes_before_an_engine_is_started() -> None:
    swapping = replace(AIM, role_change=True)
    answer = decide(ask(windows(requests=700.0), aim=swapping, roles=roles(2, 2)))
    assert (answer.sizes, [one.swap for one in answer.decisions]) == ({"prefill": 3, "decode": 1}, [True, True])
    lately = (Changed(10.0, "prefill", 1, 2, swap=True),)
    assert sizes(ask(windows(requests=700.0), aim=swapping, roles=roles(2, 2), changes=lately))[0] == 3


def test_a_rising_load_is_met_before_it_is_there() -> None:
    rising = tuple(window(30.0 * place, requests=540.0 - 20 * place) for place in range(12))
    assert (ahead(rising, 120.0) or 0.0) > 20.0


@pytest.mark.parametrize(
    "odd",
    [Window(0.0, 1e-244, requests=25.0), Window(0.0, 1e-9, requests=1e9), Window(0.0, 30.0, requests=1e9)],
    ids=["of no length", "of a nanosecond", "of a thousand million requests"],
)
def test_one_odd_window_among_windows_of_one_age_is_no_crash(odd: Window) -> None:
    idle = Window(0.0, 30.0, requests=0.0)
    alone = (Role("serve", 0, 0, 1),)
    assert decide(Ask(AIM, alone, (idle, idle, idle, odd, idle))).sizes["serve"] <= 1
    assert decide(Ask(AIM, alone, (odd,) * 6)).sizes["serve"] <= 1


def test_one_giant_request_is_no_fleet() -> None:
    seen = list(windows(12, requests=5.0, prompt=500.0))
    seen[0] = replace(seen[0], requests=1.0, prompt=900_000.0, ttft=60.0, waiting=50.0)
    prefill, decode = sizes(ask(tuple(seen), roles=roles(1, 1)))
    assert prefill <= 3
    assert decode <= 3


def test_the_model_learns_the_pace_and_the_steps_that_were_measured() -> None:
    true = Model(pace=2e-4, step=0.03, per_request=48e-5, per_token=2.27e-7)
    load = Load(2.0, 4000, 4000, 0.0, 150)
    seen = windows(
        requests=60.0,
        usual_ttft=first_token(true, load, 2, 0.5),
        ttft=first_token(true, load, 2, 0.95),
        itl=between_tokens(true, load, 1, 0.95),
    )
    model = Model()
    for _ in range(60):
        model = fit(model, seen, AIM)
    assert model.pace == pytest.approx(true.pace, rel=0.1)
    assert between_tokens(model, load, 1, 0.95) == pytest.approx(seen[0].itl, rel=0.1)


def test_steps_that_a_first_token_waits_for_on_decode_engines_are_not_put_down_to_prefill() -> None:
    true = Model(pace=5e-5, step=0.0792, per_request=8.64e-4, per_token=4.1e-7, fitted=True)
    load = Load(3.0, 3000, 9000, 0.0, 100)
    seen = windows(
        requests=90,
        prompt=3000,
        output=100,
        engines={"prefill": 2, "decode": 1},
        usual_ttft=first_token(true, replace(load, long_prompt=load.prompt), 2, 0.5) + HAND_OVER_STEPS * true.step,
        ttft=first_token(true, load, 2, 0.95) + HAND_OVER_STEPS * true.step,
        itl=between_tokens(true, load, 1, 0.95),
    )
    model = Model()
    for _ in range(60):
        model = fit(model, seen, AIM)
    assert model.pace == pytest.approx(true.pace, rel=0.25)


# Whatever is measured

figure = st.one_of(st.none(), st.floats(), st.floats(0, 1e4), st.sampled_from([0.0, math.nan, math.inf, -1.0, 1e300]))
any_window = st.builds(
    Window,
    age=st.one_of(st.floats(), st.floats(0, 700)),
    seconds=st.one_of(st.floats(), st.just(30.0)),
    requests=figure,
    prompt=figure,
    long_prompt=figure,
    cached=figure,
    output=figure,
    ttft=figure,
    itl=figure,
    usual_ttft=figure,
    waiting=figure,
    writing=figure,
    engines=st.dictionaries(st.sampled_from(["prefill", "decode", "serve"]), st.floats(), max_size=2),
)


@st.composite
def any_role(draw: st.DrawFn, name: str) -> Role:
    least = draw(st.integers(0, 5))
    most = draw(st.integers(max(1, least), 40))
    size = draw(st.integers(0, 50))
    return Role(name, size, least, most, draw(st.integers(0, 8)), draw(st.integers(0, size)))


@st.composite
def any_ask(draw: st.DrawFn) -> Ask:
    kinds = draw(st.sampled_from([("serve",), ("prefill", "decode")]))
    asked = tuple(draw(any_role(name)) for name in kinds)
    target = st.one_of(st.none(), st.builds(Target, st.floats(0.001, 100), st.floats(0.01, 0.99)))
    least = sum(role.least * role.accelerators for role in asked)
    cap = draw(st.one_of(st.none(), st.integers(max(1, least), 200)))
    aim = Aim(draw(target), draw(target), cap, draw(st.integers(0, 9)), draw(st.booleans()))
    model = draw(st.one_of(st.just(Model()), st.builds(Model, pace=st.floats(), startup=st.floats())))
    return Ask(aim, asked, tuple(draw(st.lists(any_window, max_size=22))), (), model)


@settings(deadline=None, max_examples=300)
@given(any_ask())
def test_no_figures_pass_the_bounds_or_the_cap_or_crash(asked: Ask) -> None:
    answer = decide(asked)
    assert set(answer.sizes) == {role.name for role in asked.roles}
    for role in asked.roles:
        assert role.least <= answer.sizes[role.name] <= role.most
    if asked.aim.cap is not None:
        assert sum(answer.sizes[role.name] * role.accelerators for role in asked.roles) <= asked.aim.cap
    assert all(math.isfinite(value) for value in vars(answer.model).values())


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8), st.integers(1, 8), st.lists(any_window, max_size=4))
def test_no_role_shrinks_without_minutes_of_figures(prefill: int, decode: int, seen: list[Window]) -> None:
    short = tuple(replace(one, seconds=min(one.seconds, 40.0)) for one in seen)
    answer = decide(ask(short, roles=roles(prefill, decode)))
    assert answer.sizes["prefill"] >= prefill
    assert answer.sizes["decode"] >= decode


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 8), st.integers(1, 8))
def test_minutes_without_a_request_are_figures_too(prefill: int, decode: int) -> None:
    idle = Window(age=0.0, seconds=180.0, requests=0.0)
    assert sizes(ask((idle,), roles=roles(prefill, decode))) == (1, 1)


@pytest.mark.parametrize("rate", [0.5, 3.0, 8.0, 11.9, 18.0, 23.9, 30.0, 36.0, 41.5, 60.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_constant_load_with_noise_does_not_make_sizes_flap(rate: float, seed: int) -> None:
    """A quarter of an hour, after the first twelve minutes: where the load lies just between two sizes, a role goes
    down and up again once at most."""
    chance = random.Random(seed)
    model, now = H200, roles(2, 1)
    seen = [noisy(chance, rate, now) for _ in range(20)]
    moves: list[tuple[str, int]] = []
    changes: list[Changed] = []
    for turn in range(55):
        seen = [noisy(chance, rate, now), *seen[:19]]
        aged = tuple(replace(one, age=30.0 * place) for place, one in enumerate(seen))
        past = tuple(replace(change, age=30.0 * turn - change.age) for change in reversed(changes))
        answer = decide(Ask(AIM, now, aged, past, model))
        model = answer.model
        changes += [Changed(30.0 * turn, one.role, one.before, one.after) for one in answer.decisions]
        if turn >= 25:
            moves += [(one.role, one.after - one.before) for one in answer.decisions]
        now = tuple(replace(r, size=answer.sizes[r.name], ready=answer.sizes[r.name]) for r in now)
    assert len(moves) <= 3, moves


def noisy(chance: random.Random, rate: float, now: tuple[Role, ...]) -> Window:
    """Half a minute in which the engines do as the profile says, and requests come by chance."""
    came = max(0.0, chance.gauss(rate * 30, math.sqrt(rate * 30)))
    load = Load(came / 30, 4000, 4000, 0.0, 150)
    prefill, decode = (role.size for role in now)
    ttft, usual = first_token(H200, load, prefill, 0.95), first_token(H200, load, prefill, 0.5)
    return window(
        requests=came,
        ttft=min(ttft, 30.0),
        usual_ttft=min(usual, 20.0),
        itl=min(1.0, between_tokens(H200, load, decode, 0.95)),
        waiting=min(ttft, 20.0),
        engines={"prefill": float(prefill), "decode": float(decode)},
    )
