"""Engines go back to the node of their KV blocks, wait for it as long as the spec says, and no longer."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator import names
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.plan import make_plan
from headrace_operator.plan.placement import out_of_service
from headrace_operator.plan.revision import engine_revision
from headrace_operator.state import Blocker, Observed, Plan, Pod
from headrace_operator.testing import START, Sample

FULL = (
    "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't match Pod's node affinity/selector. no."
)


def with_disk(replicas: int = 2, **disk: object) -> Sample:
    tier = {"size": "1Gi", "volume": {"hostPath": "/mnt/kv"}, **disk}
    return Sample().serve(replicas).set("kvCache.host", {"size": "1Gi"}).set("kvCache.disk", tier)


REVISION = engine_revision(with_disk().spec())


def engine(
    index: int, slot: str, node: str = "", *, back: str = "", age: float = 0, why: str = "", revision: str = REVISION
) -> Pod:
    """One that is ready on `node`, or one that waits for a node."""
    name = names.engine_pod("chat", "serve", revision, index)
    return Pod(
        name, "engine", "serve", revision, index, ready=bool(node), node=node, kv_slot=slot, returns_to=back,
        created=START - timedelta(seconds=age),
        blocker=None if node else Blocker(name, "Unschedulable", why or FULL),
    )  # fmt: skip


def planned(*pods: Pod, before: dict[str, str] | None = None, spec: InferenceDeploymentSpec | None = None) -> Plan:
    return make_plan(spec or with_disk().spec(), Observed(pods=pods), before or {}, START)


def made(plan: Plan) -> dict[str, tuple[str, str]]:
    """Each planned pod's slot, and the node that it may run on."""
    return {f"{slot.home}-{slot.index}": (slot.kv_slot, slot.returns_to) for slot in plan.slots}


BOTH = {"serve-0": "n1", "serve-1": "n2"}


def test_nothing_to_do() -> None:
    plan = planned(engine(0, "serve-0", "n1"), engine(1, "serve-1", "n2"), before=BOTH)
    assert made(plan) == {"serve-0": ("serve-0", ""), "serve-1": ("serve-1", "")}
    assert plan.placement == BOTH


def test_no_slot_is_given_where_no_blocks_outlive_an_engine() -> None:
    plan = make_plan(Sample().serve(2).spec(), Observed(), BOTH, START)
    assert {slot.kv_slot for slot in plan.slots} == {""}
    assert plan.placement == {}


def test_the_first_engines_go_anywhere() -> None:
    assert made(planned()) == {"serve-0": ("serve-0", ""), "serve-1": ("serve-1", "")}


@pytest.mark.parametrize("lost", [{}, {"going": True}, {"failed": True, "ready": False}], ids=["gone", "going", "dead"])
def test_a_replaced_engine_returns_to_its_node(lost: dict[str, bool]) -> None:
    there = [replace(engine(0, "serve-0", "n1"), **lost)] if lost else []  # type: ignore[arg-type]
    plan = planned(*there, engine(1, "serve-1", "n2"), before=BOTH)
    new = "serve-2" if lost else "serve-0"
    assert made(plan) == {new: ("serve-0", "n1"), "serve-1": ("serve-1", "")}
    assert plan.placement == BOTH


def test_unless_the_spec_says_that_any_node_will_do() -> None:
    spec = with_disk(returnToNode={"enabled": False}).spec()
    assert made(planned(engine(1, "serve-1", "n2"), before=BOTH, spec=spec))["serve-0"] == ("serve-0", "")


def test_an_engine_waits_for_its_node_until_the_timeout() -> None:
    waiting = engine(0, "serve-0", back="n1", age=59)
    plan = planned(waiting, engine(1, "serve-1", "n2"), before=BOTH)
    assert made(plan)["serve-0"] == ("serve-0", "n1")
    assert plan.placement == BOTH


def test_then_its_place_is_forgotten_and_after_that_it_goes_and_another_starts_anywhere() -> None:
    waiting, other = engine(0, "serve-0", back="n1", age=60), engine(1, "serve-1", "n2")
    first = planned(waiting, other, before=BOTH)
    assert made(first)["serve-0"] == ("serve-0", "n1"), "the pod stays until the status has forgotten its place"
    assert first.placement == {"serve-1": "n2"}
    second = planned(waiting, other, before=dict(first.placement))
    assert made(second) == {"serve-1": ("serve-1", ""), "serve-2": ("serve-2", "")}
    assert second.keep == frozenset()
    third = planned(engine(2, "serve-2"), other, before=dict(second.placement))
    assert made(third)["serve-2"] == ("serve-2", "")


@pytest.mark.parametrize(
    "why",
    [
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match Pod's node affinity/selector.",
        "0/2 nodes are available: 2 node(s) didn't satisfy plugin(s) [NodeAffinity]. preemption: 0/2 nodes are "
        "available: 2 Preemption is not helpful for scheduling.",
        "waits for the node n1: 0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't satisfy "
        "plugin(s) [NodeAffinity VolumeBinding]. preemption: no.",
    ],
)
def test_a_node_that_is_gone_or_cordoned_holds_nobody_up(why: str) -> None:
    waiting = engine(0, "serve-0", back="n1", age=1, why=why)
    assert planned(waiting, engine(1, "serve-1", "n2"), before=BOTH).placement == {"serve-1": "n2"}


@pytest.mark.parametrize(
    "why",
    [
        FULL,
        "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 1 node(s) didn't "
        "match Pod's node affinity/selector. preemption: 0/2 nodes are available: 2 Preemption is not helpful.",
        "0/3 nodes are available: 1 node(s) were unschedulable, 1 Too many pods, 1 node(s) didn't match Pod's node "
        "affinity/selector.",
        "pod has unbound immediate PersistentVolumeClaims",
        "nobody knows",
        "",
    ],
)
def test_words_that_say_something_else_cost_the_timeout(why: str) -> None:
    assert not out_of_service(why)


def test_only_one_engine_is_let_go_in_a_pass() -> None:
    waiting = [engine(index, f"serve-{index}", back=f"n{index}", age=90) for index in (0, 1)]
    plan = planned(*waiting)
    assert [name for name, (_, back) in made(plan).items() if back] == ["serve-1"]


def test_switching_it_off_lets_those_go_that_wait() -> None:
    spec = with_disk(returnToNode={"enabled": False}).spec()
    plan = planned(engine(0, "serve-0", back="n1"), engine(1, "serve-1", "n2"), before=BOTH, spec=spec)
    assert made(plan) == {"serve-1": ("serve-1", ""), "serve-2": ("serve-2", "")}


def test_a_rollout_sends_engines_back_as_slots_come_free_and_never_holds_up_the_first() -> None:
    old = [engine(0, "serve-0", "n1", revision="old"), engine(1, "serve-1", "n2", revision="old")]
    first = planned(*old, before=BOTH)
    assert made(first) == {"serve-0": ("serve-2", "")}, "the surge has no blocks to go back to"
    second = planned(*old, engine(0, "serve-2", "n3"), before=BOTH)
    assert second.keep == {old[0].name}
    third = planned(old[0], engine(0, "serve-2", "n3"), before=dict(second.placement))
    assert made(third)["serve-1"] == ("serve-1", "n2")


def test_suspended_and_back_every_engine_returns() -> None:
    suspended = with_disk().set("suspend", True).spec()
    gone = planned(engine(0, "serve-0", "n1"), engine(1, "serve-1", "n2"), before=BOTH, spec=suspended)
    assert (gone.slots, gone.placement) == ((), BOTH)
    assert made(planned(before=BOTH)) == {"serve-0": ("serve-0", "n1"), "serve-1": ("serve-1", "n2")}


def test_places_of_a_size_that_is_no_longer_wanted_are_forgotten() -> None:
    many = {f"serve-{number}": f"n{number}" for number in range(9)}
    assert planned(engine(0, "serve-7", "n7"), before=many).placement == {
        "serve-0": "n0", "serve-1": "n1", "serve-7": "n7",
    }  # fmt: skip


def test_who_shares_blocks_and_who_returns_is_in_no_revision() -> None:
    same = [
        with_disk(),
        with_disk(returnToNode={"enabled": False}),
        with_disk(returnToNode={"timeout": "5m"}),
        with_disk().set("kvCache.sharing", "Key").set("gateway.apiKeysSecretRef", {"name": "keys"}),
    ]
    assert {engine_revision(sample.spec()) for sample in same} == {REVISION}
    claims = [with_disk(volume={"claimTemplate": {"size": size}}).spec() for size in ("1Gi", "2Gi")]
    assert engine_revision(claims[0]) == engine_revision(claims[1]) != REVISION


@pytest.mark.parametrize(
    "disk", [{"size": "2Gi"}, {"verify": "Never"}, {"eviction": "LRU"}, {"encryption": {"keySecretRef": {"name": "k"}}}]
)
def test_what_an_engine_is_told_of_its_disk_is(disk: dict[str, object]) -> None:
    assert engine_revision(with_disk(**disk).spec()) != REVISION


@st.composite
def fleets(draw: st.DrawFn) -> list[Pod]:
    pods = []
    for index in draw(st.lists(st.integers(0, 5), unique=True, max_size=5)):
        node = draw(st.sampled_from(["", "n1", "n2", "n3"]))
        back = "" if node else draw(st.sampled_from(["", "n1", "n2"]))
        age = draw(st.sampled_from([0, 59, 61]))
        slot = f"serve-{index}"
        pod = engine(index, slot, node, back=back, age=age, revision=draw(st.sampled_from([REVISION, "old"])))
        pods.append(replace(pod, going=draw(st.booleans())))
    return pods


@settings(max_examples=150, deadline=None)
@given(fleets(), st.dictionaries(st.sampled_from([f"serve-{n}" for n in range(6)]), st.sampled_from(["n1", "n2"])))
def test_no_two_live_engines_have_one_slot_and_all_that_is_new_goes_where_its_blocks_are(
    pods: list[Pod], before: dict[str, str]
) -> None:
    plan = planned(*pods, before=before)
    kept = [pod.kv_slot for pod in pods if pod.name in plan.keep]
    slots = [slot.kv_slot for slot in plan.slots]
    assert len({*kept, *slots}) == len(kept) + len(slots)
    there = {pod.index for pod in pods if pod.revision == REVISION}
    for slot in plan.slots:
        if slot.index not in there:
            assert slot.returns_to == plan.placement.get(slot.kv_slot, "")
    ends = [p for p in pods if p.live and p.ready and p.revision == REVISION and p.index not in
            {slot.index for slot in plan.slots}]  # fmt: skip
    assert len(ends) <= max(0, sum(p.live and p.revision == REVISION for p in pods) - 2), "none ended to go elsewhere"


@settings(max_examples=150, deadline=None)
@given(fleets(), st.dictionaries(st.sampled_from([f"serve-{n}" for n in range(6)]), st.sampled_from(["n1", "n2"])))
def test_the_same_plan_again_moves_nothing(pods: list[Pod], before: dict[str, str]) -> None:
    first = planned(*pods, before=before)
    again = planned(*pods, before=dict(first.placement))
    assert again.placement == planned(*pods, before=dict(again.placement)).placement
