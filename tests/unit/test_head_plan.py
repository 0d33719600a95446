"""Which supervisor actors the fleet wants, from what Ray shows."""

import pytest

from headrace_runtime.head.plan import GONE_SECONDS, Engine, FleetPlan, engines, plan

ONE, TWO = Engine("chat-decode-r1-0", 8090), Engine("chat-decode-r1-1", 8090)


def node(pod: str, alive: bool = True, port: str = "8090") -> dict[str, object]:
    resources = {"node:10.0.0.1": 1.0, f"headrace-engine-{pod}": 1.0}
    return {"Alive": alive, "Resources": resources, "Labels": {"headrace.dev/agent-port": port}}


def test_engines_are_the_living_nodes_with_an_agent() -> None:
    head = {"Alive": True, "Resources": {"node:__internal_head__": 1.0}, "Labels": {}}
    nodes = [head, node(ONE.pod), node(TWO.pod, alive=False), node("no-port", port="")]
    assert engines(nodes) == {ONE.pod: ONE}


def test_a_dead_node_beside_its_successor_hides_nothing() -> None:
    assert engines([node(ONE.pod), node(ONE.pod, alive=False)]) == {ONE.pod: ONE}


@pytest.mark.parametrize(
    ("alive", "supervised", "gone", "wanted"),
    [
        pytest.param({ONE.pod: ONE}, {ONE.pod}, {}, FleetPlan(), id="nothing to do"),
        pytest.param({}, set(), {}, FleetPlan(), id="no engines"),
        pytest.param({ONE.pod: ONE, TWO.pod: TWO}, {ONE.pod}, {}, FleetPlan(create=(TWO,)), id="a new engine"),
        pytest.param({}, {ONE.pod}, {ONE.pod: 9.0}, FleetPlan(), id="a node that went may return"),
        pytest.param({}, {ONE.pod}, {ONE.pod: GONE_SECONDS}, FleetPlan(remove=(ONE.pod,)), id="one gone for good"),
        pytest.param({ONE.pod: ONE}, {ONE.pod}, {ONE.pod: 9999.0}, FleetPlan(), id="one that came back"),
    ],
)
def test_the_plan(alive: dict[str, Engine], supervised: set[str], gone: dict[str, float], wanted: FleetPlan) -> None:
    assert plan(alive, supervised, gone) == wanted
