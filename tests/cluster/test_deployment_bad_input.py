"""Bad input is named and harms nothing; the next good input recovers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from headrace_operator.api.manifest import KEY
from local.errors import LocalError
from tests.cluster.deployments import MODELS, Infd, Json, restarts, tiny

CHECKSUMS = "tiny-checksums"


def checksums(kubectl: Any, digests: dict[str, str]) -> None:
    """The manifest of the model's files, as `sha256sum` writes it."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in digests.items())
    change = json.dumps({"data": {KEY: lines}})
    kubectl("patch", "configmap", CHECKSUMS, "--type=merge", "--patch", change)


@pytest.fixture(scope="module")
def true_digests() -> dict[str, str]:
    from local.engine import models  # noqa: PLC0415 - made by then

    found: dict[str, str] = json.loads((models.folder() / "tiny.sha256.json").read_text())
    return found


@pytest.fixture(scope="module")
def broken(headrace: Any, true_digests: dict[str, str]) -> Iterator[dict[str, Infd]]:
    """Three deployments that cannot start, side by side, by what is wrong with them."""
    headrace.kubectl("create", "configmap", CHECKSUMS)
    checksums(headrace.kubectl, dict.fromkeys(true_digests, "0" * 64))
    changed = tiny("changed")
    integrity = {"policy": "Enforce", "manifest": {"configMapRef": {"name": CHECKSUMS}}}
    changed["spec"]["model"]["integrity"] = integrity
    manifests: dict[str, Json] = {
        "absent": tiny("absent", source=f"node://{MODELS}/absent"),
        "changed": changed,
        "engineless": tiny("engineless", mounted=False),
    }
    made = {name: headrace.infd(name) for name in manifests}
    try:
        for name, manifest in manifests.items():
            made[name].apply(manifest)
        yield made
    finally:
        headrace.kubectl("delete", "infd", *made, "--ignore-not-found")
        headrace.kubectl("delete", "configmap", CHECKSUMS)
        for infd in made.values():
            infd.until_gone()


def unharmed(infd: Infd) -> None:
    """No container of its head and its engine was started again."""
    assert [restarts(pod) for kind in ("head", "engine") for pod in infd.pods(kind).values()] == [0, 0], infd.report()


def test_an_invalid_spec_is_refused_by_the_api_server(chat: Any) -> None:
    before = chat.infd.read()["metadata"]
    with pytest.raises(LocalError, match=r"spec\.roles"):
        chat.infd.patch(roles=[{"name": "prefill", "replicas": 1}])
    assert chat.infd.read()["metadata"]["generation"] == before["generation"]


def test_a_field_without_effect_is_named_and_harms_nothing(chat: Any) -> None:
    infd = chat.infd
    lives, children = infd.lives(), set(infd.children())
    infd.patch(observability={"podMonitor": True}, networkPolicy={"mode": "DefaultDeny"})
    try:
        infd.until_condition(c.ACCEPTED, "False", Reason.INVALID_SPEC)
        assert "spec.observability" in infd.message(c.ACCEPTED)
        assert "spec.networkPolicy.mode" in infd.message(c.ACCEPTED), "all problems at once"
        assert infd.conditions()[c.READY]["status"] == "False"
        with infd.gateway() as url:
            assert infd.complete(url, "Hello").status == 200
        assert infd.lives() == lives
        assert set(infd.children()) == children
    finally:
        infd.patch(observability={"podMonitor": False}, networkPolicy={"mode": "Off"})
    infd.until_condition(c.ACCEPTED, "True", Reason.VALID)
    infd.until_ready(60)
    assert infd.lives() == lives


@pytest.mark.timeout(180)
def test_a_model_folder_that_is_missing_is_named(broken: dict[str, Infd]) -> None:
    infd = broken["absent"]
    infd.until_condition(c.MODEL_READY, "False", Reason.MODEL_NOT_FOUND, 120)
    assert infd.pod() in infd.message(c.MODEL_READY)
    assert infd.conditions()[c.READY]["status"] == "False"
    unharmed(infd)


@pytest.mark.timeout(180)
def test_changed_weights_never_reach_an_engine(broken: dict[str, Infd]) -> None:
    infd = broken["changed"]
    infd.until_condition(c.WEIGHTS_VERIFIED, "False", Reason.DIGEST_MISMATCH, 120)
    state = infd.agent(infd.pod())
    assert (state.reason, state.weights.verified) == ("DigestMismatch", False)
    assert state.ready_seconds is None
    unharmed(infd)


@pytest.mark.timeout(180)
def test_an_image_without_the_engine_is_named(broken: dict[str, Infd]) -> None:
    infd = broken["engineless"]
    infd.until_condition(c.ROLES_READY, "False", Reason.ENGINE_MISSING, 120)
    assert infd.pod() in infd.message(c.ROLES_READY)
    assert infd.conditions()[c.DEGRADED]["status"] == "True"
    unharmed(infd)


@pytest.mark.timeout(300)
def test_all_recover_once_the_input_is_good(broken: dict[str, Infd], true_digests: dict[str, str]) -> None:
    for infd in broken.values():  # they had a while to fall into a loop of restarts
        unharmed(infd)
    checksums(broken["changed"].kubectl, true_digests)
    broken["engineless"].apply(tiny("engineless"))
    broken["absent"].delete()
    for name in ("changed", "engineless"):
        print(f"{name}: Ready {broken[name].until_ready(200):.0f} s later")
    condition = broken["changed"].conditions()[c.WEIGHTS_VERIFIED]
    assert (condition["status"], condition["reason"]) == ("True", Reason.VERIFIED)
