"""What the policy PrefixAware makes of engines: they publish the KV blocks they hold."""

from typing import Any

import pytest

from headrace_operator.api.effective import effective_roles
from headrace_operator.desired import contracts, desired_objects
from headrace_operator.plan import make_plan
from headrace_operator.state import Observed
from headrace_operator.testing import Sample


def engine_ports(sample: Sample) -> list[dict[str, int]]:
    objects = desired_objects(sample.subject(), make_plan(sample.spec(), Observed()))
    pods: list[dict[str, Any]] = [one for one in objects if one["kind"] == "Pod"]
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    return [
        {port["name"]: port["containerPort"] for port in container["ports"]}
        for container in containers
        if container["name"] == "engine"
    ]


def publishing(sample: Sample) -> list[bool]:
    subject = sample.subject()
    return [contracts.node(subject, role, "r").engine.kv_events for role in effective_roles(subject.spec)]


def test_by_default_engines_publish_nothing() -> None:
    sample = Sample().split(1, 1)
    assert publishing(sample) == [False, False]
    assert not any("kv-events" in ports for ports in engine_ports(sample))


@pytest.mark.parametrize("policy", ["PrefixAware", "LeastLoaded", "RoundRobin"])
def test_the_gateway_routes_as_it_is_told(policy: str) -> None:
    assert contracts.gateway(Sample().serve(1).set("gateway.routing.policy", policy).subject()).routing == policy


def test_prefix_aware_routing_has_every_engine_publish() -> None:
    sample = Sample().split(1, 1).set("gateway.routing.policy", "PrefixAware")
    assert publishing(sample) == [True, True]
    for ports in engine_ports(sample):
        assert (ports["kv-events"], ports["kv-replay"]) == (5557, 5558)


def test_data_parallel_copies_publish_nothing_as_none_can_be_chosen() -> None:
    sample = Sample().serve(1).set("gateway.routing.policy", "PrefixAware").set("parallelism.data", 2)
    assert publishing(sample) == [False]
