"""Engines that change their role: which calls, and what the status says meanwhile. The real pass over a world in
memory."""

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.testing import Sample, Scene


def split(prefill: int, decode: int, **change: object) -> Sample:
    return Sample().split(prefill, decode).set("disaggregation", {"roleChange": {"enabled": True, **change}})


async def ready(sample: Sample) -> Scene:
    scene = Scene(sample)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


def uids(scene: Scene) -> dict[str, str]:
    return {name: scene.cluster.objects["Pod", "demo", name]["metadata"]["uid"] for name in scene.pods()}


async def test_a_spec_with_other_sizes_changes_one_label_and_the_budgets() -> None:
    scene = await ready(split(2, 1))
    before = uids(scene)
    scene.edit(split(1, 2))
    writes = await scene.settle()
    budgets = ["patch PodDisruptionBudget", "delete PodDisruptionBudget"]  # two decode engines are bounded, one is not
    assert [f"{call.verb} {call.kind}" for call in writes if call.kind not in ("Event", f"{names.KIND}/status")] == [
        "patch Pod",
        *budgets,
    ]
    assert uids(scene) == before
    assert [role["summary"] for role in scene.status["roles"]] == ["1/1", "2/2"]
    assert (scene.condition(c.READY), scene.condition(c.DEGRADED)) == ("True", "False")


async def test_and_back_again() -> None:
    scene = await ready(split(2, 1))
    before, roles = uids(scene), scene.pods(role="prefill")
    scene.edit(split(1, 2))
    await scene.settle()
    scene.edit(split(2, 1))
    await scene.settle()
    assert (uids(scene), scene.pods(role="prefill")) == (before, roles)


async def test_a_changed_engine_keeps_the_contract_it_was_made_with_through_a_rollout() -> None:
    scene = await ready(split(2, 1))
    scene.edit(split(1, 2))
    await scene.settle()
    old = scene.status["revision"]["current"]
    scene.edit(split(1, 2).set("engine.dtype", "float16"))
    for _ in range(40):
        await scene.reconcile()
        there = {name for kind, _, name in scene.cluster.objects if kind == "ConfigMap"}
        for pod in scene.pods():
            assert pod.rpartition("-")[0] in there, f"the contract of {pod} is gone"
        scene.kubelet()
    assert not any(old in name for kind, _, name in scene.cluster.objects if kind != "ControllerRevision")
    assert [role["summary"] for role in scene.status["roles"]] == ["1/1", "2/2"]


async def test_a_person_who_labels_an_engine_is_heeded_as_far_as_the_spec_agrees() -> None:
    scene = await ready(split(2, 1))
    before = uids(scene)
    (decode,), (chosen, _) = scene.pods(role="decode"), scene.pods(role="prefill")
    scene.edit(split(2, 1).set("paused", True))
    await scene.settle()
    _label(scene, chosen, "decode")
    scene.edit(split(1, 2))
    await scene.settle()
    assert scene.pods(role="decode") == [decode, chosen]
    assert uids(scene) == before


async def test_a_label_against_the_spec_is_put_back() -> None:
    scene = await ready(split(2, 1))
    before, prefill = uids(scene), scene.pods(role="prefill")
    _label(scene, prefill[1], "decode")
    await scene.settle()
    assert (uids(scene), scene.pods(role="prefill")) == (before, prefill)
    _label(scene, prefill[0], "nonsense")
    await scene.settle()
    assert (uids(scene), scene.pods(role="prefill")) == (before, prefill)


async def test_a_lost_engine_that_had_changed_is_replaced_by_one_of_its_role() -> None:
    scene = await ready(split(2, 1))
    scene.edit(split(1, 2))
    await scene.settle()
    changed = next(pod for pod in scene.pods(role="decode") if "-prefill-" in pod)
    scene.cluster.remove("Pod", "demo", changed)
    await scene.settle()
    assert all("-decode-" in pod for pod in scene.pods(role="decode"))
    assert [role["summary"] for role in scene.status["roles"]] == ["1/1", "2/2"]


async def test_without_prefill_engines_decode_alone_is_asked_and_ready() -> None:
    scene = await ready(split(1, 1, minPrefill=0))
    before = uids(scene)
    scene.edit(split(0, 2, minPrefill=0))
    await scene.settle()
    assert uids(scene) == before
    assert (scene.condition(c.READY), scene.pods(role="prefill")) == ("True", [])
    scene.cluster.remove("Pod", "demo", scene.pods()[0])
    await scene.settle()
    assert not scene.runtime.questions[-1].split
    assert scene.condition(c.READY) == "True"


async def test_a_missing_role_is_named_while_the_other_one_serves() -> None:
    for role in ("prefill", "decode"):
        scene = await ready(split(1, 1))
        scene.cluster.remove("Pod", "demo", scene.pods(role=role)[0])
        await scene.reconcile()
        assert (scene.condition(c.DEGRADED), scene.reason(c.DEGRADED)) == ("True", "BelowWanted")
        assert f"{role} 0/1" in scene.judged(c.DEGRADED)["message"]
        await scene.settle()
        assert scene.condition(c.DEGRADED) == "False"


def _label(scene: Scene, pod: str, role: str) -> None:
    scene.cluster.objects["Pod", "demo", pod]["metadata"]["labels"][names.ROLE] = role
