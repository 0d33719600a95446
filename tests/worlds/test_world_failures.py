"""Calls that fail, and a process that ends between any two of them: the end is always the same."""

import contextlib

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import Call
from headrace_operator.errors import ClusterError
from headrace_operator.state import Object
from headrace_operator.testing import Sample, Scene

VOLATILE = ("resourceVersion", "uid", "generation", "creationTimestamp")


class Crash(BaseException):
    """The process ends here."""


def outcome(scene: Scene) -> dict[tuple[str, str, str], Object]:
    """Everything in the cluster but counters and times."""
    result = {}
    for key, obj in scene.cluster.objects.items():
        if key[0] == "Pod" and not scene.ref.owns(obj):
            continue  # the Deployment's own, and not of our making
        meta = {k: v for k, v in obj["metadata"].items() if k not in VOLATILE}
        status = {k: v for k, v in obj.get("status", {}).items() if k not in ("conditions", "canary", "podIP", "model")}
        judged = [
            {k: v for k, v in x.items() if k != "lastTransitionTime"}
            for x in obj.get("status", {}).get("conditions", [])
        ]
        result[key] = {**obj, "metadata": meta, "status": status, "judged": judged if key[0] == names.KIND else None}
    return result


async def made(sample: Sample) -> Scene:
    scene = Scene(sample)
    await scene.settle()
    return scene


@pytest.mark.slow
async def test_the_end_is_the_same_wherever_the_process_ends_on_the_way() -> None:
    clean = await made(Sample().split(1, 2))
    total = len(clean.cluster.writes)
    wanted = outcome(clean)
    creations = sorted(call.name for call in clean.cluster.writes if call.verb == "create" and call.kind == "Pod")
    for after in range(total):
        scene = Scene(Sample().split(1, 2))
        crash_after(scene, after)
        with pytest.raises(Crash):
            await scene.settle()
        scene.cluster.before = lambda call: None
        scene.kubelet()
        await scene.settle()
        assert outcome(scene) == wanted, f"crashed after write {after}"
        made_pods = sorted(x.name for x in scene.cluster.writes if x.verb == "create" and x.kind == "Pod")
        assert made_pods == creations, f"crashed after write {after}"


@pytest.mark.slow
async def test_a_rollout_ends_the_same_wherever_the_process_ends_on_the_way() -> None:
    clean = await made(Sample().split(2, 2))
    clean.edit(Sample().split(2, 2).set("engine.dtype", "float16"))
    total = len(await clean.settle())
    wanted = outcome(clean)
    for after in range(total):
        scene = await made(Sample().split(2, 2))
        scene.edit(Sample().split(2, 2).set("engine.dtype", "float16"))
        crash_after(scene, after)
        with pytest.raises(Crash):
            await scene.settle()
        scene.cluster.before = lambda call: None
        scene.kubelet()
        await scene.settle()
        assert outcome(scene) == wanted, f"crashed after write {after}"


def crash_after(scene: Scene, writes: int) -> None:
    left = [writes]

    def before(call: Call) -> None:
        if call.writes:
            if left[0] == 0:
                raise Crash
            left[0] -= 1

    scene.cluster.before = before


CHANGES = {
    "size": ("roles.1.replicas", 3),
    "image": ("engine.image", "example.org/other:2"),
    "model": ("model.source", "node:///models/other"),
    "gateway": ("gateway.replicas", 3),
    "routing": ("gateway.routing", {"policy": "RoundRobin"}),
    "head": ("ray.headResources", {"requests": {"cpu": "1"}}),
    "template": ("roles.0.podTemplate", {"spec": {"priorityClassName": "high"}}),
    "suspend": ("suspend", True),
    "drain": ("drain.timeout", "5s"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_there_and_back_again_ends_where_it_began(change: str) -> None:
    scene = await made(Sample().split(1, 1))
    before = outcome(scene)
    path, value = CHANGES[change]
    scene.edit(Sample().split(1, 1).set(path, value))
    await scene.settle()
    assert scene.condition(c.READY) == ("False" if change == "suspend" else "True")
    scene.edit(Sample().split(1, 1))
    await scene.settle()
    after = outcome(scene)
    for judged in (before, after):
        for condition in judged[names.KIND, "demo", "chat"]["judged"]:
            condition.pop("observedGeneration")
        judged[names.KIND, "demo", "chat"]["status"].pop("observedGeneration")
        judged["Deployment", "demo", "chat-gateway"]["status"].pop("observedGeneration")
        # What was tried in between stays in the history, and nowhere else.
        judged[names.KIND, "demo", "chat"]["status"]["revision"].pop("good")
    for key in after.keys() - before.keys():
        assert key[0] == "ControllerRevision"
        after.pop(key)
    assert after == before


async def test_both_ways_lead_to_the_same_children() -> None:
    changed = await made(Sample().serve(1))
    changed.edit(Sample().split(2, 1))
    await changed.settle()
    direct = await made(Sample().split(2, 1))
    assert {key for key in changed.cluster.objects if key[0] != "ControllerRevision"} == {
        key for key in direct.cluster.objects if key[0] != "ControllerRevision"
    }


FAILING = [
    ("list", "Pod"), ("patch", "Service"), ("patch", "Deployment"), ("patch", "ConfigMap"), ("create", "Pod"),
    ("create", "Secret"), ("get", names.KIND), ("patch", "InferenceDeployment/status"), ("get", "Service"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "kind"), FAILING)
async def test_a_call_that_fails_for_a_while_changes_nothing_in_the_end(verb: str, kind: str) -> None:
    wanted = outcome(await made(Sample().split(1, 1)))
    scene = Scene(Sample().split(1, 1))

    def before(call: Call) -> None:
        if (call.verb, call.kind) == (verb, kind):
            raise ClusterError(f"{verb} {kind}", 500, "InternalError", "the server is on fire")

    scene.cluster.before = before
    for _ in range(3):
        try:
            look = await scene.reconcile()
        except ClusterError:
            continue
        assert look.retry
        assert not any(call.verb == "delete" for call in scene.cluster.calls)
    scene.cluster.before = lambda call: None
    await scene.settle()
    assert outcome(scene) == wanted


async def test_reads_that_fail_make_everything_unknown_and_change_nothing() -> None:
    scene = await made(Sample().split())

    def before(call: Call) -> None:
        if call.verb == "list":
            raise ClusterError("GET pods", 500, "InternalError", "no")

    scene.cluster.before = before
    before_writes = len(scene.cluster.writes)
    assert (await scene.reconcile()).retry
    assert {call.kind for call in scene.cluster.writes[before_writes:]} == {"InferenceDeployment/status"}
    assert scene.condition(c.READY) == "Unknown"
    assert scene.reason(c.ROLES_READY) == "ObserveFailed"
    assert scene.condition(c.ACCEPTED) == "True"
    assert scene.status["roles"][0]["summary"] == "1/1"


async def test_one_object_that_is_refused_stops_no_other_and_nothing_is_pruned() -> None:
    sample = Sample().split(1, 1)
    scene = await made(sample)
    pods = scene.pods()

    def before(call: Call) -> None:
        if (call.verb, call.kind) == ("create", "Pod") and "prefill" in call.name:
            raise ClusterError("POST pods", 403, "Forbidden", "exceeded quota")

    scene.cluster.before = before
    scene.edit(sample.set("engine.dtype", "float16"))
    for _ in range(3):
        await scene.reconcile()
        scene.kubelet()
    assert set(pods) <= set(scene.pods())
    assert len(scene.pods(role="decode")) == 2
    assert scene.reason(c.ACCEPTED) == "RefusedByCluster"
    assert "exceeded quota" in scene.judged(c.ACCEPTED)["message"]
    assert scene.reason(c.DEGRADED) == "ApplyFailed"
    assert scene.condition(c.READY) == "True"


async def test_an_event_that_cannot_be_posted_is_not_repeated_for_ever() -> None:
    scene = Scene(Sample().split())

    def before(call: Call) -> None:
        if call.kind == "Event" and call.writes:
            raise ClusterError("POST events", 500, "InternalError", "no")

    scene.cluster.before = before
    for _ in range(5):
        with contextlib.suppress(ClusterError):
            await scene.reconcile()
        scene.kubelet()
    assert scene.condition(c.READY) == "True"
    assert not (await scene.reconcile()).retry


async def test_a_later_object_of_the_same_name_gets_no_status_of_the_first() -> None:
    scene = await made(Sample().split())
    scene.object["metadata"]["uid"] = "another"
    assert (await scene.reconcile()).ended
