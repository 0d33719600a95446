"""The gateway's objects: what its contract says of limits and keys, what it mounts, and what brings new pods."""

from typing import Any

import pytest

from headrace_operator.desired import contracts, gateway
from headrace_operator.state import Object
from headrace_operator.testing import Sample
from headrace_runtime.contract import KEYS_MOUNT, Admission, KeyRule, Limit, Resume


def sample(**fields: Any) -> Sample:
    """With two gateway pods."""
    made = Sample().serve()
    for path, value in {"replicas": 2, **fields}.items():
        made.set(f"gateway.{path.replace('__', '.')}", value)
    return made


def admission(**fields: Any) -> Admission:
    return contracts.gateway(sample(**fields).subject()).admission


def template(made: Sample) -> Object:
    found: Object = gateway.objects(made.subject())[-1]["spec"]["template"]
    return found


def test_nothing_is_asked_for_and_nothing_limited_where_the_spec_says_nothing() -> None:
    contract = contracts.gateway(sample().subject())
    assert (contract.keys_folder, contract.admission) == (None, Admission())
    assert "api-keys" not in str(template(sample()))


def test_broken_streams_are_resumed_unless_the_spec_says_otherwise() -> None:
    assert contracts.gateway(sample().subject()).resume == Resume()
    assert contracts.gateway(sample(resume={"maxAttempts": 5}).subject()).resume == Resume(max_attempts=5)
    off = contracts.gateway(sample(resume={"enabled": False}).subject())
    assert off.resume is None
    assert '"resume": null' in contracts.serialise(off)


def test_each_pod_gives_out_its_share() -> None:
    found = admission(replicas=3, limits={"maxConcurrent": 10, "requestsPerMinute": 3, "queue": {"maxLength": 8}})
    assert found.total == Limit(max_concurrent=3, requests_per_minute=1)
    assert found.queue_length == 8


def test_a_key_has_its_own_limits_and_for_the_rest_those_of_all() -> None:
    found = admission(
        apiKeysSecretRef={"name": "keys"},
        limits={"perKey": {"maxConcurrent": 4, "requestsPerMinute": 60}},
        keys=[{"name": "a", "priority": "High", "limits": {"maxConcurrent": 20}}],
    )
    assert found.each_key == KeyRule(limits=Limit(max_concurrent=2, requests_per_minute=30))
    assert found.keys == {"a": KeyRule(priority="High", limits=Limit(max_concurrent=10, requests_per_minute=30))}


def test_the_keys_are_mounted_for_the_gateways_user_alone() -> None:
    spec = template(sample(apiKeysSecretRef={"name": "chat-keys"}))["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "api-keys"]
    assert volume["secret"] == {"secretName": "chat-keys", "defaultMode": 0o440}
    (mount,) = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "api-keys"]
    assert mount == {"name": "api-keys", "mountPath": KEYS_MOUNT, "readOnly": True}
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"]


KEYS = {"apiKeysSecretRef": {"name": "keys"}}


@pytest.mark.parametrize(
    "change",
    [
        {"limits": {"maxConcurrent": 10, "perKey": {"tokensPerMinute": 1000}}},
        {"keys": [{"name": "a", "priority": "Low"}]},
        {"limits": {"queue": {"maxWait": "5s"}}},
        {"routing": {"policy": "RoundRobin"}},
    ],
    ids=str,
)
def test_what_a_running_gateway_takes_up_brings_no_new_pods(change: dict[str, Any]) -> None:
    assert template(sample(**KEYS, **change)) == template(sample(**KEYS))


@pytest.mark.parametrize("change", [{}, {"apiKeysSecretRef": {"name": "other"}}], ids=["none", "another"])
def test_another_secret_brings_new_pods(change: dict[str, Any]) -> None:
    assert template(sample(**change)) != template(sample(**KEYS))


def test_another_model_name_brings_new_pods() -> None:
    assert template(sample().set("model.servedName", "other")) != template(sample())


def test_processes_of_one_machine_have_no_keys_and_one_gateway() -> None:
    local = contracts.local(sample(**KEYS, limits={"maxConcurrent": 10}).subject(), "r").gateway
    assert (local.keys_folder, local.admission.total.max_concurrent) == (None, 10)


def test_a_pod_has_as_long_as_its_answers_may_go_on_and_what_it_takes_to_leave() -> None:
    usual, longer = sample(), sample(drainTimeout="299.5s")
    assert contracts.gateway(usual.subject()).drain_seconds == 60.0
    assert template(usual)["spec"]["terminationGracePeriodSeconds"] == 60 + gateway.LEAVE_SECONDS + 30
    assert contracts.gateway(longer.subject()).drain_seconds == 299.5
    assert template(longer)["spec"]["terminationGracePeriodSeconds"] == 300 + gateway.LEAVE_SECONDS + 30
    assert template(usual)["metadata"]["annotations"] != template(longer)["metadata"]["annotations"]
