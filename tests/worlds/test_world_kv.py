"""KV blocks that outlive their engines: which calls, and what does the status say? The real pass over a world in
memory."""

import contextlib
from datetime import timedelta
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import Call
from headrace_operator.state import Object
from headrace_operator.testing import Sample, Scene
from headrace_runtime.contract import KvState

NO_ROOM = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector."
CORDONED = "0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) didn't match Pod's node affinity/selector."
FOLDER = {"hostPath": "/mnt/kv"}
CLAIM = {"claimTemplate": {"size": "1Gi", "storageClassName": "local"}}


class Crash(BaseException):
    """The process ends here."""


def with_disk(volume: Object | None = None, replicas: int = 1, **disk: Any) -> Sample:
    tier = {"size": "1Gi", "volume": volume or FOLDER, **disk}
    return Sample().serve(replicas).set("kvCache.host", {"size": "1Gi"}).set("kvCache.disk", tier)


async def ready(sample: Sample) -> Scene:
    scene = Scene(sample)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


def node_of(scene: Scene, pod: str) -> str:
    return str(scene.cluster.objects["Pod", "demo", pod]["spec"]["nodeName"])


def waits_for(scene: Scene, pod: str) -> str | None:
    """The only node that a pod may start on; what the scheduler reads and what the operator reads must be the same."""
    obj = scene.cluster.objects["Pod", "demo", pod]
    said: str | None = obj["metadata"].get("annotations", {}).get(names.RETURNS_TO)
    affinity = obj["spec"].get("affinity", {}).get("nodeAffinity", {})
    (term,) = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [{}])
    required = [field["values"] for field in term.get("matchFields", []) if field["key"] == "metadata.name"]
    assert required == ([[said]] if said else [])
    return said


def claims(scene: Scene) -> set[str]:
    return {name for kind, _, name in scene.cluster.objects if kind == "PersistentVolumeClaim"}


def placement(scene: Scene) -> dict[str, str]:
    return {place["slot"]: place["node"] for place in scene.status["kvCache"]["placement"]}


async def lose(scene: Scene) -> str:
    """The one engine is gone; the name of its successor."""
    (lost,) = scene.pods()
    scene.cluster.remove("Pod", "demo", lost)
    await scene.reconcile()
    (new,) = scene.pods()
    return new


@pytest.mark.parametrize("volume", [FOLDER, CLAIM, {"emptyDir": {}}], ids=["folder", "claim", "emptyDir"])
async def test_nothing_to_do(volume: Object) -> None:
    scene = await ready(with_disk(volume, 2))
    before = len(scene.cluster.writes)
    look = await scene.reconcile()
    assert scene.cluster.writes[before:] == []
    assert (look.seconds, look.retry) == (None, False)
    assert (scene.condition(c.KV_CACHE_READY), scene.reason(c.KV_CACHE_READY)) == ("True", "OnDisk")


async def test_without_tiers_nothing_is_said_of_nodes() -> None:
    scene = await ready(Sample().serve())
    assert "kvCache" not in scene.status
    assert scene.reason(c.KV_CACHE_READY) == "NotConfigured"
    scene = await ready(Sample().serve().set("kvCache.host", {"size": "1Gi"}))
    assert "kvCache" not in scene.status
    assert scene.reason(c.KV_CACHE_READY) == "InMemory"


async def test_a_replaced_engine_returns_to_its_node() -> None:
    scene = await ready(with_disk())
    home = node_of(scene, scene.pods()[0])
    assert placement(scene) == {"serve-0": home}
    new = await lose(scene)
    assert waits_for(scene, new) == home
    await scene.settle()
    assert (node_of(scene, new), placement(scene)) == (home, {"serve-0": home})
    assert scene.condition(c.READY) == "True"


async def test_it_waits_for_the_node_and_the_status_says_so() -> None:
    scene = await ready(with_disk())
    home = node_of(scene, scene.pods()[0])
    new = await lose(scene)
    scene.hold_up(new, NO_ROOM)
    for _ in range(40):
        look = await scene.reconcile()
    assert scene.pods() == [new]
    assert look.seconds == 5
    assert (scene.reason(c.ROLES_READY), scene.condition(c.DEGRADED)) == ("Unschedulable", "True")
    assert f"waits for the node {home}, where its KV blocks are: 0/2 nodes" in scene.judged(c.ROLES_READY)["message"]


@pytest.mark.parametrize(("why", "seconds"), [(NO_ROOM, 60), (CORDONED, 0)], ids=["no room", "cordoned"])
@pytest.mark.parametrize("volume", [FOLDER, CLAIM], ids=["folder", "claim"])
async def test_and_then_starts_elsewhere_for_good(volume: Object, why: str, seconds: int) -> None:
    scene = await ready(with_disk(volume))
    home = node_of(scene, scene.pods()[0])
    waiting = await lose(scene)
    scene.hold_up(waiting, why)
    scene.clock += timedelta(seconds=seconds)
    await scene.reconcile()
    assert (scene.pods(), placement(scene)) == ([waiting], {})
    await scene.reconcile()
    (new,) = scene.pods()
    assert new != waiting
    assert waits_for(scene, new) is None
    scene.start(new, "elsewhere")
    await scene.settle()
    assert home not in placement(scene).values()
    assert scene.condition(c.READY) == "True"
    if volume == CLAIM:
        assert claims(scene) == {"chat-kv-serve-1"}, "the claim of the slot may be bound to the node that was given up"


async def test_wherever_the_process_ends_on_the_way_the_engine_ends_up_elsewhere() -> None:
    for after in range(8):
        scene = await ready(with_disk())
        waiting = await lose(scene)
        scene.hold_up(waiting, NO_ROOM)
        scene.clock += timedelta(seconds=60)
        left = [after]

        def before(call: Call, left: list[int] = left) -> None:
            left[0] -= call.writes
            if left[0] < 0:
                raise Crash

        scene.cluster.before = before
        with contextlib.suppress(Crash):
            for _ in range(4):
                await scene.reconcile()
        scene.cluster.before = lambda call: None
        await scene.settle()
        (new,) = scene.pods()
        assert new != waiting, f"ended before write {after}"
        assert scene.condition(c.READY) == "True"


async def test_suspended_it_keeps_its_places_and_its_claims() -> None:
    scene = await ready(with_disk(CLAIM, 2))
    before = placement(scene)
    scene.edit(with_disk(CLAIM, 2).set("suspend", True))
    await scene.settle()
    assert scene.pods() == []
    assert (await scene.reconcile()).seconds is None
    assert placement(scene) == before
    assert claims(scene) == {"chat-kv-serve-0", "chat-kv-serve-1"}
    scene.edit(with_disk(CLAIM, 2))
    await scene.settle()
    assert placement(scene) == before


async def test_claims_come_with_slots_and_go_with_them_and_with_the_deployment() -> None:
    scene = await ready(with_disk(CLAIM, 4))
    assert claims(scene) == {f"chat-kv-serve-{number}" for number in range(4)}
    scene.edit(with_disk(CLAIM, 1))
    await scene.settle()
    assert claims(scene) == {"chat-kv-serve-0", "chat-kv-serve-1"}, "one for the engine, one for the surge of a rollout"
    scene.cluster.remove(names.KIND, "demo", "chat")
    assert claims(scene) == set()


async def test_a_claim_is_taken_over_by_the_next_engine_of_its_slot() -> None:
    scene = await ready(with_disk(CLAIM))
    new = await lose(scene)
    volumes = scene.cluster.objects["Pod", "demo", new]["spec"]["volumes"]
    assert {"name": "kv", "persistentVolumeClaim": {"claimName": "chat-kv-serve-0"}} in volumes


async def test_a_rollout_keeps_its_surge_and_reuses_the_nodes_that_come_free() -> None:
    sample = with_disk(replicas=2)
    scene = await ready(sample)
    nodes = set(placement(scene).values())
    scene.edit(sample.set("engine.dtype", "float16"))
    await scene.reconcile()
    assert len(scene.pods()) == 3
    await scene.settle()
    here = {node_of(scene, pod) for pod in scene.pods()}
    assert len(here & nodes) == 1, "of two engines one started beside the old ones, where there was room"


async def test_a_disk_that_fails_is_named_and_costs_no_readiness() -> None:
    scene = await ready(with_disk(replicas=2))
    pod = scene.pods()[1]
    scene.say(pod, kv=KvState(ready=False, reason="DiskReadOnly", message="the disk takes no more writes"))
    await scene.settle()
    said = scene.judged(c.KV_CACHE_READY)
    assert (said["status"], said["reason"]) == ("False", "DiskReadOnly")
    assert said["message"] == f"{pod}: DiskReadOnly: the disk takes no more writes"
    assert (scene.condition(c.READY), scene.condition(c.DEGRADED)) == ("True", "True")
    assert scene.judged(c.DEGRADED)["message"] == said["message"]
    assert scene.cluster.events[-1] == ("Warning", "DiskReadOnly", f"Degraded: {said['message']}")
    scene.say(pod, kv=KvState(ready=True, bytes_limit=1000))
    await scene.settle()
    assert (scene.condition(c.KV_CACHE_READY), scene.condition(c.DEGRADED)) == ("True", "False")


async def test_silent_agents_are_unknown_and_their_figures_stay() -> None:
    scene = await ready(with_disk())
    scene.say(scene.pods()[0], kv=KvState(ready=True, bytes_used=600, bytes_limit=1000))
    await scene.settle()
    nodes = scene.status["kvCache"]["nodes"]
    assert [node["bytes"] for node in nodes] == [600]
    scene.runtime.states.clear()
    await scene.settle()
    assert (await scene.reconcile()).seconds == 5, "nothing else tells when they speak again"
    assert (scene.condition(c.KV_CACHE_READY), scene.reason(c.KV_CACHE_READY)) == ("Unknown", "Opening")
    assert scene.condition(c.READY) == "True"
    assert scene.status["kvCache"]["nodes"] == nodes


async def test_a_missing_key_is_named_by_its_field() -> None:
    scene = Scene(with_disk(encryption={"keySecretRef": {"name": "kv-key"}}))
    await scene.reconcile()
    (pod,) = scene.pods()
    scene.cluster.objects["Pod", "demo", pod]["spec"]["nodeName"] = "n1"
    scene.cluster.set_status("Pod", "demo", pod, {"phase": "Pending"})
    words = 'MountVolume.SetUp failed for volume "kv-key" : secret "kv-key" not found'
    scene.cluster.warnings[pod] = [{"reason": "FailedMount", "message": words}]
    await scene.settle()
    said = scene.judged(c.KV_CACHE_READY)
    assert (said["status"], said["reason"]) == ("False", "SecretNotFound")
    assert said["message"] == "spec.kvCache.disk.encryption.keySecretRef: the Secret kv-key does not exist"
    assert scene.reason(c.READY) == "SecretNotFound"


async def test_figures_are_told_when_they_have_moved_or_beside_other_news() -> None:
    scene = await ready(with_disk())
    (pod,) = scene.pods()

    def now(**state: int) -> None:
        scene.say(pod, kv=KvState(ready=True, bytes_limit=10_000, looked_up=1000, **state))

    now(bytes_used=1000, found=500)
    await scene.settle()
    (told,) = scene.status["kvCache"]["nodes"]
    assert (told["bytes"], told["limit"], told["hitRate"]) == (1000, 10_000, 0.5)
    writes = len(scene.cluster.writes)
    for small in (1001, 1050, 1099, 901):
        now(bytes_used=small, found=550)
        await scene.reconcile()
    assert len(scene.cluster.writes) == writes
    now(bytes_used=1100, found=550)
    await scene.reconcile()
    assert scene.status["kvCache"]["nodes"] == [told | {"bytes": 1100, "hitRate": 0.55}]
    now(bytes_used=1101, found=551)
    scene.cluster.remove("Pod", "demo", "chat-head")
    await scene.reconcile()
    assert scene.status["kvCache"]["nodes"][0]["bytes"] == 1101


async def test_engines_of_one_node_measure_one_folder() -> None:
    scene = Scene(with_disk(replicas=2))
    await scene.reconcile()
    for pod in scene.pods():
        scene.start(pod, "n1", kv=KvState(ready=True, bytes_used=700, bytes_limit=1000, looked_up=10, found=5))
    await scene.settle()
    assert scene.status["kvCache"]["nodes"] == [{"node": "n1", "bytes": 700, "limit": 1000, "hitRate": 0.5}]
    assert scene.judged(c.KV_CACHE_READY)["message"] == "2 engines keep KV blocks on disk, nodes: 1."


async def test_engines_with_volumes_of_their_own_add_up() -> None:
    scene = Scene(with_disk({"emptyDir": {}}, replicas=2))
    await scene.reconcile()
    for pod in scene.pods():
        scene.start(pod, "n1", kv=KvState(ready=True, bytes_used=700, bytes_limit=1000))
    await scene.settle()
    (told,) = scene.status["kvCache"]["nodes"]
    assert (told["bytes"], told["limit"]) == (1400, 2000)


async def test_blocks_that_go_with_their_pod_hold_no_engine_to_a_node() -> None:
    scene = await ready(with_disk({"emptyDir": {}}))
    assert placement(scene) == {}
    assert waits_for(scene, await lose(scene)) is None


async def test_an_invalid_spec_forgets_no_place() -> None:
    scene = await ready(with_disk())
    before = placement(scene)
    scene.edit(with_disk().set("engine.dtype", "float17"))
    await scene.settle()
    assert (placement(scene), scene.condition(c.KV_CACHE_READY)) == (before, "True")


async def test_taken_out_of_the_spec_nothing_is_left_of_it() -> None:
    scene = await ready(with_disk(CLAIM))
    scene.edit(Sample().serve(1))
    await scene.settle()
    assert claims(scene) == set()
    assert "kvCache" not in scene.status
    assert scene.condition(c.READY) == "True"
