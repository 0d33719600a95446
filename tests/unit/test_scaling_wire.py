"""Asks and answers as JSON: what is written is read again, and nothing else is read."""

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.plan.scaling import Aim, Answer, Ask, Changed, Decision, Model, Role, Target, Window, decide
from headrace_operator.plan.scaling.inputs import sane
from headrace_operator.plan.scaling.wire import WireError, answer_from_json, answer_to_json, ask_from_json, ask_to_json

figures = st.none() | st.floats()
ages = st.floats(allow_nan=False, allow_infinity=False)
names = st.sampled_from(["prefill", "decode", "serve"])
sizes = st.integers(0, 1000)
windows = st.builds(
    Window,
    age=st.floats(),
    seconds=st.floats(),
    engines=st.dictionaries(names, st.floats()),
    **dict.fromkeys(["requests", "prompt", "cached", "output", "ttft", "itl", "waiting", "usual_ttft"], figures),
)
roles = st.builds(Role, name=names, size=sizes, least=sizes, most=sizes, starting=st.lists(ages).map(tuple))
targets = st.none() | st.builds(Target, st.floats(1e-3, 1e3), st.floats(0.01, 0.99))
asks = st.builds(
    Ask,
    st.builds(Aim, targets, targets, st.none() | sizes, sizes, st.booleans(), st.floats(0, 1e6)),
    st.lists(roles, max_size=2).map(tuple),
    st.lists(windows, max_size=3).map(tuple),
    st.lists(st.builds(Changed, ages, names, sizes, sizes, st.booleans()), max_size=3).map(tuple),
    st.builds(Model, st.floats(), st.floats()),
)

ASK = Ask(
    Aim(Target(0.5), cap=4),
    (Role("prefill", 2, 1, 4, ready=1, starting=(3.0,)), Role("decode", 1, 1, 4, ready=1)),
    (Window(0.0, 30.0, requests=540.0, engines={"prefill": 2.0}),),
    (Changed(60.0, "prefill", 1, 2),),
)
ANSWER = Answer(
    {"prefill": 3, "decode": 1}, "Sized", "So.", (Decision("prefill", 2, 3, "More come."),), {"rate": "9/s"}
)


@given(asks)
@settings(deadline=None)
def test_an_ask_is_read_as_it_was_written(ask: Ask) -> None:
    written = json.dumps(ask_to_json(ask), allow_nan=False)
    assert ask_from_json(json.loads(written)) == sane(ask)


def test_a_policy_that_reads_a_record_decides_as_the_one_that_was_asked() -> None:
    odd = replace(ASK, windows=(*ASK.windows, Window(math.nan, 30.0), Window(30.0, 30.0, requests=math.inf)))
    assert decide(ask_from_json(ask_to_json(odd))) == decide(odd)


def test_an_answer_is_read_as_it_was_written() -> None:
    assert answer_from_json(json.loads(json.dumps(answer_to_json(ANSWER)))) == ANSWER
    real = decide(ASK)
    assert answer_from_json(answer_to_json(real)) == real


def test_an_older_record_lacks_fields_that_have_a_default() -> None:
    plain = ask_to_json(ASK)
    del plain["windows"][0]["waiting"], plain["changes"], plain["model"]
    assert ask_from_json(plain) == replace(ASK, changes=())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("windows", 0, "age"), "now", "windows[0].age: Input should be a valid number"),
        (("windows", 0, "age"), math.nan, "windows[0].age: Input should be a finite number"),
        (("windows", 0, "engines", "prefill"), math.inf, "windows[0].engines.prefill: Input should be a finite number"),
        (("windows", 0, "mood"), "good", "windows[0].mood: Unexpected keyword argument"),
        (("roles", 0, "size"), 2.5, "roles[0].size: Input should be a valid integer"),
        (("roles", 0, "size"), True, "roles[0].size: Input should be a valid integer"),
        (("aim",), None, "aim: Input should be an object"),
        (("roles",), "prefill", "roles: Input should be a valid array"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(path: tuple[Any, ...], value: object, said: str) -> None:
    plain: Any = copy.deepcopy(ask_to_json(ASK))
    place = plain
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(WireError) as refused:
        ask_from_json(plain)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("plain", [None, [], "text", 3, {"sizes": {"a": 1}}, {1: {2, 3}}, {"sizes": {"a": "1"}}])
def test_what_is_no_answer_is_refused(plain: object) -> None:
    with pytest.raises(WireError):
        answer_from_json(plain)


@pytest.mark.parametrize(
    ("value", "said"),
    [("three", "sizes.prefill: Input should be a valid integer"), (object(), "Unable to serialize unknown type")],
)
def test_an_answer_with_values_of_other_types_is_not_written(value: Any, said: str) -> None:
    with pytest.raises(WireError, match=said):
        answer_to_json(replace(ANSWER, sizes={"prefill": value}))
