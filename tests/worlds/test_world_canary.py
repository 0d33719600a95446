"""A new revision on a share of the requests: its steps, and its end, good or bad. The real pass over a world in memory,
with gateways that take up what their contract says and count as they are told."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import Call
from headrace_operator.errors import ClusterError
from headrace_operator.plan.revision import engine_revision
from headrace_operator.testing import Sample, Scene
from headrace_runtime.contract import (
    CONTRACT_FILE,
    CanaryFigures,
    CanaryShare,
    GatewayContract,
    GatewayFigures,
    RoleFigures,
    Sketch,
)
from headrace_runtime.contract.sketch import bucket

REQUESTS = 2000
"""Of all clients, in each pass."""


class Gateways:
    """The gateways of a scene: one process, which takes up its contract at each look, as a real one does in time."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.step: CanaryShare | None = None
        self.began = scene.clock
        self.asked: dict[str, int] = {}
        self.requests = REQUESTS
        self.errors: Mapping[str, float] = {}
        """Share of failed requests, by revision."""
        self.ttft: Mapping[str, float] = {}
        """Seconds, by revision; 0.1 where none is said."""
        self.away = False
        self.late = ""
        """A gateway pod that has yet to take up the step."""

    @property
    def share(self) -> CanaryShare | None:
        """What the contract says."""
        text = self.scene.cluster.objects["ConfigMap", "demo", "chat-gateway"]["data"][CONTRACT_FILE]
        return GatewayContract.model_validate_json(text).canary

    def serve(self) -> None:
        """Clients ask, and every gateway is ready to tell."""
        share = self.share
        if share != self.step:
            self.step, self.began, self.asked = share, self.scene.clock, {}
        if share is not None:
            new = self.requests * share.percent // 100
            for revision, number in ((share.revision, new), ("current", self.requests - new)):
                self.asked[revision] = self.asked.get(revision, 0) + number
        for (kind, _, name), pod in self.scene.cluster.objects.items():
            if kind != "Pod" or not name.startswith("chat-gateway"):
                continue
            address = pod["status"]["podIP"]
            self.scene.runtime.readings.pop(address, None)
            if not self.away and name != self.late:
                self.scene.runtime.readings[address] = self._reading()

    def restart(self) -> None:
        """What was counted is gone; the contract is read anew."""
        self.step = None

    def _reading(self) -> GatewayFigures:
        held = (self.scene.clock - self.began).total_seconds()
        current = self.scene.status["revision"]["current"]
        roles = tuple(self._role(current if side == "current" else side, n) for side, n in self.asked.items())
        canary = CanaryFigures(share=self.step, seconds=held) if self.step is not None else None
        return GatewayFigures(start="a", seconds=held, roles=roles, canary=canary)

    def _role(self, revision: str, number: int) -> RoleFigures:
        ttft = Sketch(counts={bucket(self.ttft.get(revision, 0.1)): number} if number else {})
        errors = int(number * self.errors.get(revision, 0.0))
        return RoleFigures(role="serve", revision=revision, requests=number, errors=errors, ttft=ttft)


def sample(size: int = 4, **rollout: Any) -> Sample:
    canary = {"steps": [25, 50, 100], "interval": "1m"}
    return Sample().serve(size).set("rollout", {"canary": canary, "maxSurge": 1, "maxUnavailable": 0, **rollout})


def changed(size: int = 4, **rollout: Any) -> Sample:
    return sample(size, **rollout).set("engine.dtype", "float16")


async def rolling(size: int = 4, **rollout: Any) -> tuple[Scene, Gateways, str]:
    """A deployment that was ready when its spec changed; its old revision."""
    scene = Scene(sample(size, **rollout))
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    old = scene.status["revision"]["current"]
    scene.edit(changed(size, **rollout))
    return scene, Gateways(scene), old


def count(scene: Scene, revision: str) -> int:
    pods = [scene.cluster.objects["Pod", "demo", pod] for pod in scene.pods()]
    return sum(pod["metadata"]["labels"][names.REVISION] == revision for pod in pods)


def step(scene: Scene) -> dict[str, Any]:
    found: dict[str, Any] = scene.status["revision"].get("canary") or {}
    return found


async def turn(scene: Scene, gateways: Gateways, seconds: float = 5) -> None:
    """Time passes, clients ask, pods become ready, and the operator looks."""
    scene.clock += timedelta(seconds=seconds)
    gateways.serve()
    await scene.reconcile()
    scene.kubelet()


async def until(scene: Scene, gateways: Gateways, share: int, limit: int = 40) -> None:
    """The step of this share has begun."""
    for _ in range(limit):
        if step(scene).get("step") == share and ("since" in step(scene) or share == 100):
            return
        await turn(scene, gateways)
    raise AssertionError(f"the step of {share} % did not begin: {scene.status['revision']}")


def degraded(scene: Scene) -> tuple[str, str]:
    return scene.condition(c.DEGRADED), scene.judged(c.DEGRADED)["message"]


async def test_a_new_revision_gets_its_share_step_by_step_with_the_engines_for_it() -> None:
    scene, gateways, old = await rolling()
    seen: list[tuple[int, int]] = []
    for share in (25, 50):
        await until(scene, gateways, share)
        new = scene.status["revision"]["updating"]
        assert gateways.share is not None
        assert (gateways.share.revision, gateways.share.percent) == (new, share)
        for _ in range(5):
            await turn(scene, gateways)
        assert len(scene.pods()) <= 5
        seen.append((count(scene, old), count(scene, new)))
        assert (scene.condition(c.READY), scene.reason(c.PROGRESSING)) == ("True", "RollingOut")
        assert f"{share} % of requests" in scene.judged(c.PROGRESSING)["message"]
    assert seen == [(3, 1), (2, 2)]
    await until(scene, gateways, 100)
    assert gateways.share is None
    await scene.settle()
    assert (count(scene, old), count(scene, new)) == (0, 4)
    assert scene.status["revision"]["current"] == new
    assert step(scene) == {}
    assert [reason for _, reason, _ in scene.cluster.events].count("CanaryPassed") == 2
    assert any("TTFT p95" in message for _, reason, message in scene.cluster.events if reason == "CanaryPassed")


async def test_no_engine_of_it_is_made_before_every_gateway_has_heard_that_it_gets_nothing() -> None:
    scene, gateways, old = await rolling()
    gateways.away = True
    for _ in range(3):
        await turn(scene, gateways)
    assert (count(scene, old), len(scene.pods())) == (4, 4)
    assert gateways.share is not None
    assert (gateways.share.percent, step(scene)["step"], step(scene).get("since")) == (0, 25, None)
    assert "have yet to hear" in scene.judged(c.PROGRESSING)["message"]
    gateways.away = False
    await turn(scene, gateways)
    assert (len(scene.pods()), gateways.share.percent) == (5, 0)


async def test_one_that_fails_its_requests_goes_back_at_once_and_says_by_what_figures() -> None:
    scene, gateways, old = await rolling(autoRollback=True)
    await until(scene, gateways, 25)
    new = scene.status["revision"]["updating"]
    gateways.errors = {new: 0.2}
    await turn(scene, gateways)
    await turn(scene, gateways)
    assert (scene.status["revision"]["failed"], scene.status["revision"]["reason"]) == (new, "CanaryRejected")
    truth, message = degraded(scene)
    assert truth == "True"
    assert "20.0 % against 0.0 %" in message
    assert any(kind == "Warning" and reason == "CanaryRejected" for kind, reason, _ in scene.cluster.events)
    assert gateways.share is not None
    assert gateways.share.percent <= 25
    await scene.settle()
    assert (count(scene, old), count(scene, new)) == (4, 0)
    assert gateways.share is None
    writes = len(scene.cluster.writes)
    for _ in range(5):
        await turn(scene, gateways)
    assert len(scene.cluster.writes) == writes
    assert scene.condition(c.READY) == "True"


async def test_one_that_is_slower_fails_at_the_end_of_its_step() -> None:
    scene, gateways, old = await rolling(autoRollback=True)
    await until(scene, gateways, 25)
    new = scene.status["revision"]["updating"]
    gateways.ttft = {new: 0.3}
    await turn(scene, gateways)
    await turn(scene, gateways)
    assert "failed" not in scene.status["revision"]
    for _ in range(12):
        await turn(scene, gateways, 10)
    assert scene.status["revision"]["failed"] == new
    assert "TTFT p95 292 ms against 99 ms" in scene.status["revision"]["message"]
    await scene.settle()
    assert count(scene, old) == 4


async def test_without_automatic_rollback_it_stops_and_its_share_goes_to_the_old_engines_that_are_left() -> None:
    scene, gateways, old = await rolling()
    await until(scene, gateways, 50)
    new = scene.status["revision"]["updating"]
    gateways.errors = {new: 0.5}
    for _ in range(4):
        await turn(scene, gateways)
    there = (count(scene, old), count(scene, new))
    assert degraded(scene)[0] == "True"
    assert gateways.share is not None
    assert gateways.share.percent == 100 - 25 * there[0]
    for _ in range(20):
        await turn(scene, gateways, 30)
    assert (count(scene, old), count(scene, new)) == there
    scene.edit(sample())
    await scene.settle()
    assert (count(scene, old), count(scene, new), gateways.share) == (4, 0, None)
    assert degraded(scene)[0] == "False"


async def test_without_any_traffic_it_goes_on_by_time_and_says_so() -> None:
    scene, gateways, _ = await rolling()
    gateways.requests = 0
    await until(scene, gateways, 25)
    await until(scene, gateways, 50)
    assert "by time, with too few" in step(scene)["message"]
    await until(scene, gateways, 100)
    await scene.settle()
    assert scene.condition(c.READY) == "True"


async def test_a_gateway_that_tells_nothing_holds_the_step() -> None:
    scene, gateways, _ = await rolling()
    await until(scene, gateways, 25)
    gateways.away = True
    for _ in range(20):
        await turn(scene, gateways, 30)
    assert step(scene)["step"] == 25
    assert "no gateway" in step(scene)["waits"]
    writes = len(scene.cluster.writes)
    await turn(scene, gateways)
    assert len(scene.cluster.writes) == writes
    gateways.away = False
    await until(scene, gateways, 50)


async def test_one_gateway_of_two_that_has_yet_to_take_up_the_step_holds_it_too() -> None:
    scene = Scene(sample().set("gateway.replicas", 2))
    await scene.settle()
    scene.edit(changed().set("gateway.replicas", 2))
    gateways = Gateways(scene)
    await until(scene, gateways, 25)
    gateways.late = "chat-gateway-1"
    for _ in range(20):
        await turn(scene, gateways, 30)
    assert (step(scene)["step"], step(scene)["waits"][:17]) == (25, "1 of 2 gateways h")
    gateways.late = ""
    await until(scene, gateways, 50)


async def test_a_gateway_that_starts_anew_begins_its_step_again_and_nothing_else() -> None:
    scene, gateways, _ = await rolling()
    await until(scene, gateways, 25)
    since = step(scene)["since"]
    for _ in range(10):
        gateways.restart()
        await turn(scene, gateways, 30)
    assert (step(scene)["step"], step(scene)["since"]) == (25, since)
    await until(scene, gateways, 50)


async def test_an_operator_that_starts_anew_goes_on_from_the_same_step() -> None:
    scene, gateways, _ = await rolling()
    await until(scene, gateways, 25)
    before = step(scene)["since"], gateways.share
    again = Scene(sample())  # another process: it has nothing but what the cluster holds
    again.cluster, again.runtime, again.clock, again.ref = scene.cluster, scene.runtime, scene.clock, scene.ref
    again.world = scene.world
    await again.reconcile()
    assert (step(scene)["since"], gateways.share) == before
    await until(scene, gateways, 50)


async def test_a_pass_that_ends_before_its_status_is_written_begins_the_step_again() -> None:
    scene, gateways, _ = await rolling()
    status = dict(scene.status)
    while "since" not in step(scene):
        status = dict(scene.status)
        await turn(scene, gateways)
    scene.cluster.set_status(names.KIND, "demo", "chat", status)
    await until(scene, gateways, 25)
    assert gateways.share is not None
    assert gateways.share.percent == 25


async def test_a_spec_that_is_taken_back_half_way_ends_the_canary_and_its_engines() -> None:
    scene, gateways, old = await rolling()
    await until(scene, gateways, 50)
    new = scene.status["revision"]["updating"]
    scene.edit(sample())
    await scene.reconcile()
    assert gateways.share is not None
    assert (gateways.share.revision, gateways.share.percent) == (new, 50)  # half of the old engines are left
    await scene.settle()
    assert (count(scene, old), count(scene, new), gateways.share, step(scene)) == (4, 0, None, {})
    assert scene.condition(c.READY) == "True"


async def test_a_third_revision_begins_a_canary_of_its_own_against_the_current_one() -> None:
    scene, gateways, old = await rolling()
    await until(scene, gateways, 25)
    second = scene.status["revision"]["updating"]
    scene.edit(sample().set("engine.dtype", "bfloat16"))
    await turn(scene, gateways)
    await until(scene, gateways, 25)
    third = scene.status["revision"]["updating"]
    assert step(scene)["revision"] == third != second
    assert count(scene, second) == 0
    assert count(scene, old) >= 3
    await until(scene, gateways, 100)
    await scene.settle()
    assert count(scene, third) == 4


async def test_a_single_engine_is_tried_beside_the_old_one() -> None:
    scene, gateways, old = await rolling(1)
    await until(scene, gateways, 25)
    new = scene.status["revision"]["updating"]
    for _ in range(3):
        await turn(scene, gateways)
    assert (count(scene, old), count(scene, new)) == (1, 1)
    assert scene.status["revision"]["current"] == old
    await until(scene, gateways, 100)
    await scene.settle()
    assert (count(scene, old), count(scene, new)) == (0, 1)


async def test_where_no_share_can_be_held_the_rollout_goes_on_and_says_why() -> None:
    scene, gateways, old = await rolling(1, maxSurge=0, maxUnavailable=1)
    await until(scene, gateways, 100)
    assert "maxSurge" in step(scene)["message"]
    assert gateways.share is None
    await scene.settle()
    assert count(scene, old) == 0


async def test_an_old_engine_that_is_lost_is_replaced_by_a_new_one_while_the_share_stays() -> None:
    scene, gateways, old = await rolling()
    await until(scene, gateways, 25)
    new = scene.status["revision"]["updating"]
    gone = [pod for pod in scene.pods() if old in pod]
    for pod in gone[:2]:
        scene.cluster.remove("Pod", "demo", pod)
    for _ in range(4):
        await turn(scene, gateways)
    assert len(scene.pods()) == 4
    assert gateways.share is not None
    assert (gateways.share.revision, gateways.share.percent) == (new, 25)


async def test_both_roles_of_a_revision_are_tried_together() -> None:
    first = sample().split(2, 3)
    scene = Scene(first)
    await scene.settle()
    scene.edit(sample().split(2, 3).set("engine.dtype", "float16"))
    gateways = Gateways(scene)
    await until(scene, gateways, 25)
    new = scene.status["revision"]["updating"]
    labels = [scene.cluster.objects["Pod", "demo", pod]["metadata"]["labels"] for pod in scene.pods()]
    assert sorted(each[names.ROLE] for each in labels if each[names.REVISION] == new) == ["decode", "prefill"]


async def test_without_a_canary_nothing_is_asked_of_the_gateways() -> None:
    scene = Scene(Sample().serve(2))
    await scene.settle()
    scene.edit(Sample().serve(2).set("engine.dtype", "float16"))
    await scene.settle()
    gateways = Gateways(scene)
    assert (gateways.share, step(scene)) == (None, {})


EVENTS = st.sampled_from(["turn"] * 6 + ["first", "second", "third", "fail", "heal", "lose", "away", "paused"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(deadline=None, max_examples=8)
@given(st.lists(EVENTS, max_size=18), st.booleans())
async def test_whatever_happens_on_the_way_bounds_hold_and_it_comes_to_its_end(events: list[str], back: bool) -> None:
    scene, gateways, _ = await rolling(autoRollback=back)
    specs = {"first": sample(autoRollback=back), "second": changed(autoRollback=back)}
    specs["third"] = sample(autoRollback=back).set("engine.dtype", "bfloat16")
    specs["paused"] = changed(autoRollback=back).set("paused", True)
    lost = 0
    for event in events:
        if event in specs:
            scene.edit(specs[event])
        elif event == "lose" and scene.pods():
            scene.cluster.remove("Pod", "demo", scene.pods()[0])
            lost += 1
        elif event == "fail" and (revision := _tried(scene)):
            gateways.errors = {revision: 0.5}
        elif event == "heal":
            gateways.errors = {}
        gateways.away = event == "away"
        before = len(scene.pods())
        await turn(scene, gateways, 20)
        assert len(scene.pods()) <= max(5, before)
        assert len(scene.pods()) >= 4 - lost
        assert gateways.share is None or gateways.share.percent <= 50
    gateways.errors, gateways.away = {}, False
    scene.edit(specs["first"])
    wanted = engine_revision(specs["first"].spec())
    for _ in range(60):
        await turn(scene, gateways, 30)
        if scene.reason(c.PROGRESSING) == "UpToDate" or scene.status["revision"].get("failed") == wanted:
            return
    raise AssertionError(f"it came to no end: {scene.status}")


def _tried(scene: Scene) -> str:
    return str(step(scene).get("revision", ""))


async def _to_its_end(cut: int | None) -> tuple[int, list[str], dict[str, Any]]:
    """A whole canary of two engines; the write of this number never arrives. Gives the number of writes, the pods that
    are there and that went, and the revisions."""
    short = {"steps": [50, 100], "interval": "10s"}
    scene, gateways, _ = await rolling(2, canary=short)
    start = len(scene.cluster.writes)

    def before(call: Call) -> None:
        nonlocal cut
        if call.writes and cut is not None and len(scene.cluster.writes) - start == cut:
            cut = None
            raise ClusterError(call.name, 500, "InternalError", "cut")

    scene.cluster.before = before
    for _ in range(60):
        try:
            await turn(scene, gateways)
        except ClusterError:
            continue
        if scene.reason(c.PROGRESSING) == "UpToDate" and scene.condition(c.READY) == "True":
            break
    gone = [call.name for call in scene.cluster.writes[start:] if (call.kind, call.verb) == ("Pod", "delete")]
    revision = {key: scene.status["revision"].get(key) for key in ("current", "updating", "failed", "canary")}
    assert gateways.share is None
    return len(scene.cluster.writes) - start, [*scene.pods(), *sorted(gone)], revision


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_write_that_fails_anywhere_changes_nothing_of_its_end() -> None:
    writes, *clean = await _to_its_end(None)
    assert writes > 10
    for cut in range(writes):
        assert (await _to_its_end(cut))[1:] == tuple(clean), f"write {cut}"
