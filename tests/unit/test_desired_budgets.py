"""Which pods may be evicted at a time: budgets of roles and of the gateway."""

from headrace_operator import names
from headrace_operator.desired import desired_objects
from headrace_operator.plan import Terms, make_plan
from headrace_operator.state import Object, Observed
from headrace_operator.testing import Sample


def budgets(sample: Sample) -> dict[str, Object]:
    plan = make_plan(sample.spec(), Observed())
    found = [obj for obj in desired_objects(sample.subject(), plan) if obj["kind"] == "PodDisruptionBudget"]
    return {obj["metadata"]["name"]: obj["spec"] for obj in found}


def test_nothing_is_bounded_where_there_is_one_of_each() -> None:
    assert budgets(Sample().split(1, 1).set("gateway.replicas", 1)) == {}


def test_one_engine_of_a_role_at_a_time_and_one_gateway() -> None:
    found = budgets(Sample().split(2, 4))
    assert {name: spec.get("minAvailable", spec.get("maxUnavailable")) for name, spec in found.items()} == {
        "chat-prefill": 1,
        "chat-decode": 3,
        "chat-gateway": 1,
    }
    assert all(spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for spec in found.values())


def test_as_many_as_a_rollout_may_take() -> None:
    found = budgets(Sample().split(2, 4).set("rollout", {"maxUnavailable": 2}))
    assert "chat-prefill" not in found
    assert found["chat-decode"]["minAvailable"] == 2


def test_the_selector_holds_a_role_as_it_is_now_of_every_revision() -> None:
    found = budgets(Sample().split(2, 4))["chat-decode"]["selector"]["matchLabels"]
    assert found == {names.DEPLOYMENT: "chat", names.COMPONENT: "engine", names.ROLE: "decode"}


def test_a_size_that_is_decided_moves_its_budget() -> None:
    sized = Sample().split().set("scaling.mode", "SLO").set("slo", {"ttft": {"target": "1s"}, "itl": {"target": "1s"}})
    sized.set("roles", [{"name": name, "scaling": {"max": 6}} for name in ("prefill", "decode")])
    assert set(budgets(sized)) == {"chat-gateway"}
    plan = make_plan(sized.spec(), Observed(), terms=Terms(sizes={"prefill": 1, "decode": 5}))
    found = [obj for obj in desired_objects(sized.subject(), plan) if obj["kind"] == "PodDisruptionBudget"]
    assert {one["metadata"]["name"]: one["spec"].get("minAvailable") for one in found} == {
        "chat-decode": 4,
        "chat-gateway": None,
    }


def test_a_suspended_deployment_bounds_no_engine() -> None:
    assert set(budgets(Sample().split(2, 4).set("suspend", True))) == {"chat-gateway"}


def test_an_engine_over_several_pods_loses_one_of_them_and_the_others_follow() -> None:
    spread = {"tensor": 2, "pods": 2}
    assert budgets(Sample().serve(3).set("parallelism", spread))["chat-serve"]["minAvailable"] == 5
    assert "chat-serve" not in budgets(Sample().serve(1).set("parallelism", spread))
