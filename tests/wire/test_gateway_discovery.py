"""Watching pods, against a small API server over loopback that can be told to misbehave."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway import discovery

SELECTOR = "headrace.dev/deployment=chat,headrace.dev/component=engine"


def pod(name: str, version: int, ready: bool = True) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {"name": name, "resourceVersion": str(version), "labels": {"headrace.dev/role": "decode"}},
        "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": conditions},
    }


class Api:
    """Lists `pods`, streams what is put into `events` (None ends a watch), and answers lists with `refuse` when it is
    set."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.version = 1
        self.refuse = 0
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.lists = 0
        self.watches: list[str] = []
        self.selectors: set[str] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.selectors.add(request.query["labelSelector"])
        if request.query.get("watch"):
            return await self._watch(request)
        self.lists += 1
        if self.refuse:
            return web.json_response({"message": "no"}, status=self.refuse)
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": self.pods})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches.append(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        while (event := await self.events.get()) is not None:
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    def tell(self, kind: str, what: dict[str, Any]) -> None:
        self.events.put_nowait({"type": kind, "object": what})


class Seen:
    """What discovery published."""

    def __init__(self) -> None:
        self.sets: list[tuple[Endpoint, ...]] = []

    def __call__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.sets.append(endpoints)

    @property
    def ready(self) -> dict[str, bool]:
        return {endpoint.name: endpoint.ready for endpoint in self.sets[-1]} if self.sets else {"": False}


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def watching(*pods: dict[str, Any]) -> AsyncIterator[tuple[Api, Seen]]:
    api, seen = Api(), Seen()
    api.pods = list(pods)
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/demo/pods", api.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with client.ApiClient(client.Configuration(host=host)) as kubernetes:
        task = asyncio.create_task(discovery.watch_pods(kubernetes, "demo", "chat", seen))
        try:
            await until(lambda: bool(api.watches))
            yield api, seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "BACKOFF_SECONDS", 0.01)


async def test_an_empty_deployment_is_an_answer_too() -> None:
    async with watching() as (api, seen):
        assert seen.sets == [()]
        assert api.selectors == {SELECTOR}


async def test_follows_pods_as_they_come_change_and_go() -> None:
    async with watching(pod("a", 1)) as (api, seen):
        assert seen.ready == {"a": True}
        api.tell("ADDED", pod("b", 2, ready=False))
        await until(lambda: seen.ready == {"a": True, "b": False})
        api.tell("MODIFIED", pod("b", 3))
        await until(lambda: seen.ready == {"a": True, "b": True})
        api.tell("DELETED", pod("a", 4))
        await until(lambda: seen.ready == {"b": True})
        assert api.lists == 1


async def test_a_watch_that_ends_goes_on_where_it_was() -> None:
    async with watching(pod("a", 1)) as (api, seen):
        api.tell("ADDED", pod("b", 7))
        api.tell("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
        api.events.put_nowait(None)
        await until(lambda: api.watches == ["1", "9"])
        assert api.lists == 1
        assert seen.ready == {"a": True, "b": True}


async def test_lists_again_when_its_version_is_too_old() -> None:
    async with watching(pod("a", 1), pod("gone", 1)) as (api, seen):
        api.pods, api.version = [pod("a", 20)], 20
        api.tell("ERROR", {"code": 410, "message": "too old resource version"})
        await until(lambda: api.watches == ["1", "20"])
        assert seen.ready == {"a": True}


async def test_keeps_the_last_known_set_while_the_api_server_is_away() -> None:
    async with watching(pod("a", 1)) as (api, seen):
        api.refuse = 500
        api.tell("ERROR", {"code": 500, "message": "etcd is away"})
        await until(lambda: api.lists >= 4)
        assert seen.ready == {"a": True}
        api.refuse = 0
        api.pods = [pod("b", 30)]
        await until(lambda: seen.ready == {"b": True})
