"""A deployment that goes to sleep and wakes: the real pass over a world in memory, with gateways that count and hold as
they are told."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.errors import ClusterError
from headrace_operator.plan.scaling import Answer, Ask
from headrace_operator.policies import Policy
from headrace_operator.testing import Scene
from headrace_runtime.contract import CONTRACT_FILE, GatewayContract, Hold
from tests.worlds.sleeper import AFTER, Gateways, asleep, awake, events, gateway_pods, sample, since, turn


async def test_while_somebody_asks_nothing_changes() -> None:
    scene, gateways = await awake()
    before = len(scene.cluster.writes)
    for _ in range(20):
        gateways.ask()
        await turn(scene, gateways, 30)
    assert len(scene.cluster.writes) == before
    assert (since(scene), len(scene.pods())) == (None, 3)
    assert scene.judged(c.SCALING_ACTIVE)["message"].endswith("all engines go after 1m without a request.")


async def test_gateways_are_told_what_to_hold_each_its_share_and_without_a_new_pod() -> None:
    scene = Scene(sample())
    scene.cluster.put(sample().set("scaling.toZero", None).build())
    await scene.settle()
    pods = gateway_pods(scene)
    template = scene.cluster.objects["Deployment", "demo", "chat-gateway"]["spec"]["template"]
    scene.edit(sample())
    await scene.settle()
    text = scene.cluster.objects["ConfigMap", "demo", "chat-gateway"]["data"][CONTRACT_FILE]
    assert GatewayContract.model_validate_json(text).hold == Hold(requests=50, seconds=120)
    assert gateway_pods(scene) == pods
    assert scene.cluster.objects["Deployment", "demo", "chat-gateway"]["spec"]["template"] == template


async def test_after_quiet_time_all_engines_go_and_what_it_says_is_the_truth() -> None:
    scene, gateways = await awake()
    look = await turn(scene, gateways, 20)
    assert look.seconds is not None
    assert 35 <= look.seconds <= 45
    await turn(scene, gateways, 40)
    assert since(scene) is not None
    assert len(scene.pods()) == 3  # it is written first
    await turn(scene, gateways)
    assert scene.pods() == []
    assert len(gateway_pods(scene)) == 2
    assert len(scene.pods("head")) == 1
    for _ in range(3):
        look = await turn(scene, gateways)
    assert set(look.listen) == set(scene.runtime.readings)
    conditions = {kind: (scene.condition(kind), scene.reason(kind)) for kind in c.TYPES}
    assert conditions == conditions | {
        c.READY: ("True", "Asleep"),
        c.ROLES_READY: ("True", "Asleep"),
        c.SCALING_ACTIVE: ("True", "Asleep"),
        c.PROGRESSING: ("False", "Asleep"),
        c.MODEL_READY: ("Unknown", "Asleep"),
        c.WEIGHTS_VERIFIED: ("Unknown", "Asleep"),
        c.DEGRADED: ("False", "AsWanted"),
    }
    said = scene.judged(c.READY)["message"]
    assert said.startswith("No engine runs since 2026-01-01T")
    assert "nobody had asked for 1m" in said
    assert events(scene)[-1] == "Slept"
    assert [role["summary"] for role in scene.status["roles"]] == ["0/0", "0/0"]


async def test_asleep_nothing_is_written_and_no_budget_keeps_a_node() -> None:
    scene, gateways = await asleep()
    before = len(scene.cluster.writes)
    for _ in range(20):
        await turn(scene, gateways, 30)
    assert len(scene.cluster.writes) == before
    assert not [name for kind, _, name in scene.cluster.objects if kind == "PodDisruptionBudget" and "decode" in name]


async def test_a_request_that_waits_wakes_both_roles_at_once() -> None:
    scene, gateways = await asleep()
    scene.clock += timedelta(hours=5)
    gateways.ask(held=True)
    scene.clock += timedelta(seconds=0.5)
    await turn(scene, gateways)
    assert since(scene) is None
    assert scene.pods() == ["chat-decode-" + p for p in _tails(scene, "decode", 2)] + [
        "chat-prefill-" + p for p in _tails(scene, "prefill", 1)
    ]
    assert events(scene)[-1] == "Woken"


def _tails(scene: Scene, role: str, count: int) -> list[str]:
    return [f"{scene.status['revision']['current']}-{index}" for index in range(count)]


async def test_waking_it_says_so_and_then_how_long_it_took() -> None:
    scene, gateways = await asleep()
    gateways.ask(held=True)
    gateways.tell()
    scene.clock += timedelta(seconds=2)
    gateways.tell()
    await scene.reconcile()  # and nothing starts yet
    gateways.tell()
    await scene.reconcile()
    assert (scene.condition(c.READY), scene.reason(c.READY)) == ("True", "Waking")
    assert scene.condition(c.DEGRADED) == "False"
    assert scene.condition(c.ROLES_READY) == "False"
    scene.clock += timedelta(seconds=20)
    decode = next(pod for pod in scene.pods() if "decode" in pod)
    scene.start(decode)
    gateways.tell()
    await scene.reconcile()
    inputs = scene.status["scaling"]["lastDecisions"][0]["inputs"]
    assert inputs["first request"].endswith(".000Z")
    assert inputs["first engine"] == "24.0 s"
    assert scene.reason(c.READY) == "Waking"
    gateways.answer()
    for _ in range(3):
        await turn(scene, gateways)
    assert scene.reason(c.READY) == "Answered"
    assert "all engines" in scene.status["scaling"]["lastDecisions"][0]["inputs"]
    assert events(scene)[-1] == "Woken"
    assert len(scene.runtime.questions) == 1


async def test_a_waking_that_takes_longer_than_requests_wait_is_no_readiness() -> None:
    scene, gateways = await asleep()
    gateways.ask(held=True)
    gateways.tell()
    await scene.reconcile()
    scene.clock += timedelta(seconds=119)
    gateways.tell()
    await scene.reconcile()
    await scene.reconcile()
    assert (scene.condition(c.READY), scene.reason(c.READY)) == ("False", "EnginesStarting")
    assert scene.condition(c.DEGRADED) == "True"


async def test_a_request_whose_client_gave_up_wakes_as_well() -> None:
    scene, gateways = await asleep()
    scene.clock += timedelta(hours=1)
    gateways.ask()
    await turn(scene, gateways, 30)
    assert len(scene.pods()) == 3


async def test_it_sleeps_again_after_another_quiet_time() -> None:
    scene, gateways = await asleep()
    gateways.ask(held=True)
    await turn(scene, gateways)
    await turn(scene, gateways)
    gateways.answer()
    await turn(scene, gateways)
    for _ in range(10):
        await turn(scene, gateways, 5)
    assert len(scene.pods()) == 3
    for _ in range(6):
        await turn(scene, gateways, 5)
    assert scene.pods() == []
    assert [one["to"] for one in scene.status["scaling"]["lastDecisions"]] == [0, 0, 1, 2, 0, 0]


async def test_a_request_between_the_decision_and_the_deed_keeps_the_engines() -> None:
    scene, gateways = await awake()
    await turn(scene, gateways, AFTER)
    assert since(scene) is not None
    pods = scene.pods()
    gateways.ask()
    for _ in range(3):
        await turn(scene, gateways)
    assert (scene.pods(), since(scene)) == (pods, None)


async def test_a_request_while_engines_drain_takes_them_back() -> None:
    scene, gateways = await awake()
    await turn(scene, gateways, AFTER)
    before = scene.pods()
    drained = {}
    for pod in before:
        drained[pod] = scene.cluster.objects["Pod", "demo", pod]
    await turn(scene, gateways)
    for pod, obj in drained.items():
        going = {**obj["metadata"], "deletionTimestamp": scene.clock.strftime("%Y-%m-%dT%H:%M:%SZ")}
        scene.cluster.objects["Pod", "demo", pod] = {**obj, "metadata": going}
        scene.say(pod, phase="Draining", engine_pid=1)
    gateways.ask(held=True)
    await turn(scene, gateways)
    assert len(scene.runtime.stays) == 3
    assert len(set(scene.pods()) - set(before)) == 3


@pytest.mark.parametrize("mute", ["chat-gateway-0", "chat-gateway-1"])
async def test_a_gateway_that_says_nothing_puts_nobody_to_sleep(mute: str) -> None:
    scene, gateways = await awake()
    gateways.mute = {mute}
    for _ in range(10):
        await turn(scene, gateways, AFTER)
    assert (since(scene), len(scene.pods())) == (None, 3)


async def test_a_gateway_that_would_refuse_what_comes_puts_nobody_to_sleep() -> None:
    """It has yet to take up its contract, or its image is older."""
    scene, gateways = await awake()
    gateways.holds = 0
    for _ in range(10):
        await turn(scene, gateways, AFTER)
    assert (since(scene), len(scene.pods())) == (None, 3)


async def test_a_gateway_that_falls_silent_after_the_decision_keeps_the_engines() -> None:
    scene, gateways = await awake()
    await turn(scene, gateways, AFTER)
    assert since(scene) is not None
    gateways.mute = {"chat-gateway-0"}
    await turn(scene, gateways)
    await turn(scene, gateways)
    assert (since(scene), len(scene.pods())) == (None, 3)


async def test_gateways_that_are_replaced_or_silent_wake_nobody() -> None:
    scene, gateways = await asleep()
    scene.cluster.remove("Pod", "demo", "chat-gateway-0")
    scene.kubelet()
    gateways.mute = {"chat-gateway-1"}
    for _ in range(5):
        look = await turn(scene, gateways, 30)
    assert scene.pods() == []
    pod = scene.cluster.objects["Pod", "demo", "chat-gateway-0"]
    assert pod["status"]["podIP"] in (look.listen)
    assert len(look.listen) == 2


async def test_an_operator_that_starts_anew_goes_on_as_before() -> None:
    """All that it knows is in the status: it listens, and it wakes."""
    scene, gateways = await asleep()
    other = Scene(sample())
    other.cluster, other.runtime, other.clock = scene.cluster, scene.runtime, scene.clock
    other.world = Scene(sample()).world.__class__(
        scene.cluster, scene.runtime, scene.world.defaults, lambda: other.clock, scene.world.token
    )
    before = len(scene.cluster.writes)
    look = await other.reconcile()
    assert len(look.listen) == 2
    assert len(scene.cluster.writes) == before
    gateways.ask(held=True)
    gateways.tell()
    await other.reconcile()
    assert len(other.pods()) == 3


async def test_an_operator_that_is_cut_off_at_any_write_ends_asleep_and_awake_all_the_same() -> None:
    for cut in range(8):
        scene, gateways = await awake()
        left = [cut]

        def refuse(call: Any, left: list[int] = left) -> None:
            left[0] -= bool(call.writes)
            if call.writes and left[0] == -1:
                raise ClusterError("PATCH", 500, "InternalError", "cut off")

        scene.cluster.before = refuse
        for seconds in (AFTER, *[1.0] * 6):
            try:
                await turn(scene, gateways, seconds)
            except ClusterError:
                continue
        assert (scene.pods(), since(scene) is not None) == ([], True), cut
        gateways.ask(held=True)
        for _ in range(3):
            await turn(scene, gateways)
        assert (len(scene.pods()), since(scene)) == (3, None), cut


async def test_a_new_revision_has_to_answer_before_it_may_sleep() -> None:
    scene, gateways = await asleep()
    scene.edit(sample().set("engine.dtype", "float16"))
    await turn(scene, gateways)
    assert len(scene.pods()) == 3
    for _ in range(5):
        await turn(scene, gateways)
    assert len(scene.runtime.questions) == 2
    for _ in range(5):
        await turn(scene, gateways, 5)
    assert scene.pods() == []
    assert scene.status["canary"]["revision"] == scene.status["revision"]["current"]


async def test_a_deployment_that_may_sleep_no_more_wakes() -> None:
    scene, gateways = await asleep()
    scene.edit(sample().set("scaling.toZero", None))
    for _ in range(5):
        await turn(scene, gateways)
    assert len(scene.pods()) == 3
    assert "scaling" not in scene.status
    assert scene.reason(c.READY) == "Answered"
    assert "Woken" in events(scene)


async def test_paused_it_neither_sleeps_nor_wakes_and_says_so() -> None:
    scene, gateways = await awake()
    scene.edit(sample(paused=True))
    for _ in range(5):
        await turn(scene, gateways, AFTER)
    assert len(scene.pods()) == 3
    scene, gateways = await asleep()
    scene.edit(sample(paused=True))
    gateways.ask(held=True)
    look = await turn(scene, gateways)
    await turn(scene, gateways)
    assert scene.pods() == []
    assert not look.listen
    assert (scene.condition(c.READY), scene.reason(c.READY)) == ("False", "Asleep")
    scene.edit(sample())
    await turn(scene, gateways)
    assert len(scene.pods()) == 3


async def test_suspended_it_is_not_asleep() -> None:
    scene, gateways = await asleep()
    scene.edit(sample(suspend=True))
    await turn(scene, gateways)
    await turn(scene, gateways)
    assert since(scene) is None
    assert scene.reason(c.READY) == "Suspended"
    assert "Woken" not in events(scene)


async def test_what_is_not_whole_does_not_sleep() -> None:
    scene, gateways = await awake()
    scene.cluster.set_status("Pod", "demo", scene.pods()[0], {"phase": "Running", "podIP": "10.0.0.99"})
    for _ in range(5):
        await turn(scene, gateways, AFTER)
    assert (since(scene), len(scene.pods())) == (None, 3)


async def test_woken_engines_find_the_nodes_where_their_blocks_are() -> None:
    disk = {"size": "1Gi", "volume": {"hostPath": "/var/lib/headrace"}}
    scene, gateways = await asleep(sample(kvCache__host__size="1Gi", kvCache__disk=disk))
    slept = {place["slot"]: place["node"] for place in scene.status["kvCache"]["placement"]}
    assert len(slept) == 3
    assert scene.reason(c.KV_CACHE_READY) == "Asleep"
    for _ in range(5):
        await turn(scene, gateways, 600)
    gateways.ask(held=True)
    await turn(scene, gateways)
    pods = [scene.cluster.objects["Pod", "demo", name] for name in scene.pods()]
    assert sorted(pod["metadata"]["annotations"][names.RETURNS_TO] for pod in pods) == sorted(slept.values())
    for _ in range(3):
        await turn(scene, gateways)
    assert {place["slot"]: place["node"] for place in scene.status["kvCache"]["placement"]} == slept


async def test_a_clock_that_is_set_loses_no_request() -> None:
    for step in (-86400.0, -30.0, 40.0):
        scene, gateways = await asleep()
        gateways.born = {address: born + timedelta(seconds=step) for address, born in gateways.born.items()}
        gateways.last += timedelta(seconds=step)
        scene.clock += timedelta(seconds=step)
        scene._held = (None, scene.clock)
        for _ in range(3):
            await turn(scene, gateways)
        assert scene.pods() == []
        gateways.ask(held=True)
        await turn(scene, gateways)
        assert len(scene.pods()) == 3


class Counted(Policy):
    """Always wants the same, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def decide(self, name: str, ask: Ask) -> Answer:
        self.asked += 1
        return Answer({"prefill": 2, "decode": 3}, "Sized", "As ever.", model=ask.model)


async def test_sizes_by_targets_go_to_nothing_too_and_come_back_as_they_were() -> None:
    roles = [{"name": name, "scaling": {"min": 1, "max": 4}} for name in ("prefill", "decode")]
    targets = {"ttft": {"target": "1s"}, "itl": {"target": "50ms"}}
    scene, policy = Scene(sample(roles=roles, slo=targets, scaling__mode="SLO")), Counted()

    def clock() -> float:
        return scene.clock.timestamp()

    scene.world = replace(scene.world, policy=policy, clock=clock)
    gateways = Gateways(scene)
    for _ in range(20):
        gateways.ask()
        await turn(scene, gateways, 5)
    assert len(scene.pods()) == 5
    for _ in range(20):
        await turn(scene, gateways, 5)
    assert scene.pods() == []
    asked, writes = policy.asked, len(scene.cluster.writes)
    for _ in range(20):
        look = await turn(scene, gateways, 30)
        assert look.seconds is None
    assert (policy.asked, len(scene.cluster.writes)) == (asked, writes)
    gateways.ask(held=True)
    await turn(scene, gateways)
    await turn(scene, gateways)
    assert len(scene.pods()) == 5
    assert {one["name"]: one["size"] for one in scene.status["scaling"]["sizes"]} == {"prefill": 2, "decode": 3}
