"""Given this trouble: does the status name it? The real pass over the cluster and the runtime in memory."""

from datetime import timedelta

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.state import Object
from headrace_operator.testing import DIGEST, Sample, Scene, agent, running
from headrace_runtime.contract import RayState, WeightsState


async def ready(sample: Sample | None = None) -> Scene:
    """A world in which all is well."""
    scene = Scene(sample or Sample().split())
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


def pending(**status: object) -> Object:
    return {"phase": "Pending", **status}


HANGING: dict[str, tuple[Object, list[Object], str, str]] = {
    "no node has room": (
        pending(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient cpu"}]),
        [],
        "Unschedulable",
        "insufficient cpu",
    ),
    "the image cannot be pulled": (
        pending(containerStatuses=[{"image": "x:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]),
        [],
        "ImagePullFailed",
        "x:1",
    ),
    "the model's folder is not on the node": (
        pending(),
        [
            {
                "reason": "FailedMount",
                "message": 'MountVolume.SetUp failed for volume "model" : /secret/path is no directory',
            }
        ],
        "ModelNotFound",
        "spec.model.source",
    ),
    "the model's claim does not exist": (
        pending(
            conditions=[{"type": "PodScheduled", "status": "False", "message": 'persistentvolumeclaim "m" not found'}]
        ),
        [],
        "ModelNotFound",
        "not found",
    ),
    "the image lacks the runtime": (
        pending(
            containerStatuses=[
                {
                    "name": "engine",
                    "image": "x:1",
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 1, "message": "No module named headrace_runtime"}},
                }
            ]
        ),
        [],
        "RuntimeMissing",
        "x:1",
    ),
    "the container ends again and again": (
        pending(
            containerStatuses=[
                {
                    "name": "engine",
                    "restartCount": 7,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                }
            ]
        ),
        [],
        "ContainerFailed",
        "OOMKilled",
    ),
    "an init container ends again and again": (
        pending(
            initContainerStatuses=[
                {
                    "name": "fetch-certificates",
                    "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 2, "reason": "Error"}},
                }
            ],
            containerStatuses=[{"name": "engine", "state": {"waiting": {"reason": "PodInitializing"}}}],
        ),
        [],
        "ContainerFailed",
        "container fetch-certificates ended with exit code 2",
    ),
    "a volume that the user added is not there": (
        pending(),
        [{"reason": "FailedMount", "message": 'MountVolume.SetUp failed for volume "certificates" : /secret/path'}],
        "VolumeNotMounted",
        "volume certificates cannot be mounted",
    ),
    "a disk cannot be attached": (
        pending(),
        [{"reason": "FailedAttachVolume", "message": 'Multi-Attach error for volume "pvc-1": already used'}],
        "VolumeNotMounted",
        "volume pvc-1",
    ),
}


@pytest.mark.parametrize("sentence", HANGING)
async def test_a_pod_that_hangs_is_named_with_its_cause(sentence: str) -> None:
    status, events, reason, words = HANGING[sentence]
    scene = Scene(Sample().split())
    await scene.reconcile()
    (pod,) = scene.pods(role="decode")
    scene.cluster.objects["Pod", "demo", pod]["spec"]["nodeName"] = "n1"
    scene.cluster.set_status("Pod", "demo", pod, status)
    scene.cluster.warnings[pod] = events
    await scene.settle()
    roles = scene.judged(c.ROLES_READY)
    assert (roles["status"], roles["reason"]) == ("False", reason)
    assert "prefill 1/1, decode 0/1" in roles["message"]
    assert pod in roles["message"]
    assert words in roles["message"]
    assert "/secret/path" not in str(scene.status)
    assert scene.reason(c.READY) == reason
    # A volume may come with time; nothing else of these does.
    assert scene.condition(c.DEGRADED) == str(reason != "VolumeNotMounted")


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("Evicted", "The node was low on resource: memory."),
        ("UnexpectedAdmissionError", "Allocate failed: requested number of devices unavailable for nvidia.com/gpu"),
    ],
)
async def test_a_pod_that_its_node_gave_up_is_told_with_the_nodes_words(reason: str, message: str) -> None:
    scene = await ready(Sample().split(1, 2))
    pod = scene.pods(role="decode")[0]
    scene.cluster.set_status("Pod", "demo", pod, {"phase": "Failed", "reason": reason, "message": message})
    await scene.reconcile()
    degraded = scene.judged(c.DEGRADED)
    assert (degraded["status"], degraded["reason"]) == ("True", "ContainerFailed")
    assert f"{pod}: ContainerFailed: {reason}: {message}" in degraded["message"]
    await scene.settle()
    assert scene.condition(c.READY) == "True"


async def test_gateway_pods_that_a_quota_forbids_are_told_in_the_words_of_the_cluster() -> None:
    scene = await ready()
    generation = scene.cluster.objects["Deployment", "demo", "chat-gateway"]["metadata"]["generation"]
    words = 'pods "chat-gateway-x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=4, limited: pods=4'
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
    status = {"observedGeneration": generation, "readyReplicas": 0, "conditions": [refused]}
    scene.cluster.set_status("Deployment", "demo", "chat-gateway", status)
    for (kind, _, name), obj in list(scene.cluster.objects.items()):
        if kind == "Pod" and obj["metadata"]["labels"].get(names.COMPONENT) == "gateway":
            scene.cluster.remove(kind, "demo", name)
    await scene.reconcile()
    assert words in scene.judged(c.GATEWAY_READY)["message"]
    assert words in scene.judged(c.READY)["message"]


async def test_a_pod_that_does_not_end_is_named() -> None:
    scene = await ready(Sample().split(1, 2))
    pod = scene.pods(role="decode")[0]
    obj = scene.cluster.objects["Pod", "demo", pod]
    told = (scene.clock + timedelta(seconds=30)).isoformat()
    held = {
        **obj,
        "metadata": {**obj["metadata"], "deletionTimestamp": told},
        "spec": {**obj["spec"], "nodeName": "n7"},
    }
    scene.cluster.put(held)
    await scene.reconcile()
    assert scene.reason(c.DEGRADED) != "EndOverdue"
    scene.clock += timedelta(seconds=95)
    await scene.reconcile()
    assert scene.reason(c.DEGRADED) == "EndOverdue"
    assert f"{pod} on n7" in scene.judged(c.DEGRADED)["message"]


async def test_an_engine_that_runs_and_says_nothing_is_named_after_a_while() -> None:
    scene = Scene(Sample().split())
    await scene.reconcile()
    scene.kubelet()
    (pod,) = scene.pods(role="decode")
    address = scene.cluster.objects["Pod", "demo", pod]["status"]["podIP"]
    del scene.runtime.states[address]
    scene.cluster.set_status("Pod", "demo", pod, running(address, ready=False))
    await scene.reconcile()
    assert pod not in scene.judged(c.ROLES_READY)["message"]
    scene.clock += timedelta(minutes=3)
    await scene.reconcile()
    assert scene.reason(c.ROLES_READY) == "EnginesStarting"
    assert f"no answer from {pod}" in scene.judged(c.ROLES_READY)["message"]


async def test_engines_of_one_revision_with_two_versions_are_told_apart() -> None:
    scene = await ready()
    for address, state in scene.runtime.states.items():
        version = "0.99.1" if "decode" in state.pod else "0.32.0"
        scene.runtime.states[address] = state.model_copy(update={"engine_version": version})
    await scene.reconcile()
    degraded, (pod,) = scene.judged(c.DEGRADED), scene.pods(role="decode")
    assert (degraded["status"], degraded["reason"]) == ("True", "VersionsDiffer")
    assert f"0.99.1 ({pod})" in degraded["message"]
    assert scene.condition(c.READY) == "True"


async def test_an_engine_whose_ray_is_another_than_the_heads_is_told_with_both() -> None:
    scene = await ready()
    (pod,) = scene.pods(role="decode")
    (address,) = (at for at, state in scene.runtime.states.items() if state.pod == pod)
    stranger = RayState(joined=False, version="2.61.0", restarts=4)
    scene.runtime.states[address] = scene.runtime.states[address].model_copy(update={"ray": stranger})
    await scene.reconcile()
    ray = scene.judged(c.RAY_READY)
    assert (ray["status"], ray["reason"]) == ("False", "NodesMissing")
    assert f"{pod} has Ray 2.61.0, those that joined have 2.60.0" in ray["message"]


async def test_an_image_that_will_not_do_stops_a_rollout_at_the_first_pod_of_each_role() -> None:
    sample = Sample().split(2, 3)
    scene = await ready(sample)
    before = set(scene.pods())
    scene.edit(sample.set("engine.image", "example.org/engine:old"))
    await scene.reconcile()
    new = set(scene.pods()) - before
    assert sorted(pod.split("-")[1] for pod in new) == ["decode", "prefill"]
    scene.kubelet()
    message = "the image has vLLM 0.9.2; 0.32 or a later one is needed: set spec.engine.image to one that carries it"
    for pod in new:
        address = scene.cluster.objects["Pod", "demo", pod]["status"]["podIP"]
        said = {"phase": "Failed", "reason": "EngineTooOld", "message": message, "ready_seconds": None}
        scene.runtime.states[address] = scene.runtime.states[address].model_copy(update=said)
        scene.cluster.set_status("Pod", "demo", pod, running(address, ready=False))
    await scene.settle()
    assert set(scene.pods()) == before | new
    assert scene.condition(c.READY) == "True"
    degraded = scene.judged(c.DEGRADED)
    assert (degraded["status"], degraded["reason"]) == ("True", "EngineTooOld")
    assert f"{min(new)}: EngineTooOld: {message}" in degraded["message"]


@pytest.mark.parametrize(
    "reason",
    [
        "ModelNotFound",
        "DigestMismatch",
        "EngineMissing",
        "ConnectorMissing",
        "LoaderMissing",
        "RayMissing",
        "RestartBudgetSpent",
    ],
)
async def test_what_an_agent_says_reaches_the_status(reason: str) -> None:
    scene = Scene(Sample().split())
    await scene.reconcile()
    (pod,) = scene.pods(role="decode")
    scene.kubelet()
    address = scene.cluster.objects["Pod", "demo", pod]["status"]["podIP"]
    weights = WeightsState(verified=False if reason == "DigestMismatch" else None)
    said = agent(pod, "decode", "r", phase="Failed", reason=reason, message="why", weights=weights, ready_seconds=None)
    scene.runtime.states[address] = said
    scene.cluster.set_status("Pod", "demo", pod, running(address, ready=False))
    await scene.settle()
    assert scene.reason(c.ROLES_READY) == reason
    assert f"{pod}: {reason}: why" in scene.judged(c.ROLES_READY)["message"]
    if reason == "DigestMismatch":
        assert (scene.condition(c.WEIGHTS_VERIFIED), scene.reason(c.WEIGHTS_VERIFIED)) == ("False", reason)
    if reason == "ModelNotFound":
        assert (scene.condition(c.MODEL_READY), scene.reason(c.MODEL_READY)) == ("False", reason)


async def test_an_agent_without_an_answer_is_unknown_and_no_disaster() -> None:
    scene = await ready()
    scene.runtime.states.clear()
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    assert scene.reason(c.RAY_READY) == "NodesMissing"
    assert scene.condition(c.WEIGHTS_VERIFIED) == "Unknown"


async def test_the_digest_of_the_first_load_is_pinned_for_every_later_engine() -> None:
    sample = Sample().split()
    scene = await ready(sample)
    revision = scene.status["revision"]["current"]
    contract = scene.cluster.objects["ConfigMap", "demo", f"chat-decode-{revision}"]["data"]["contract.json"]
    assert DIGEST in contract
    scene.edit(sample.set("engine.dtype", "float16"))
    await scene.settle()
    revision = scene.status["revision"]["current"]
    assert DIGEST in scene.cluster.objects["ConfigMap", "demo", f"chat-decode-{revision}"]["data"]["contract.json"]
    scene.edit(sample.set("model.source", "node:///models/other"))
    await scene.reconcile()
    revision = scene.status["revision"]["updating"]
    assert DIGEST not in scene.cluster.objects["ConfigMap", "demo", f"chat-decode-{revision}"]["data"]["contract.json"]


async def test_engines_wait_for_the_manifest_that_the_spec_names() -> None:
    scene = Scene(Sample().serve().set("model.integrity", {"manifest": {"configMapRef": {"name": "sums"}}}))
    await scene.reconcile()
    assert scene.reason(c.MODEL_READY) == "ManifestNotFound"
    assert scene.pods() == []
    sums = {"SHA256SUMS": f"{'0' * 64}  a/b.safetensors\n"}
    scene.cluster.put(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sums", "namespace": "demo"}, "data": sums}
    )
    await scene.settle()
    assert scene.reason(c.WEIGHTS_VERIFIED) == "Verified"
    revision = scene.status["revision"]["current"]
    contract = scene.cluster.objects["ConfigMap", "demo", f"chat-serve-{revision}"]["data"]["contract.json"]
    assert '"a/b.safetensors"' in contract


async def test_a_corrected_manifest_brings_new_engines() -> None:
    scene = Scene(Sample().serve().set("model.integrity", {"manifest": {"configMapRef": {"name": "sums"}}}))
    sums = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sums", "namespace": "demo"}}
    scene.cluster.put(sums | {"data": {"SHA256SUMS": f"{'0' * 64}  model.safetensors\n"}})
    await scene.settle()
    before = scene.pods()
    scene.cluster.put(sums | {"data": {"SHA256SUMS": f"{'1' * 64}  model.safetensors\n"}})
    await scene.settle()
    assert scene.pods()
    assert not set(scene.pods()) & set(before)


async def test_a_gateway_that_is_down_says_so() -> None:
    scene = await ready()
    gateway = scene.cluster.objects["Deployment", "demo", "chat-gateway"]
    scene.cluster.set_status(
        "Deployment",
        "demo",
        "chat-gateway",
        {"observedGeneration": gateway["metadata"]["generation"], "readyReplicas": 0},
    )
    await scene.reconcile()
    assert (scene.condition(c.GATEWAY_READY), scene.reason(c.READY)) == ("False", "GatewayNotReady")
    scene.cluster.set_status("Deployment", "demo", "chat-gateway", {"observedGeneration": 0, "readyReplicas": 2})
    await scene.reconcile()
    assert scene.condition(c.GATEWAY_READY) == "Unknown"


async def test_no_secret_reaches_status_events_or_contracts() -> None:
    scene = await ready()
    shown = [str(obj) for key, obj in scene.cluster.objects.items() if key[0] != "Secret"]
    assert not any("a-token" in text for text in (*shown, str(scene.cluster.events)))
