"""A deployment that asks for API keys: its Secret may come late, change, and never costs a running gateway its life."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from tests.cluster.deployments import Infd, restarts, tiny

SECRET = "guarded-keys"
HELD_UP_SECONDS = 240
"""The kubelet tries a mount that failed again after two minutes at most, and writes a changed Secret or ConfigMap into
its pods after little more than one."""


@pytest.fixture(scope="module")
def guarded(headrace: Any) -> Iterator[Infd]:
    infd: Infd = headrace.infd("guarded")
    manifest = tiny("guarded")
    manifest["spec"]["gateway"]["apiKeysSecretRef"] = {"name": SECRET}
    try:
        infd.apply(manifest)
        yield infd
    finally:
        infd.delete()
        headrace.kubectl("delete", "secret", SECRET, "--ignore-not-found")


def lives(infd: Infd) -> dict[str, int]:
    """Its gateway pods by uid, with their restarts."""
    return {pod["metadata"]["uid"]: restarts(pod) for pod in infd.pods("gateway").values()}


@pytest.mark.timeout(600)
def test_a_secret_that_is_missing_is_named_and_found_when_it_comes(headrace: Any, guarded: Infd) -> None:
    guarded.until_condition(c.GATEWAY_READY, "False", Reason.SECRET_NOT_FOUND, 120)
    assert SECRET in guarded.message(c.GATEWAY_READY)
    hashed = hashlib.sha256(b"sk-shop").hexdigest()
    headrace.kubectl("create", "secret", "generic", SECRET, f"--from-literal=shop=sha256:{hashed}")
    print(f"Ready {guarded.until_ready(HELD_UP_SECONDS):.1f} s after its keys were there")
    assert set(lives(guarded).values()) == {0}
    with guarded.gateway() as url:
        assert [guarded.complete(url, [5, 6], key=key).status for key in ("", "sk-batch", "sk-shop")] == [401, 401, 200]


@pytest.mark.timeout(600)
def test_keys_and_limits_change_under_a_running_gateway(headrace: Any, guarded: Infd) -> None:
    guarded.until_ready(HELD_UP_SECONDS)
    before = lives(guarded)
    with guarded.gateway() as url:
        change = json.dumps({"data": {"shop": None, "batch": base64.b64encode(b"sk-batch").decode()}})
        headrace.kubectl("patch", "secret", SECRET, "--type=merge", "--patch", change)
        seconds = guarded.until(
            "the new key counts", lambda: guarded.complete(url, [5, 6], key="sk-batch").status == 200, HELD_UP_SECONDS
        )
        print(f"the new key counted after {seconds:.1f} s")
        assert guarded.complete(url, [5, 6], key="sk-shop").status == 401
        guarded.patch(gateway={"keys": [{"name": "batch", "limits": {"tokensPerMinute": 1}}]})
        seconds = guarded.until(
            "the limit holds", lambda: guarded.complete(url, [5, 6], key="sk-batch").status == 429, HELD_UP_SECONDS
        )
        print(f"the limit held after {seconds:.1f} s")
    assert lives(guarded) == before
    assert guarded.conditions()[c.READY]["status"] == "True"
