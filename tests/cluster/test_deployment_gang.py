"""A prefill engine over two pods of a cluster, beside a decode engine of one: it works as one, and comes back whole."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from chaos.faults import IN_A_POD
from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from tests.cluster.deployments import Infd, prompt_of, tiny

START_SECONDS = 240


@pytest.fixture(scope="module")
def gang(headrace: Any) -> Iterator[Infd]:
    infd: Infd = headrace.infd("gang")
    manifest = tiny("gang")
    (serve,) = manifest["spec"]["roles"]
    prefill = {**serve, "name": "prefill", "parallelism": {"tensor": 2, "pods": 2}}
    manifest["spec"]["roles"] = [prefill, {**serve, "name": "decode"}]
    manifest["spec"]["recovery"] = {"backoff": {"base": "1s", "max": "5s"}}
    try:
        infd.apply(manifest)
        yield infd
    finally:
        infd.delete()


def ranks(infd: Infd) -> list[str]:
    """Names of the prefill engine's pods, rank 0 first."""
    found = infd.pods(role="prefill")
    return sorted(found, key=lambda name: found[name]["metadata"]["labels"][names.RANK])


def works(infd: Infd) -> bool:
    """It computes a prompt that the decode engine goes on with."""
    with infd.gateway() as url:
        reply = infd.complete(url, prompt_of(int(monotonic() * 1000)))
    return reply.status == 200 and reply.headers.get("x-headrace-prefill") == ranks(infd)[0]


@pytest.mark.timeout(400)
def test_two_pods_are_one_engine_that_hands_over_its_kv_blocks(gang: Infd) -> None:
    seconds = gang.until_ready(START_SECONDS)
    first, second = ranks(gang)
    print(f"ready after {seconds:.1f} s")
    assert second == f"{first}-r1"
    assert gang.read()["status"]["roles"][0]["summary"] == "1/1"
    decode = gang.pod(role="decode")
    before = gang.prompt_tokens(decode)["external_kv_transfer"]
    gang.until("it works", lambda: works(gang), 90)
    assert gang.prompt_tokens(decode)["external_kv_transfer"] > before
    gang.until_condition(c.RAY_READY, "True", Reason.NODES_JOINED, 120)
    assert gang.read()["status"]["ray"]["nodes"] == {"alive": 4, "expected": 4}


@pytest.mark.timeout(400)
def test_a_killed_worker_of_one_rank_starts_both_anew_in_their_pods(gang: Infd) -> None:
    gang.until_ready(START_SECONDS)
    first, second = ranks(gang)
    lives, before = gang.lives(), gang.agent(first)
    gang.kubectl("exec", second, "--", "python3.11", "-c", IN_A_POD, "core", str(gang.agent(second).engine_pid))

    def again() -> bool:
        state = gang.agent(first)
        return state.engine_restarts > before.engine_restarts and state.phase == "Ready"

    seconds = gang.until("rank 0 has begun anew and is ready", again, START_SECONDS)
    seconds += gang.until("it works", lambda: works(gang), 90)
    print(f"worker of rank 1 killed: worked again after {seconds:.1f} s")
    assert gang.lives() == lives


@pytest.mark.timeout(400)
def test_a_deleted_rank_is_replaced_by_a_new_gang(gang: Infd) -> None:
    gang.until_ready(START_SECONDS)
    old = gang.uids(role="prefill")
    gang.kubectl("delete", "pod", ranks(gang)[1], "--wait=false")
    seconds = gang.until(
        "two new pods are ready", lambda: len(gang.uids(role="prefill", ready=True) - old) == 2, START_SECONDS
    )
    seconds += gang.until("nothing is left of the old ones", lambda: not gang.uids(role="prefill") & old, 120)
    seconds += gang.until("the new ones work", lambda: works(gang), 90)
    print(f"rank 1 deleted: worked again after {seconds:.1f} s")
    gang.until_ready(90)


@pytest.mark.timeout(300)
def test_it_goes_with_all_its_pods_and_the_names_of_its_ranks(gang: Infd) -> None:
    assert "Service/gang-ranks" in gang.children()
    gang.delete()
    assert gang.children() == {}
