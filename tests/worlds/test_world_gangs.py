"""An engine over several pods: which pods a pass makes and ends, and what the status says of a gang that is not whole.
The real pass over a world in memory."""

import itertools

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from headrace_operator.cluster.fake import Call
from headrace_operator.errors import ClusterError
from headrace_operator.testing import Sample, Scene


def spread(engines: int = 1, pods: int = 2) -> Sample:
    return Sample().serve(engines).set("parallelism", {"tensor": 2, "pods": pods})


async def ready(sample: Sample) -> Scene:
    scene = Scene(sample)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


def uids(scene: Scene) -> dict[str, str]:
    return {name: scene.cluster.objects["Pod", "demo", name]["metadata"]["uid"] for name in scene.pods()}


def services(scene: Scene) -> set[str]:
    return {name for kind, _, name in scene.cluster.objects if kind == "Service"}


def whole(scene: Scene) -> int:
    """Engines of which every rank is there and ready."""
    ranks: dict[str, int] = {}
    for name in scene.pods():
        obj = scene.cluster.objects["Pod", "demo", name]
        states = {one["type"]: one["status"] for one in obj.get("status", {}).get("conditions", [])}
        gang = obj["metadata"]["labels"][names.GANG]
        ranks[gang] = ranks.get(gang, 0) + (states.get("Ready") == "True")
    return sum(number == 2 for number in ranks.values())


async def test_two_pods_are_one_engine_in_the_status() -> None:
    scene = await ready(spread())
    assert len(scene.pods()) == 2
    (role,) = scene.status["roles"]
    assert (role["summary"], role["updated"], role["desired"]) == ("1/1", 1, 1)
    assert scene.status["ray"]["nodes"] == {"alive": 3, "expected": 3}
    assert scene.judged(c.MODEL_READY)["message"] == "2 engine pods have loaded the model."
    assert scene.judged(c.PROGRESSING)["message"].startswith("All engines are of revision")
    assert "chat-ranks" in services(scene)


async def test_nothing_to_do() -> None:
    scene = await ready(spread(2))
    assert await scene.settle() == []


async def test_an_engine_in_one_pod_has_no_service_for_ranks() -> None:
    assert "chat-ranks" not in services(await ready(Sample().serve(1)))


async def test_one_rank_that_is_ready_is_no_engine() -> None:
    scene = Scene(spread())
    await scene.reconcile()
    first, second = scene.pods()
    scene.start(first)
    waits = "waits for rank 1, which is not heard"
    scene.say(first, phase="Waiting", reason="RanksMissing", message=waits)
    await scene.reconcile()
    assert scene.status["roles"][0]["summary"] == "0/1"
    assert (scene.condition(c.ROLES_READY), scene.condition(c.READY)) == ("False", "False")
    scene.start(second)
    await scene.settle()
    assert (scene.status["roles"][0]["summary"], scene.condition(c.READY)) == ("1/1", "True")


async def test_a_gang_whose_budget_is_spent_is_told_as_failed_with_the_rank_that_failed() -> None:
    scene = await ready(spread())
    first, second = scene.pods()
    for pod in (first, second):
        address = scene.cluster.objects["Pod", "demo", pod]["status"]["podIP"]
        conditions = [{"type": "Ready", "status": "False"}]
        status = {"phase": "Running", "podIP": address, "conditions": conditions}
        scene.cluster.set_status("Pod", "demo", pod, status)
    last = "gave up after 10 restarts; last: rank 1: the engine ended by SIGKILL"
    scene.say(first, phase="Failed", reason="RestartBudgetSpent", message=last)
    scene.say(second, phase="Waiting", reason="RanksMissing", message="waits for rank 0, which is in phase Failed")
    await scene.reconcile()
    degraded = scene.judged(c.DEGRADED)
    assert (degraded["status"], degraded["reason"]) == ("True", Reason.RESTART_BUDGET_SPENT)
    assert f"{first}: RestartBudgetSpent: {last}" in degraded["message"]
    assert scene.condition(c.READY) == "False"


async def test_an_evicted_rank_takes_the_other_with_it_and_a_new_gang_comes() -> None:
    scene = await ready(spread())
    first, second = scene.pods()
    scene.fail(second)
    await scene.reconcile()
    assert first not in scene.pods()
    await scene.settle()
    assert scene.pods() == [f"{first[:-1]}1", f"{first[:-1]}1-r1"]
    assert (scene.condition(c.READY), scene.condition(c.DEGRADED)) == ("True", "False")


async def test_a_rank_that_is_gone_without_a_trace_is_made_again_beside_the_other() -> None:
    for lost in (0, 1):
        scene = await ready(spread())
        before = uids(scene)
        name = scene.pods()[lost]
        scene.cluster.remove("Pod", "demo", name)
        await scene.settle()
        after = uids(scene)
        assert after.keys() == before.keys()
        assert {pod for pod in before if before[pod] != after[pod]} == {name}


async def test_a_rollout_never_leaves_less_than_the_whole_engines_that_were_there() -> None:
    scene = await ready(spread(2))
    old = scene.status["revision"]["current"]
    scene.edit(spread(2).set("engine.dtype", "float16"))
    for _ in range(60):
        await scene.reconcile()
        assert whole(scene) >= 2
        scene.kubelet()
    assert not any(old in pod for pod in scene.pods())
    assert (len(scene.pods()), scene.condition(c.READY)) == (4, "True")


async def test_ranks_find_each_other_until_the_last_of_them_is_gone() -> None:
    scene = await ready(spread())
    scene.edit(spread(pods=1))
    for _ in range(60):
        await scene.reconcile()
        gangs = [p for p in scene.pods() if names.GANG in scene.cluster.objects["Pod", "demo", p]["metadata"]["labels"]]
        assert not gangs or "chat-ranks" in services(scene)
        scene.kubelet()
    await scene.settle()
    assert len(scene.pods()) == 1
    assert "chat-ranks" not in services(scene)


async def test_fewer_engines_end_with_all_their_ranks() -> None:
    scene = await ready(spread(2))
    kept = scene.pods()[:2]
    scene.edit(spread(1))
    await scene.settle()
    assert scene.pods() == kept


async def test_a_rank_whose_label_somebody_took_gets_it_back() -> None:
    scene = await ready(spread())
    before = uids(scene)
    second = scene.pods()[1]
    obj = scene.cluster.objects["Pod", "demo", second]
    scene.cluster.put({**obj, "metadata": {**obj["metadata"], "labels": obj["metadata"]["labels"] | {names.ROLE: "x"}}})
    await scene.settle()
    assert uids(scene) == before
    assert scene.cluster.objects["Pod", "demo", second]["metadata"]["labels"][names.ROLE] == "serve"


async def test_an_engine_that_changes_its_role_takes_all_its_ranks_along() -> None:
    def split(prefill: int, decode: int) -> Sample:
        spread = Sample().split(prefill, decode).set("parallelism", {"tensor": 2, "pods": 2})
        return spread.set("disaggregation", {"roleChange": {"enabled": True}})

    scene = await ready(split(2, 1))
    before = uids(scene)
    scene.edit(split(1, 2))
    writes = await scene.settle()
    assert uids(scene) == before
    assert [call.kind for call in writes].count("Pod") == 2
    assert [len(scene.pods(role=role)) for role in ("prefill", "decode")] == [2, 4]
    assert [role["summary"] for role in scene.status["roles"]] == ["1/1", "2/2"]


async def test_a_write_of_a_rank_that_fails_leaves_each_made_and_ended_once() -> None:
    clean = await _made_and_scaled_down(cut=None)
    assert [len(pods) for pods in clean] == [4, 2]
    for cut in range(1, 7):
        assert await _made_and_scaled_down(cut) == clean, f"write {cut} of a rank failed"


async def _made_and_scaled_down(cut: int | None) -> tuple[list[str], list[str]]:
    """Pods created and deleted, where two engines are made and one goes; the write number `cut` of a rank fails."""
    scene, writes = Scene(spread(2)), itertools.count(1)

    def fail(call: Call) -> None:
        if call.writes and call.kind == "Pod" and "-serve-" in call.name and next(writes) == cut:
            raise ClusterError(f"{call.verb} {call.name}", 0, "", "the connection broke")

    scene.cluster.before = fail
    for sample in (spread(2), spread(1)):
        scene.edit(sample)
        await scene.settle()
    assert (len(scene.pods()), scene.condition(c.READY)) == (2, "True")
    calls = [call for call in scene.cluster.calls if call.kind == "Pod" and "-serve-" in call.name]
    made, ended = (sorted(call.name for call in calls if call.verb == verb) for verb in ("create", "delete"))
    return made, ended
