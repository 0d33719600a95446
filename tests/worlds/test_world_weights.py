"""Given these files: what does the status say of them, and of which node? The real pass over a world in memory."""

import json
from typing import Any

import pytest

from headrace_operator.api import conditions as c
from headrace_operator.state import Object
from headrace_operator.testing import DIGEST, START, Sample, Scene, agent, running
from headrace_runtime import contract
from headrace_runtime.contract import NodeState, WeightsState

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = f"hf://Qwen/Qwen3-8B@{COMMIT}"
GOOD = WeightsState(digest=DIGEST, bytes_total=1000, bytes_read=1000, verified=True, verified_at=START.timestamp())


async def fetching(sample: Sample) -> Scene:
    """A world whose engine pods run and have said nothing yet."""
    scene = Scene(sample)
    await scene.reconcile()
    scene.kubelet()
    return scene


def say(scene: Scene, pod: str, *, ready: bool = False, **said: Any) -> None:
    """What the agent of a pod says from now on."""
    obj = scene.cluster.objects["Pod", "demo", pod]
    address = obj["status"]["podIP"]
    obj["spec"]["nodeName"] = f"node-of-{pod[-1]}"
    labels = obj["metadata"]["labels"]
    role, revision = labels["headrace.dev/role"], labels["headrace.dev/revision"]
    state: NodeState = agent(pod, role, revision, **said)
    scene.runtime.states[address] = state
    scene.cluster.set_status("Pod", "demo", pod, running(address, ready=ready))


def fetched(part: int, total: int = 1000) -> WeightsState:
    return WeightsState(fetched=part, fetch_total=total)


async def test_a_fetch_is_told_in_steps_and_not_at_every_byte() -> None:
    scene = await fetching(Sample().set("model.source", HUB).serve(2))
    first, second = scene.pods()
    messages = set()
    for part in range(0, 1000, 7):
        say(scene, first, phase="FetchingWeights", ready_seconds=None, weights=fetched(part))
        say(scene, second, phase="FetchingWeights", ready_seconds=None, weights=fetched(1000))
        await scene.reconcile()
        assert (scene.condition(c.MODEL_READY), scene.reason(c.MODEL_READY)) == ("False", "Fetching")
        messages.add(scene.judged(c.MODEL_READY)["message"])
    assert len(messages) == 10
    assert "0 of 2 engines have loaded the model, 2 are fetching it, 90 % of it is there." in messages


async def test_a_fetch_of_unknown_length_gives_no_number() -> None:
    scene = await fetching(Sample().set("model.source", HUB).serve())
    (pod,) = scene.pods()
    say(scene, pod, phase="FetchingWeights", ready_seconds=None, weights=fetched(10, 0))
    await scene.reconcile()
    assert scene.judged(c.MODEL_READY)["message"] == "0 of 1 engines have loaded the model, 1 are fetching it."


@pytest.mark.parametrize("reason", ["FetchFailed", "CacheTooSmall"])
async def test_a_fetch_that_cannot_end_is_named(reason: str) -> None:
    scene = await fetching(Sample().set("model.source", HUB).serve())
    (pod,) = scene.pods()
    say(scene, pod, phase="Failed", reason=reason, message="why", ready_seconds=None, weights=WeightsState())
    await scene.reconcile()
    assert (scene.condition(c.MODEL_READY), scene.reason(c.MODEL_READY)) == ("False", reason)
    assert scene.reason(c.READY) == reason
    assert scene.condition(c.DEGRADED) == "True"


@pytest.mark.parametrize("reason", ["UnsafeFiles", "FilesDamaged", "SignatureInvalid", "DigestMismatch"])
@pytest.mark.parametrize("policy", ["Enforce", "Warn"])
async def test_files_that_are_not_right_are_named_with_their_node(reason: str, policy: str) -> None:
    scene = await fetching(Sample().set("model.integrity", {"policy": policy}).split(1, 2))
    bad = scene.pods(role="decode")[1]
    problems = ("model.safetensors: wrong", "config.json: wrong")
    weights = WeightsState(verified=False, reason=reason, problems=problems)
    kept_out = {"phase": "Failed", "reason": reason, "message": "model.safetensors: wrong", "ready_seconds": None}
    say(scene, bad, ready=policy == "Warn", weights=weights, **(kept_out if policy == "Enforce" else {}))
    await scene.settle()
    verified = scene.judged(c.WEIGHTS_VERIFIED)
    assert (verified["status"], verified["reason"]) == ("False", reason)
    assert verified["message"] == f"{bad} on node-of-1: {reason}: model.safetensors: wrong; and 1 more"
    assert scene.condition(c.ROLES_READY) == ("False" if policy == "Enforce" else "True")


async def test_an_engine_that_is_taken_out_leaves_the_others_serving() -> None:
    scene = Scene(Sample().serve(2))
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    good, bad = scene.pods()
    weights = WeightsState(verified=False, reason="DigestMismatch", problems=("a: SHA-256 is",))
    say(scene, bad, phase="Draining", reason="DigestMismatch", message="a: SHA-256 is", weights=weights)
    await scene.settle()
    assert scene.reason(c.WEIGHTS_VERIFIED) == "DigestMismatch"
    assert (scene.condition(c.DEGRADED), scene.reason(c.DEGRADED)) == ("True", "DigestMismatch")
    assert scene.pods() == [good, bad], "its pod stays where it is, to be looked at and put right"
    say(scene, bad, ready=True, weights=GOOD)
    await scene.settle()
    assert scene.condition(c.WEIGHTS_VERIFIED) == "True"
    assert (scene.condition(c.READY), scene.condition(c.DEGRADED)) == ("True", "False")


async def test_the_oldest_reading_dates_the_weights_and_a_quiet_world_writes_nothing() -> None:
    scene = Scene(Sample().serve(2))
    await scene.settle()
    assert scene.status["model"] | {"adapters": []} == {
        "servedName": "chat",
        "digest": DIGEST,
        "bytes": 1000,
        "verifiedAt": "2026-01-01T00:00:00Z",
        "adapters": [],
    }
    assert await scene.settle() == []
    first, second = scene.pods()
    say(scene, first, ready=True, weights=GOOD.model_copy(update={"verified_at": START.timestamp() + 3600.7}))
    await scene.settle()
    assert scene.status["model"]["verifiedAt"] == "2026-01-01T00:00:00Z"
    say(scene, second, ready=True, weights=GOOD.model_copy(update={"verified_at": START.timestamp() + 7200.7}))
    await scene.settle()
    assert scene.status["model"]["verifiedAt"] == "2026-01-01T01:00:00Z"
    assert await scene.settle() == []


async def test_what_else_should_be_known_is_told() -> None:
    scene = Scene(Sample().serve())
    await scene.settle()
    (pod,) = scene.pods()
    note = "the engine runs code from the model's folder: modeling.py"
    say(scene, pod, ready=True, weights=GOOD.model_copy(update={"notes": (note,)}))
    await scene.settle()
    assert scene.judged(c.WEIGHTS_VERIFIED)["message"].endswith(f" {pod}: {note}.")


@pytest.mark.parametrize(
    ("field", "value", "condition"),
    [
        ("spec.model.credentialsSecretRef", {"credentialsSecretRef": {"name": "hub"}}, c.MODEL_READY),
        (
            "spec.model.integrity.signature.publicKeySecretRef",
            {"integrity": {"signature": {"publicKeySecretRef": {"name": "hub"}}}},
            c.WEIGHTS_VERIFIED,
        ),
    ],
)
async def test_a_secret_that_is_missing_is_named_with_its_field(field: str, value: Object, condition: str) -> None:
    scene = Scene(Sample().set("model", {"source": HUB, **value}).serve())
    await scene.reconcile()
    (pod,) = scene.pods()
    scene.cluster.objects["Pod", "demo", pod]["spec"]["nodeName"] = "n1"
    scene.cluster.set_status("Pod", "demo", pod, {"phase": "Pending"})
    missed = 'MountVolume.SetUp failed for volume "credentials" : secret "hub" not found'
    scene.cluster.warnings[pod] = [{"reason": "FailedMount", "message": missed}]
    await scene.settle()
    judged = scene.judged(condition)
    assert (judged["status"], judged["reason"]) == ("False", "SecretNotFound")
    assert judged["message"] == f"{field}: the Secret hub does not exist"


async def test_signed_weights_are_verified_as_the_signer_says() -> None:
    signed = {"signature": {"publicKeySecretRef": {"name": "signer"}}, "rescan": "12h", "allowPickle": True}
    scene = Scene(Sample().set("model.integrity", signed).serve())
    await scene.settle()
    assert scene.reason(c.WEIGHTS_VERIFIED) == "Verified"
    assert "as the signer does" in scene.judged(c.WEIGHTS_VERIFIED)["message"]
    revision = scene.status["revision"]["current"]
    contract = scene.cluster.objects["ConfigMap", "demo", f"chat-serve-{revision}"]["data"]["contract.json"]
    integrity = json.loads(contract)["model"]["integrity"]
    assert integrity.items() >= {"rescanSeconds": 43200.0, "allowPickle": True}.items()
    assert integrity["signerKeyFile"].endswith("/public.pem")


async def test_another_model_is_not_held_to_the_digest_of_the_one_before_nor_that_to_its_own() -> None:
    scene = Scene(Sample().serve(2))
    await scene.settle()

    def pinned() -> dict[str, str | None]:
        found = (
            json.loads(obj["data"][contract.CONTRACT_FILE])["model"]
            for (kind, _, name), obj in scene.cluster.objects.items()
            if kind == "ConfigMap" and "-serve-" in name
        )
        return {model["source"]: model.get("integrity", {}).get("digest") for model in found}

    tiny, other, theirs = "node:///models/tiny", "node:///models/other", f"sha256:{'9' * 64}"
    scene.edit(Sample().serve(2).set("model.source", other))
    for _ in range(3):
        await scene.reconcile()
        assert pinned() == {tiny: DIGEST, other: None}
    state = scene.status["revision"]["updating"]
    scene.start(f"chat-serve-{state}-0", weights=WeightsState(digest=theirs, verified=True))
    await scene.reconcile()
    assert scene.status["model"]["digest"] == theirs
    scene.edit(Sample().serve(2))
    await scene.reconcile()
    await scene.reconcile()
    assert pinned()[tiny] == DIGEST
    await scene.settle()
    assert scene.status["model"]["digest"] == DIGEST
