"""The status: what is written comes back the same, and a newer operator's fields do no harm."""

from datetime import UTC, datetime
from typing import Any

from headrace_operator.api.conditions import initial
from headrace_operator.api.v1alpha1 import InferenceDeploymentStatus, ModelStatus, RevisionStatus, RoleStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def wire(status: InferenceDeploymentStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_an_object_without_a_status_has_an_empty_one() -> None:
    assert InferenceDeploymentStatus.model_validate({}) == InferenceDeploymentStatus()


def test_what_is_written_comes_back_the_same() -> None:
    status = InferenceDeploymentStatus(
        observed_generation=4,
        url="http://chat.demo.svc",
        revision=RevisionStatus(current="6f9c"),
        model=ModelStatus(served_name="qwen3-8b", digest="sha256:ab", bytes=16, verified_at=NOW),
        roles=(RoleStatus(name="decode", desired=2, ready=1, updated=2, summary="1/2"),),
        conditions=initial(4, NOW),
    )

    assert InferenceDeploymentStatus.model_validate(wire(status)) == status
    assert wire(status)["model"]["verifiedAt"] == "2026-01-01T00:00:00Z"


def test_a_decision_is_written_with_from() -> None:
    decision = {
        "time": "2026-01-01T00:00:00Z",
        "role": "decode",
        "from": 1,
        "to": 2,
        "reason": "Load",
        "swap": False,
        "inputs": {},
    }
    status = InferenceDeploymentStatus.model_validate({"scaling": {"lastDecisions": [decision]}})

    assert wire(status)["scaling"]["lastDecisions"] == [decision]


def test_fields_of_a_newer_operator_are_passed_over() -> None:
    status = InferenceDeploymentStatus.model_validate({"url": "http://a", "weather": "fine", "model": {"colour": 1}})

    assert status.url == "http://a"
