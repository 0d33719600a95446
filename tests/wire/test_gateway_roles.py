"""Engines that change their role under a running gateway: a file of engines, simulated engines, real connections."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace_runtime.contract import Endpoint, FileDiscovery, GatewayContract, RoleName
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.discovery import watch_file
from headrace_runtime.gateway.serve import Gateway

LONG = list(range(100))


def write(file: Path, engines: Mapping[str, FakeEngine], roles: Mapping[str, RoleName], **fields: Any) -> None:
    listed = [
        Endpoint(name=name, url=engine.url, role=roles[name], revision="r", **fields).model_dump(by_alias=True)
        for name, engine in engines.items()
    ]
    new = file.with_suffix(".new")
    new.write_text(json.dumps(listed))
    new.rename(file)


async def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(file: Path, **roles: RoleName) -> AsyncIterator[tuple[Gateway, dict[str, FakeEngine]]]:
    """A gateway that reads its engines from `file`, with all of them healthy."""
    async with AsyncExitStack() as stack:
        engines = {name: FakeEngine(Script()) for name in roles}
        for engine in engines.values():
            await stack.enter_async_context(engine.serving())
        write(file, engines, roles)
        contract = GatewayContract(
            namespace="n",
            deployment="d",
            served_name="fake",
            discovery=FileDiscovery(path=str(file)),
            access_log=False,
            port=0,
            admin_port=0,
        )
        gateway = Gateway(contract)
        await stack.enter_async_context(gateway.running())
        await until(lambda: gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots()))
        yield gateway, engines


async def ask(gateway: Gateway, tokens: int = 3, prompt: list[int] = LONG) -> tuple[str, str, str]:
    """Who prefilled, who decoded, and what came."""
    body = {"model": "fake", "prompt": prompt, "max_tokens": tokens, "stream": True}
    async with aiohttp.ClientSession() as client:
        async with client.post(f"http://127.0.0.1:{gateway.port}/v1/completions", json=body) as response:
            text = await response.text()
            assert response.status == 200, text
            return response.headers.get("x-headrace-prefill", ""), response.headers["x-headrace-decode"], text


def roles_of(gateway: Gateway) -> dict[str, str]:
    return {slot.endpoint.name: slot.endpoint.role for slot in gateway.fleet.slots()}


async def test_new_requests_take_the_new_routes_and_streams_under_way_go_on(tmp_path: Path) -> None:
    async with world(tmp_path / "engines.json", a="prefill", b="prefill", c="decode") as (gateway, engines):
        engines["c"].become(itl=0.02)
        streams = [asyncio.create_task(ask(gateway, tokens=50)) for _ in range(4)]
        await until(lambda: engines["c"].running == 4)
        swapped: dict[str, RoleName] = {"a": "prefill", "b": "decode", "c": "prefill"}
        write(tmp_path / "engines.json", engines, swapped)
        await until(lambda: roles_of(gateway) == swapped)
        asked = {name: len(engine.seen) for name, engine in engines.items()}
        for _ in range(6):
            prefill, decode, _ = await ask(gateway)
            assert (prefill in ("a", "c"), decode) == (True, "b")
        assert len(engines["b"].seen) - asked["b"] == 6
        assert all("do_remote_prefill" in json.dumps(body) for body in engines["b"].seen[asked["b"] :])
        for prefill, decode, text in await asyncio.gather(*streams):
            assert (prefill in ("a", "b"), decode) == (True, "c")
            assert " t49" in text
            assert "error" not in text
        assert not any(engine.aborted for engine in engines.values())


async def test_an_engine_that_does_both_takes_requests_without_a_partner(tmp_path: Path) -> None:
    async with world(tmp_path / "engines.json", a="prefill", b="decode") as (gateway, engines):
        write(tmp_path / "engines.json", engines, {"a": "serve", "b": "serve"})
        await until(lambda: set(roles_of(gateway).values()) == {"serve"})
        served = {(await ask(gateway))[:2] for _ in range(6)}
        assert served == {("", "a"), ("", "b")}


async def test_either_role_may_be_missing_for_a_while(tmp_path: Path) -> None:
    async with world(tmp_path / "engines.json", a="prefill", b="decode") as (gateway, engines):
        write(tmp_path / "engines.json", {"b": engines["b"]}, {"b": "decode"})
        await until(lambda: roles_of(gateway) == {"b": "decode"})
        assert (await ask(gateway))[:2] == ("", "b")
        write(tmp_path / "engines.json", engines, {"a": "prefill", "b": "decode"}, ready=True)
        await until(lambda: sum(slot.routable for slot in gateway.fleet.slots()) == 2)
        assert (await ask(gateway))[:2] == ("a", "b")
        write(tmp_path / "engines.json", {"a": engines["a"]}, {"a": "prefill"})
        await until(lambda: roles_of(gateway) == {"a": "prefill"})
        assert (await ask(gateway))[:2] == ("", "a")


async def test_engines_of_two_revisions_are_never_a_pair_while_one_replaces_the_other(tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    async with world(file, a="prefill", b="decode", c="prefill", d="decode") as (gateway, engines):
        pods: dict[str, RoleName] = {"a": "prefill", "b": "decode", "c": "prefill", "d": "decode"}

        async def step(**revisions: str) -> set[tuple[str, str]]:
            """Pairs that serve once exactly these engines, each of its revision, are there."""
            listed = [
                Endpoint(name=name, url=engines[name].url, role=pods[name], revision=revision, kv_layout=revision)
                for name, revision in revisions.items()
            ]
            new = file.with_suffix(".new")
            new.write_text(json.dumps([endpoint.model_dump() for endpoint in listed]))
            new.rename(file)
            await until(
                lambda: (
                    {slot.endpoint.name: slot.endpoint.revision for slot in gateway.fleet.slots()} == revisions
                    and all(slot.routable for slot in gateway.fleet.slots())
                )
            )
            return {(await ask(gateway))[:2] for _ in range(8)}

        assert await step(a="old", b="old") == {("a", "b")}
        assert await step(a="old", b="old", c="new") == {("a", "b")}
        assert await step(a="old", b="old", c="new", d="new") == {("a", "b"), ("c", "d")}
        assert await step(b="old", c="new") == {("", "b")}
        assert await step(c="new", d="new") == {("c", "d")}


async def test_a_prefill_engine_lost_after_its_blocks_were_fetched_is_missed_by_nobody(tmp_path: Path) -> None:
    async with world(tmp_path / "engines.json", a="prefill", b="decode") as (gateway, engines):
        engines["b"].become(itl=0.02)
        stream = asyncio.create_task(ask(gateway, tokens=40))
        await until(lambda: engines["b"].running == 1)
        engines["a"].become(fault="hang")
        prefill, decode, text = await stream
        assert (prefill, decode, " t39" in text) == ("a", "b", True)
        await until(lambda: sum(slot.routable for slot in gateway.fleet.slots()) == 1)
        assert (await ask(gateway))[:2] == ("", "b")


async def test_a_file_that_cannot_be_read_leaves_the_engines_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, found = tmp_path / "engines.json", []
    engine = Endpoint(name="a", url="http://127.0.0.1:1", role="decode", revision="r")
    watching = asyncio.create_task(watch_file(FileDiscovery(path=str(file)), found.append))
    await until(lambda: "no list of engines" in caplog.text)
    file.write_text(json.dumps([engine.model_dump()]))
    await until(lambda: found == [(engine,)])
    caplog.clear()
    file.write_text("[{]")
    await until(lambda: "no list of engines" in caplog.text)
    watching.cancel()
    assert found == [(engine,)]
