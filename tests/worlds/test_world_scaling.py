"""Sizes by latency targets: the real pass and the built-in policy over a world in memory, whose gateways count what
clients ask of engines that take the times of a model."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from headrace_operator import policies
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import Call
from headrace_operator.errors import ClusterError
from headrace_operator.plan.scaling import Answer, Ask
from headrace_operator.policies import Policy
from headrace_operator.readings import EVERY_SECONDS, Readings
from headrace_operator.reconcile import World
from headrace_operator.state import Look
from headrace_operator.testing import Sample, Scene
from tests.worlds.traffic import Traffic

TARGETS = {"ttft": {"target": "500ms"}, "itl": {"target": "50ms"}}


def sample(prefill: tuple[int, int] = (1, 8), decode: tuple[int, int] = (1, 8), **scaling: Any) -> Sample:
    bounds = {"prefill": prefill, "decode": decode}
    roles = [{"name": name, "scaling": {"min": low, "max": high}} for name, (low, high) in bounds.items()]
    return Sample().set("roles", roles).set("slo", TARGETS).set("scaling", {"mode": "SLO", **scaling})


def sizes(scene: Scene) -> dict[str, int]:
    """As they are carried out."""
    return {role["name"]: role["desired"] for role in scene.status["roles"]}


def decided(scene: Scene) -> dict[str, int]:
    return {one["name"]: one["size"] for one in scene.status["scaling"]["sizes"]}


def decisions(scene: Scene) -> list[tuple[str, int, int]]:
    """Oldest first."""
    return [(one["role"], one["from"], one["to"]) for one in reversed(scene.status["scaling"]["lastDecisions"])]


async def live(scene: Scene, traffic: Traffic, seconds: float) -> None:
    """Clients ask, passes come when they are due, and what is made becomes ready soon."""
    end = scene.clock + timedelta(seconds=seconds)
    while scene.clock < end:
        traffic.flow()
        look = await scene.reconcile()
        assert not look.retry
        changed = scene.kubelet()
        scene.clock += timedelta(seconds=0 if changed else look.seconds or 60.0)


async def running(
    rate: float = 5.0, seconds: float = 300.0, gateways: int = 1, **scaling: Any
) -> tuple[Scene, Traffic]:
    scene = Scene(sample(**scaling).set("gateway", {"replicas": gateways}))
    await scene.settle()
    assert (scene.condition(c.READY), sizes(scene)) == ("True", {"prefill": 1, "decode": 1})
    traffic = Traffic(scene, rate)
    await live(scene, traffic, seconds)
    return scene, traffic


async def test_where_all_is_as_wanted_nothing_is_done() -> None:
    scene, traffic = await running()
    assert (sizes(scene), decisions(scene)) == ({"prefill": 1, "decode": 1}, [])
    assert (scene.condition(c.SCALING_ACTIVE), scene.reason(c.SCALING_ACTIVE)) == ("True", "Sized")
    writes = len(scene.cluster.writes)
    await live(scene, traffic, 600)
    assert len(scene.cluster.writes) == writes


async def test_of_an_idle_deployment_whose_few_requests_come_as_they_like_nothing_is_written() -> None:
    scene, traffic = await running(rate=0.1)
    dice, writes = Random(7), len(scene.cluster.writes)
    for _ in range(20):
        traffic.rate, traffic.prompt = dice.choice([0.0, 0.03, 0.1, 0.3]), dice.uniform(50, 4000)
        await live(scene, traffic, 30)
    assert len(scene.cluster.writes) == writes


async def test_more_requests_give_more_prefill_engines_at_once_and_the_status_says_why() -> None:
    scene, traffic = await running()
    traffic.rate = 30.0
    await live(scene, traffic, 4 * EVERY_SECONDS)
    assert 3 <= sizes(scene)["prefill"] <= 6
    assert sizes(scene)["decode"] <= 2
    assert len(scene.pods(role="prefill")) == sizes(scene)["prefill"]
    newest = scene.status["scaling"]["lastDecisions"][0]
    assert (newest["role"], newest["to"]) == ("prefill", sizes(scene)["prefill"])
    assert "requests/s foreseen" in newest["reason"]
    assert {"rate", "foreseen", "ttft", "prompt", "startup"} <= set(newest["inputs"])
    assert [reason for _, reason, _ in scene.cluster.events].count("ScaledUp") == len(decisions(scene))


async def test_longer_answers_give_more_decode_engines() -> None:
    scene, traffic = await running()
    traffic.output = 3000.0
    await live(scene, traffic, 10 * EVERY_SECONDS)
    assert sizes(scene)["decode"] >= 3
    assert sizes(scene)["decode"] > sizes(scene)["prefill"]


async def test_while_engines_are_on_their_way_it_stays_ready_and_is_said_to_scale() -> None:
    scene, traffic = await running()
    traffic.rate = 30.0
    while sizes(scene)["prefill"] == 1:
        traffic.flow()
        await scene.reconcile()
        scene.clock += timedelta(seconds=5)
    assert (scene.condition(c.PROGRESSING), scene.reason(c.PROGRESSING)) == ("True", "Scaling")
    for _ in range(3):
        await scene.reconcile()
    assert scene.reason(c.PROGRESSING) == "Scaling"
    assert (scene.condition(c.READY), scene.condition(c.DEGRADED)) == ("True", "False")
    await live(scene, traffic, 30)
    assert scene.reason(c.PROGRESSING) == "UpToDate"


async def test_after_quiet_minutes_there_are_fewer_and_never_below_the_least() -> None:
    scene, traffic = await running(rate=30.0, seconds=900)
    grown = sizes(scene)["prefill"]
    assert grown > 2
    traffic.rate = 0.0
    await live(scene, traffic, 2 * EVERY_SECONDS)
    assert sizes(scene)["prefill"] >= grown
    await live(scene, traffic, 700)
    assert sizes(scene) == {"prefill": 1, "decode": 1}
    assert "ScaledDown" in [reason for _, reason, _ in scene.cluster.events]


async def test_without_figures_nothing_gets_smaller_and_nobody_says_that_it_is_well() -> None:
    scene, traffic = await running(rate=30.0)
    before = sizes(scene)
    traffic.away = {"chat-gateway-0"}
    await live(scene, traffic, 1200)
    assert sizes(scene) == before
    assert (scene.condition(c.SCALING_ACTIVE), scene.reason(c.SCALING_ACTIVE)) == ("Unknown", "FiguresMissing")
    assert scene.condition(c.READY) == "True"
    writes = len(scene.cluster.writes)
    await live(scene, traffic, 300)
    assert len(scene.cluster.writes) == writes
    traffic.away = set()
    await live(scene, traffic, 4 * EVERY_SECONDS)
    assert scene.condition(c.SCALING_ACTIVE) == "True"


async def test_one_of_two_gateways_that_says_nothing_is_not_half_of_the_load() -> None:
    scene, traffic = await running(rate=30.0, gateways=2)
    before = sizes(scene)
    traffic.away = {"chat-gateway-1"}
    await live(scene, traffic, 1200)
    assert (sizes(scene), scene.reason(c.SCALING_ACTIVE)) == (before, "FiguresMissing")


async def test_gateways_are_asked_once_in_half_a_minute_however_many_passes_there_are() -> None:
    scene, _ = await running()
    asked: list[str] = []
    scene.runtime.figures = listening(asked)  # type: ignore[method-assign, assignment]
    looks = []
    for _ in range(100):
        look = await scene.reconcile()
        looks.append(look.seconds)
        scene.clock += timedelta(seconds=2)
    assert len(asked) in (10, 11)
    assert all(seconds is not None and seconds <= EVERY_SECONDS + 3 for seconds in looks)


async def test_accelerators_of_all_roles_stay_within_the_cap_and_that_is_said() -> None:
    capped = sample(maxAccelerators=4).set("engine.device", {"resource": "nvidia.com/gpu"})
    scene = Scene(capped)
    await scene.settle()
    traffic = Traffic(scene, 5.0)
    await live(scene, traffic, 120)
    traffic.rate = 60.0
    for _ in range(10):
        await live(scene, traffic, 20)
        assert len(scene.pods()) <= 4
    assert (scene.condition(c.SCALING_ACTIVE), scene.reason(c.SCALING_ACTIVE)) == ("False", "TargetOutOfReach")
    assert "cap of accelerators" in scene.judged(c.SCALING_ACTIVE)["message"]


async def test_a_gateway_that_starts_anew_is_no_load_that_fell() -> None:
    scene, traffic = await running(rate=30.0)
    before = sizes(scene)
    for _ in range(10):
        traffic.restart("chat-gateway-0")
        await live(scene, traffic, 60)
    assert sizes(scene) == before


async def test_an_operator_that_starts_anew_keeps_the_sizes_and_what_was_learnt() -> None:
    scene, traffic = await running(rate=30.0)
    before, model = sizes(scene), scene.status["scaling"]["model"]
    scene.world, writes = anew(scene), len(scene.cluster.writes)
    await live(scene, traffic, EVERY_SECONDS)
    assert len(scene.cluster.writes) == writes
    traffic.rate = 0.0
    await live(scene, traffic, 3 * EVERY_SECONDS)
    assert (sizes(scene), scene.status["scaling"]["model"]) == (before, model)


async def test_bounds_that_were_edited_hold_at_once() -> None:
    scene, traffic = await running(rate=30.0)
    assert sizes(scene)["prefill"] > 2
    scene.edit(sample(prefill=(1, 2), decode=(3, 8)))
    await scene.reconcile()
    assert sizes(scene) == {"prefill": 2, "decode": 3}
    assert {one["reason"] for one in scene.status["scaling"]["lastDecisions"][:2]} == {
        "Back within the bounds of the spec."
    }
    await live(scene, traffic, 4 * EVERY_SECONDS)
    assert sizes(scene)["prefill"] == 2
    assert (scene.condition(c.SCALING_ACTIVE), scene.reason(c.SCALING_ACTIVE)) == ("False", "TargetOutOfReach")
    assert "first token" in scene.judged(c.SCALING_ACTIVE)["message"]
    assert ("Warning", "TargetOutOfReach") in [(kind, reason) for kind, reason, _ in scene.cluster.events]


async def test_from_fixed_sizes_to_decided_ones_and_back_no_engine_is_lost_by_the_switch() -> None:
    fixed = Sample().split(prefill=3, decode=2)
    scene = Scene(fixed)
    await scene.settle()
    assert "scaling" not in scene.status
    assert scene.reason(c.SCALING_ACTIVE) == "NotConfigured"
    before = set(scene.pods())
    scene.edit(sample())
    traffic = Traffic(scene, 18.0)
    await live(scene, traffic, 100)
    assert (sizes(scene), set(scene.pods())) == ({"prefill": 3, "decode": 2}, before)
    scene.edit(fixed)
    await scene.settle()
    assert (sizes(scene), set(scene.pods())) == ({"prefill": 3, "decode": 2}, before)
    assert "scaling" not in scene.status


async def test_where_sizes_are_fixed_no_gateway_is_asked() -> None:
    scene = Scene(Sample().split(1, 1))
    asked: list[str] = []
    scene.runtime.figures = listening(asked)  # type: ignore[method-assign, assignment]
    await scene.settle()
    await live(scene, Traffic(scene), 300)
    assert asked == []


async def test_a_dry_run_says_what_it_would_do_and_does_not_do_it() -> None:
    scene, traffic = await running(rate=30.0, dryRun=True)
    assert sizes(scene) == {"prefill": 1, "decode": 1}
    assert decided(scene)["prefill"] > 2
    assert scene.judged(c.SCALING_ACTIVE)["message"].endswith("Dry run: not carried out.")
    scene.edit(sample())
    await live(scene, traffic, 5)
    assert sizes(scene)["prefill"] > 2
    grown = sizes(scene)
    scene.edit(sample(dryRun=True))
    traffic.rate = 0.0
    await live(scene, traffic, 900)
    assert decided(scene) == {"prefill": 1, "decode": 1}
    assert sizes(scene) == grown


async def test_paused_and_suspended_nothing_is_decided_and_the_sizes_come_back() -> None:
    scene, traffic = await running(rate=30.0)
    before, said = sizes(scene), scene.status["scaling"]
    scene.edit(sample().set("paused", True))
    traffic.rate = 0.0
    await live(scene, traffic, 900)
    assert scene.status["scaling"] == said
    assert scene.reason(c.SCALING_ACTIVE) == "Paused"
    scene.edit(sample().set("suspend", True))
    await live(scene, traffic, 900)
    assert (scene.pods(), scene.status["scaling"]) == ([], said)
    assert (scene.condition(c.SCALING_ACTIVE), scene.reason(c.SCALING_ACTIVE)) == ("Unknown", "Suspended")
    scene.edit(sample())
    await live(scene, traffic, 30)
    assert sizes(scene) == before


async def test_a_decision_is_written_before_it_is_carried_out() -> None:
    """An operator that is cut off after its decision must not end engines that another one was told to make."""
    scene, traffic = await running()
    traffic.rate = 30.0
    while decided(scene) == {"prefill": 1, "decode": 1}:
        traffic.flow()
        await scene.reconcile()
        scene.clock += timedelta(seconds=5)
    assert len(scene.pods(role="prefill")) == 1
    scene.world = anew(scene)
    await scene.reconcile()
    assert len(scene.pods(role="prefill")) == decided(scene)["prefill"]


@pytest.mark.parametrize("cut", range(6))
async def test_wherever_an_operator_is_cut_off_while_it_grows_a_role_no_engine_is_ended(cut: int) -> None:
    scene, traffic = await running(seconds=70)
    traffic.rate, start = 30.0, len(scene.cluster.writes)

    def cut_off(call: Call) -> None:
        if call.writes and len(scene.cluster.writes) == start + cut:
            raise ClusterError(f"PATCH {call.name}", 503, "ServiceUnavailable", "cut off")

    scene.cluster.before = cut_off
    for _ in range(12):
        traffic.flow()
        try:
            look = await scene.reconcile()
        except ClusterError:
            look = Look(retry=True)
        if look.retry:
            scene.world, scene.cluster.before = anew(scene), lambda call: None
        scene.kubelet()
        scene.clock += timedelta(seconds=14)
    assert scene.cluster.before is not cut_off
    assert decided(scene)["prefill"] > 1
    assert len(scene.pods(role="prefill")) == sizes(scene)["prefill"] == decided(scene)["prefill"]
    assert [call for call in scene.cluster.writes[start:] if call.verb == "delete"] == []


async def test_an_engine_that_is_spare_changes_its_role_and_not_again_within_the_cooldown() -> None:
    change = {"enabled": True, "cooldown": "5m"}

    def changing(**scaling: Any) -> Sample:
        return sample(**scaling).set("disaggregation.roleChange", change)

    scene = Scene(changing(prefill=(1, 4), decode=(1, 4)))
    await scene.settle()
    traffic = Traffic(scene, 5.0)
    await live(scene, traffic, 200)
    traffic.output = 3000.0
    await live(scene, traffic, 300)
    assert sizes(scene)["decode"] > 1
    traffic.rate, traffic.output = 16.0, 20.0
    before = {pod: scene.cluster.objects["Pod", "demo", pod]["metadata"]["uid"] for pod in scene.pods()}
    await live(scene, traffic, 100)
    assert sizes(scene)["prefill"] > 1
    swaps = [one for one in scene.status["scaling"]["lastDecisions"] if one["swap"]]
    assert {one["role"] for one in swaps} == {"prefill", "decode"}
    assert "RoleChanged" in [reason for _, reason, _ in scene.cluster.events]
    assert set(before) <= set(scene.pods())
    traffic.rate, traffic.output = 5.0, 3000.0
    await live(scene, traffic, 150)
    assert [one for one in scene.status["scaling"]["lastDecisions"] if one["swap"]] == swaps


async def test_while_a_rollout_goes_on_a_role_may_grow_and_does_not_get_smaller() -> None:
    scene, traffic = await running(rate=30.0)
    before = sizes(scene)
    scene.edit(sample().set("engine.dtype", "float16"))
    traffic.rate = 0.0
    end = scene.clock + timedelta(seconds=700)
    while scene.clock < end:  # the new engines never start
        traffic.flow()
        await scene.reconcile()
        scene.clock += timedelta(seconds=20)
    assert (scene.reason(c.PROGRESSING), sizes(scene)) == ("RollingOut", before)


async def test_a_policy_that_raises_ends_no_pass_and_changes_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, traffic = await running(rate=30.0)
    before = sizes(scene)

    def broken(ask: Ask) -> Answer:
        raise ZeroDivisionError("no load")

    monkeypatch.setattr(policies, "decide", broken)
    scene.cluster.remove("Pod", "demo", scene.pods(role="decode")[0])
    await live(scene, traffic, 2 * EVERY_SECONDS)
    assert (sizes(scene), scene.reason(c.SCALING_ACTIVE)) == (before, "PolicyFailed")
    assert "ZeroDivisionError" in scene.judged(c.SCALING_ACTIVE)["message"]
    assert len(scene.pods(role="decode")) == before["decode"]


def anew(scene: Scene) -> World:
    """Another operator process, which remembers nothing."""
    return replace(scene.world, readings=Readings(), policy=Policy(), learnt={})


def listening(asked: list[str]) -> Callable[[str], Awaitable[None]]:
    async def figures(address: str) -> None:
        asked.append(address)

    return figures
