"""Somebody else has an object of every name that a deployment needs, of every kind: it is left alone, and named."""

import copy

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster import OWNED
from headrace_operator.desired import desired_objects
from headrace_operator.plan import make_plan
from headrace_operator.state import Object, Observed
from headrace_operator.testing import Sample, Scene

KV = {"size": "1Gi", "volume": {"claimTemplate": {"size": "1Gi"}}}
SAMPLE = Sample().split(1, 1).set("kvCache.host", {"size": "1Gi"}).set("kvCache.disk", KV)


def wanted() -> list[Object]:
    """One object of each kind that the first pass makes."""
    scene = Scene(SAMPLE)
    objects = desired_objects(SAMPLE.subject(), make_plan(SAMPLE.subject().spec, Observed()))
    assert {obj["kind"] for obj in objects} <= {kind.kind for kind in OWNED}
    assert scene.ref.namespace == objects[0]["metadata"]["namespace"]
    return list({obj["kind"]: obj for obj in objects}.values())


@pytest.mark.parametrize("labelled", [False, True], ids=["of our name", "with our label too"])
@pytest.mark.parametrize("obj", wanted(), ids=lambda obj: obj["kind"])
async def test_an_object_of_our_name_that_is_not_ours_is_left_alone_and_named(obj: Object, labelled: bool) -> None:
    scene = Scene(SAMPLE)
    meta = {key: obj["metadata"][key] for key in ("name", "namespace")}
    labels = {names.DEPLOYMENT: scene.ref.name} if labelled else {}
    theirs = scene.cluster.put({**obj, "metadata": {**meta, "labels": labels}})
    before = copy.deepcopy(theirs)
    for _ in range(5):
        await scene.reconcile()
        scene.kubelet()
    kind, name = obj["kind"], meta["name"]
    # A create that comes too late does nothing to what is there.
    assert {call.verb for call in scene.cluster.writes if (call.kind, call.name) == (kind, name)} <= {"create"}
    after = scene.cluster.objects[kind, meta["namespace"], name]
    assert (after["metadata"]["uid"], after.get("spec")) == (before["metadata"]["uid"], before.get("spec"))
    accepted = scene.judged(c.ACCEPTED)
    assert (accepted["status"], accepted["reason"]) == ("False", "NotOwned")
    assert f"{kind}/{name}" in accepted["message"]
