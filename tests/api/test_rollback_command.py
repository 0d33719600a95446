"""`headrace history`, `rollback` and `restart` against a real API server, with the operator's own passes in between."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace_operator import names
from headrace_operator.cluster import CONTROLLER_REVISION, DEPLOYMENT, INFERENCE_DEPLOYMENT, POD, Kind
from headrace_operator.cluster.client import APPLY, MERGE, KubernetesCluster
from headrace_operator.cluster.fake import FakeRuntime
from headrace_operator.reconcile import World, reconcile
from headrace_operator.state import Object, Ref
from headrace_operator.testing import DEFAULTS, Sample, agent, running
from tests.api.hands import in_namespace, typed

NAMESPACE = "rollback"


class Town:
    """One namespace of a real API server with one deployment, and whoever acts in it."""

    def __init__(self, cluster: KubernetesCluster, kubeconfig: Path) -> None:
        self.cluster = cluster
        self.kubeconfig = kubeconfig
        self.runtime = FakeRuntime()
        self.world = World(cluster, self.runtime, DEFAULTS, lambda: datetime.now(UTC), lambda: "a-token")
        self.ref = Ref(NAMESPACE, "chat", "")

    async def apply(self, sample: Sample) -> None:
        body = sample.build() | {"metadata": {"name": "chat", "namespace": NAMESPACE}}
        path, query = INFERENCE_DEPLOYMENT.path(NAMESPACE, "chat"), {"fieldManager": "user", "force": "true"}
        kept = await self.cluster._call("PATCH", path, query, body, content_type=APPLY)
        self.ref = Ref(NAMESPACE, "chat", kept["metadata"]["uid"])

    async def read(self) -> Object:
        found = await self.cluster.get(INFERENCE_DEPLOYMENT, NAMESPACE, "chat")
        assert found is not None
        return found

    async def records(self) -> list[Object]:
        return await self.cluster.list_children(CONTROLLER_REVISION, self.ref)

    async def settle(self) -> str:
        """Passes until the revision of the spec answers, everything becoming ready in between. That revision."""
        for _ in range(40):
            await reconcile(self.world, self.ref)
            quiet = not await self.kubelet()
            obj = await self.read()
            said = obj["status"]["revision"]
            heeded = obj["status"]["observedGeneration"] == obj["metadata"]["generation"]
            if quiet and heeded and not {"progress", "updating"} & said.keys():
                current: str = said["current"]
                return current
        raise AssertionError(f"not quiet: {(await self.read())['status']}")

    async def kubelet(self) -> bool:
        changed = False
        for obj in await self.cluster.list_owned(self.ref):
            name, labels = obj["metadata"]["name"], obj["metadata"]["labels"]
            if obj["kind"] == "Pod" and "podIP" not in obj["status"]:
                address = f"10.0.{len(self.runtime.states)}.1"
                if labels[names.COMPONENT] == "engine":
                    self.runtime.states[address] = agent(name, labels[names.ROLE], labels[names.REVISION])
                await self._status(POD, name, running(address))
                changed = True
            if obj["kind"] == "Deployment" and obj["status"].get("observedGeneration") != obj["metadata"]["generation"]:
                await self._gateways(obj)
                changed = True
        return changed

    async def _gateways(self, deployment: Object) -> None:
        meta, replicas = deployment["metadata"], deployment["spec"]["replicas"]
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": meta["uid"], "controller": True}
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        pod = {
            "metadata": {"generateName": f"{meta['name']}-", "labels": labels, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "gateway", "image": "example.org/gateway:1"}]},
        }
        made = await self.cluster._call("POST", POD.path(NAMESPACE), None, pod)
        await self._status(POD, made["metadata"]["name"], running("10.1.0.1"))
        status = {"observedGeneration": meta["generation"], "replicas": replicas, "readyReplicas": replicas}
        await self._status(DEPLOYMENT, meta["name"], status)

    async def _status(self, kind: Kind, name: str, status: Object) -> None:
        path = kind.path(NAMESPACE, name, "status")
        await self.cluster._call("PATCH", path, None, {"status": status}, content_type=MERGE)

    async def command(self, *arguments: str) -> str:
        """What a person types; its output."""
        result = await typed(self.kubeconfig, NAMESPACE, *arguments)
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
async def town(api_kubeconfig: Path) -> AsyncIterator[Town]:
    async with in_namespace(api_kubeconfig, NAMESPACE) as cluster:
        yield Town(cluster, api_kubeconfig)


async def test_a_deployment_goes_forth_and_back_and_its_history_is_pruned(town: Town) -> None:
    def sample() -> Sample:
        return Sample().split(1, 1).set("rollout.historyLimit", 2)

    await town.apply(sample())
    first = await town.settle()
    (kept,) = await town.records()
    assert (kept["revision"], kept["metadata"]["name"]) == (1, f"chat-{first}")

    await town.apply(sample().set("engine.dtype", "float16"))
    second = await town.settle()
    told = await town.command("history", "chat")
    assert [line.split()[:2] for line in told.splitlines()[1:]] == [[first, "1"], [second, "2"]]
    assert "engine.dtype" in told.splitlines()[2]

    would = await town.command("rollback", "chat", "--dry-run")
    assert 'spec.engine.dtype: "float16" -> (default)' in would
    assert (await town.read())["spec"]["engine"]["dtype"] == "float16"
    assert f"goes back to revision {first}" in await town.command("rollback", "chat")
    assert await town.settle() == first
    obj = await town.read()
    assert obj["status"]["revision"] == {"current": first, "good": [first, second]}
    assert obj["spec"]["engine"]["dtype"] == "auto"
    assert obj["spec"]["rollout"]["historyLimit"] == 2
    assert f"has revision {first} already" in await town.command("rollback", "chat", "--to", "1")

    await town.command("restart", "chat")
    third = await town.settle()
    assert third not in (first, second)
    for number in range(2):
        await town.apply(sample().set("engine.maxModelLen", 1000 + number))
        await town.settle()
    # The pods that the last pass ended wake the operator once more.
    await reconcile(town.world, town.ref)
    assert sorted(record["revision"] for record in await town.records()) == [3, 4, 5]
    assert await town.cluster.get(CONTROLLER_REVISION, NAMESPACE, f"chat-{first}") is None
