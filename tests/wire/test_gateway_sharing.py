"""Who shares KV blocks: the salt that engines are given with each request, by API key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace_runtime.contract import GatewayContract
from headrace_runtime.gateway.sharing import salt_of
from tests.wire.gateways import Got, World, until, world

CONTRACT = GatewayContract(namespace="n", deployment="d", served_name="fake", kv_sharing="Key")


@asynccontextmanager
async def keyed(folder: Path, *names: str, sharing: str = "Key", **contract: Any) -> AsyncIterator[World]:
    for key in ("alice", "bob"):
        (folder / key).write_text(f"{key}s-secret")
    async with world(*names, keys_folder=str(folder), kv_sharing=sharing, **contract) as made:
        yield made


async def ask(w: World, key: str, path: str = "/v1/completions", **fields: Any) -> Got:
    got = await w.ask(path, {"authorization": f"Bearer {key}s-secret"}, **fields)
    assert got.status == 200, got.body
    return got


async def test_each_key_has_a_salt_of_its_own_on_both_sides_of_a_transfer(tmp_path: Path) -> None:
    async with keyed(tmp_path, "prefill-0", "decode-0") as w:
        for key in ("alice", "alice", "bob"):
            await ask(w, key)
        for engine in w.engines.values():
            salts = [document["cache_salt"] for document in engine.seen]
            assert salts == [salt_of(CONTRACT, key, False, None) for key in ("alice", "alice", "bob")]
            assert not any("secret" in salt for salt in salts)


async def test_a_clients_own_salt_parts_the_blocks_of_its_key_and_meets_no_others(tmp_path: Path) -> None:
    async with keyed(tmp_path, "serve-0") as w:
        bobs = salt_of(CONTRACT, "bob", False, None)
        for key, fields in (
            ("bob", {}),
            ("alice", {"cache_salt": bobs}),
            ("bob", {"cache_salt": "x"}),
            ("alice", {"cache_salt": None}),
        ):
            await ask(w, key, **fields)
        salts = [document["cache_salt"] for document in w.engines["serve-0"].seen]
        assert salts[0] == bobs
        assert salts[3] == salt_of(CONTRACT, "alice", False, None)
        assert len(set(salts)) == 4


@pytest.mark.parametrize("salt", ["", "a/b", "a" * 129, 7, ["x"]])
async def test_a_salt_that_no_engine_takes_is_refused(tmp_path: Path, salt: object) -> None:
    async with keyed(tmp_path, "serve-0") as w:
        got = await w.ask(headers={"authorization": "Bearer alices-secret"}, cache_salt=salt)
        assert (got.status, got.error["param"]) == (400, "cache_salt")
        assert w.engines["serve-0"].seen == []


async def test_a_stream_that_goes_on_elsewhere_keeps_its_salt(tmp_path: Path) -> None:
    async with keyed(tmp_path, "serve-0", "serve-1") as w:
        w.engines["serve-0"].become(fault="cut", at=3)
        for _ in range(2):
            assert (await ask(w, "alice")).text == " t0 t1 t2 t3 t4"
        seen = w.engines["serve-1"].seen
        assert any("vllm_xargs" in document for document in seen)
        assert {document["cache_salt"] for document in seen} == {salt_of(CONTRACT, "alice", False, None)}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
async def test_every_route_that_computes_is_salted(tmp_path: Path, path: str) -> None:
    async with keyed(tmp_path, "serve-0") as w:
        engine = w.engines["serve-0"]
        engine.become(embedding=4)
        given: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "input": "hello"}
        await ask(w, "alice", path, stream=False, **given)
        if path != "/v1/embeddings":  # the simulated engine does not note these
            assert engine.seen[0]["cache_salt"] == salt_of(CONTRACT, "alice", False, None)


async def test_with_one_cache_for_all_a_request_reaches_the_engine_as_it_came(tmp_path: Path) -> None:
    async with keyed(tmp_path, "serve-0", sharing="All") as w:
        await ask(w, "alice")
        await ask(w, "bob", cache_salt="mine")
        first, second = w.engines["serve-0"].seen
        assert "cache_salt" not in first
        assert second["cache_salt"] == "mine"


async def test_who_shares_changes_under_a_running_gateway(tmp_path: Path) -> None:
    async with keyed(tmp_path, "serve-0", sharing="All") as w:
        await ask(w, "alice")
        live = w.gateway._live
        live.contract = live.contract.model_copy(update={"kv_sharing": "Key"})
        await ask(w, "alice")
        assert ["cache_salt" in document for document in w.engines["serve-0"].seen] == [False, True]


async def test_the_canary_shares_with_no_key_of_its_name(tmp_path: Path) -> None:
    async with keyed(tmp_path, "serve-0") as w:
        (tmp_path / "headrace").write_text("headraces-secret")
        await until(lambda: len(w.gateway._live.keys) == 3, 60)
        await ask(w, "headrace")
        url = f"http://127.0.0.1:{w.gateway.admin_port}/canary"
        async with aiohttp.ClientSession() as client, client.post(url, json={"revision": "r1"}) as answer:
            assert answer.status == 200
        salts = [document["cache_salt"] for document in w.engines["serve-0"].seen]
        assert salts == [salt_of(CONTRACT, "headrace", False, None), salt_of(CONTRACT, "headrace", True, None)]
        assert salts[0] != salts[1]
