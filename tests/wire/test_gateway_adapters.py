"""Requests for adapters: names, lists, and engines that have yet to load one."""

from typing import Any

import orjson
import pytest

from headrace_runtime.gateway.serve import Gateway
from tests.wire.gateways import World, world


def load(w: World, *engines: str) -> None:
    for name in engines:
        w.engines[name].adapters.loaded["poet"] = "/adapters/poet"


async def get(w: World, path: str) -> tuple[int, dict[str, Any]]:
    async with w.client.get(w.url + path) as answer:
        return answer.status, orjson.loads(await answer.read())


async def test_a_deployment_without_adapters_knows_one_model() -> None:
    async with world("serve-0") as w:
        got = await w.ask(model="poet")
        assert (got.status, got.error["code"]) == (404, "model_not_found")
        assert "serves `fake`." in got.error["message"]
        assert [card["id"] for card in (await get(w, "/v1/models"))[1]["data"]] == ["fake"]


async def test_adapters_are_listed_beside_their_model_and_named_to_who_asks_for_another() -> None:
    async with world("serve-0", adapters=("poet", "a/b")) as w:
        listed = (await get(w, "/v1/models"))[1]["data"]
        assert [(card["id"], card.get("parent")) for card in listed] == [
            ("fake", None), ("poet", "fake"), ("a/b", "fake"),
        ]  # fmt: skip
        for path, name in (("poet", "poet"), ("a/b", "a/b"), ("a%2Fb", "a/b"), ("fake", "fake")):
            status, card = await get(w, f"/v1/models/{path}")
            assert (status, card["id"]) == (200, name)
        assert (await get(w, "/v1/models/other"))[0] == 404
        got = await w.ask(model="other")
        assert got.status == 404
        assert "`fake`, `poet`, `a/b`" in got.error["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_has_yet_to_load_the_adapter_is_passed_over_and_stays_in(stream: bool) -> None:
    async with world("serve-0", "serve-1", "serve-2", adapters=("poet",)) as w:
        load(w, "serve-2")
        for _ in range(3):
            got = await w.ask(model="poet", stream=stream)
            assert (got.status, got.headers["x-headrace-decode"]) == (200, "serve-2")
        assert all(slot.healthy for slot in w.gateway.fleet.slots())
        assert (await w.ask()).status == 200


async def test_an_adapter_that_no_engine_has_is_to_be_asked_for_again_later() -> None:
    async with world("serve-0", "serve-1", adapters=("poet",)) as w:
        got = await w.ask(model="poet")
        assert (got.status, got.error["code"]) == (503, "adapter_not_loaded")
        assert got.headers["retry-after"] == "1"
        load(w, "serve-0", "serve-1")
        assert (await w.ask(model="poet")).status == 200


async def test_a_prefill_engine_without_the_adapter_is_passed_over_too() -> None:
    async with world("prefill-0", "prefill-1", "decode-0", adapters=("poet",)) as w:
        load(w, "prefill-1", "decode-0")
        for _ in range(2):
            got = await w.ask(model="poet")
            assert (got.status, got.headers["x-headrace-prefill"]) == (200, "prefill-1")


async def test_a_stream_of_an_adapter_goes_on_at_an_engine_that_has_it() -> None:
    async with world("serve-0", "serve-1", "serve-2", adapters=("poet",)) as w:
        load(w, "serve-0", "serve-2")
        w.engines["serve-0"].become(fault="cut", at=2)
        texts = [(await w.ask(model="poet")).text for _ in range(3)]
        assert texts == [" t0 t1 t2 t3 t4"] * 3


async def test_adapters_come_and_go_under_a_running_gateway() -> None:
    async with world("serve-0") as w:
        load(w, "serve-0")
        _tell(w.gateway, ("poet",))
        assert (await w.ask(model="poet")).status == 200
        assert (await get(w, "/v1/models/poet"))[0] == 200
        _tell(w.gateway, ())
        assert (await w.ask(model="poet")).status == 404
        assert (await get(w, "/v1/models/poet"))[0] == 404


def _tell(gateway: Gateway, adapters: tuple[str, ...]) -> None:
    gateway._live.contract = gateway._live.contract.model_copy(update={"adapters": adapters})
    gateway._reloaded("contract", "changed")
