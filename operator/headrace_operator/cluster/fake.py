"""Both doors in memory: a cluster that behaves like an API server where the operator can tell, and a runtime that
answers.

Ships with the package for the tests of every layer above and for trying things out. Every call is recorded with verb
and kind, which is also how the operator's permissions are checked. Not a scheduler, not a kubelet: whoever uses it
plays those (`set_status`).
"""

import asyncio
import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from headrace_operator import names
from headrace_operator.cluster import ATOMIC, INFERENCE_DEPLOYMENT, OWNED, Kind, kind_of
from headrace_operator.errors import ClusterError, Conflict
from headrace_operator.state import Canary, CanaryAnswer, Object, Ref
from headrace_runtime.contract import GatewayFigures, NodeState

READS = frozenset({"get", "list"})


@dataclass(frozen=True)
class Call:
    """One call: the verb in RBAC's words, the kind (`Kind/status` for a subresource), and the object's name."""

    verb: str
    kind: str
    name: str = ""

    @property
    def writes(self) -> bool:
        return self.verb not in READS


Key = tuple[str, str, str]


@dataclass
class FakeCluster:
    """Objects by kind, namespace and name. `before` sees every call first and may raise in its place."""

    before: Callable[[Call], None] = lambda call: None
    objects: dict[Key, Object] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    """Type, reason and message of every Event posted."""
    warnings: dict[str, list[Object]] = field(default_factory=dict)
    """What `pod_events` answers, by pod."""
    now: Callable[[], datetime] = lambda: datetime(2026, 1, 1, tzinfo=UTC)
    """When what is created was created."""
    _applied: dict[Key, Object] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def writes(self) -> list[Call]:
        """The calls that changed something, in order."""
        return [call for call in self.calls if call.writes]

    def put(self, obj: Object) -> Object:
        """Place an object as some other client would, and return it as kept."""
        created = self.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        known = {"uid": f"uid-{next(self._numbers)}", "generation": 1, "creationTimestamp": created}
        meta = known | obj["metadata"]
        kept = copy.deepcopy({**obj, "metadata": meta})
        self._keep(kept)
        return kept

    def set_status(self, kind: str, namespace: str, name: str, status: Object) -> None:
        """Write an object's status as its own controller would."""
        obj = self.objects[kind, namespace, name]
        self._keep({**obj, "status": copy.deepcopy(status)})

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """An object goes, and with it everything that it owns."""
        gone = self.objects.pop((kind, namespace, name))
        for key, obj in list(self.objects.items()):
            owners = obj["metadata"].get("ownerReferences") or []
            if any(owner["uid"] == gone["metadata"]["uid"] for owner in owners) and key in self.objects:
                self.remove(*key)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self._record("get", kind.kind, name)
        return copy.deepcopy(self.objects.get((kind.kind, namespace, name)))

    async def list_owned(self, ref: Ref) -> list[Object]:
        for kind in OWNED:
            self._record("list", kind.kind)
        kinds = {kind.kind for kind in OWNED}
        label = names.label(ref.name)
        return [
            copy.deepcopy(obj)
            for (kind_name, namespace, _), obj in sorted(self.objects.items())
            if kind_name in kinds
            and namespace == ref.namespace
            and (obj["metadata"].get("labels") or {}).get(names.DEPLOYMENT) == label
        ]

    async def apply(self, obj: Object) -> Object:
        key = _key(obj)
        self._record("patch", key[0], key[2])
        kind_of(obj)
        current = self.objects.get(key)
        uid = obj["metadata"].get("uid")
        if uid is not None and (current is None or current["metadata"]["uid"] != uid):
            raise Conflict(f"PATCH {key[2]}", 409, "Conflict", f"uid mismatch: no object of uid {uid}")
        if current is None:
            self._applied[key] = copy.deepcopy(obj)
            return self.put(obj)
        merged = _merge(current, obj, self._applied.get(key, {}))
        if key[0] == "Pod" and merged.get("spec") != current.get("spec"):
            raise ClusterError(f"PATCH {key[2]}", 422, "Invalid", "spec: Forbidden: pod updates may not change fields")
        self._applied[key] = copy.deepcopy(obj)
        if merged.get("spec") != current.get("spec"):
            merged["metadata"]["generation"] = current["metadata"]["generation"] + 1
        self._keep(merged)
        return copy.deepcopy(merged)

    async def create_once(self, obj: Object) -> bool:
        self._record("create", obj["kind"], obj["metadata"]["name"])
        if _key(obj) in self.objects:
            return False
        self.put(obj)
        return True

    async def delete(self, obj: Object) -> None:
        key = _key(obj)
        self._record("delete", key[0], key[2])
        if key in self.objects and self.objects[key]["metadata"]["uid"] == obj["metadata"]["uid"]:
            self.remove(*key)

    async def apply_status(self, ref: Ref, version: str, status: Object) -> None:
        kind = INFERENCE_DEPLOYMENT.kind
        self._record("patch", f"{kind}/status", ref.name)
        current = self.objects.get((kind, ref.namespace, ref.name))
        if current is None:
            raise ClusterError(f"PATCH {ref}", 404, "NotFound", "no such object")
        if current["metadata"]["resourceVersion"] != version:
            raise Conflict(f"PATCH {ref}", 409, "Conflict", "the object has been modified")
        self._keep({**current, "status": copy.deepcopy(status)})

    async def apply_role_status(self, role: Object, status: Object) -> None:
        key = _key(role)
        self._record("patch", f"{key[0]}/status", key[2])
        current = self.objects.get(key)
        if current is None:
            raise ClusterError(f"PATCH {key[2]}", 404, "NotFound", "no such object")
        if current["metadata"]["resourceVersion"] != role["metadata"]["resourceVersion"]:
            raise Conflict(f"PATCH {key[2]}", 409, "Conflict", "the object has been modified")
        self._keep({**current, "status": copy.deepcopy(status)})

    async def event(self, ref: Ref, event_type: str, reason: str, message: str) -> None:
        self._record("create", "Event", ref.name)
        self.events.append((event_type, reason, message))

    async def pod_events(self, namespace: str, pod: str) -> list[Object]:
        self._record("list", "Event", pod)
        return copy.deepcopy(self.warnings.get(pod, []))

    def _record(self, verb: str, kind: str, name: str = "") -> None:
        call = Call(verb, kind, name)
        self.before(call)
        self.calls.append(call)

    def _keep(self, obj: Object) -> None:
        obj["metadata"] = {**obj["metadata"], "resourceVersion": str(next(self._numbers))}
        self.objects[_key(obj)] = obj


@dataclass
class FakeRuntime:
    """Agents by address, and a gateway that answers `answer` or, without one, as it should."""

    states: dict[str, NodeState] = field(default_factory=dict)
    readings: dict[str, GatewayFigures] = field(default_factory=dict)
    """What gateways have counted, by address."""
    answer: CanaryAnswer | None = None
    questions: list[Canary] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    """Addresses of agents that were asked to stay."""

    async def node_state(self, address: str) -> NodeState | None:
        return self.states.get(address)

    async def figures(self, address: str) -> GatewayFigures | None:
        return self.readings.get(address)

    async def next_request(self, address: str, seen: GatewayFigures | None) -> GatewayFigures | None:
        await asyncio.sleep(0)
        return self.readings.get(address)

    async def stay(self, address: str) -> None:
        self.stays.append(address)

    async def canary(self, address: str, question: Canary) -> CanaryAnswer:
        self.questions.append(question)
        return self.answer or CanaryAnswer("decode-0", "prefill-0" if question.split else "")


def _key(obj: Object) -> Key:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def _merge(current: Any, wanted: Any, before: Any) -> Any:
    """Server-side apply with one manager: maps merge, what was applied before and is no longer named goes, lists are
    whole."""
    if not isinstance(current, dict) or not isinstance(wanted, dict):
        return copy.deepcopy(wanted)
    before = before if isinstance(before, dict) else {}
    result = {k: v for k, v in current.items() if k in wanted or k not in before}
    for key, value in wanted.items():
        result[key] = copy.deepcopy(value) if key in ATOMIC else _merge(current.get(key), value, before.get(key))
    return result
