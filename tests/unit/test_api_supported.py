"""Every field of the spec is acted on or refused: none is silently ignored."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from headrace_operator.api.parse import model_inside, parse
from headrace_operator.api.supported import ACTED_ON, NOT_YET, unsupported
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every field that holds a value: `roles[].tolerations[].key`. Objects without fields are values."""
    for field in model.model_fields.values():
        inner = model_inside(field.annotation)
        mark = "[]" if inner and "tuple" in str(field.annotation) else ""
        here = f"{path}{field.alias}{mark}"
        if inner is not None and inner.model_fields:
            yield from leaves(inner, f"{here}.")
        else:
            yield here


LEAVES = list(leaves(InferenceDeploymentSpec))


def refused(leaf: str) -> bool:
    plain = leaf.replace("[]", "")
    return any(plain == entry.replace("[]", "") or plain.startswith(entry.replace("[]", "") + ".") for entry in NOT_YET)


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_field_is_acted_on_or_refused_and_never_both(leaf: str) -> None:
    assert (leaf in ACTED_ON) != refused(leaf)


def test_the_tables_name_only_fields_that_exist() -> None:
    plain = [leaf.replace("[]", "") for leaf in LEAVES]

    assert [path for path in ACTED_ON if path not in LEAVES] == []
    for entry in (entry.replace("[]", "") for entry in NOT_YET):
        assert any(leaf == entry or leaf.startswith(f"{entry}.") for leaf in plain), entry


def test_a_role_acts_on_what_its_deployment_acts_on() -> None:
    for leaf in (leaf for leaf in LEAVES if leaf.startswith(("engine.", "parallelism."))):
        assert ACTED_ON.get(leaf, "refused") == ACTED_ON.get(f"roles[].{leaf}", "refused")


def test_nothing_to_say_about_a_small_spec() -> None:
    spec = InferenceDeploymentSpec.model_validate({"model": {"source": "node:///m"}})

    assert unsupported(spec, "1.2.3") == []


SET: dict[str, Any] = {
    "model": {"source": "pvc://m"},
    "engine": {"speculative": {"method": "NGram"}, "weightsOffload": {"cpu": "40Gi"}},
    "executor": "Ray",
    "roles": [
        {"name": "prefill", "engine": {"speculative": {"method": "MTP"}, "weightsOffload": {"cpu": "1Gi"}}},
        {"name": "decode"},
    ],
    "scaling": {"mode": "External", "toZero": {"after": "10m"}, "policy": "package.module:function"},
    "gateway": {
        "tls": {"secretRef": {"name": "tls"}},
        "expose": {"loadBalancer": {}},
    },
    "ray": {
        "gcs": {"backend": "Redis", "redis": {"address": "redis:6379"}, "volume": {"claimTemplate": {"size": "1Gi"}}}
    },
    "rollout": {"canary": {}},
    "networkPolicy": {"mode": "DefaultDeny"},
    "observability": {"podMonitor": True},
}


def test_everything_that_is_not_acted_on_is_named_at_once() -> None:
    problems = unsupported(InferenceDeploymentSpec.model_validate(SET), "1.2.3")

    named = {problem.path.replace("[0]", "[]").replace("[1]", "[]").removeprefix("spec.") for problem in problems}
    assert named >= set(NOT_YET)
    assert named >= {"executor", "ray.gcs.backend", "networkPolicy.mode"}
    assert all("1.2.3" in problem.message for problem in problems)


def test_a_problem_names_the_field_the_version_and_the_fix() -> None:
    problems = parse(
        {"metadata": {"name": "a"}, "spec": {"model": {"source": "node:///m"}, "observability": {"podMonitor": True}}}
    )

    assert isinstance(problems, list)
    assert [problem.path for problem in problems] == ["spec.observability"]
    assert "not acted on by this version (" in problems[0].message
    assert problems[0].message.endswith("remove the field")


@pytest.mark.parametrize(
    "inert",
    [
        {"gateway": {"resume": {"enabled": False, "maxAttempts": 3}, "limits": {}}},
        {"disaggregation": {"roleChange": {"enabled": False}}},
        {"rollout": {"autoRollback": False}},
        {"observability": {"podMonitor": False}},
        {"scaling": {"policy": "builtin", "dryRun": False}},
    ],
)
def test_a_default_written_out_is_no_offence(inert: dict[str, Any]) -> None:
    assert not isinstance(parse({"metadata": {"name": "a"}, "spec": {"model": {"source": "node:///m"}, **inert}}), list)
