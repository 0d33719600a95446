"""Whole passes against a real API server: what it keeps of what we send, and that it is sent once.

There are no controllers, schedulers or kubelets here: the test plays those through status subresources.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.crd import crd
from headrace_operator.cluster import DEPLOYMENT, INFERENCE_DEPLOYMENT, POD, SERVICE, Kind, kind_of
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.cluster.fake import FakeRuntime
from headrace_operator.errors import ClusterError
from headrace_operator.metrics import CALLS
from headrace_operator.reconcile import World, reconcile
from headrace_operator.state import Object, Ref
from headrace_operator.testing import DEFAULTS, Sample, agent, running

CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")


class Recorded(KubernetesCluster):
    """The real client, with a record of what it sent."""

    writes: list[str]

    async def _call(self, method: str, path: str, *args: Any, **more: Any) -> Object:
        answer = await super()._call(method, path, *args, **more)
        if method != "GET":
            self.writes.append(f"{method} {path.rpartition('namespaces/')[2].partition('/')[2]}")
        return answer


class Stage:
    """One namespace of a real API server, with one InferenceDeployment in it."""

    def __init__(self, cluster: Recorded, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.runtime = FakeRuntime()
        self.world = World(cluster, self.runtime, DEFAULTS, lambda: datetime.now(UTC), lambda: "a-token")
        self.ref = Ref(namespace, "chat", "")

    async def apply(self, sample: Sample) -> None:
        """What `kubectl apply --server-side` does, by a manager of its own."""
        body = sample.build()
        body["metadata"] = {"name": "chat", "namespace": self.namespace}
        path = INFERENCE_DEPLOYMENT.path(self.namespace, "chat")
        kept = await self.cluster._call(
            "PATCH", path, {"fieldManager": "user", "force": "true"}, body, content_type="application/apply-patch+yaml"
        )
        self.ref = Ref(self.namespace, "chat", kept["metadata"]["uid"])

    async def get(self, kind: Kind, name: str) -> Object:
        found = await self.cluster.get(kind, self.namespace, name)
        assert found is not None
        return found

    async def status(self) -> Object:
        status: Object = (await self.get(INFERENCE_DEPLOYMENT, "chat")).get("status", {})
        return status

    async def judged(self, kind: str) -> Object:
        found: Object = next(x for x in (await self.status())["conditions"] if x["type"] == kind)
        return found

    async def reconcile(self) -> list[str]:
        """One pass, and what it wrote."""
        self.cluster.writes = []
        await reconcile(self.world, self.ref)
        return self.cluster.writes

    async def settle(self) -> None:
        """Passes until one writes nothing, everything becoming ready in between."""
        for _ in range(30):
            wrote = await self.reconcile()
            if not await self.kubelet() and not wrote:
                return
        raise AssertionError(f"not quiet: {self.cluster.writes}")

    async def children(self) -> list[Object]:
        return await self.cluster.list_owned(self.ref)

    async def kubelet(self) -> bool:
        changed = False
        for obj in await self.children():
            name, labels = obj["metadata"]["name"], obj["metadata"]["labels"]
            if obj["kind"] == "Pod" and "podIP" not in obj["status"]:
                address = f"10.0.{len(self.runtime.states)}.1"
                if labels[names.COMPONENT] == "engine":
                    self.runtime.states[address] = agent(name, labels[names.ROLE], labels[names.REVISION])
                await self.write_status(POD, name, running(address))
                changed = True
            if obj["kind"] == "Deployment" and obj["status"].get("observedGeneration") != obj["metadata"]["generation"]:
                replicas, generation = obj["spec"]["replicas"], obj["metadata"]["generation"]
                status = {"observedGeneration": generation, "replicas": replicas, "readyReplicas": replicas}
                await self.write_status(DEPLOYMENT, name, status)
                await self.gateway(obj)
                changed = True
        return changed

    async def gateway(self, deployment: Object) -> None:
        """A pod of the Deployment, as its controllers would make it."""
        meta, template = deployment["metadata"], deployment["spec"]["template"]["metadata"]
        kind = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": meta["name"], "controller": True}
        body = {
            "metadata": {
                "name": f"{meta['name']}-0",
                "labels": template["labels"],
                "ownerReferences": [{**kind, "uid": meta["uid"]}],
            },
            "spec": {"containers": [{"name": "gateway", "image": "example.org/gateway:1"}]},
        }
        if await self.cluster.get(POD, self.namespace, f"{meta['name']}-0") is None:
            await self.cluster._call("POST", POD.path(self.namespace), None, body)

    async def write_status(self, kind: Kind, name: str, status: Object) -> None:
        path = kind.path(self.namespace, name, "status")
        body = {"status": status}
        await self.cluster._call("PATCH", path, None, body, content_type="application/merge-patch+json")


@asynccontextmanager
async def connected(kubeconfig: Path) -> AsyncIterator[Recorded]:
    cluster = await Recorded.connect(kubeconfig=kubeconfig)
    cluster.writes = []
    async with cluster:
        yield cluster


async def until(done: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await done():
            await asyncio.sleep(0.05)


@pytest.fixture
async def stage(api_kubeconfig: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A namespace of its own on a server that serves our kind."""
    async with connected(api_kubeconfig) as cluster:
        body = crd()
        path = f"/apis/{CRD.api_version}/{CRD.plural}/{body['metadata']['name']}"
        query = {"fieldManager": "test", "force": "true"}
        await cluster._call("PATCH", path, query, body, content_type="application/apply-patch+yaml")
        namespace = f"test-{abs(hash(request.node.name)) % 10**8}"
        await cluster._call("POST", "/api/v1/namespaces", None, {"metadata": {"name": namespace}})

        async def served() -> bool:
            try:
                await cluster._list(INFERENCE_DEPLOYMENT, namespace)
            except ClusterError:
                return False
            return True

        await until(served)
        yield Stage(cluster, namespace)


async def test_from_apply_to_ready_and_then_silence(stage: Stage) -> None:
    await stage.apply(Sample().split(1, 1))
    await stage.settle()
    assert (await stage.judged(c.READY))["status"] == "True"
    assert await stage.reconcile() == []
    assert (await stage.status())["observedGeneration"] == 1


async def test_calls_are_counted_by_what_they_are_about(stage: Stage) -> None:
    def count(method: str, resource: str) -> float:
        return CALLS.labels(method=method, resource=resource)._value.get()

    before = count("PATCH", "inferencedeployments/status"), count("POST", "pods")
    await stage.apply(Sample().serve())
    await stage.reconcile()
    assert count("PATCH", "inferencedeployments/status") == before[0] + 1
    assert count("POST", "pods") == before[1] + 2


async def test_everything_is_owned_by_the_deployment_and_applied_by_us(stage: Stage) -> None:
    await stage.apply(Sample().split(1, 1))
    await stage.settle()
    children = [obj for obj in await stage.children() if obj["metadata"]["name"] != "chat-gateway-0"]
    assert len(children) == 15
    for obj in children:
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (stage.ref.uid, True)
        assert names.FIELD_MANAGER in {field["manager"] for field in obj["metadata"]["managedFields"]}


async def test_an_applied_object_is_covered_whatever_the_server_adds(stage: Stage) -> None:
    template = {
        "spec": {
            "containers": [{"name": "engine", "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}}],
            "volumes": [{"name": "x", "emptyDir": {"sizeLimit": "1024Mi"}}],
        }
    }
    gateway = {
        "spec": {"containers": [{"name": "gateway", "resources": {"requests": {"cpu": "0.1", "memory": "1024Mi"}}}]}
    }
    await stage.apply(Sample().serve().set("roles.0.podTemplate", template).set("gateway.podTemplate", gateway))
    await stage.settle()
    assert await stage.reconcile() == []


async def test_drift_is_put_right_and_nothing_else_is_written(stage: Stage) -> None:
    await stage.apply(Sample().serve())
    await stage.settle()
    body = {"spec": {"selector": {"somebody": "else"}}}
    await stage.cluster._call(
        "PATCH", SERVICE.path(stage.namespace, "chat"), None, body, content_type="application/merge-patch+json"
    )
    assert await stage.reconcile() == ["PATCH services/chat"]
    assert (await stage.get(SERVICE, "chat"))["spec"]["selector"][names.COMPONENT] == "gateway"
    assert await stage.reconcile() == []


async def test_labels_that_were_taken_from_a_pod_come_back_without_touching_its_spec(stage: Stage) -> None:
    await stage.apply(Sample().serve())
    await stage.settle()
    pod = next(
        o for o in await stage.children() if o["metadata"]["labels"].get(names.ROLE) == "serve" and o["kind"] == "Pod"
    )
    name = pod["metadata"]["name"]
    body = {"metadata": {"labels": {names.ROLE: "other"}}}
    await stage.cluster._call(
        "PATCH", POD.path(stage.namespace, name), None, body, content_type="application/merge-patch+json"
    )
    await stage.settle()
    after = await stage.get(POD, name)
    assert after["metadata"]["labels"][names.ROLE] == "serve"
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]


async def test_a_pod_that_goes_while_it_is_looked_at_does_not_come_back_by_a_label(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.apply(Sample().serve())
    await stage.settle()
    (pod,) = (state.pod for state in stage.runtime.states.values())
    path = POD.path(stage.namespace, pod)
    body = {"metadata": {"labels": {names.ROLE: "other"}}}
    await stage.cluster._call("PATCH", path, None, body, content_type="application/merge-patch+json")
    listed = stage.cluster.list_owned

    async def and_gone(ref: Ref) -> list[Object]:
        found = await listed(ref)
        await stage.cluster._call("DELETE", path, {"gracePeriodSeconds": "0"})
        return found

    monkeypatch.setattr(stage.cluster, "list_owned", and_gone)
    assert f"PATCH pods/{pod}" not in await stage.reconcile()
    assert await stage.cluster.get(POD, stage.namespace, pod) is None
    monkeypatch.undo()
    await stage.settle()
    assert (await stage.judged(c.READY))["status"] == "True"


async def test_a_change_of_role_is_one_write_to_one_pod_and_leaves_its_spec_alone(stage: Stage) -> None:
    def sample(prefill: int, decode: int) -> Sample:
        return Sample().split(prefill, decode).set("disaggregation", {"roleChange": {"enabled": True}})

    async def engines() -> dict[str, tuple[str, Object]]:
        return {
            obj["metadata"]["uid"]: (obj["metadata"]["labels"][names.ROLE], obj["spec"])
            for obj in await stage.children()
            if obj["kind"] == "Pod" and names.ROLE in obj["metadata"]["labels"]
        }

    await stage.apply(sample(2, 1))
    await stage.settle()
    before = await engines()
    await stage.apply(sample(1, 2))
    wrote = [write for write in await stage.reconcile() if "pods/" in write]
    assert (len(wrote), wrote[0].startswith("PATCH pods/chat-prefill-")) == (1, True)
    after = await engines()
    assert {uid: spec for uid, (_, spec) in after.items()} == {uid: spec for uid, (_, spec) in before.items()}
    assert sorted(role for role, _ in after.values()) == ["decode", "decode", "prefill"]
    await stage.settle()
    assert await stage.reconcile() == []
    assert (await stage.judged(c.READY))["status"] == "True"


async def test_a_new_revision_replaces_the_old_one_and_leaves_nothing_behind(stage: Stage) -> None:
    sample = Sample().split(1, 1)
    await stage.apply(sample)
    await stage.settle()
    old = (await stage.status())["revision"]["current"]
    await stage.apply(sample.set("engine.dtype", "float16"))
    await stage.settle()
    assert (await stage.status())["revision"]["current"] != old
    left = [obj["kind"] for obj in await stage.children() if old in obj["metadata"]["name"]]
    assert left == ["ControllerRevision"]
    assert (await stage.judged(c.READY))["status"] == "True"


async def test_a_spec_that_got_past_the_server_is_shown_whole_and_the_next_good_one_recovers(stage: Stage) -> None:
    await stage.apply(Sample().serve())
    await stage.settle()
    await stage.apply(
        Sample().serve().set("observability", {"podMonitor": True}).set("networkPolicy.mode", "DefaultDeny")
    )
    await stage.reconcile()
    accepted = await stage.judged(c.ACCEPTED)
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "spec.observability" in accepted["message"]
    assert "spec.networkPolicy.mode" in accepted["message"]
    await stage.apply(Sample().serve())
    await stage.settle()
    assert (await stage.judged(c.READY))["status"] == "True"


async def test_a_service_of_our_name_that_is_not_ours_is_left_alone(stage: Stage) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": stage.namespace},
        "spec": {"ports": [{"port": 1}]},
    }
    await stage.cluster._call("POST", kind_of(theirs).path(stage.namespace), None, theirs)
    await stage.apply(Sample().serve())
    await stage.reconcile()
    assert (await stage.judged(c.ACCEPTED))["reason"] == "NotOwned"
    assert (await stage.get(SERVICE, "chat"))["spec"]["ports"][0]["port"] == 1


async def test_the_token_is_made_once_and_cannot_be_read_by_what_we_ask(stage: Stage) -> None:
    await stage.apply(Sample().serve())
    await stage.settle()
    path = f"/api/v1/namespaces/{stage.namespace}/secrets/chat-ray-token"
    first = await stage.cluster._call("GET", path)
    stage.world = World(stage.cluster, stage.runtime, DEFAULTS, stage.world.now, lambda: "another")
    head = await stage.get(POD, "chat-head")
    await stage.cluster.delete(head)
    await stage.settle()
    assert await stage.cluster._call("GET", path) == first


async def test_an_object_that_was_made_anew_gets_no_status_of_the_one_before(stage: Stage) -> None:
    await stage.apply(Sample().serve())
    stale = (await stage.get(INFERENCE_DEPLOYMENT, "chat"))["metadata"]["resourceVersion"]
    await stage.cluster._call("DELETE", INFERENCE_DEPLOYMENT.path(stage.namespace, "chat"))
    await stage.apply(Sample().serve())
    with pytest.raises(ClusterError, match="409"):
        await stage.cluster.apply_status(stage.ref, stale, {"observedGeneration": 1})
    assert await stage.status() == {}


async def test_an_engine_that_is_replaced_may_start_where_its_claim_is_and_nowhere_else(stage: Stage) -> None:
    claim = {"claimTemplate": {"size": "2Gi", "storageClassName": "local"}}
    tier = {"size": "1024Mi", "volume": claim}
    await stage.apply(Sample().serve().set("kvCache.host", {"size": "1Gi"}).set("kvCache.disk", tier))
    await stage.settle()
    assert await stage.reconcile() == []
    (made,) = [obj for obj in await stage.children() if obj["kind"] == "PersistentVolumeClaim"]
    assert made["metadata"]["name"] == names.kv_claim("chat", "serve-0")
    (pod,) = stage.runtime.states.values()
    path = POD.path(stage.namespace, pod.pod)
    node = {"apiVersion": "v1", "kind": "Node", "name": "n1"}
    await stage.cluster._call("POST", f"{path}/binding", None, {"metadata": {"name": pod.pod}, "target": node})
    await stage.reconcile()
    assert (await stage.status())["kvCache"]["placement"] == [{"slot": "serve-0", "node": "n1"}]
    await stage.cluster._call("DELETE", path, {"gracePeriodSeconds": "0"})
    assert "POST pods" in await stage.reconcile()
    new = await stage.get(POD, pod.pod)
    terms = new["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    here = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
    assert terms == {"nodeSelectorTerms": [{"matchFields": [here]}]}
    assert {"name": "kv", "persistentVolumeClaim": {"claimName": made["metadata"]["name"]}} in new["spec"]["volumes"]
    await stage.reconcile()
    assert await stage.reconcile() == []
