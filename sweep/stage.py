"""One namespace of a real API server, and all who act in it but the operator: the user, the scheduler, kubelets, the
controllers of Deployments, the garbage collector, and the agents and gateways that the operator asks.

They take one step when told, and in a step do everything there is to do. They speak to the API server directly, never
through the proxy.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from headrace_operator import names
from headrace_operator.api import conditions
from headrace_operator.api.crd import crd, role_crd
from headrace_operator.cluster import (
    DEPLOYMENT,
    INFERENCE_DEPLOYMENT,
    INFERENCE_ROLE,
    OWNED,
    PERSISTENT_VOLUME_CLAIM,
    POD,
    SECRET,
    Kind,
    kind_of,
)
from headrace_operator.cluster.client import APPLY, KubernetesCluster
from headrace_operator.cluster.fake import FakeRuntime
from headrace_operator.errors import ClusterError
from headrace_operator.state import Object, Ref
from headrace_operator.testing import Sample, agent, running
from headrace_runtime.contract import KvState, NodeState

CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
MERGE = "application/merge-patch+json"
ALL = (*OWNED, SECRET, INFERENCE_DEPLOYMENT)
NAME = "chat"


class Client(KubernetesCluster):
    """The operator's client with all rights, for everybody else."""

    async def call(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json", **query: str
    ) -> Object:
        return await self._call(method, path, query, body, content_type=content_type)

    async def list(self, kind: Kind, namespace: str) -> list[Object]:
        return await self._list(kind, namespace)


async def install(client: Client) -> None:
    """Our kinds on the API server; served a moment later."""
    for body in (crd(), role_crd()):
        path = f"/apis/{CRD.api_version}/{CRD.plural}/{body['metadata']['name']}"
        await client.call("PATCH", path, body, APPLY, fieldManager="sweep", force="true")


async def served(client: Client) -> bool:
    """Whether the API server knows our kinds by now."""
    try:
        await client.list(INFERENCE_DEPLOYMENT, "default")
        await client.list(INFERENCE_ROLE, "default")
    except ClusterError:
        return False
    return True


class Stage:
    """One namespace with at most one InferenceDeployment in it."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self.namespace = namespace
        self.runtime = FakeRuntime()
        self.ref = Ref(namespace, NAME, "")
        self._addresses = 0
        self._deleted = False

    async def open(self) -> None:
        """Makes the namespace."""
        await self._client.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    async def edit(self, sample: Sample) -> None:
        """A user applies a spec, as `kubectl apply --server-side` does."""
        await self.apply(sample.build())

    async def apply(self, obj: Object) -> None:
        """The same of an object as a user wrote it. ClusterError: the API server refuses it."""
        kept = await self._apply(obj)
        self._deleted = False
        self.ref = Ref(self.namespace, NAME, kept["metadata"]["uid"])

    async def replace(self, spec: Object) -> None:
        """A user has the spec of the deployment replaced, whatever it was."""
        path = INFERENCE_DEPLOYMENT.path(self.namespace, NAME)
        change: Any = [{"op": "replace", "path": "/spec", "value": spec}]
        await self._client.call("PATCH", path, change, "application/json-patch+json")

    async def served(self, obj: Object) -> Object:
        """The object as the API server would keep it, which it does not. ClusterError: it refuses it."""
        return await self._apply(obj, dryRun="All")

    async def _apply(self, obj: Object, **query: str) -> Object:
        body = obj | {"metadata": {"name": NAME, "namespace": self.namespace}}
        path = INFERENCE_DEPLOYMENT.path(self.namespace, NAME)
        return await self._client.call("PATCH", path, body, APPLY, fieldManager="user", force="true", **query)

    async def put(self, obj: Object) -> None:
        """Somebody makes an object."""
        path = kind_of(obj).path(self.namespace)
        await self._client.call("POST", path, obj)

    async def delete(self) -> None:
        """A user deletes the deployment."""
        self._deleted = True
        await self._client.call("DELETE", INFERENCE_DEPLOYMENT.path(self.namespace, NAME))

    async def objects(self) -> list[Object]:
        """Everything there is of our kinds."""
        return [obj for kind in ALL for obj in await self._client.list(kind, self.namespace)]

    async def pods(self) -> list[Object]:
        """The pods that there are."""
        return await self._client.list(POD, self.namespace)

    async def ready_engines(self) -> Counter[str]:
        """Engines by their role that are ready and not told to end."""
        return Counter(
            pod["metadata"]["labels"][names.ROLE]
            for pod in await self.pods()
            if pod["metadata"]["labels"].get(names.COMPONENT) == "engine"
            and "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
        )

    async def below(self, floors: Mapping[str, int]) -> str | None:
        """Which floor is undercut now, in words."""
        ready = await self.ready_engines()
        under = [f"{ready[role]} of {role} ready, not {least}" for role, least in floors.items() if ready[role] < least]
        return ", ".join(under) or None

    async def judged(self) -> bool:
        """Whether the operator says of the spec as it is that it is done: all Ready, or refused."""
        obj = await self._client.get(INFERENCE_DEPLOYMENT, self.namespace, NAME)
        if obj is None or obj.get("status", {}).get("observedGeneration") != obj["metadata"]["generation"]:
            return False
        said: dict[str, str] = {condition["type"]: condition["status"] for condition in obj["status"]["conditions"]}
        return said[conditions.READY] == "True" or said[conditions.ACCEPTED] == "False"

    async def step(self) -> bool:
        """Everybody does what there is to do. Whether there was anything."""
        pods = await self._client.list(POD, self.namespace)
        deployments = await self._client.list(DEPLOYMENT, self.namespace)
        claims = await self._client.list(PERSISTENT_VOLUME_CLAIM, self.namespace)
        changed = False
        for pod in pods:
            changed |= await self._kubelet(pod)
        for claim in claims:
            changed |= await self._protect(claim)
        for deployment in deployments:
            changed |= await self._rollout(deployment, {pod["metadata"]["name"] for pod in pods})
        if self._deleted:
            changed |= await self._collect()
        return changed

    async def _kubelet(self, pod: Object) -> bool:
        meta, labels = pod["metadata"], pod["metadata"]["labels"]
        path, name = POD.path(self.namespace, meta["name"]), meta["name"]
        if "deletionTimestamp" in meta:
            await self._client.call("DELETE", path, gracePeriodSeconds="0")
            return True
        if "podIP" in pod["status"]:
            # It ran after one step and is ready after the next: in between, passes see it waiting.
            return await self._become_ready(path, pod["status"])
        node = {"apiVersion": "v1", "kind": "Node", "name": "node-1"}
        if not pod["spec"].get("nodeName"):
            await self._client.call("POST", f"{path}/binding", {"metadata": {"name": name}, "target": node})
        self._addresses += 1
        address = f"10.1.{self._addresses // 200}.{self._addresses % 200 + 1}"
        if labels[names.COMPONENT] == "engine":
            self.runtime.states[address] = self._agent(pod)
        await self._client.call("PATCH", f"{path}/status", {"status": running(address, ready=False)}, MERGE)
        return True

    def _agent(self, pod: Object) -> NodeState:
        """What the engine's agent says: one with KV blocks on disk has opened them."""
        labels, volumes = pod["metadata"]["labels"], pod["spec"].get("volumes", ())
        more = {"kv": KvState(ready=True, bytes_limit=1000)} if any(v["name"] == "kv" for v in volumes) else {}
        return agent(pod["metadata"]["name"], labels[names.ROLE], labels[names.REVISION], **more)

    async def _protect(self, claim: Object) -> bool:
        """The API server has claims protected; where they are deleted, a controller that is not here lets them go."""
        meta = claim["metadata"]
        if "deletionTimestamp" not in meta:
            return False
        path = PERSISTENT_VOLUME_CLAIM.path(self.namespace, meta["name"])
        await self._client.call("PATCH", path, {"metadata": {"finalizers": None}}, MERGE)
        return True

    async def _become_ready(self, path: str, status: Object) -> bool:
        wanted = running(status["podIP"])
        if any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"]):
            return False
        await self._client.call("PATCH", f"{path}/status", {"status": wanted}, MERGE)
        return True

    async def _rollout(self, deployment: Object, pods: set[str]) -> bool:
        meta, template = deployment["metadata"], deployment["spec"]["template"]["metadata"]
        generation, replicas = meta["generation"], deployment["spec"]["replicas"]
        if deployment["status"].get("observedGeneration") == generation:
            return False
        if f"{meta['name']}-0" not in pods:
            owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": meta["name"], "uid": meta["uid"]}
            body = {
                "metadata": {
                    "name": f"{meta['name']}-0",
                    "labels": template["labels"],
                    "ownerReferences": [owner | {"controller": True}],
                },
                "spec": {"containers": [{"name": "gateway", "image": "example.org/gateway:1"}]},
            }
            await self._client.call("POST", POD.path(self.namespace), body)
        status = {"observedGeneration": generation, "replicas": replicas, "readyReplicas": replicas}
        path = DEPLOYMENT.path(self.namespace, meta["name"], "status")
        await self._client.call("PATCH", path, {"status": status}, MERGE)
        return True

    async def _collect(self) -> bool:
        """Deletes what belongs to an object that is gone."""
        objects = await self.objects()
        alive = {obj["metadata"]["uid"] for obj in objects}
        changed = False
        for obj in objects:
            meta = obj["metadata"]
            owners = meta.get("ownerReferences", [])
            if owners and not any(owner["uid"] in alive for owner in owners) and "deletionTimestamp" not in meta:
                await self._client.delete(obj)
                changed = True
        return changed
