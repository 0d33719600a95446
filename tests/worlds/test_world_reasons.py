"""Given this trouble: does the status name it? The real pass over the cluster and the runtime in memory."""

import pytest

from headrace_operator.api import conditions as c
from headrace_operator.state import Object
from headrace_operator.testing import DIGEST, Sample, Scene, agent, running
from headrace_runtime.contract import WeightsState


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
    assert scene.condition(c.DEGRADED) == "True"


@pytest.mark.parametrize(
    "reason", ["ModelNotFound", "DigestMismatch", "EngineMissing", "LoaderMissing", "RayMissing", "RestartBudgetSpent"]
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
