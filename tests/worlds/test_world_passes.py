"""Given this world: which calls, and which status? The real pass over the cluster and the runtime in memory."""

from collections import Counter

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import Call
from headrace_operator.state import CanaryAnswer
from headrace_operator.testing import DIGEST, Sample, Scene


async def ready(sample: Sample | None = None) -> Scene:
    """A world in which all is well."""
    scene = Scene(sample or Sample().split())
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


async def test_first_pass_makes_everything_once_and_says_what_it_waits_for() -> None:
    scene = Scene(Sample().split(1, 2))
    await scene.reconcile()
    assert Counter(f"{call.verb} {call.kind}" for call in scene.cluster.writes) == {
        "create Secret": 1,
        "create Pod": 4,
        "patch ConfigMap": 4,
        "patch ControllerRevision": 1,
        "patch Service": 2,
        "patch ServiceAccount": 1,
        "patch Role": 1,
        "patch RoleBinding": 1,
        "patch Deployment": 1,
        "patch PodDisruptionBudget": 2,
        "patch InferenceDeployment/status": 1,
    }
    assert [condition["type"] for condition in scene.status["conditions"]] == list(c.TYPES)
    assert {condition["observedGeneration"] for condition in scene.status["conditions"]} == {1}
    assert scene.condition(c.ACCEPTED) == "True"
    assert scene.condition(c.READY) == "False"
    assert scene.cluster.events == []


async def test_nothing_to_do() -> None:
    scene = await ready()
    before = len(scene.cluster.writes)
    look = await scene.reconcile()
    assert scene.cluster.writes[before:] == []
    assert look.seconds is None
    assert not look.retry


async def test_ready_only_after_a_real_answer_of_the_current_revision() -> None:
    scene = Scene(Sample().split())
    scene.runtime.answer = CanaryAnswer(failure="the gateway answered 503")
    for _ in range(4):
        look = await scene.reconcile()
        scene.kubelet()
    assert look.retry
    assert scene.condition(c.ROLES_READY) == "True"
    assert (scene.condition(c.READY), scene.reason(c.READY)) == ("False", "CanaryFailed")
    assert "503" in scene.judged(c.READY)["message"]
    scene.runtime.answer = None
    await scene.reconcile()
    assert scene.condition(c.READY) == "True"
    assert scene.cluster.events == [("Normal", "Answered", "Ready: " + scene.judged(c.READY)["message"])]


async def test_the_canary_is_split_where_there_are_two_roles_and_asked_once() -> None:
    scene = await ready(Sample().split().set("engine.maxModelLen", 256))
    (question,) = scene.runtime.questions
    assert question.split
    assert question.words == 128
    await scene.reconcile()
    assert len(scene.runtime.questions) == 1


async def test_an_aggregated_deployment_needs_one_role_only() -> None:
    scene = await ready(Sample().serve(2))
    assert scene.status["roles"][0]["summary"] == "2/2"
    assert "prefill" not in scene.status["canary"]
    assert not scene.runtime.questions[0].split


async def test_status_tells_what_a_user_wants_to_know() -> None:
    scene = await ready(Sample().split(1, 2))
    status = scene.status
    assert status["url"] == "http://chat.demo.svc"
    assert [role["summary"] for role in status["roles"]] == ["1/1", "2/2"]
    assert status["ray"]["nodes"] == {"alive": 4, "expected": 4}
    assert status["model"] == {
        "servedName": "chat",
        "digest": DIGEST,
        "bytes": 1000,
        "verifiedAt": "2026-01-01T00:00:00Z",
        "adapters": [],
    }


async def test_a_lost_engine_is_replaced_and_ready_is_lost_and_found_again() -> None:
    scene = await ready()
    lost = scene.pods(role="decode")[0]
    scene.cluster.remove("Pod", "demo", lost)
    await scene.reconcile()
    assert scene.pods(role="decode") == [lost]
    assert scene.condition(c.READY) == "False"
    assert scene.reason(c.DEGRADED) == "BelowWanted"
    assert "decode 0/1" in scene.judged(c.DEGRADED)["message"]
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    assert scene.condition(c.DEGRADED) == "False"
    assert [event[1] for event in scene.cluster.events] == [
        "Answered", "BelowWanted", "EnginesStarting", "AsWanted", "Answered",
    ]  # fmt: skip


async def test_an_evicted_engine_is_replaced_under_another_index() -> None:
    scene = await ready()
    (evicted,) = scene.pods(role="decode")
    scene.fail(evicted)
    await scene.settle()
    assert scene.pods(role="decode") == [evicted[:-1] + "1"]


async def test_a_lost_head_comes_back_and_costs_no_readiness() -> None:
    scene = await ready()
    scene.cluster.remove("Pod", "demo", "chat-head")
    await scene.reconcile()
    assert scene.pods("head") == ["chat-head"]
    assert (scene.condition(c.READY), scene.condition(c.RAY_READY)) == ("True", "False")
    await scene.settle()
    assert scene.condition(c.RAY_READY) == "True"


async def test_children_that_somebody_changed_or_deleted_are_put_right() -> None:
    scene = await ready()
    scene.cluster.objects["Service", "demo", "chat"]["spec"]["selector"] = {"somebody": "else"}
    scene.cluster.remove("Deployment", "demo", "chat-gateway")
    writes = await scene.settle()
    assert ("patch", "Service") in [(w.verb, w.kind) for w in writes]
    assert scene.cluster.objects["Service", "demo", "chat"]["spec"]["selector"][names.COMPONENT] == "gateway"
    assert ("Deployment", "demo", "chat-gateway") in scene.cluster.objects


async def test_a_pod_that_goes_while_its_labels_are_put_right_is_not_made_anew_from_its_old_spec() -> None:
    scene = await ready(Sample().serve())
    (pod,) = scene.pods()
    obj = scene.cluster.objects["Pod", "demo", pod]
    scene.cluster.put(obj | {"metadata": obj["metadata"] | {"labels": {**obj["metadata"]["labels"], names.ROLE: "x"}}})

    def gone(call: Call) -> None:
        if (call.verb, call.name) == ("patch", pod):
            scene.cluster.before = lambda call: None
            scene.cluster.remove("Pod", "demo", pod)

    scene.cluster.before = gone
    look = await scene.reconcile()
    assert (scene.pods(), look.retry) == ([], True)
    await scene.settle()
    assert scene.condition(c.READY) == "True"


async def test_a_new_revision_comes_up_beside_the_old_one_and_both_roles_roll_together() -> None:
    sample = Sample().split(1, 1)
    scene = await ready(sample)
    old = scene.status["revision"]["current"]
    scene.edit(sample.set("engine.dtype", "float16"))
    await scene.reconcile()
    new = scene.status["revision"]["updating"]
    assert {**scene.status["revision"], "progress": None} == {
        "current": old,
        "updating": new,
        "good": [old],
        "progress": None,
    }
    assert (scene.condition(c.READY), scene.reason(c.PROGRESSING)) == ("True", "RollingOut")
    assert len(scene.pods()) == 4
    scene.start(f"chat-prefill-{new}-0")
    await scene.reconcile()
    assert len(scene.pods()) == 4
    assert scene.condition(c.READY) == "True"
    scene.start(f"chat-decode-{new}-0")
    await scene.reconcile()
    assert scene.pods() == [f"chat-decode-{new}-0", f"chat-prefill-{new}-0"]
    await scene.settle()
    assert scene.status["revision"] == {"current": new, "good": [new, old]}
    assert scene.status["canary"]["revision"] == new
    assert [key for key in scene.cluster.objects if old in key[2]] == [("ControllerRevision", "demo", f"chat-{old}")]


async def test_a_revision_that_cannot_start_is_taken_back_without_a_gap() -> None:
    sample = Sample().split(1, 1)
    scene = await ready(sample)
    pods = scene.pods()
    scene.edit(sample.set("engine.image", "example.org/broken:1"))
    for _ in range(3):
        await scene.reconcile()
        assert set(pods) <= set(scene.pods())
    scene.edit(Sample().split(1, 1))
    await scene.settle()
    assert scene.pods() == pods
    assert scene.condition(c.READY) == "True"


async def test_from_one_role_to_two_the_old_role_serves_until_both_new_ones_are_there() -> None:
    scene = await ready(Sample().serve(1))
    (old,) = scene.pods(role="serve")
    scene.edit(Sample().split(1, 1))
    await scene.reconcile()
    assert old in scene.pods()
    scene.start(scene.pods(role="prefill")[0])
    await scene.reconcile()
    assert old in scene.pods()
    await scene.settle()
    assert not scene.pods(role="serve")
    assert [role["name"] for role in scene.status["roles"]] == ["prefill", "decode"]


async def test_an_invalid_spec_touches_nothing_and_the_next_good_one_recovers() -> None:
    scene = await ready()
    children = {key: obj for key, obj in scene.cluster.objects.items() if key[0] != names.KIND}
    scene.edit(Sample().split(1, 1).set("engine.dtype", "float17").set("parallelism.tensor", 0))
    await scene.reconcile()
    assert (scene.condition(c.ACCEPTED), scene.reason(c.ACCEPTED)) == ("False", "InvalidSpec")
    message = scene.judged(c.ACCEPTED)["message"]
    assert "spec.engine.dtype" in message
    assert "spec.parallelism.tensor" in message
    assert scene.reason(c.READY) == "InvalidSpec"
    assert scene.condition(c.ROLES_READY) == "True"
    assert {key: obj for key, obj in scene.cluster.objects.items() if key[0] != names.KIND} == children
    before = len(scene.cluster.writes)
    await scene.reconcile()
    assert scene.cluster.writes[before:] == []
    scene.edit(Sample().split(1, 1))
    await scene.settle()
    assert scene.condition(c.READY) == "True"


async def test_a_spec_that_was_never_valid_leaves_the_rest_unknown() -> None:
    scene = Scene(Sample().set("model", {"source": "nowhere"}))
    await scene.reconcile()
    assert [call.kind for call in scene.cluster.writes] == ["InferenceDeployment/status", "Event"]
    assert scene.condition(c.ROLES_READY) == "Unknown"
    assert scene.condition(c.READY) == "False"


async def test_paused_observes_and_writes_nothing_but_the_status() -> None:
    sample = Sample().split()
    scene = await ready(sample)
    scene.edit(sample.set("paused", True))
    scene.cluster.remove("Pod", "demo", scene.pods(role="decode")[0])
    before = len(scene.cluster.writes)
    await scene.settle()
    assert {call.kind for call in scene.cluster.writes[before:]} == {"InferenceDeployment/status", "Event"}
    assert scene.reason(c.PROGRESSING) == "Paused"
    assert scene.condition(c.READY) == "False"


async def test_suspend_takes_the_engines_and_leaves_the_gateway() -> None:
    sample = Sample().split(1, 2)
    scene = await ready(sample)
    scene.edit(sample.set("suspend", True))
    await scene.settle()
    assert scene.pods() == []
    assert scene.pods("head") == ["chat-head"]
    assert scene.condition(c.GATEWAY_READY) == "True"
    assert scene.reason(c.READY) == "Suspended"
    scene.edit(Sample().split(1, 2))
    await scene.settle()
    assert scene.condition(c.READY) == "True"


@pytest.mark.parametrize("kind", ["Service", "Pod", "ConfigMap"])
async def test_a_child_of_our_name_that_is_not_ours_is_reported_and_left_alone(kind: str) -> None:
    scene = Scene(Sample().serve())
    name = "chat" if kind == "Service" else "chat-head"
    theirs = {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "demo"},
        "spec": {"theirs": True},
    }
    kept = scene.cluster.put(theirs)
    for _ in range(3):
        assert (await scene.reconcile()).retry
        scene.kubelet()
    assert scene.cluster.objects[kind, "demo", name] == kept
    assert scene.reason(c.ACCEPTED) == "NotOwned"
    assert f"{kind}/{name}" in scene.judged(c.ACCEPTED)["message"]


async def test_a_deleted_object_is_left_to_the_garbage_collector() -> None:
    scene = await ready()
    scene.object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    before = len(scene.cluster.calls)
    assert (await scene.reconcile()).ended
    assert [call.verb for call in scene.cluster.calls[before:]] == ["get"]
    scene.cluster.remove(names.KIND, "demo", "chat")
    assert scene.cluster.objects.keys() == {("Secret", "demo", "chat-ray-token")} - {
        ("Secret", "demo", "chat-ray-token")
    }


async def test_a_pod_that_lacks_the_token_gets_it() -> None:
    scene = Scene(Sample().serve())
    await scene.reconcile()
    scene.cluster.remove("Secret", "demo", "chat-ray-token")
    pod = scene.cluster.objects["Pod", "demo", "chat-head"]
    pod["spec"]["nodeName"] = "n1"
    scene.cluster.set_status("Pod", "demo", "chat-head", {"phase": "Pending"})
    message = 'MountVolume.SetUp failed for volume "ray-token" : secret "chat-ray-token" not found'
    scene.cluster.warnings["chat-head"] = [{"reason": "FailedMount", "message": message}]
    await scene.reconcile()
    assert ("Secret", "demo", "chat-ray-token") in scene.cluster.objects


async def test_a_missing_secret_with_the_api_keys_is_named_while_the_pods_before_still_serve() -> None:
    scene = await ready(Sample().serve())
    scene.edit(Sample().serve().set("gateway.apiKeysSecretRef", {"name": "chat-keys"}))
    await scene.reconcile()
    scene.kubelet()
    new = {**scene.cluster.objects["Pod", "demo", "chat-gateway-0"]["metadata"], "name": "chat-gateway-2", "uid": "new"}
    scene.cluster.put({"apiVersion": "v1", "kind": "Pod", "metadata": new, "spec": {"nodeName": "n1"}})
    scene.cluster.set_status("Pod", "demo", "chat-gateway-2", {"phase": "Pending"})
    message = 'MountVolume.SetUp failed for volume "api-keys" : secret "chat-keys" not found'
    scene.cluster.warnings["chat-gateway-2"] = [{"reason": "FailedMount", "message": message}]
    await scene.reconcile()
    assert (scene.condition(c.GATEWAY_READY), scene.reason(c.GATEWAY_READY)) == ("False", "SecretNotFound")
    said = scene.judged(c.GATEWAY_READY)["message"]
    assert said == "2/2 ready; spec.gateway.apiKeysSecretRef: the Secret chat-keys does not exist"
    assert scene.condition(c.DEGRADED) == "True"
    scene.cluster.remove("Pod", "demo", "chat-gateway-2")
    await scene.settle()
    assert scene.condition(c.READY) == "True"


async def test_other_limits_bring_a_new_contract_and_no_new_gateways() -> None:
    scene = await ready(Sample().serve())
    scene.edit(Sample().serve().set("gateway.limits", {"maxConcurrent": 10}))
    writes = await scene.settle()
    assert [(call.verb, call.kind, call.name) for call in writes if "status" not in call.kind] == [
        ("patch", "ConfigMap", "chat-gateway")
    ]
    assert scene.condition(c.READY) == "True"


async def test_the_canary_is_asked_of_a_gateway_that_is_ready() -> None:
    scene = Scene(Sample().serve())
    await scene.reconcile()
    scene.kubelet()
    for name in scene.cluster.objects.copy():
        if name[2].startswith("chat-gateway-"):
            scene.cluster.remove(*name)
    await scene.reconcile()
    assert scene.reason(c.READY) == "CanaryFailed"
    assert "no gateway pod is ready" in scene.judged(c.READY)["message"]
    await scene.settle()
    assert scene.condition(c.READY) == "True"
