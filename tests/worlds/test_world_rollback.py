"""Given a rollout that does not come to its end: what is told, what is kept, and what is gone back to?"""

from datetime import timedelta

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import Call
from headrace_operator.errors import ClusterError
from headrace_operator.reconcile import World, reconcile
from headrace_operator.testing import DEFAULTS, Sample, Scene, running

BROKEN = "example.org/broken:1"
PULL = {
    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
    "name": "engine",
    "image": BROKEN,
}


def sample(*, rollback: bool = True, prefill: int = 1, decode: int = 2) -> Sample:
    rollout = {"progressDeadline": "10m", "autoRollback": rollback}
    return Sample().split(prefill, decode).set("rollout", rollout)


async def ready(start: Sample) -> Scene:
    scene = Scene(start)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


def revision(scene: Scene) -> dict[str, object]:
    found: dict[str, object] = scene.status["revision"]
    return found


def records(scene: Scene) -> list[str]:
    return [name for kind, _, name in scene.cluster.objects if kind == "ControllerRevision"]


def hang(scene: Scene) -> None:
    """Every engine pod that does not run yet cannot pull its image."""
    for name in scene.pods():
        obj = scene.cluster.objects["Pod", "demo", name]
        if "status" not in obj:
            status = {"phase": "Pending", "containerStatuses": [PULL], "podIP": ""}
            scene.cluster.set_status("Pod", "demo", name, status)


async def broken(scene: Scene, start: Sample) -> str:
    """A revision whose image cannot be pulled is rolled out, and its deadline passes. The revision."""
    scene.edit(start.set("engine.image", BROKEN))
    await scene.reconcile()
    hang(scene)
    failing = revision(scene)["updating"]
    assert isinstance(failing, str)
    scene.clock += timedelta(minutes=9)
    await scene.reconcile()
    assert scene.reason(c.PROGRESSING) == "RollingOut"
    scene.clock += timedelta(minutes=2)
    return failing


async def test_nothing_to_do_leaves_one_record_and_no_progress() -> None:
    scene = await ready(sample())
    current = revision(scene)["current"]
    assert revision(scene) == {"current": current, "good": [current]}
    assert records(scene) == [f"chat-{current}"]
    before = len(scene.cluster.writes)
    scene.clock += timedelta(hours=1)
    await scene.reconcile()
    assert scene.cluster.writes[before:] == []


async def test_the_record_comes_before_the_first_pod_of_its_revision() -> None:
    scene = await ready(sample())
    before = len(scene.cluster.calls)
    scene.edit(sample().set("engine.dtype", "float16"))
    await scene.reconcile()
    made = [call.kind for call in scene.cluster.calls[before:] if call.writes]
    assert made.index("ControllerRevision") < made.index("Pod")


async def test_a_deployment_of_an_older_operator_gets_its_record_and_no_new_pod() -> None:
    scene = await ready(sample())
    pods, (name,) = scene.pods(), records(scene)
    scene.cluster.remove("ControllerRevision", "demo", name)
    scene.status["revision"] = {"current": revision(scene)["current"]}
    before = len(scene.cluster.writes)
    await scene.settle()
    assert scene.pods() == pods
    assert [call.kind for call in scene.cluster.writes[before:]] == ["ControllerRevision", "InferenceDeployment/status"]
    assert records(scene) == [name]
    assert revision(scene)["good"] == [revision(scene)["current"]]


async def test_a_rollout_that_stands_too_long_goes_back_and_names_pods_and_causes() -> None:
    scene = await ready(sample())
    good, pods = revision(scene)["current"], scene.pods()
    failing = await broken(scene, sample())
    await scene.settle()
    assert scene.pods() == pods
    said = revision(scene)
    assert (said["current"], said["failed"], said.get("updating")) == (good, failing, None)
    assert said["reason"] == "ProgressDeadlineExceeded"
    assert (scene.condition(c.PROGRESSING), scene.reason(c.PROGRESSING)) == ("False", "ProgressDeadlineExceeded")
    assert (scene.condition(c.DEGRADED), scene.reason(c.DEGRADED)) == ("True", "ProgressDeadlineExceeded")
    message = scene.judged(c.PROGRESSING)["message"]
    assert f"chat-decode-{failing}-0: ImagePullFailed" in message
    assert f"revision {good}" in message
    assert scene.condition(c.READY) == "True"
    assert scene.object["spec"]["engine"]["image"] == BROKEN
    assert ("Warning", "ProgressDeadlineExceeded") in {event[:2] for event in scene.cluster.events}
    before = len(scene.cluster.writes)
    scene.clock += timedelta(hours=1)
    look = await scene.reconcile()
    assert (scene.cluster.writes[before:], look.seconds) == ([], None)


async def test_what_is_lost_while_it_is_gone_back_is_replaced() -> None:
    scene = await ready(sample())
    good, pods = revision(scene)["current"], scene.pods()
    await broken(scene, sample())
    await scene.settle()
    scene.fail(pods[0])
    await scene.settle()
    assert len(scene.pods()) == 3
    assert all(f"-{good}-" in name for name in scene.pods())
    assert scene.condition(c.READY) == "True"


async def test_without_rollback_nothing_more_is_made_and_the_old_engines_stay() -> None:
    scene = await ready(sample(rollback=False))
    old = scene.pods()
    failing = await broken(scene, sample(rollback=False))
    for _ in range(3):
        await scene.reconcile()
    assert set(old) < set(scene.pods())
    assert revision(scene)["failed"] == revision(scene)["updating"] == failing
    assert scene.reason(c.PROGRESSING) == scene.reason(c.DEGRADED) == "ProgressDeadlineExceeded"
    assert "`headrace rollback -n demo chat`" in scene.judged(c.DEGRADED)["message"]
    scene.fail(next(name for name in scene.pods() if failing in name))
    await scene.reconcile()
    await scene.reconcile()
    assert len([name for name in scene.pods() if failing in name]) == 1
    assert scene.condition(c.READY) == "True"


async def test_an_old_engine_that_is_not_ready_for_a_moment_is_kept_while_nothing_can_replace_it() -> None:
    scene = await ready(sample(rollback=False))
    old = scene.pods()
    await broken(scene, sample(rollback=False))
    await scene.reconcile()
    address = scene.cluster.objects["Pod", "demo", old[0]]["status"]["podIP"]
    scene.cluster.set_status("Pod", "demo", old[0], running(address, ready=False))
    await scene.reconcile()
    assert set(old) <= set(scene.pods())


async def test_engines_that_come_after_the_deadline_let_the_rollout_go_on() -> None:
    scene = await ready(sample(rollback=False))
    failing = await broken(scene, sample(rollback=False))
    await scene.reconcile()
    assert revision(scene)["failed"] == failing
    for name in scene.pods():
        if failing in name:
            scene.start(name)
    await scene.settle()
    assert revision(scene)["current"] == failing
    assert "failed" not in revision(scene)
    assert scene.condition(c.DEGRADED) == "False"


async def test_another_revision_begins_anew_and_the_old_spec_is_a_clean_return() -> None:
    start = sample()
    scene = await ready(start)
    good = revision(scene)["current"]
    await broken(scene, sample())
    await scene.settle()
    scene.edit(sample())
    await scene.settle()
    assert revision(scene) == {"current": good, "good": [good]}
    assert (scene.condition(c.DEGRADED), scene.reason(c.PROGRESSING)) == ("False", "UpToDate")
    scene.edit(sample().set("engine.dtype", "float16"))
    await scene.settle()
    assert revision(scene)["good"] == [revision(scene)["current"], good]
    assert len(records(scene)) == 3


async def test_an_operator_that_was_away_does_not_take_its_absence_for_a_standstill() -> None:
    scene = await ready(sample())
    scene.edit(sample().set("engine.dtype", "float16"))
    await scene.reconcile()
    scene.kubelet()
    scene.clock += timedelta(hours=2)
    scene.world = World(scene.cluster, scene.runtime, DEFAULTS, lambda: scene.clock, lambda: "a-token")
    await scene.reconcile()
    assert "failed" not in revision(scene)
    await scene.settle()
    assert scene.reason(c.PROGRESSING) == "UpToDate"


async def test_the_time_of_the_last_progress_outlives_the_operator_and_is_written_once() -> None:
    scene = await ready(sample())
    scene.edit(sample().set("engine.image", BROKEN))
    await scene.reconcile()
    hang(scene)
    await scene.reconcile()
    since = revision(scene)["progress"]
    before = len(scene.cluster.writes)
    for _ in range(3):
        scene.clock += timedelta(minutes=2)
        await scene.reconcile()
    assert scene.cluster.writes[before:] == []
    assert revision(scene)["progress"] == since


async def test_time_that_a_rollout_is_paused_does_not_count() -> None:
    scene = await ready(sample())
    scene.edit(sample().set("engine.image", BROKEN))
    await scene.reconcile()
    hang(scene)
    scene.edit(sample().set("engine.image", BROKEN).set("paused", True))
    await scene.reconcile()
    scene.clock += timedelta(hours=2)
    scene.edit(sample().set("engine.image", BROKEN))
    await scene.reconcile()
    assert "failed" not in revision(scene)
    scene.clock += timedelta(minutes=11)
    await scene.reconcile()
    assert revision(scene)["reason"] == "ProgressDeadlineExceeded"


async def test_the_first_revision_has_nothing_to_go_back_to_and_is_waited_for() -> None:
    scene = Scene(sample())
    await scene.reconcile()
    hang(scene)
    scene.clock += timedelta(minutes=11)
    await scene.reconcile()
    assert scene.reason(c.PROGRESSING) == "ProgressDeadlineExceeded"
    scene.fail(scene.pods()[0])
    await scene.settle()
    for name in scene.pods():
        scene.start(name)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    assert scene.condition(c.DEGRADED) == "False"


async def test_pods_that_the_cluster_refuses_are_no_progress_either() -> None:
    scene = await ready(sample())
    good = revision(scene)["current"]

    def refuse(call: Call) -> None:
        if (call.verb, call.kind) == ("create", "Pod"):
            raise ClusterError("POST pods", 403, "Forbidden", "exceeded quota")

    scene.cluster.before = refuse
    scene.edit(sample().set("engine.dtype", "float16"))
    for _ in range(3):
        await scene.reconcile()
    scene.clock += timedelta(minutes=11)
    await scene.reconcile()
    scene.cluster.before = lambda call: None
    await scene.settle()
    assert (revision(scene)["current"], revision(scene)["reason"]) == (good, "ProgressDeadlineExceeded")


async def test_going_back_brings_the_old_head_the_old_model_and_the_sizes_of_today() -> None:
    scene = await ready(sample(decode=1))
    good, before = revision(scene)["current"], dict(scene.cluster.objects)
    scene.edit(sample(decode=2).set("model.source", "node:///models/other").set("engine.image", BROKEN))
    await scene.reconcile()
    hang(scene)
    scene.clock += timedelta(minutes=11)
    await scene.settle()
    assert all(f"-{good}-" in name for name in scene.pods())
    assert len(scene.pods()) == 3
    for key in (("ConfigMap", "demo", f"chat-decode-{good}"), ("Service", "demo", "chat")):
        assert scene.cluster.objects[key].get("data") == before[key].get("data")
    head = scene.cluster.objects["Pod", "demo", "chat-head"]["metadata"]["labels"][names.REVISION]
    assert head == before["Pod", "demo", "chat-head"]["metadata"]["labels"][names.REVISION]


async def test_a_new_mark_restarts_every_engine_once_role_by_role_above_its_floor() -> None:
    scene = await ready(sample(prefill=2, decode=2))
    old = set(scene.pods())
    scene.edit(sample(prefill=2, decode=2).set("rollout.restartedAt", "2026-01-01T00:00:00Z"))
    for _ in range(20):
        await scene.reconcile()
        for role in ("prefill", "decode"):
            there = scene.pods(role=role)
            ready_now = [p for p in there if "status" in scene.cluster.objects["Pod", "demo", p]]
            assert (len(ready_now) >= 2, len(there) <= 3) == (True, True)
        scene.kubelet()
    assert not old & set(scene.pods())
    before = scene.pods()
    scene.edit(
        sample(prefill=2, decode=2).set("rollout.restartedAt", "2026-01-01T00:00:00Z").set("rollout.maxSurge", 2)
    )
    await scene.settle()
    assert scene.pods() == before


async def test_ten_quick_edits_make_one_rollout() -> None:
    scene = await ready(sample())
    start = len(scene.cluster.writes)
    for number in range(10):
        scene.edit(sample().set("engine.maxModelLen", 1000 + number))
        if number % 3 == 0:
            await scene.reconcile()
    await scene.settle()
    writes = scene.cluster.writes[start:]
    last = revision(scene)["current"]
    ended = [call.name for call in writes if (call.verb, call.kind) == ("delete", "Pod")]
    made = [call.name for call in writes if (call.verb, call.kind) == ("create", "Pod")]
    # Four specs were seen by a pass: no more than one engine of each role for each of them, and the whole of the last.
    assert len(made) <= 4 * 2 + 1
    assert len([name for name in made if f"-{last}-" in name]) == 3
    assert len(ended) == len(made)
    assert scene.condition(c.READY) == "True"


async def test_only_the_last_records_and_those_in_use_are_kept() -> None:
    scene = await ready(sample())
    first = revision(scene)["current"]
    for number in range(8):
        scene.edit(sample().set("engine.maxModelLen", 1000 + number).set("rollout.historyLimit", 3))
        await scene.settle()
    assert len(records(scene)) == 4
    assert f"chat-{first}" not in records(scene)
    assert len(revision(scene)["good"]) == 4  # type: ignore[arg-type]
    scene.edit(sample().set("engine.maxModelLen", 1007).set("rollout.historyLimit", 0))
    await scene.settle()
    assert len(records(scene)) == 1


async def test_the_last_good_record_outlives_any_number_of_failures() -> None:
    scene = await ready(sample().set("rollout.historyLimit", 1))
    good = revision(scene)["current"]
    for number in range(4):
        scene.edit(sample().set("rollout.historyLimit", 1).set("engine.maxModelLen", 1000 + number))
        await scene.reconcile()
        hang(scene)
        scene.clock += timedelta(minutes=11)
        await scene.settle()
        assert revision(scene)["current"] == good
    assert f"chat-{good}" in records(scene)


async def test_adapters_that_the_old_engines_cannot_load_go_with_the_revision_that_could() -> None:
    scene = await ready(sample())
    good = revision(scene)["current"]
    lora = sample().set("engine.lora", {"folder": "node:///adapters"}).set("engine.image", BROKEN)
    scene.edit(lora.set("model.adapters", [{"name": "legal", "source": "node:///adapters/legal"}]))
    await scene.reconcile()
    hang(scene)
    scene.clock += timedelta(minutes=11)
    await scene.settle()
    assert revision(scene)["current"] == good
    assert scene.condition(c.READY) == "True"


@pytest.mark.parametrize("damage", [{"spec": {"model": 1}}, {}])
async def test_a_record_that_cannot_be_read_is_named_and_nothing_is_undone(damage: dict[str, object]) -> None:
    scene = await ready(sample())
    good, old = revision(scene)["current"], scene.pods()
    scene.cluster.objects["ControllerRevision", "demo", f"chat-{good}"]["data"] = damage
    failing = await broken(scene, sample())
    for _ in range(3):
        await scene.reconcile()
    assert set(old) < set(scene.pods())
    assert (revision(scene)["failed"], revision(scene)["updating"]) == (failing, failing)
    assert str(revision(scene)["message"]).count(f"revision {good}") == 1


async def test_a_record_that_somebody_else_owns_is_left_alone() -> None:
    scene = Scene(sample())
    await scene.reconcile()
    (name,) = records(scene)
    scene = Scene(sample())
    theirs = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": name, "namespace": "demo"}}
    kept = scene.cluster.put(theirs)
    await scene.reconcile()
    assert scene.cluster.objects["ControllerRevision", "demo", name] == kept
    assert scene.reason(c.ACCEPTED) == "NotOwned"
    assert await reconcile(scene.world, scene.ref)
