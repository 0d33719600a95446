"""Parsing: never raises for what a user wrote, and says everything at once."""

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.parse import parse
from headrace_operator.api.problems import Problem, sentence
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec


def problems(spec: Any, name: str = "chat") -> list[str]:
    parsed = parse({"metadata": {"name": name}, "spec": spec})
    assert isinstance(parsed, list), parsed
    return [str(problem) for problem in parsed]


def test_the_smallest_object_is_enough() -> None:
    spec = parse({"metadata": {"name": "chat"}, "spec": {"model": {"source": "node:///m"}}})

    assert isinstance(spec, InferenceDeploymentSpec)
    assert (spec.roles[0].name, spec.gateway.routing.policy, spec.drain.timeout.seconds) == (
        "serve",
        "LeastLoaded",
        300,
    )


def test_views_are_as_good_as_dictionaries() -> None:
    view = MappingProxyType({"model": MappingProxyType({"source": "node:///m"})})

    assert isinstance(parse({"metadata": {"name": "chat"}, "spec": view}), InferenceDeploymentSpec)


def test_all_problems_are_said_at_once_of_fields_and_between_them() -> None:
    said = problems(
        {
            "model": {"source": "node:///m", "sauce": 1},
            "paralelism": {},
            "drain": {"timeout": "5"},
            "engine": {"device": {"resource": "cpu", "count": 2}, "env": [{"name": "1"}]},
            "rollout": {"maxSurge": 0},
            "observability": {"podMonitor": True},
        },
        name="My.Chat",
    )

    assert [line.split(": ")[0] for line in said] == [
        "metadata.name",
        "spec.drain.timeout",
        "spec.engine.device.count",
        "spec.engine.env[0].name",
        "spec.model.sauce",
        "spec.observability",
        "spec.paralelism",
        "spec.rollout",
    ]


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (None, "spec: is missing: give at least spec.model.source"),
        ([], "spec: is missing: give at least spec.model.source"),
        (
            {"model": {"source": "node:///m"}, "paralelism": {}},
            "spec.paralelism: unknown field: did you mean parallelism?",
        ),
        ({"model": {"source": "node:///m"}, "drain": {"x": 1}}, "spec.drain.x: unknown field: there are timeout"),
        ({"model": {"source": "node:///m"}, "drain": 5}, "spec.drain: must be an object, not 5"),
        ({"model": {"source": "node:///m"}, "roles": {}}, "spec.roles: must be a list, not {}"),
        ({"model": {"source": "node:///m"}, "paused": "yes"}, 'spec.paused: must be true or false, not "yes"'),
        (
            {"model": {"source": "node:///m"}, "engine": {"extraArgs": {"a": [1]}}},
            "spec.engine.extraArgs.a: must be text, a number, true or false: write a structured option as JSON text",
        ),
    ],
)
def test_a_problem_names_the_field_and_the_fix(spec: Any, line: str) -> None:
    assert line in problems(spec)


def test_a_missing_field_is_explained() -> None:
    (line,) = problems({"model": {}})

    assert line.startswith("spec.model.source: is required. Where the weights are.")


def test_a_long_value_is_cut() -> None:
    (line,) = problems({"model": {"source": "node:///m"}, "paused": "x" * 500})

    assert len(line) < 120


@pytest.mark.parametrize(
    "body", [{}, {"metadata": None}, {"metadata": {"name": 3}}, {"spec": {}}, {"metadata": [], "spec": 1}]
)
def test_half_an_object_is_a_problem_and_no_crash(body: dict[str, Any]) -> None:
    parsed = parse(body)

    assert isinstance(parsed, list)
    assert parsed


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
WORDS = [
    *(
        "model",
        "source",
        "integrity",
        "policy",
        "roles",
        "name",
        "replicas",
        "scaling",
        "min",
        "max",
        "engine",
        "device",
    ),
    *("resource", "count", "dtype", "extraArgs", "env", "value", "parallelism", "tensor", "resources", "limits", "key"),
    *("podTemplate", "spec", "containers", "kvCache", "size", "gateway", "ray", "gcs", "volume", "hostPath", "rollout"),
    *(
        "maxSurge",
        "canary",
        "steps",
        "recovery",
        "backoff",
        "base",
        "drain",
        "timeout",
        "slo",
        "ttft",
        "target",
        "[key]",
    ),
]
SPEC_LIKE = st.recursive(
    st.one_of(JSON, st.sampled_from(["serve", "prefill", "decode", "cpu", "node:///m", "5s", "1Gi", "SLO", "Off"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), SPEC_LIKE, max_size=6))
def test_nothing_that_a_user_can_write_raises(spec: dict[str, Any]) -> None:
    given_model = {"model": {"source": "node:///m"}, **spec}

    parsed = parse({"metadata": {"name": "chat"}, "spec": given_model})

    assert isinstance(parsed, InferenceDeploymentSpec) or (parsed and all(isinstance(p, Problem) for p in parsed))


def test_one_problem_needs_no_counting() -> None:
    assert sentence([Problem("a", "b")]) == "a: b"
    assert sentence([Problem("a", "b"), Problem("c", "d")]) == "2 problems: a: b; c: d"


@pytest.mark.parametrize(
    "env",
    [
        [{"name": "KEY", "value": 7_700_077}],
        [{"name": "KEY", "valueFrom": "7700077"}],
        [{"name": "KEY=7700077"}],
        [{"KEY": "7700077"}],
        "KEY=7700077",
    ],
)
@pytest.mark.parametrize("role", [False, True])
def test_what_stands_in_an_environment_variable_is_said_to_nobody(env: Any, role: bool) -> None:
    engine = {"roles": [{"name": "serve", "engine": {"env": env}}]} if role else {"engine": {"env": env}}
    said = problems({"model": {"source": "node:///m"}, **engine})

    assert "env" in " ".join(said)
    assert "7700077" not in " ".join(said)
