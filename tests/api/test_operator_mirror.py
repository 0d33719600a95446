"""The copy that the operator keeps of all children, against a real API server: what it holds, whom it wakes, and that
nobody is ended by it alone."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

import sweep.stage
from headrace_operator import names
from headrace_operator.cluster import CONFIG_MAP, INFERENCE_ROLE, POD, Kind, mirror
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.cluster.mirror import MirroredCluster
from headrace_operator.errors import ClusterError, Conflict, Outdated
from headrace_operator.state import Object, Ref
from headrace_operator.testing import running

MERGE = "application/merge-patch+json"
TEST = "mirror"


class Client(KubernetesCluster):
    """Somebody else."""

    async def call(self, method: str, path: str, body: Object | None = None, content_type: str = MERGE) -> Object:
        return await self._call(method, path, None, body, content_type=content_type)


class Stage:
    """One namespace, one deployment's children, and who was woken."""

    def __init__(self, kubeconfig: Path, client: Client, cluster: MirroredCluster, namespace: str) -> None:
        self.kubeconfig = kubeconfig
        self.client = client
        self.cluster = cluster
        self.ref = Ref(namespace, "chat", "uid-of-chat")
        self.woken: list[str] = []
        self.edited: list[str] = []

    @asynccontextmanager
    async def mirrored(self) -> AsyncIterator[None]:
        mirror = self.cluster.mirror((self.ref.namespace,), self.woken.append, self.edited.append)
        task = asyncio.create_task(mirror)
        try:
            yield
            # A connection that is cut while it is made takes its time to close, and the loop of a test has none.
            for kind in ("ConfigMap", "Pod"):
                await self.client.create_once(self.child(f"last-{kind.lower()}", kind, label="last"))
            async with asyncio.timeout(30):
                while len(await self.cluster.list_owned(Ref(self.ref.namespace, "last", ""))) < 2:
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def names(self) -> list[str]:
        return sorted(obj["metadata"]["name"] for obj in await self.cluster.list_owned(self.ref))

    def child(self, name: str, kind: str = "ConfigMap", label: str = "chat") -> Object:
        owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "chat", "uid": self.ref.uid}
        meta = {
            "name": name,
            "namespace": self.ref.namespace,
            "labels": {names.DEPLOYMENT: label, names.ROLE: "decode"},
            "ownerReferences": [owner | {"controller": True}],
        }
        spec = {"spec": {"containers": [{"name": "engine", "image": "example.org/engine:1"}]}} if kind == "Pod" else {}
        return {"apiVersion": "v1", "kind": kind, "metadata": meta, **spec}

    async def made(self, *pods: str) -> list[Object]:
        """Pods of somebody else's making that are ready."""
        for pod in pods:
            await self.client.create_once(self.child(pod, "Pod"))
            await self.set_ready(pod, ready=True)
        return [pod for pod in [await self.client.get(POD, self.ref.namespace, pod) for pod in pods] if pod]

    async def set_ready(self, pod: str, *, ready: bool) -> None:
        path = POD.path(self.ref.namespace, pod, "status")
        await self.client.call("PATCH", path, {"status": running("10.0.0.1", ready=ready)})


class Deaf(MirroredCluster):
    """Its watches come too late, until it hears."""

    hears = False

    async def changes(self, kind: Kind, namespace: str, version: str) -> AsyncGenerator[tuple[str, Object], None]:
        if not self.hears:
            raise ClusterError("watch", 410, "Expired", "too old resource version")
        async with aclosing(super().changes(kind, namespace, version)) as changes:
            async for change in changes:
                yield change


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.02)


@pytest.fixture
async def stage(api_kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(mirror, "OWNED", (CONFIG_MAP, POD))
    async with (
        await Client.connect(kubeconfig=api_kubeconfig) as client,
        await MirroredCluster.connect(kubeconfig=api_kubeconfig) as cluster,
    ):
        namespace = f"mirror-{secrets.token_hex(4)}"
        await client.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}}, "application/json")
        yield Stage(api_kubeconfig, client, cluster, namespace)


async def test_lists_are_what_the_api_server_has_and_name_their_kinds(stage: Stage) -> None:
    await stage.client.create_once(stage.child("before"))
    async with stage.mirrored():
        assert await stage.names() == ["before"]
        await stage.client.create_once(stage.child("after"))
        await stage.client.create_once(stage.child("of-another", label="other"))
        await until(lambda: stage.woken.count(stage.ref.uid) >= 3)
        assert await stage.names() == ["after", "before"]
        assert {obj["kind"] for obj in await stage.cluster.list_owned(stage.ref)} == {"ConfigMap"}
        found = await stage.client.get(CONFIG_MAP, stage.ref.namespace, "after")
        assert found is not None
        await stage.client.delete({"kind": "ConfigMap"} | found)
        await until(lambda: len(stage.woken) >= 4)
        assert await stage.names() == ["before"]


async def test_what_it_wrote_itself_is_there_at_once_and_wakes_nobody(stage: Stage) -> None:
    async with stage.mirrored():
        assert await stage.names() == []
        await stage.cluster.apply(stage.child("applied"))
        assert await stage.cluster.create_once(stage.child("pod", "Pod"))
        assert await stage.names() == ["applied", "pod"]
        await stage.client.create_once(stage.child("marker"))
        await until(lambda: stage.woken != [])
        assert stage.woken == [stage.ref.uid]


async def test_a_child_whose_label_is_taken_or_changed_is_nobodys_any_more(stage: Stage) -> None:
    async with stage.mirrored():
        await stage.cluster.apply(stage.child("taken"))
        await stage.cluster.apply(stage.child("moved"))
        assert await stage.names() == ["moved", "taken"]
        for name, label in (("taken", None), ("moved", "other")):
            path = CONFIG_MAP.path(stage.ref.namespace, name)
            await stage.client.call("PATCH", path, {"metadata": {"labels": {names.DEPLOYMENT: label}}})
        await until(lambda: len(stage.woken) == 2)
        assert await stage.names() == []
        assert len(await stage.cluster.list_owned(Ref(stage.ref.namespace, "other", ""))) == 1


async def test_what_it_told_to_end_counts_as_going_before_the_watch_says_so(stage: Stage) -> None:
    async with stage.mirrored():
        kept = await stage.cluster.apply(stage.child("map"))
        await stage.cluster.delete(kept)
        left = await stage.cluster.list_owned(stage.ref)
        assert all("deletionTimestamp" in obj["metadata"] for obj in left)
        await until(lambda: len(stage.woken) == 1)
        assert await stage.names() == []


async def test_no_engine_is_ended_on_a_list_that_another_engine_has_outlived(stage: Stage) -> None:
    first, _ = await stage.made("decode-0", "decode-1")
    async with stage.mirrored():
        assert await stage.names() == ["decode-0", "decode-1"]
        await stage.set_ready("decode-1", ready=False)  # the pass has looked, and does not know
        with pytest.raises(Outdated):
            await stage.cluster.delete({"kind": "Pod"} | first)
        # The next pass knows, whether the watch has told it by then or not.
        seen = {obj["metadata"]["name"]: obj for obj in await stage.cluster.list_owned(stage.ref)}
        assert {"type": "Ready", "status": "False"} in [
            {"type": c["type"], "status": c["status"]} for c in seen["decode-1"]["status"]["conditions"]
        ]
        await stage.cluster.delete(seen["decode-0"])
        left = await stage.client.get(POD, stage.ref.namespace, "decode-0")
        assert left is None or "deletionTimestamp" in left["metadata"]


async def test_news_that_is_no_harm_ends_no_pass(stage: Stage) -> None:
    first, _ = await stage.made("decode-0", "decode-1")
    async with stage.mirrored():
        await stage.cluster.list_owned(stage.ref)
        await stage.made("decode-2")
        await stage.cluster.delete({"kind": "Pod"} | first)


async def test_a_watch_whose_version_is_too_old_begins_anew_with_what_is_there(
    stage: Stage, api_kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PAUSES", (0.1,))
    async with await Deaf.connect(kubeconfig=api_kubeconfig) as deaf:
        stage.cluster = deaf
        async with stage.mirrored():
            await stage.client.create_once(stage.child("map"))
            await until(lambda: len(stage.woken) == 1)
            assert await stage.names() == ["map"]
            found = await stage.client.get(CONFIG_MAP, stage.ref.namespace, "map")
            assert found is not None
            await stage.client.delete({"kind": "ConfigMap"} | found)
            await until(lambda: len(stage.woken) == 2)
            assert await stage.names() == []
            deaf.hears = True


class Undefined(MirroredCluster):
    """Its API server has no InferenceRoles, until somebody defines them."""

    defined = False

    async def pages(self, kind: Kind, namespace: str) -> AsyncGenerator[tuple[str, list[Object]], None]:
        if kind == INFERENCE_ROLE and not self.defined:
            raise ClusterError(
                "GET inferenceroles", 404, "NotFound", "the server could not find the requested resource"
            )
        async with aclosing(super().pages(kind, namespace)) as pages:
            async for page in pages:
                yield page


async def defined(stage: Stage) -> Object:
    """An InferenceRole of the deployment, once its definition is served."""
    async with await sweep.stage.Client.connect(kubeconfig=stage.kubeconfig) as installer, asyncio.timeout(30):
        await sweep.stage.install(installer)
        while not await sweep.stage.served(installer):
            await asyncio.sleep(0.05)
    role = stage.child("chat-decode", names.ROLE_KIND) | {"apiVersion": names.API_VERSION}
    role["spec"] = {"deploymentName": "chat", "role": "decode", "replicas": 1}
    await stage.client.create_once(role)
    found = await stage.client.get(INFERENCE_ROLE, stage.ref.namespace, "chat-decode")
    assert found is not None
    return found


async def test_who_scales_a_role_is_heard_as_one_who_edits_and_our_status_of_it_by_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "OWNED", (CONFIG_MAP, POD, INFERENCE_ROLE))
    await defined(stage)
    async with stage.mirrored():
        (role,) = await stage.cluster.list_owned(stage.ref)
        await stage.cluster.apply_role_status(role, {"replicas": 1, "selector": "a=b"})
        (kept,) = await stage.cluster.list_owned(stage.ref)
        assert kept["status"] == {"replicas": 1, "readyReplicas": 0, "selector": "a=b"}
        assert stage.edited == []
        path = INFERENCE_ROLE.path(stage.ref.namespace, "chat-decode")
        await stage.client.call("PATCH", path, {"spec": {"replicas": 2}})
        await until(lambda: stage.edited == [stage.ref.uid])
        (kept,) = await stage.cluster.list_owned(stage.ref)
        assert kept["spec"]["replicas"] == 2
        with pytest.raises(Conflict):
            await stage.cluster.apply_role_status(role, {"replicas": 2})


async def test_a_kind_that_is_not_defined_keeps_nothing_waiting_and_is_found_once_it_is(
    stage: Stage, api_kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "OWNED", (CONFIG_MAP, POD, INFERENCE_ROLE))
    monkeypatch.setattr(mirror, "UNDEFINED_SECONDS", 0.1)
    async with await Undefined.connect(kubeconfig=api_kubeconfig) as cluster:
        stage.cluster = cluster
        async with stage.mirrored():
            assert await stage.names() == []
            await defined(stage)
            cluster.defined = True
            await until(lambda: stage.woken == [stage.ref.uid])
            assert await stage.names() == ["chat-decode"]
