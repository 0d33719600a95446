"""Engines that leave, whoever told them to: who is asked to answer on, what was cut, and what the status says of it."""

from datetime import UTC, datetime, timedelta

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.state import Object
from headrace_operator.testing import START, Sample, Scene, running
from headrace_runtime.contract import EngineFailure


async def ready(sample: Sample) -> Scene:
    scene = Scene(sample)
    await scene.settle()
    for pod in scene.pods():
        scene.say(pod, engine_pid=4711)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    assert scene.runtime.stays == []
    return scene


def evict(scene: Scene, pod: str) -> str:
    """Its address. The pod is told to go, and is there until its agent leaves."""
    obj = scene.cluster.objects["Pod", "demo", pod]
    obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:05:30Z"
    address: str = obj["status"]["podIP"]
    return address


async def test_nothing_to_do() -> None:
    scene = await ready(Sample().split(1, 2))
    before = len(scene.cluster.writes)
    await scene.reconcile()
    assert (scene.cluster.writes[before:], scene.runtime.stays) == ([], [])
    assert "recovery" not in scene.status


async def test_the_only_engine_of_a_role_answers_on_until_its_successor_does() -> None:
    scene = await ready(Sample().split(1, 1))
    (evicted,) = scene.pods(role="decode")
    address = evict(scene, evicted)
    look = await scene.reconcile()
    (successor,) = set(scene.pods(role="decode")) - {evicted}
    assert scene.runtime.stays == [address]
    assert look.seconds is not None
    assert look.seconds <= 5
    scene.say(evicted, phase="Draining", staying=True)
    await scene.reconcile()
    assert scene.runtime.stays == [address, address]
    scene.start(successor)
    await scene.reconcile()
    assert scene.runtime.stays == [address, address]
    scene.cluster.remove("Pod", "demo", evicted)
    await scene.settle()
    assert (scene.condition(c.READY), scene.pods(role="decode")) == ("True", [successor])


async def test_one_that_the_operator_ended_is_kept_should_the_other_fail_meanwhile() -> None:
    scene = await ready(Sample().split(1, 2))
    graceful(scene)
    scene.edit(Sample().split(1, 1))
    await scene.reconcile()
    other, leaving = scene.pods(role="decode")
    address = scene.cluster.objects["Pod", "demo", leaving]["status"]["podIP"]
    assert "deletionTimestamp" in scene.cluster.objects["Pod", "demo", leaving]["metadata"]
    await scene.reconcile()
    assert scene.runtime.stays == []
    scene.cluster.set_status("Pod", "demo", other, running("10.0.9.9", ready=False))
    await scene.reconcile()
    assert scene.runtime.stays == [address]


async def test_an_engine_that_its_role_can_spare_is_not_asked() -> None:
    scene = await ready(Sample().split(1, 2).set("rollout", {"maxUnavailable": 1}))
    for role in ("prefill", "decode"):
        evict(scene, scene.pods(role=role)[0])
    await scene.reconcile()
    assert scene.runtime.stays == []


async def test_one_that_never_answered_or_is_dead_or_silent_is_not_asked() -> None:
    scene = await ready(Sample().split(1, 3))
    starting, ended, dumb = scene.pods(role="decode")
    scene.say(starting, ready_seconds=None)
    scene.say(ended, engine_pid=None)
    address = evict(scene, dumb)
    del scene.runtime.states[address]
    for pod in (starting, ended):
        evict(scene, pod)
    await scene.reconcile()
    assert scene.runtime.stays == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(Sample().split(2, 1), id="scaled down"),
        pytest.param(Sample().split(2, 3).set("suspend", True), id="suspended"),
        pytest.param(Sample().serve(2), id="roles gone"),
        pytest.param(Sample().split(2, 3).set("engine.dtype", "float16"), id="rolled out"),
    ],
)
async def test_nobody_that_the_operator_itself_ends_is_asked_to_stay(change: Sample) -> None:
    """Its pods stand for a while after each deletion, as they do while they drain."""
    scene = await ready(Sample().split(2, 3))
    scene.cluster.before = lambda call: None
    graceful(scene)
    scene.edit(change)
    for _ in range(30):
        await scene.reconcile()
        scene.kubelet()
        for pod in scene.pods():
            if "podIP" in scene.cluster.objects["Pod", "demo", pod].get("status", {}):
                scene.say(pod, engine_pid=4711)
    assert scene.runtime.stays == []


def graceful(scene: Scene) -> None:
    """From now on a deleted pod only goes when the test removes it."""

    async def delete(obj: Object) -> None:
        there = scene.cluster.objects.get((obj["kind"], "demo", obj["metadata"]["name"]))
        if there is not None and obj["kind"] == "Pod":
            there["metadata"]["deletionTimestamp"] = "2026-01-01T00:05:30Z"
        elif there is not None:
            scene.cluster.remove(obj["kind"], "demo", obj["metadata"]["name"])

    scene.cluster.delete = delete  # type: ignore[method-assign]


async def test_a_drained_node_takes_one_engine_of_a_role_at_a_time_and_all_are_replaced() -> None:
    scene = await ready(Sample().split(2, 2))
    first = scene.pods(role="decode")[0]
    budget = scene.cluster.objects["PodDisruptionBudget", "demo", "chat-decode"]["spec"]
    assert budget["minAvailable"] == 1
    evict(scene, first)
    await scene.reconcile()
    assert len(scene.pods(role="decode")) == 3
    scene.cluster.remove("Pod", "demo", first)
    await scene.settle()
    assert [role["summary"] for role in scene.status["roles"]] == ["2/2", "2/2"]


async def test_a_paused_deployment_replaces_nobody_and_asks_nobody_to_wait_for_it() -> None:
    scene = await ready(Sample().split(1, 1))
    scene.edit(Sample().split(1, 1).set("paused", True))
    await scene.settle()
    evict(scene, scene.pods(role="decode")[0])
    await scene.reconcile()
    assert scene.runtime.stays == []


async def test_requests_that_a_drain_cut_are_in_the_status_and_told_once() -> None:
    scene = await ready(Sample().split(1, 2))
    leaving = scene.pods(role="decode")[1]
    evict(scene, leaving)
    scene.say(leaving, phase="Draining", engine_pid=None, cut=3, cut_at=(START + timedelta(minutes=5)).timestamp())
    await scene.reconcile()
    assert scene.status["recovery"]["incidents"] == [
        {
            "time": "2026-01-01T00:05:00Z",
            "kind": "RequestsCut",
            "target": leaving,
            "message": "",
            "requestsCut": 3,
        }
    ]
    told = [event for event in scene.cluster.events if event[1] == "RequestsCut"]
    assert told == [("Warning", "RequestsCut", f"{leaving}: 3 requests were cut at the end of spec.drain.timeout")]
    scene.cluster.remove("Pod", "demo", leaving)
    await scene.settle()
    before = len(scene.cluster.writes)
    await scene.reconcile()
    assert scene.cluster.writes[before:] == []
    assert [event for event in scene.cluster.events if event[1] == "RequestsCut"] == told
    assert len(scene.status["recovery"]["incidents"]) == 1


async def test_a_container_out_of_memory_is_an_incident_until_its_pod_is_ready_again_and_stays_in_the_list() -> None:
    scene = await ready(Sample().split(1, 1))
    (pod,) = scene.pods(role="decode")
    address = scene.cluster.objects["Pod", "demo", pod]["status"]["podIP"]
    at = (scene.clock + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": at}
    again = {"name": "engine", "restartCount": 1, "lastState": {"terminated": ended}}
    scene.cluster.set_status(
        "Pod", "demo", pod, running(address, ready=False) | {"containerStatuses": [again | {"ready": False}]}
    )
    await scene.reconcile()
    (incident,) = scene.status["recovery"]["incidents"]
    assert (incident["kind"], incident["target"], incident["time"]) == ("OutOfMemory", pod, at)
    assert incident["message"] == "container engine ended with exit code 137"
    assert "recoveredIn" not in incident
    scene.clock += timedelta(seconds=40)
    scene.cluster.set_status("Pod", "demo", pod, running(address) | {"containerStatuses": [again | {"ready": True}]})
    await scene.settle()
    (incident,) = scene.status["recovery"]["incidents"]
    assert incident["recoveredIn"] in ("41s", "42s")
    before = len(scene.cluster.writes)
    scene.clock += timedelta(minutes=5)
    await scene.reconcile()
    assert scene.cluster.writes[before:] == []


async def test_an_engine_that_failed_and_came_back_between_two_looks_is_not_forgotten() -> None:
    scene = await ready(Sample().serve(2))
    for minute, pod in enumerate(scene.pods()):
        at = datetime(2026, 1, 1, 0, minute, 7, tzinfo=UTC)
        scene.say(pod, failure=EngineFailure(at=at.timestamp() + 0.4, reason="EngineUnhealthy"), engine_restarts=1)
    await scene.reconcile()
    told = [(one["kind"], one["target"], one["time"]) for one in scene.status["recovery"]["incidents"]]
    assert told == [
        ("EngineUnhealthy", scene.pods()[1], "2026-01-01T00:01:07Z"),
        ("EngineUnhealthy", scene.pods()[0], "2026-01-01T00:00:07Z"),
    ]


async def test_budgets_of_a_role_that_left_stand_while_its_engines_serve() -> None:
    scene = await ready(Sample().serve(3))
    scene.edit(Sample().split(1, 2))
    await scene.reconcile()
    there = {name for kind, _, name in scene.cluster.objects if kind == "PodDisruptionBudget"}
    assert there == {"chat-serve", "chat-decode", "chat-gateway"}
    await scene.settle()
    there = {name for kind, _, name in scene.cluster.objects if kind == "PodDisruptionBudget"}
    assert there == {"chat-decode", "chat-gateway"}
    assert scene.cluster.objects["PodDisruptionBudget", "demo", "chat-decode"]["metadata"]["labels"][names.ROLE] == (
        "decode"
    )
