"""When a deployment is looked at again: own writes wake nobody, so a pass that wrote says so itself."""

from headrace_operator.reconcile import AGAIN_SECONDS
from headrace_operator.state import Look
from headrace_operator.testing import Sample, Scene


async def test_a_pass_that_wrote_looks_again_soon_and_the_last_one_wrote_nothing() -> None:
    scene = Scene(Sample().split(1, 1))
    for _ in range(20):
        before = len(scene.cluster.writes)
        look = await scene.reconcile()
        if len(scene.cluster.writes) == before:
            break
        assert look == Look(AGAIN_SECONDS)
        scene.kubelet()
    assert scene.condition("Ready") == "True"
    assert look == Look()


async def test_the_digest_of_a_first_load_reaches_the_contracts_though_nobody_wakes_the_operator() -> None:
    scene = Scene(Sample().split(1, 1))
    await scene.reconcile()
    scene.kubelet()
    assert await scene.reconcile() == Look(AGAIN_SECONDS)  # Ready by now, and the digest is in the status alone
    assert scene.condition("Ready") == "True"
    before = len(scene.cluster.writes)
    await scene.reconcile()
    assert {call.kind for call in scene.cluster.writes[before:]} == {"ConfigMap"}
