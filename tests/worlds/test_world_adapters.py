"""LoRA adapters that come and go: no pod is touched for them, and the status counts who serves what. The real pass over
a world in memory."""

import json
from typing import Any

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from headrace_operator.testing import Sample, Scene

ONE, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
FOLDER = "node:///adapters"


def sample(*adapters: str) -> Sample:
    given = [{"name": name, "source": f"{FOLDER}/{name}"} for name in adapters]
    return Sample().split(1, 1).set("engine.lora", {"folder": FOLDER}).set("model.adapters", given)


async def ready(given: Sample) -> Scene:
    scene = Scene(given)
    await scene.settle()
    assert scene.condition(c.READY) == "True"
    return scene


def contracts(scene: Scene) -> list[dict[str, Any]]:
    """Those of the engines."""
    return [
        json.loads(obj["data"]["contract.json"])
        for (kind, _, name), obj in scene.cluster.objects.items()
        if kind == "ConfigMap" and ("-prefill-" in name or "-decode-" in name)
    ]


def say(scene: Scene, role: str, *adapters: dict[str, Any]) -> None:
    """The agents of a role say so from now on."""
    for address, state in scene.runtime.states.items():
        if state.role == role:
            given = {**state.model_dump(), "adapters": adapters}
            scene.runtime.states[address] = type(state).model_validate(given)


async def test_a_spec_without_adapters_says_nothing_of_them() -> None:
    scene = await ready(Sample().split())
    assert scene.status["model"].get("adapters", []) == []
    assert all("adapters" not in written["model"] and "lora" not in written["engine"] for written in contracts(scene))


async def test_an_adapter_reaches_the_contracts_and_no_pod() -> None:
    scene = await ready(sample())
    pods = {name: scene.cluster.objects["Pod", "demo", name]["metadata"]["uid"] for name in scene.pods()}
    scene.edit(sample("legal"))
    writes = await scene.settle()
    touched = {call.kind for call in writes} - {"Event", f"{names.KIND}/status", "Deployment"}
    assert touched == {"ConfigMap"}
    assert {name: scene.cluster.objects["Pod", "demo", name]["metadata"]["uid"] for name in scene.pods()} == pods
    for written in contracts(scene):
        (adapter,) = written["model"]["adapters"]
        assert adapter["path"] == "/var/run/headrace/adapters/legal"
    gateway = scene.cluster.objects["ConfigMap", "demo", "chat-gateway"]["data"]["contract.json"]
    assert json.loads(gateway)["adapters"] == ["legal"]
    assert scene.condition(c.READY) == "True"


async def test_adapters_that_are_fetched_come_to_running_pods_as_well() -> None:
    room = Sample().split(1, 1).set("engine.lora", {"maxAdapters": 2})
    scene = await ready(room)
    before = len(scene.cluster.writes)
    scene.edit(room.set("model.adapters", [{"name": "legal", "source": "oci://registry/legal:1"}]))
    await scene.settle()
    assert "Pod" not in {call.kind for call in scene.cluster.writes[before:]}
    for written in contracts(scene):
        assert written["model"]["adapters"] == [{"name": "legal", "source": "oci://registry/legal:1"}]
        assert "cache" in written["model"]
    assert scene.condition(c.READY) == "True"


async def test_the_status_counts_the_engines_that_serve_it_and_is_looked_at_until_all_do() -> None:
    scene = await ready(sample("legal"))
    (told,) = scene.status["model"]["adapters"]
    assert (told["ready"], told["expected"], told.get("digest")) == (0, 2, None)
    say(scene, "prefill", {"name": "legal", "digest": ONE, "served": True})
    assert (await scene.reconcile()).seconds is not None
    (told,) = scene.status["model"]["adapters"]
    assert (told["ready"], told["expected"], told["digest"]) == (1, 2, ONE)
    say(scene, "decode", {"name": "legal", "digest": ONE, "served": True})
    await scene.settle()
    assert (await scene.reconcile()).seconds is None
    assert scene.status["model"]["adapters"][0]["ready"] == 2


async def test_the_digest_of_the_first_load_is_pinned_while_its_source_is_the_same() -> None:
    scene = await ready(sample("legal"))
    for role in ("prefill", "decode"):
        say(scene, role, {"name": "legal", "digest": ONE, "served": True})
    await scene.settle()
    assert {written["model"]["adapters"][0]["integrity"]["digest"] for written in contracts(scene)} == {ONE}
    say(scene, "decode", {"name": "legal", "digest": OTHER, "served": True})
    await scene.settle()
    told = scene.status["model"]["adapters"][0]
    assert (told["digest"], told["ready"]) == (ONE, 1)
    moved = sample("legal").set("model.adapters.0.source", f"{FOLDER}/legal-2")
    scene.edit(moved)
    await scene.reconcile()
    assert all("integrity" not in written["model"]["adapters"][0] for written in contracts(scene))


async def test_engines_that_disagree_at_the_first_load_pin_nothing() -> None:
    scene = await ready(sample("legal"))
    say(scene, "prefill", {"name": "legal", "digest": ONE, "served": True})
    say(scene, "decode", {"name": "legal", "digest": OTHER, "served": True})
    await scene.reconcile()
    told = scene.status["model"]["adapters"][0]
    assert (told.get("digest"), told["ready"]) == (None, 0)


async def test_an_adapter_that_cannot_be_served_is_named_and_stops_nothing() -> None:
    scene = await ready(sample("legal", "support"))
    say(
        scene,
        "decode",
        {"name": "legal", "digest": ONE, "problem": "the engine refused it: rank 64 is greater than 16"},
        {"name": "support", "digest": OTHER, "served": True},
    )
    await scene.settle()
    assert (scene.condition(c.READY), scene.condition(c.DEGRADED)) == ("True", "True")
    assert scene.reason(c.DEGRADED) == Reason.ADAPTER_FAILED
    message = scene.judged(c.DEGRADED)["message"]
    assert "adapter legal: chat-decode-" in message
    assert "rank 64" in message
    assert "support" not in message


async def test_room_for_adapters_is_a_new_revision_and_an_adapter_is_not() -> None:
    scene = await ready(Sample().split(1, 1))
    revisions = [scene.status["revision"]["current"]]
    for given in (sample(), sample("legal"), sample("legal", "support"), sample()):
        scene.edit(given)
        await scene.settle()
        revisions.append(scene.status["revision"]["current"])
    assert revisions[0] != revisions[1]
    assert len(set(revisions[1:])) == 1
