"""Policies of one's own in the real pass: what one decides is carried out, and where it fails sizes are decided on."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from headrace_operator.api import conditions as c
from headrace_operator.ownpolicy.process import Limits
from headrace_operator.policies import Policy
from headrace_operator.testing import Sample, Scene
from tests.worlds.traffic import Traffic

NIGHT = """
from headrace_operator.plan.scaling import Answer, decide

def three(ask):
    return Answer({"prefill": 3, "decode": 300}, "Sized", "Three, whatever comes.")

def ours(ask):
    return decide(ask)

def careless(ask):
    return 1 / 0
"""
ROLES = [{"name": name, "scaling": {"min": 1, "max": 4}} for name in ("prefill", "decode")]

Following = Callable[[str], Scene]


@pytest.fixture
async def following(tmp_path: Path) -> AsyncIterator[Following]:
    """A scene whose spec names one of the policies above."""
    (tmp_path / "night.py").write_text(NIGHT)
    names = ("night:three", "night:ours", "night:careless")
    async with Policy(names, Limits(60.0, folder=str(tmp_path), start_seconds=120.0)) as policy:

        def scene(name: str) -> Scene:
            scaling = {"mode": "SLO", "policy": name}
            targets = {"ttft": {"target": "500ms"}, "itl": {"target": "50ms"}}
            made = Scene(Sample().set("roles", ROLES).set("slo", targets).set("scaling", scaling))
            made.world = replace(made.world, policy=policy)
            return made

        yield scene


async def live(scene: Scene, seconds: float = 180.0, rate: float = 5.0) -> None:
    await scene.settle()
    traffic, end = Traffic(scene, rate), scene.clock + timedelta(seconds=seconds)
    while scene.clock < end:
        traffic.flow()
        look = await scene.reconcile()
        changed = scene.kubelet()
        scene.clock += timedelta(seconds=0 if changed else look.seconds or 60.0)


def sizes(scene: Scene) -> dict[str, int]:
    return {role["name"]: role["desired"] for role in scene.status["roles"]}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_an_own_policy_decides_is_carried_out_within_bounds(following: Following) -> None:
    scene = following("night:three")
    await live(scene)
    assert sizes(scene) == {"prefill": 3, "decode": 4}
    said = scene.judged(c.SCALING_ACTIVE)
    assert (said["status"], said["reason"]) == ("True", "Sized")
    assert said["message"] == "night:three: Three, whatever comes."
    decode, prefill = sorted(scene.status["scaling"]["lastDecisions"], key=lambda one: str(one["role"]))
    assert (prefill["from"], prefill["to"], prefill["inputs"]) == (1, 3, {"policy": "night:three"})
    assert decode["reason"] == "It gave no reason. It wanted 300."


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_one_that_answers_as_ours_changes_nothing_where_all_is_as_wanted(following: Following) -> None:
    scene = following("night:ours")
    await live(scene)
    assert (sizes(scene), scene.reason(c.SCALING_ACTIVE)) == ({"prefill": 1, "decode": 1}, "Sized")
    writes = len(scene.cluster.writes)
    await live(scene, 600)
    assert len(scene.cluster.writes) == writes


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "night:careless",
            "night:careless raised ZeroDivisionError in night.py, line 11. Sized by the built-in policy",
        ),
        ("night:missing", "night:missing is not one that this operator may load"),
    ],
)
async def test_where_it_fails_the_built_in_policy_sizes_and_the_status_and_an_event_say_so(
    following: Following, name: str, said: str
) -> None:
    scene = following(name)
    await live(scene, rate=30.0)
    assert sizes(scene)["prefill"] > 1
    assert scene.reason(c.SCALING_ACTIVE) == "PolicyFailed"
    assert scene.judged(c.SCALING_ACTIVE)["message"].startswith(said)
    assert [reason for _, reason, _ in scene.cluster.events].count("PolicyFailed") == 1
