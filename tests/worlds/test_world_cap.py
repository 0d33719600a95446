"""The cap of accelerators over the real pass: pods that drain for long, engines over several pods, edits half-way."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import FakeCluster
from headrace_operator.state import Object
from headrace_operator.testing import Sample, Scene
from tests.worlds.traffic import Traffic

GPU = "nvidia.com/gpu"


def gpus(obj: Object) -> int:
    """That a pod holds until it is gone, or its phase is final."""
    if obj["kind"] != "Pod" or obj.get("status", {}).get("phase") in ("Failed", "Succeeded"):
        return 0
    limits = [one.get("resources", {}).get("limits", {}) for one in obj["spec"].get("containers", [])]
    return sum(int(limit.get(GPU, 0)) for limit in limits)


@dataclass
class SlowCluster(FakeCluster):
    """Pods that are told to end are there until somebody takes them away, and nobody gets more GPUs than there are."""

    most: int = 0
    peak: int = field(default=0)

    @property
    def held(self) -> int:
        return sum(map(gpus, self.objects.values()))

    def put(self, obj: Object) -> Object:
        kept = super().put(obj)
        if gpus(obj):
            assert self.held <= self.most, f"{obj['metadata']['name']} passes the cap of {self.most}"
            self.peak = max(self.peak, self.held)
        return kept

    async def delete(self, obj: Object) -> None:
        if not gpus(obj):
            await super().delete(obj)
            return
        self._record("delete", "Pod", obj["metadata"]["name"])
        kept = self.objects["Pod", obj["metadata"]["namespace"], obj["metadata"]["name"]]
        ends = (self.now() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        kept["metadata"].setdefault("deletionTimestamp", ends)

    def going(self) -> list[str]:
        return sorted(
            obj["metadata"]["name"] for obj in self.objects.values() if "deletionTimestamp" in obj["metadata"]
        )


def sample(prefill: int = 2, decode: int = 3, *, most: int, **over: Any) -> Sample:
    made = Sample().split(prefill, decode).set("engine.device", {"resource": GPU}).set("scaling.maxAccelerators", most)
    for path, value in over.items():
        made.set(path.replace("__", "."), value)
    return made


def scene_of(first: Sample, most: int) -> tuple[Scene, SlowCluster]:
    scene = Scene(first)
    cluster = SlowCluster(objects=scene.cluster.objects, most=most)
    cluster.now = lambda: scene.clock
    scene.cluster = cluster
    scene.world = replace(scene.world, cluster=cluster)
    return scene, cluster


def live(scene: Scene) -> dict[str, int]:
    """Engine pods of each role that are not told to end."""
    found: dict[str, int] = {}
    for name in scene.pods():
        obj = scene.cluster.objects["Pod", "demo", name]
        if "deletionTimestamp" not in obj["metadata"]:
            role = obj["metadata"]["labels"][names.ROLE]
            found[role] = found.get(role, 0) + 1
    return found


async def until_rest(scene: Scene, cluster: SlowCluster, limit: int = 80) -> None:
    for _ in range(limit):
        writes = len(cluster.writes)
        await scene.reconcile()
        changed = scene.kubelet()
        for name in cluster.going():
            cluster.remove("Pod", "demo", name)
            changed = True
        if not changed and len(cluster.writes) == writes:
            return
    raise AssertionError(f"no rest: {scene.judged(c.PROGRESSING)}")


async def test_where_all_is_as_wanted_nothing_is_done_and_nothing_waits() -> None:
    scene, cluster = scene_of(sample(most=7), 7)
    await until_rest(scene, cluster)
    assert (scene.condition(c.READY), scene.reason(c.PROGRESSING)) == ("True", "UpToDate")
    writes = len(cluster.writes)
    await scene.reconcile()
    assert len(cluster.writes) == writes


async def test_an_engine_waits_for_those_that_drain_and_the_status_says_so() -> None:
    scene, cluster = scene_of(sample(most=7), 7)
    await until_rest(scene, cluster)
    scene.edit(sample(1, 4, most=7))
    for _ in range(3):
        await scene.reconcile()
        scene.kubelet()
    # One of prefill drains, and the two that rollouts need are there to be used.
    assert (live(scene), len(cluster.going())) == ({"prefill": 1, "decode": 4}, 1)
    scene.edit(sample(1, 4, most=7).set("engine.dtype", "float16"))
    for _ in range(4):
        await scene.reconcile()
        scene.kubelet()
    said = scene.judged(c.PROGRESSING)
    assert (said["reason"], cluster.held) == ("RollingOut", 7)
    assert (
        "Engines wait for room: 1 of decode, 1 accelerators the next; 7 of scaling.maxAccelerators 7 are held, 1"
        in (said["message"])
    )
    writes = len(cluster.writes)
    await scene.reconcile()
    assert len(cluster.writes) == writes
    await until_rest(scene, cluster)
    assert (live(scene), scene.condition(c.READY)) == ({"prefill": 1, "decode": 4}, "True")


async def test_one_role_gives_way_to_two_within_the_cap_while_requests_are_answered() -> None:
    one = Sample().serve(4).set("engine.device", {"resource": GPU}).set("scaling.maxAccelerators", 5)
    scene, cluster = scene_of(one, 5)
    await until_rest(scene, cluster)
    scene.edit(sample(1, 2, most=5))
    await until_rest(scene, cluster)
    assert (live(scene), cluster.peak, scene.condition(c.READY)) == ({"prefill": 1, "decode": 2}, 5, "True")


async def test_a_cap_that_is_lowered_with_the_sizes_is_kept_from_then_on() -> None:
    scene, cluster = scene_of(sample(4, 4, most=10), 10)
    await until_rest(scene, cluster)
    scene.edit(sample(1, 1, most=4, engine__dtype="float16"))
    await scene.reconcile()
    # Those that are there cannot be undone; what is made from now on fits.
    assert sum(live(scene).values()) <= 4
    for name in cluster.going():
        cluster.remove("Pod", "demo", name)
    cluster.most = 4
    await until_rest(scene, cluster)
    assert live(scene) == {"prefill": 1, "decode": 1}


async def test_sizes_that_a_load_asks_for_leave_room_for_a_rollout_under_it() -> None:
    bounds = [{"name": name, "scaling": {"max": 6}} for name in ("prefill", "decode")]
    targets = {"ttft": {"target": "500ms"}, "itl": {"target": "50ms"}}
    sized = sample(most=8, roles=bounds, slo=targets, scaling__mode="SLO")
    scene, cluster = scene_of(sized, 8)
    await until_rest(scene, cluster)
    traffic = Traffic(scene, 200.0)
    for _ in range(20):
        scene.clock += timedelta(seconds=30)
        traffic.flow()
        for _ in range(3):
            await scene.reconcile()
            scene.kubelet()
    assert sum(live(scene).values()) == 6
    assert scene.reason(c.SCALING_ACTIVE) == "TargetOutOfReach"
    scene.edit(sample(most=8, roles=bounds, slo=targets, scaling__mode="SLO", engine__dtype="float16"))
    await until_rest(scene, cluster)
    assert (sum(live(scene).values()), cluster.peak, scene.condition(c.READY)) == (6, 8, "True")


EDITS: tuple[dict[str, Any], ...] = (
    {},
    {"engine__dtype": "float16"},
    {"parallelism__tensor": 2},
    {"parallelism": {"tensor": 2, "pods": 2}},
    {"rollout": {"maxSurge": 3}},
    {"rollout": {"maxUnavailable": 1}},
    {"rollout__canary": {"interval": "1s"}},
    {"disaggregation__roleChange__enabled": True},
)


@pytest.mark.parametrize("seed", range(4))
async def test_edits_half_way_with_engines_that_drain_and_fail_never_pass_it(seed: int) -> None:
    dice, most = Random(seed), 14
    scene, cluster = scene_of(sample(most=most), most)
    for _ in range(6):
        edit = sample(dice.randint(1, 3), dice.randint(1, 2), most=most, **dice.choice(EDITS))
        scene.edit(edit)
        for _ in range(dice.randint(2, 10)):
            await scene.reconcile()
            if dice.random() < 0.6:
                scene.kubelet()
            for name in cluster.going():
                if dice.random() < 0.2:
                    cluster.remove("Pod", "demo", name)
        if dice.random() < 0.5:
            scene.fail(dice.choice(scene.pods()))
    scene.edit(sample(3, 2, most=most, **dice.choice(EDITS[:4])))
    await until_rest(scene, cluster)
    assert scene.condition(c.READY) == "True"
    assert cluster.peak > 8, "the cap was never near"
