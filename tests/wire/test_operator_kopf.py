"""kopf over real HTTP: what wakes a worker, what ends it, and that kopf itself writes nothing to any object."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import kmock
import pytest
import yaml

from headrace_operator import handlers
from headrace_operator.cluster import INFERENCE_DEPLOYMENT, Kind
from headrace_operator.settings import Settings
from headrace_operator.state import Look, Object, Ref
from headrace_operator.testing import Sample
from headrace_operator.worker import Workers


def resource(kind: Kind) -> Any:
    group, _, version = kind.api_version.rpartition("/")
    return kmock.resource(group, version, kind.plural)


CHAT = Ref("demo", "chat", "uid-of-chat")
BACKBONE = (
    Kind("v1", "Namespace", "namespaces"),
    Kind("v1", "Event", "events"),
    Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions"),
)
"""Kinds that kopf wants to find on a server before it watches any other."""
TEST = "x-test"
"""Header of the requests that the tests themselves send."""


class Passes:
    """What the workers did: the refs of their passes, in order."""

    def __init__(self) -> None:
        self.refs: list[Ref] = []

    async def __call__(self, ref: Ref) -> Look:
        self.refs.append(ref)
        return Look()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
def passes() -> Passes:
    return Passes()


@pytest.fixture
async def workers(
    kmock: kmock.KubernetesEmulator, passes: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Workers]:
    """The operator, running against the emulated API server until the test ends."""
    for kind in (*BACKBONE, INFERENCE_DEPLOYMENT):
        kmock.resources[resource(kind)] = {
            "kind": kind.kind,
            "namespaced": True,
            "verbs": ["get", "list", "watch", "patch"],
        }
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(_kubeconfig(str(kmock.url))))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    workers = Workers(passes)
    stop = threading.Event()
    # A loop of its own: when kopf ends, it also ends every task of its loop that it did not find at its start.
    operator = threading.Thread(target=lambda: asyncio.run(handlers.run(workers, Settings(port=0), stop)))
    operator.start()
    try:
        await until(lambda: watched(kmock) == {INFERENCE_DEPLOYMENT.plural})
        yield workers
    finally:
        stop.set()
        await asyncio.to_thread(operator.join, 20)
    assert not operator.is_alive()


def _kubeconfig(server: str) -> Object:
    return {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server.rstrip("/")}}],
        "users": [{"name": "test", "user": {"token": "none"}}],
    }


def watched(server: Any) -> set[str]:
    return {str(r.resource.plural) for r in server if r.resource is not None and "watch" in r.params}


def written(server: Any) -> list[str]:
    """What was written and by whom, but for what the tests themselves did."""
    return [f"{r.method.value} {r.url.path}" for r in server if r.method.value != "GET" and TEST not in r.headers]


async def post(server: Any, kind: Kind, body: Object) -> None:
    async with server.post(kind.path("demo"), json=body, headers={TEST: "yes"}) as answer:
        assert answer.status < 300


async def edit(server: Any, kind: Kind, name: str, body: Object) -> None:
    async with server.patch(kind.path("demo", name), json=body, headers={TEST: "yes"}) as answer:
        assert answer.status < 300


async def put(server: Any, name: str = "chat") -> None:
    body = Sample(name).build()
    body["metadata"]["resourceVersion"] = "1"
    await post(server, INFERENCE_DEPLOYMENT, body)


async def test_a_new_object_gets_a_worker_and_one_pass(kmock: Any, workers: Workers, passes: Passes) -> None:
    await put(kmock)
    await until(lambda: passes.refs == [CHAT])
    assert len(workers) == 1


async def test_an_edit_of_the_spec_wakes_and_a_write_of_the_status_does_not(
    kmock: Any, workers: Workers, passes: Passes
) -> None:
    await put(kmock)
    await until(lambda: len(passes.refs) == 1)
    await edit(kmock, INFERENCE_DEPLOYMENT, "chat", {"status": {"url": "x"}, "metadata": {"resourceVersion": "2"}})
    await put(kmock, "marker")
    await until(lambda: len(passes.refs) == 2)
    assert passes.refs[1].name == "marker"
    await edit(kmock, INFERENCE_DEPLOYMENT, "chat", {"metadata": {"generation": 2, "resourceVersion": "3"}})
    await until(lambda: passes.refs[2:] == [CHAT])


async def test_a_burst_of_edits_melts_into_few_passes(kmock: Any, workers: Workers, passes: Passes) -> None:
    await put(kmock)
    await until(lambda: len(passes.refs) == 1)
    for number in range(10):
        generation = {"generation": number + 2, "resourceVersion": str(number + 2)}
        await edit(kmock, INFERENCE_DEPLOYMENT, "chat", {"metadata": generation})
    await put(kmock, "marker")
    await until(lambda: "marker" in {ref.name for ref in passes.refs})
    assert 1 <= passes.refs[1:].count(CHAT) <= 10


async def test_a_deleted_object_loses_its_worker(kmock: Any, workers: Workers, passes: Passes) -> None:
    await put(kmock)
    await until(lambda: len(workers) == 1)
    async with kmock.delete(INFERENCE_DEPLOYMENT.path("demo", "chat"), headers={TEST: "yes"}) as answer:
        assert answer.status < 300
    await until(lambda: len(workers) == 0)


async def test_kopf_writes_nothing_and_watches_nothing_but_our_own_kind(
    kmock: Any, workers: Workers, passes: Passes
) -> None:
    await put(kmock)
    await until(lambda: len(passes.refs) >= 1)
    await edit(kmock, INFERENCE_DEPLOYMENT, "chat", {"metadata": {"generation": 2, "resourceVersion": "2"}})
    await until(lambda: len(passes.refs) >= 2)
    assert written(kmock) == []
    assert watched(kmock) == {INFERENCE_DEPLOYMENT.plural}
