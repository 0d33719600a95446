"""An engine changes its role in a cluster while requests flow: a label, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from tests.cluster.deployments import Infd, Traffic, prompt_of, tiny


def roles(name: str, prefill: int, decode: int) -> list[dict[str, Any]]:
    (role,) = tiny(name)["spec"]["roles"]
    sizes = {"prefill": prefill, "decode": decode}
    return [copy.deepcopy(role) | {"name": which, "replicas": size} for which, size in sizes.items()]


@pytest.fixture(scope="module")
def pair(headrace: Any) -> Any:
    infd: Infd = headrace.infd("pair")
    manifest = tiny(infd.name)
    manifest["spec"]["roles"] = roles(infd.name, 1, 1)
    manifest["spec"]["disaggregation"] = {"roleChange": {"enabled": True, "minPrefill": 0}}
    infd.apply(manifest)
    try:
        infd.until_ready(240)
        yield infd
    finally:
        infd.delete()


@pytest.mark.timeout(600)
def test_a_prefill_engine_turns_to_decode_and_back_and_no_request_fails(pair: Infd) -> None:
    changed, lives, traffic = pair.pod(role="prefill"), pair.lives(), Traffic(pair)
    with traffic.flowing(), pair.gateway() as url:
        pair.patch(roles=roles(pair.name, 0, 2))
        seconds = pair.until("it decodes", lambda: _engines(pair, url)[1] == changed, 120)
        print(f"an answer of the engine in its new role {seconds:.1f} s after the spec changed")
        pair.until("both are decode", lambda: set(pair.pods(role="decode")) == set(lives), 120)
        pair.patch(roles=roles(pair.name, 1, 1))
        pair.until("it prefills again", lambda: _engines(pair, url)[0] == changed, 120)
    assert traffic.failed == [], str(traffic)
    assert pair.lives() == lives
    pair.until_ready(60)
    assert pair.message(c.ROLES_READY) == "prefill 1/1, decode 1/1 ready."


@pytest.mark.timeout(180)
def test_a_label_that_the_spec_does_not_bear_out_is_put_back(pair: Infd) -> None:
    prefill, lives = pair.pod(role="prefill"), pair.lives()
    pair.kubectl("label", "pod", prefill, f"{names.ROLE}=decode", "--overwrite")
    pair.until("it is prefill again", lambda: set(pair.pods(role="prefill")) == {prefill}, 120)
    assert pair.lives() == lives


_seed = iter(range(70_000, 80_000))


def _engines(infd: Infd, url: str) -> tuple[str, str]:
    """Who prefilled and who decoded a long prompt that nobody has seen."""
    reply = infd.complete(url, prompt_of(next(_seed), 300))
    assert reply.status == 200, reply.body[:500]
    return reply.headers.get("x-headrace-prefill", ""), reply.headers["x-headrace-decode"]
