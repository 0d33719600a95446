"""The cases of `tests/cases/inferencedeployment.yaml` before Python; `tests/api` shows them to an API server."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[1] / "cases/inferencedeployment.yaml").read_text())


def body(spec: dict[str, Any]) -> dict[str, Any]:
    model = {"source": "node:///model", **spec.get("model", {})}
    given = {key: value for key, value in model.items() if value is not None}
    return {"metadata": {"name": "chat"}, "spec": {**spec, "model": given}}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_python_rules(case: dict[str, Any]) -> None:
    parsed = parse(body(case["spec"]))

    if "says" not in case:
        assert isinstance(parsed, InferenceDeploymentSpec), parsed
    else:
        assert isinstance(parsed, list)
        assert any(str(problem).startswith(case["says"]) for problem in parsed), parsed


def test_every_case_is_named_once() -> None:
    names = [case["name"] for case in CASES]

    assert len(names) == len(set(names))


def test_what_the_server_refuses_python_refuses_too() -> None:
    assert [case["name"] for case in CASES if "refusal" in case and "says" not in case] == []
