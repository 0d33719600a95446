"""Roles that somebody else scales: what becomes of an InferenceRole that is edited, and what is never written. The real
pass over a world in memory."""

from typing import Any

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from headrace_operator.permissions import allowed
from headrace_operator.state import Object
from headrace_operator.testing import Sample, Scene
from tests.worlds.test_world_permissions import right

STATUS = f"{names.ROLE_KIND}/status"


def external(decode: Object, prefill: Object | None = None) -> Sample:
    roles: list[Any] = [{"name": "prefill", **(prefill or {"replicas": 1})}, {"name": "decode", **decode}]
    return Sample().set("roles", roles).set("scaling.mode", "External")


BOUNDED = {"scaling": {"min": 1, "max": 4}}


async def ready(sample: Sample) -> Scene:
    scene = Scene(sample)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


def role(scene: Scene, name: str = "decode") -> Object:
    return scene.cluster.objects[names.ROLE_KIND, "demo", names.inference_role("chat", name)]


def scale(scene: Scene, replicas: int, name: str = "decode") -> None:
    """What a write of the scale subresource does."""
    obj = role(scene, name)
    meta = obj["metadata"] | {"generation": obj["metadata"]["generation"] + 1}
    scene.cluster.put({**obj, "metadata": meta, "spec": {**obj["spec"], "replicas": replicas}})


def limited(scene: Scene) -> Object:
    found: Object = next(one for one in role(scene)["status"]["conditions"] if one["type"] == "ScalingLimited")
    return found


def sizes(scene: Scene) -> dict[str, int]:
    return {name: len(scene.pods(role=name)) for name in ("prefill", "decode")}


def role_writes(scene: Scene, start: int) -> list[str]:
    return [f"{call.verb} {call.kind}" for call in scene.cluster.writes[start:] if names.ROLE_KIND in call.kind]


async def test_a_new_deployment_has_one_for_each_role_with_bounds_and_their_least_engines() -> None:
    scene = await ready(external({"scaling": {"min": 2, "max": 4}}))
    found = [name for kind, _, name in scene.cluster.objects if kind == names.ROLE_KIND]
    assert found == ["chat-decode"]
    assert role(scene)["spec"] == {"deploymentName": "chat", "role": "decode", "replicas": 2}
    (owner,) = role(scene)["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (scene.ref.uid, True)
    assert sizes(scene) == {"prefill": 1, "decode": 2}


async def test_an_edit_is_carried_out_and_the_status_tells_whoever_scales() -> None:
    scene = await ready(external(BOUNDED))
    scale(scene, 3)
    start = len(scene.cluster.writes)
    await scene.settle()
    assert sizes(scene) == {"prefill": 1, "decode": 3}
    status = role(scene)["status"]
    assert (status["replicas"], status["readyReplicas"], status["observedGeneration"]) == (3, 3, 2)
    assert status["selector"] == ("headrace.dev/component=engine,headrace.dev/deployment=chat,headrace.dev/role=decode")
    assert set(role_writes(scene, start)) == {f"patch {STATUS}"}
    assert scene.judged(c.SCALING_ACTIVE)["message"] == "decode 3 by InferenceRole chat-decode."
    assert (scene.condition(c.SCALING_ACTIVE), scene.reason(c.SCALING_ACTIVE)) == ("True", Reason.EXTERNAL)
    assert [(one["name"], one["desired"]) for one in scene.status["roles"]] == [("prefill", 1), ("decode", 3)]


async def test_of_an_engine_over_several_pods_one_is_counted() -> None:
    sample = external(BOUNDED).set("engine", {"device": {"resource": "nvidia.com/gpu"}})
    scene = await ready(sample.set("roles.1.parallelism", {"tensor": 2, "pods": 2}))
    scale(scene, 2)
    await scene.settle()
    status = role(scene)["status"]
    wanted = dict(label.split("=") for label in status["selector"].split(","))
    pods = [obj for (kind, _, _), obj in scene.cluster.objects.items() if kind == "Pod"]
    chosen = [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
    assert (len(scene.pods(role="decode")), len(chosen), status["replicas"]) == (4, 2, 2)


async def test_nothing_is_written_while_nobody_edits_anything() -> None:
    scene = await ready(external(BOUNDED))
    start = len(scene.cluster.writes)
    for _ in range(5):
        await scene.reconcile()
    assert scene.cluster.writes[start:] == []


async def test_what_is_out_of_bounds_is_carried_out_as_far_as_they_go_and_says_so() -> None:
    scene = await ready(external(BOUNDED))
    assert limited(scene)["reason"] == Reason.DESIRED_WITHIN_RANGE
    scale(scene, 9)
    await scene.settle()
    assert (sizes(scene)["decode"], role(scene)["spec"]["replicas"]) == (4, 9)
    assert (limited(scene)["status"], limited(scene)["reason"]) == ("True", Reason.TOO_MANY_REPLICAS)
    assert limited(scene)["message"] == (
        "9 engines are asked for, 4 carried out: spec.roles[decode].scaling.max of InferenceDeployment chat is 4."
    )
    scale(scene, 0)
    await scene.settle()
    assert sizes(scene)["decode"] == 1
    assert (limited(scene)["status"], limited(scene)["reason"]) == ("True", Reason.TOO_FEW_REPLICAS)
    scale(scene, 2)
    await scene.settle()
    assert (limited(scene)["status"], limited(scene)["reason"]) == ("False", Reason.DESIRED_WITHIN_RANGE)


async def test_the_cap_limits_it_too() -> None:
    sample = external(BOUNDED).set("engine", {"device": {"resource": "nvidia.com/gpu"}})
    sample.set("scaling.maxAccelerators", 4).set("rollout", {"maxUnavailable": 1, "maxSurge": 0})
    scene = await ready(sample)
    scale(scene, 4)
    await scene.settle()
    assert sizes(scene) == {"prefill": 1, "decode": 3}
    assert limited(scene)["message"].endswith("spec.scaling.maxAccelerators of InferenceDeployment chat is 4.")


async def test_an_edit_of_the_bounds_holds_at_once_and_leaves_what_is_asked_for_alone() -> None:
    scene = await ready(external(BOUNDED))
    scale(scene, 4)
    await scene.settle()
    scene.edit(external({"scaling": {"min": 1, "max": 2}}))
    await scene.settle()
    assert (sizes(scene)["decode"], role(scene)["spec"]["replicas"]) == (2, 4)
    scene.edit(external(BOUNDED))
    await scene.settle()
    assert sizes(scene)["decode"] == 4


async def test_no_engine_ends_because_a_size_changes_hands_and_back() -> None:
    scene = await ready(Sample().split(2, 3))
    before = set(scene.pods())
    scene.edit(external(BOUNDED, {"scaling": {"min": 1, "max": 2}}))
    await scene.settle()
    assert set(scene.pods()) == before
    assert (role(scene)["spec"]["replicas"], role(scene, "prefill")["spec"]["replicas"]) == (3, 2)
    scene.edit(Sample().split(2, 3))
    await scene.settle()
    assert set(scene.pods()) == before
    assert not any(kind == names.ROLE_KIND for kind, _, _ in scene.cluster.objects)


async def test_one_that_somebody_deletes_comes_back_with_the_size_that_is_there() -> None:
    scene = await ready(external(BOUNDED))
    scale(scene, 3)
    await scene.settle()
    before = scene.pods()
    scene.cluster.remove(names.ROLE_KIND, "demo", "chat-decode")
    await scene.settle()
    assert (scene.pods(), role(scene)["spec"]["replicas"]) == (before, 3)


async def test_labels_that_somebody_took_come_back_and_what_is_asked_for_stays() -> None:
    scene = await ready(external(BOUNDED))
    scale(scene, 3)
    await scene.settle()
    for labels in ({names.ROLE: "other", names.DEPLOYMENT: "chat", names.COMPONENT: "role"}, {}):
        obj = role(scene)
        scene.cluster.put({**obj, "metadata": {**obj["metadata"], "labels": labels}})
        start = len(scene.cluster.writes)
        await scene.settle()
        assert "patch InferenceRole" in role_writes(scene, start)
        assert role(scene)["metadata"]["labels"][names.DEPLOYMENT] == "chat"
        assert (role(scene)["spec"]["replicas"], sizes(scene)["decode"]) == (3, 3)


async def test_one_of_the_name_that_is_somebody_elses_is_not_heeded_and_said() -> None:
    scene = Scene(external(BOUNDED))
    theirs = {"deploymentName": "chat", "role": "decode", "replicas": 4}
    meta = {"name": "chat-decode", "namespace": "demo"}
    kind = {"apiVersion": names.API_VERSION, "kind": names.ROLE_KIND}
    scene.cluster.put({**kind, "metadata": meta, "spec": theirs})
    await scene.reconcile()
    assert (scene.reason(c.ACCEPTED), sizes(scene)["decode"]) == (Reason.NOT_OWNED, 1)
    assert "status" not in role(scene)


async def test_a_suspended_deployment_has_no_engines_and_then_what_was_asked_for() -> None:
    scene = await ready(external(BOUNDED))
    scale(scene, 3)
    await scene.settle()
    scene.edit(external(BOUNDED).set("suspend", True))
    await scene.settle()
    assert (sizes(scene)["decode"], role(scene)["spec"]["replicas"]) == (0, 3)
    assert limited(scene)["reason"] == Reason.SUSPENDED
    scene.cluster.remove(names.ROLE_KIND, "demo", "chat-decode")
    scene.edit(external(BOUNDED))
    await scene.settle()
    assert (sizes(scene)["decode"], role(scene)["spec"]["replicas"]) == (3, 3)


async def test_a_deployment_that_is_scaled_to_no_engine_says_that_nobody_answers_and_asks_itself_nothing() -> None:
    scene = await ready(Sample().split(1, 1))
    scene.edit(external({"scaling": {"min": 0, "max": 4}}))
    await scene.settle()
    scale(scene, 0)
    await scene.settle()
    assert sizes(scene) == {"prefill": 1, "decode": 0}
    for kind in (c.ROLES_READY, c.READY):
        assert (scene.condition(kind), scene.reason(kind)) == ("False", Reason.SCALED_TO_ZERO)
    assert scene.condition(c.DEGRADED) == "False"
    start, asked = len(scene.cluster.writes), len(scene.runtime.questions)
    for _ in range(3):
        assert (await scene.reconcile()).seconds is None
    assert (len(scene.cluster.writes), len(scene.runtime.questions)) == (start, asked)
    scale(scene, 1)
    await scene.settle()
    assert (scene.condition(c.READY), len(scene.runtime.questions)) == ("True", asked + 1)


async def test_a_paused_deployment_carries_nothing_out_and_still_counts() -> None:
    scene = await ready(external(BOUNDED))
    scene.edit(external(BOUNDED).set("paused", True))
    scale(scene, 3)
    await scene.settle()
    assert sizes(scene)["decode"] == 1
    assert (role(scene)["status"]["replicas"], limited(scene)["reason"]) == (1, Reason.PAUSED)


async def test_every_call_is_one_that_the_operator_may_make() -> None:
    scene = await ready(external(BOUNDED))
    scale(scene, 2)
    await scene.settle()
    scene.edit(Sample().split(1, 2))
    await scene.settle()
    used = {right(call) for call in scene.cluster.calls}
    assert used <= set(allowed(called_only=True))
    assert (names.GROUP, names.ROLE_PLURAL, "delete") in used
