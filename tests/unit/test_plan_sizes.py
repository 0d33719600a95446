"""Sizes of roles out of spec, status and an answer: tables, and what holds whatever a policy answers."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.conditions import Reason
from headrace_operator.api.status import InferenceDeploymentStatus, ScalingModel
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.plan.scaling import Answer, Decision, Model, Window, decide
from headrace_operator.plan.sizes import ask_of, sized, standing
from headrace_operator.scaling_ladder import alike
from headrace_operator.state import Observed, Pod, Sized, Termination
from headrace_operator.status import remembered
from headrace_operator.testing import START, Sample

SEEN = (Window(0.0, 30.0, requests=10.0),)
"""Figures that are there."""


def spec(
    prefill: tuple[int, int] = (1, 4), decode: tuple[int, int] = (1, 4), **scaling: Any
) -> InferenceDeploymentSpec:
    bounds = {"prefill": prefill, "decode": decode}
    roles = [{"name": name, "scaling": {"min": low, "max": high}} for name, (low, high) in bounds.items()]
    slo = {"ttft": {"target": "500ms"}, "itl": {"target": "50ms"}}
    return Sample().set("roles", roles).set("slo", slo).set("scaling", {"mode": "SLO", **scaling}).spec()


def status(prefill: int = 2, decode: int = 2, desired: int | None = None, **fields: Any) -> InferenceDeploymentStatus:
    sizes = [{"name": "prefill", "size": prefill}, {"name": "decode", "size": decode}]
    roles = [{"name": one["name"], "desired": one["size"] if desired is None else desired} for one in sizes]
    return InferenceDeploymentStatus.model_validate({"roles": roles, "scaling": {"sizes": sizes}, **fields})


def answered(
    sizes: dict[str, int], windows: tuple[Window, ...] = SEEN, of: InferenceDeploymentSpec | None = None, **said: Any
) -> Sized:
    wanted, before = of or spec(), status()
    ask = ask_of(wanted, Observed(), before, windows, START)
    return sized(wanted, before, START, ask, Answer(sizes, **{"verdict": Reason.SIZED, "message": "m", **said}))


def engine(name: str, created: float, ready: float | None, **fields: Any) -> Pod:
    """Seconds before now."""
    return Pod(
        name, "engine", "decode", "r", ready=ready is not None, created=START - timedelta(seconds=created),
        ready_since=None if ready is None else START - timedelta(seconds=ready), **fields,
    )  # fmt: skip


def test_where_the_answer_is_what_there_is_nothing_is_decided() -> None:
    found = answered({"prefill": 2, "decode": 2})
    assert (found.sizes, found.wished, found.decisions) == ({"prefill": 2, "decode": 2}, found.sizes, ())
    assert found.model is None


def test_fixed_sizes_are_the_specs_and_nothing_else_is_said() -> None:
    fixed = Sample().split(prefill=3, decode=1).spec()
    assert sized(fixed, status(), START) == Sized({"prefill": 3, "decode": 1}, {"prefill": 3, "decode": 1})


def test_a_decision_is_for_the_next_pass_and_says_why() -> None:
    more = Decision("prefill", 2, 3, "Because.")
    found = answered({"prefill": 3, "decode": 2}, decisions=(more,), inputs={"rate": "9/s"})
    assert (found.sizes["prefill"], found.wished["prefill"]) == (2, 3)
    (one,) = found.decisions
    assert (one.role, one.from_, one.to, one.reason, one.inputs) == ("prefill", 2, 3, "Because.", {"rate": "9/s"})


def test_missing_figures_make_no_role_smaller_whatever_a_policy_says() -> None:
    for windows in ((), (Window(0.0, 30.0),), (Window(300.0, 30.0, requests=10.0),)):
        assert answered({"prefill": 1, "decode": 3}, windows).wished == {"prefill": 2, "decode": 3}


def test_what_cannot_be_in_a_status_is_cut_to_what_can() -> None:
    found = answered(
        {"prefill": 99, "decode": -3},
        verdict="no verdict at all",
        message="m" * 5000,
        inputs={f"{number}" * 2000: "x" * 5000 for number in range(50)},
    )
    assert (found.wished, found.verdict) == ({"prefill": 4, "decode": 1}, Reason.SIZED)
    kept = remembered(found, None)
    assert len(kept.last_decisions) == 2
    assert len(kept.last_decisions[0].inputs) <= 32


def test_bounds_of_the_spec_hold_at_once_and_the_status_says_so() -> None:
    found = sized(spec(prefill=(3, 4), decode=(1, 1)), status(), START)
    assert (found.sizes, found.wished) == ({"prefill": 3, "decode": 1}, {"prefill": 3, "decode": 1})
    assert [(one.role, one.from_, one.to) for one in found.decisions] == [("prefill", 2, 3), ("decode", 2, 1)]


def test_sizes_that_were_never_decided_are_those_that_roles_had() -> None:
    fixed = InferenceDeploymentStatus.model_validate({"roles": [{"name": "prefill", "desired": 3}]})
    assert standing(spec(), fixed) == {"prefill": 3, "decode": 1}
    assert standing(spec(), InferenceDeploymentStatus()) == {"prefill": 1, "decode": 1}


def test_a_dry_run_keeps_what_was_carried_out() -> None:
    found = answered({"prefill": 4, "decode": 1}, of=spec(dryRun=True))
    assert (found.sizes, found.wished) == ({"prefill": 2, "decode": 2}, {"prefill": 4, "decode": 1})
    assert sized(spec(dryRun=True), status(4, 1, desired=2), START).sizes == {"prefill": 2, "decode": 2}


def test_during_a_rollout_roles_may_grow_only_and_none_is_changed() -> None:
    both = Observed(pods=(engine("a", 100, 50), engine("b", 100, 50)))
    asked = ask_of(spec(), both, status(), SEEN, START)
    assert [role.least for role in asked.roles] == [1, 1]
    rolling = status(revision={"current": "r", "updating": "s"})
    asked = ask_of(spec(), both, rolling, SEEN, START)
    assert ([role.least for role in asked.roles], asked.aim.role_change) == ([2, 2], False)
    found = sized(spec(), rolling, START, asked, Answer({"prefill": 1, "decode": 3}, Reason.SIZED, ""))
    assert found.wished == {"prefill": 2, "decode": 3}


def test_start_up_is_measured_on_pods_and_not_on_those_that_failed() -> None:
    failed = Termination("engine", "Error", 1, START)
    pods = (
        engine("a", 1000, 940),
        engine("b", 1000, 930),
        engine("c", 1000, 10),
        engine("d", 1000, 1, terminations=(failed,)),
        engine("e", 20, None),
    )
    asked = ask_of(spec(), Observed(pods=pods), status(), SEEN, START)
    assert asked.model.startup == 70
    decode = asked.role("decode")
    assert decode is not None
    assert (decode.ready, decode.starting) == (4, (20.0,))


def test_an_engine_over_several_pods_starts_as_long_as_its_last_one() -> None:
    ranks = [
        replace(engine(name, 100, ready), gang="a", rank=place, ranks=2)
        for place, (name, ready) in enumerate((("a", 60.0), ("a-r1", 20.0)))
    ]
    asked = ask_of(spec(), Observed(pods=tuple(ranks)), status(), SEEN, START)
    assert asked.model.startup == 80
    alone = ask_of(spec(), Observed(pods=(ranks[0],)), status(), SEEN, START)
    assert alone.model.startup == Model().startup


def test_earlier_decisions_of_an_operator_whose_clock_is_ahead_are_of_now() -> None:
    one = {"time": START + timedelta(hours=1), "role": "decode", "from": 1, "to": 2, "reason": "r"}
    before = status(scaling={"sizes": [], "lastDecisions": [one]})
    (change,) = ask_of(spec(), Observed(), before, SEEN, START).changes
    assert (change.age, change.before, change.after) == (0.0, 1, 2)


def test_a_model_is_written_once_it_has_moved_by_a_quarter() -> None:
    model = Model(fitted=True)
    told = answered({}, model=model).model
    assert told is not None
    before = status(scaling={"sizes": [], "model": told.model_dump()})
    ask = ask_of(spec(), Observed(), before, SEEN, START)
    for pace, written in ((model.pace * 1.2, False), (model.pace * 1.3, True)):
        moved = Model(pace=pace, fitted=True)
        found = sized(spec(), before, START, ask, Answer({}, Reason.SIZED, "", model=moved))
        assert (found.model is not None) == written
    assert answered({}, model=Model()).model is None


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.dictionaries(st.sampled_from(["prefill", "decode", "serve"]), st.integers(-(10**6), 10**6)),
    st.booleans(),
)
def test_bounds_hold_whatever_is_answered(
    least: tuple[int, int], more: tuple[int, int], sizes: dict[str, int], seen: bool
) -> None:
    bounds = [(low, low + extra) for low, extra in zip(least, more, strict=True)]
    wanted = spec(*bounds)
    ask = ask_of(wanted, Observed(), status(), SEEN if seen else (), START)
    found = sized(wanted, status(), START, ask, Answer(sizes, Reason.SIZED, ""))
    for carried in (found.sizes, found.wished):
        assert all(
            low <= carried[role] <= high for role, (low, high) in zip(("prefill", "decode"), bounds, strict=True)
        )


def test_the_built_in_policy_understands_what_it_is_asked() -> None:
    ask = ask_of(spec(), Observed(), status(), SEEN, START)
    found = sized(spec(), status(), START, ask, decide(ask))
    assert found.verdict == Reason.FIGURES_MISSING


@pytest.mark.parametrize(
    ("before", "after", "much", "same"),
    [
        ("prefill 2, 3.5 s", "prefill 2, 4.9 s", True, True),
        ("prefill 2, 3.5 s", "prefill 2, 9.0 s", True, False),
        ("prefill 2, 3.5 s", "prefill 2, 9.0 s", False, True),
        ("prefill 2", "decode 2", False, False),
        ("", "", True, True),
    ],
)
def test_messages_that_differ_in_small_numbers_alone_are_alike(before: str, after: str, much: bool, same: bool) -> None:
    assert alike(before, after, much=much) == same


def test_the_statuss_model_has_every_figure_that_is_learnt() -> None:
    assert {*ScalingModel.model_fields} == {*vars(Model())} - {"fitted"}
