"""Factories of specs and worlds for tests, of this project and of others that build on it. Ships with the package.

`Sample` writes an InferenceDeployment in a few words; `Scene` is a world in memory around one of them: the fake cluster
and runtime, a clock that only moves when told, and a kubelet that does as it is told.

    scene = Scene(Sample().split(prefill=1, decode=2))
    await scene.settle()
    assert scene.condition("Ready") == "True"
"""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from headrace_operator import names
from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.cluster.fake import Call, FakeCluster, FakeRuntime
from headrace_operator.reconcile import World, reconcile
from headrace_operator.state import Defaults, Look, Object, Ref, Subject
from headrace_runtime.contract import (
    CONTRACT_FILE,
    CanaryFigures,
    CanaryShare,
    GatewayContract,
    GatewayFigures,
    KvState,
    NodeState,
    RayState,
    WeightsState,
)

DEFAULTS = Defaults("example.org/engine:1", "example.org/gateway:1", None)
START = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64


class Sample:
    """An InferenceDeployment in the making. Every method returns the sample itself."""

    def __init__(self, name: str = "chat", namespace: str = "demo") -> None:
        self._object: Object = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-of-{name}", "generation": 1},
            "spec": {
                "model": {"source": "node:///models/tiny"},
                "engine": {"device": {"resource": "cpu"}},
                "kvCache": {"device": {"size": "1Gi"}},
            },
        }

    @classmethod
    def of(cls, document: Object) -> Self:
        """One that says what a manifest says."""
        meta = document["metadata"]
        sample = cls(meta["name"], meta.get("namespace", "default"))
        sample._object["spec"] = copy.deepcopy(document["spec"])
        return sample

    def serve(self, replicas: int = 1) -> Self:
        """One role that does both phases."""
        return self.set("roles", [{"name": "serve", "replicas": replicas}])

    def split(self, prefill: int = 1, decode: int = 1) -> Self:
        """Prefill and decode on separate engines."""
        roles = [{"name": "prefill", "replicas": prefill}, {"name": "decode", "replicas": decode}]
        return self.set("roles", roles)

    def set(self, path: str, value: Any) -> Self:
        """Set the field at a dotted path below `spec`; numbers are places in a list."""
        *steps, last = path.split(".")
        place: Any = self._object["spec"]
        for step in steps:
            place = place[int(step)] if isinstance(place, list) else place.setdefault(step, {})
        place[int(last) if isinstance(place, list) else last] = value
        return self

    def build(self) -> Object:
        """The object, as a server would return it."""
        return copy.deepcopy(self._object)

    def spec(self) -> InferenceDeploymentSpec:
        """The parsed spec. AssertionError: the sample is not valid."""
        parsed = parse(self._object)
        assert isinstance(parsed, InferenceDeploymentSpec), parsed
        return parsed

    def ref(self) -> Ref:
        meta = self._object["metadata"]
        return Ref(meta["namespace"], meta["name"], meta["uid"])

    def subject(self) -> Subject:
        """What `desired` is asked about."""
        return Subject(self.ref(), 1, self.spec(), DEFAULTS)


class Scene:
    """One InferenceDeployment in a world in memory."""

    def __init__(self, sample: Sample) -> None:
        self.cluster = FakeCluster()
        self.runtime = FakeRuntime()
        self.ref = sample.ref()
        self.clock = START
        self._addresses = 0
        self._held: tuple[CanaryShare | None, datetime] = (None, START)
        """What gateways are told of a canary, and since when."""
        self.cluster.put(sample.build())
        self.cluster.now = lambda: self.clock
        self.world = World(
            self.cluster,
            self.runtime,
            DEFAULTS,
            now=lambda: self.clock,
            token=lambda: "a-token",
            clock=self._seconds,
        )

    def _seconds(self) -> float:
        return (self.clock - START).total_seconds()

    @property
    def object(self) -> Object:
        """The InferenceDeployment as it stands."""
        return self.cluster.objects[names.KIND, self.ref.namespace, self.ref.name]

    @property
    def status(self) -> Object:
        status: Object = self.object.get("status", {})
        return status

    def judged(self, kind: str) -> Object:
        """One condition."""
        found: Object = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found

    def condition(self, kind: str) -> str:
        """Status of one condition."""
        status: str = self.judged(kind)["status"]
        return status

    def reason(self, kind: str) -> str:
        """Reason of one condition."""
        reason: str = self.judged(kind)["reason"]
        return reason

    def pods(self, component: str = "engine", role: str | None = None) -> list[str]:
        """Names of the pods of one component."""
        return sorted(
            name
            for (kind, _, name), obj in self.cluster.objects.items()
            if kind == "Pod"
            and self.ref.owns(obj)
            and obj["metadata"]["labels"].get(names.COMPONENT) == component
            and role in (None, obj["metadata"]["labels"].get(names.ROLE))
        )

    def edit(self, sample: Sample) -> None:
        """A user replaces the spec."""
        obj = self.object
        generation = obj["metadata"]["generation"] + (obj["spec"] != sample.build()["spec"])
        meta = {**obj["metadata"], "generation": generation}
        self.cluster.put({**obj, "spec": sample.build()["spec"], "metadata": meta})

    async def reconcile(self) -> Look:
        """One pass, a second later."""
        self.clock += timedelta(seconds=1)
        return await reconcile(self.world, self.ref)

    async def settle(self, limit: int = 60) -> list[Call]:
        """Passes, with all pods becoming ready in between, until one writes nothing. All writes on the way."""
        start = len(self.cluster.writes)
        for _ in range(limit):
            before = len(self.cluster.writes)
            await self.reconcile()
            if not self.kubelet() and len(self.cluster.writes) == before:
                return self.cluster.writes[start:]
        raise AssertionError(f"not quiet after {limit} passes: {self.cluster.writes[-5:]}")

    def kubelet(self) -> bool:
        """Everything that was created starts and becomes ready. Whether anything did."""
        changed = False
        for (kind, namespace, name), obj in list(self.cluster.objects.items()):
            if kind == "Pod" and "status" not in obj and self.ref.owns(obj):
                self.start(name)
                changed = True
            if kind == "Deployment":
                changed |= self._gateways(obj)
                wanted = {
                    "observedGeneration": obj["metadata"]["generation"],
                    "readyReplicas": obj["spec"]["replicas"],
                }
                if obj.get("status") != wanted:
                    self.cluster.set_status(kind, namespace, name, wanted)
                    changed = True
        return self._take_up() or changed

    def _take_up(self) -> bool:
        """Gateways hold what their contract says of a canary; nobody asks them anything. Whether they hold another."""
        share = None
        for (kind, _, name), obj in self.cluster.objects.items():
            if kind == "ConfigMap" and name == names.gateway(self.ref.name):
                share = GatewayContract.model_validate_json(obj["data"][CONTRACT_FILE]).canary
        another = share != self._held[0]
        if another:
            self._held = share, self.clock
        held = (self.clock - self._held[1]).total_seconds()
        canary = CanaryFigures(share=share, seconds=held) if share is not None else None
        for (kind, _, name), obj in self.cluster.objects.items():
            if kind == "Pod" and name.startswith(f"{names.gateway(self.ref.name)}-") and "status" in obj:
                reading = GatewayFigures(start=name, seconds=held, canary=canary)
                self.runtime.readings[obj["status"]["podIP"]] = reading
        return another

    def _gateways(self, deployment: Object) -> bool:
        """What a Deployment's controllers do: make and remove its pods. Whether there was anything to do."""
        meta, template = deployment["metadata"], deployment["spec"]["template"]["metadata"]
        wanted = {f"{meta['name']}-{index}" for index in range(deployment["spec"]["replicas"])}
        there = {
            name for kind, _, name in self.cluster.objects if kind == "Pod" and name.startswith(f"{meta['name']}-")
        }
        for name in there - wanted:
            self.cluster.remove("Pod", meta["namespace"], name)
        for name in sorted(wanted - there):
            owner = {"kind": "ReplicaSet", "name": meta["name"], "uid": meta["uid"], "controller": True}
            pod = {
                "name": name,
                "namespace": meta["namespace"],
                "labels": template["labels"],
                "ownerReferences": [owner],
            }
            self.cluster.put({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": {"nodeName": "n-0"}})
            self.start(name)
        return there != wanted

    def start(self, pod: str, node: str = "", **state: Any) -> None:
        """A pod runs and is ready; an engine's agent says so, with `state` laid over. One with KV blocks of its own is
        on `node`, or on the one that it may run on, or on one that no other pod is on."""
        self._addresses += 1
        address = f"10.0.0.{self._addresses}"
        obj = self.cluster.objects["Pod", self.ref.namespace, pod]
        meta, labels = obj["metadata"], obj["metadata"]["labels"]
        if labels[names.COMPONENT] == "engine":
            if any(volume["name"] == "kv" for volume in obj["spec"]["volumes"]):
                back = (meta.get("annotations") or {}).get(names.RETURNS_TO)
                obj["spec"].setdefault("nodeName", node or back or f"node-{self._addresses}")
                state.setdefault("kv", KvState(ready=True, bytes_limit=1000))
            self.runtime.states[address] = agent(pod, labels[names.ROLE], labels[names.REVISION], **state)
        self.cluster.set_status("Pod", self.ref.namespace, pod, running(address))

    def hold_up(self, pod: str, message: str) -> None:
        """The scheduler finds no node for a pod."""
        condition = {"type": "PodScheduled", "status": "False", "message": message}
        self.cluster.set_status("Pod", self.ref.namespace, pod, {"phase": "Pending", "conditions": [condition]})

    def say(self, pod: str, **state: Any) -> None:
        """An engine's agent says something new."""
        address = self.cluster.objects["Pod", self.ref.namespace, pod]["status"]["podIP"]
        self.runtime.states[address] = self.runtime.states[address].model_copy(update=state)

    def fail(self, pod: str, reason: str = "Evicted") -> None:
        """A pod is evicted: it will never run again."""
        self.cluster.set_status("Pod", self.ref.namespace, pod, {"phase": "Failed", "reason": reason})


def running(address: str, *, ready: bool = True) -> Object:
    """The status of a pod whose containers run."""
    truth = "True" if ready else "False"
    return {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": truth}]}


def agent(pod: str, role: str, revision: str, **over: Any) -> NodeState:
    """What a healthy agent says."""
    said = {
        "phase": "Ready",
        "ready_seconds": 3.0,
        "weights": WeightsState(
            digest=DIGEST, bytes_total=1000, bytes_read=1000, verified=True, verified_at=START.timestamp()
        ),
        "ray": RayState(joined=True, version="2.60.0"),
        **over,
    }
    return NodeState.model_validate({"pod": pod, "role": role, "revision": revision, **said})
