"""LoRA adapters of a deployment on a cluster: they come, answer and go by an edit of the spec; no pod is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from tests.cluster.deployments import MODELS, Infd, Reply, post, tiny

FOLDER = f"node://{MODELS}/tiny-adapters"
HELD_UP_SECONDS = 240
"""The kubelet writes a changed ConfigMap into its pods after little more than a minute."""


def adapters(*called: str) -> list[dict[str, str]]:
    return [{"name": name, "source": f"{FOLDER}/{name}"} for name in called]


@pytest.fixture(scope="module")
def adapting(headrace: Any) -> Iterator[Infd]:
    infd: Infd = headrace.infd("adapting")
    manifest = tiny("adapting")
    manifest["spec"]["engine"]["lora"] = {"maxAdapters": 2, "maxRank": 8, "folder": FOLDER}
    manifest["spec"]["model"]["adapters"] = adapters("legal")
    try:
        infd.apply(manifest)
        yield infd
    finally:
        infd.delete()


def ask(url: str, model: str) -> Reply:
    body = {"model": model, "prompt": [*range(20, 60)], "max_tokens": 8, "temperature": 0}
    return post(url, "/v1/completions", body)


def served(infd: Infd) -> dict[str, str]:
    """`ready/expected` of each adapter, as the status says."""
    told = infd.read().get("status", {}).get("model", {}).get("adapters", [])
    return {one["name"]: f"{one['ready']}/{one['expected']}" for one in told}


@pytest.mark.timeout(600)
def test_an_engine_is_ready_with_the_adapters_that_it_started_with(adapting: Infd) -> None:
    adapting.until_ready()
    adapting.until("the status counts the adapter", lambda: served(adapting) == {"legal": "1/1"}, 90)
    with adapting.gateway() as url:
        assert ask(url, "legal").text != ask(url, "tiny").text
        assert ask(url, "support").status == 404
    adapting.until("the digest of the first load is pinned", lambda: _pinned(adapting), 90)


@pytest.mark.timeout(600)
def test_an_adapter_comes_and_goes_under_running_pods(adapting: Infd) -> None:
    adapting.until_ready()
    before, gateways = adapting.lives(), adapting.uids("gateway")
    with adapting.gateway() as url:
        adapting.patch(model={"adapters": adapters("legal", "support")})
        seconds = adapting.until("the new one answers", lambda: ask(url, "support").status == 200, HELD_UP_SECONDS)
        print(f"the new adapter answered {seconds:.1f} s after the spec named it")
        assert len({ask(url, name).text for name in ("tiny", "legal", "support")}) == 3
        adapting.until("the status counts both", lambda: served(adapting) == {"legal": "1/1", "support": "1/1"}, 90)
        adapting.patch(model={"adapters": adapters("support")})
        seconds = adapting.until("the old one is gone", lambda: ask(url, "legal").status == 404, HELD_UP_SECONDS)
        print(f"the removed adapter was known no more after {seconds:.1f} s")
        adapting.until("the engine has unloaded it", lambda: _of_engine(adapting) == ["support"], HELD_UP_SECONDS)
        assert ask(url, "support").status == 200
    assert (adapting.lives(), adapting.uids("gateway")) == (before, gateways)


@pytest.mark.timeout(600)
def test_an_adapter_that_is_not_there_is_named_and_the_rest_goes_on(adapting: Infd) -> None:
    adapting.until_ready()
    before = adapting.lives()
    adapting.patch(model={"adapters": adapters("support", "nowhere")})
    adapting.until_condition(c.DEGRADED, "True", Reason.ADAPTER_FAILED, HELD_UP_SECONDS)
    assert "adapter nowhere: " in adapting.message(c.DEGRADED)
    assert adapting.conditions()[c.READY]["status"] == "True"
    with adapting.gateway() as url:
        assert ask(url, "support").status == 200
        adapting.until("the gateway knows the name", lambda: ask(url, "nowhere").status == 503, HELD_UP_SECONDS)
    assert adapting.lives() == before


def _of_engine(infd: Infd) -> list[str]:
    return [state.name for state in infd.agent(infd.pod()).adapters if state.served]


def _pinned(infd: Infd) -> bool:
    """Whether the engines' contract holds the digest that the status tells."""
    (told,) = infd.read()["status"]["model"]["adapters"]
    selector = f"{names.DEPLOYMENT}={infd.name},{names.COMPONENT}=engine"
    (contract,) = infd.json("get", "configmaps", "--selector", selector)["items"]
    (adapter,) = json.loads(contract["data"]["contract.json"])["model"]["adapters"]
    return "digest" in told and adapter.get("integrity", {}).get("digest") == told["digest"]
