"""Operators with a bug planted in them. A fuzz that does not notice every one of them proves nothing.

A bug is in the client (a subclass of it) or in a function of the operator (a patch, which is in the whole process: one
mutant at a time). `near` says which leaves it is looked for at first; where it is not noticed there, all others follow.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from unittest.mock import patch

from headrace_operator.api.lifecycle import Drain, Recovery
from headrace_operator.api.parse import parse
from headrace_operator.api.problems import Problem
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.apply import needed
from headrace_operator.cluster import kind_of
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.ladders import canary_due
from headrace_operator.plan.revision import engine_revision
from headrace_operator.plan.rollout import Bounds
from headrace_operator.state import Object, Ref
from headrace_operator.status import new_status
from sweep.fuzz.cases import Case, Sort

Patches = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Mutant:
    """One bug, and where it is looked for."""

    name: str
    story: str
    near: tuple[str, ...]
    """Beginnings of the paths of leaves."""
    cluster: type[KubernetesCluster] = KubernetesCluster
    patches: Patches = field(default_factory=dict)
    sort: Sort | None = None
    """The only sort of values that shows it; None: any."""

    def bites(self, case: Case) -> bool:
        """Whether a case is one of those that it is looked for at first."""
        return case.leaf.startswith(self.near) and self.sort in (None, case.sort)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """While the block runs, the operator of this process has the bug."""
        with ExitStack() as stack:
            for target, function in self.patches.items():
                stack.enter_context(patch(target, function))
            yield


def _meta(obj: Object, **more: Any) -> Object:
    return obj | {"metadata": obj["metadata"] | more}


class _Disowning(KubernetesCluster):
    async def apply(self, obj: Object) -> Object:
        return await super().apply(_meta(obj, ownerReferences=[]) if obj["kind"] == "ConfigMap" else obj)


class _NoController(KubernetesCluster):
    async def apply(self, obj: Object) -> Object:
        owners = [owner | {"controller": False} for owner in obj["metadata"].get("ownerReferences", ())]
        return await super().apply(_meta(obj, ownerReferences=owners) if obj["kind"] == "Service" else obj)


class _Clinging(KubernetesCluster):
    async def create_once(self, obj: Object) -> bool:
        return await super().create_once(_meta(obj, finalizers=["headrace.dev/hold"]) if obj["kind"] == "Pod" else obj)


class _Hoarder(KubernetesCluster):
    kind = "ConfigMap"

    async def delete(self, obj: Object) -> None:
        if obj["kind"] != self.kind:
            await super().delete(obj)


class _PodHoarder(_Hoarder):
    kind = "Pod"


class _ClaimHoarder(_Hoarder):
    kind = "PersistentVolumeClaim"


class _Twice(KubernetesCluster):
    async def create_once(self, obj: Object) -> bool:
        made = await super().create_once(obj)
        if made and obj["kind"] == "Pod":
            there = await self.get(kind_of(obj), obj["metadata"]["namespace"], obj["metadata"]["name"])
            assert there is not None
            await super().delete(there)
        return made


class _DeletesTwice(KubernetesCluster):
    async def delete(self, obj: Object) -> None:
        await super().delete(obj)
        await super().delete(obj)


class _Salted(KubernetesCluster):
    _numbers = count()

    async def create_once(self, obj: Object) -> bool:
        if obj["kind"] != "Pod":
            return await super().create_once(obj)
        return await super().create_once(_meta(obj, name=f"{obj['metadata']['name']}-{next(self._numbers)}"))


class _OldGeneration(KubernetesCluster):
    async def apply_status(self, ref: Ref, version: str, status: Object) -> None:
        await super().apply_status(ref, version, status | {"observedGeneration": 1})


class _TellsToken(KubernetesCluster):
    _token = ""

    async def create_once(self, obj: Object) -> bool:
        if obj["kind"] == "Secret":
            self._token = json.dumps(obj.get("stringData") or obj.get("data"))
        return await super().create_once(obj)

    async def event(self, ref: Ref, event_type: str, reason: str, message: str) -> None:
        await super().event(ref, event_type, reason, f"{message} {self._token}")


class _MarksToken(_TellsToken):
    async def apply(self, obj: Object) -> Object:
        notes = obj["metadata"].get("annotations", {}) | {"token": self._token}
        return await super().apply(_meta(obj, annotations=notes) if obj["kind"] == "Deployment" else obj)


class _Stubborn(KubernetesCluster):
    async def apply(self, obj: Object) -> Object:
        there = await self.get(kind_of(obj), obj["metadata"]["namespace"], obj["metadata"]["name"])
        return there if there is not None and obj["kind"] == "Deployment" else await super().apply(obj)


class _Panicking(KubernetesCluster):
    async def apply_status(self, ref: Ref, version: str, status: Object) -> None:
        await super().apply_status(ref, version, status)
        accepted = next(c for c in status["conditions"] if c["type"] == "Accepted")
        if accepted["status"] == "False":
            for obj in await self.list_owned(ref):
                if obj["kind"] == "Service":
                    await self.delete(obj)


def _clock(known: Any) -> Any:
    status = new_status(known)
    return status.model_copy(update={"url": f"{status.url}?at={known.now.timestamp()}"})


def _reading(**update: Any) -> Patches:
    """An operator that reads these fields of a valid spec always the same."""

    def read(body: Object) -> Any:
        spec = parse(body)
        return spec.model_copy(update=update) if isinstance(spec, InferenceDeploymentSpec) else spec

    return {"headrace_operator.reconcile.parse": read}


def _read_without_env(body: Object) -> Any:
    spec = parse(body)
    if not isinstance(spec, InferenceDeploymentSpec):
        return spec
    return spec.model_copy(update={"engine": spec.engine.model_copy(update={"env": ()})})


def _shouting(body: Object) -> Any:
    spec = parse(body)
    return spec if isinstance(spec, InferenceDeploymentSpec) else [*spec, Problem("spec", json.dumps(body["spec"]))]


class _Grudge:
    """Remembers whose spec was bad once."""

    def __init__(self) -> None:
        self._bad: dict[str, Any] = {}

    def __call__(self, body: Object) -> Any:
        spec, uid = parse(body), body["metadata"]["uid"]
        if not isinstance(spec, InferenceDeploymentSpec):
            self._bad[uid] = spec
        return self._bad.get(uid, spec)


def _restless(spec: InferenceDeploymentSpec, *more: Any, **named: Any) -> str:
    gateway = str(abs(hash(spec.gateway.model_dump_json())))
    return (gateway + engine_revision(spec, *more, **named))[-16:-6]


def _short_sighted(spec: InferenceDeploymentSpec, *more: Any, **named: Any) -> str:
    return engine_revision(spec.model_copy(update={"drain": Drain(), "recovery": Recovery()}), *more, **named)


def _needed_but_deployments(desired: Object, observed: Object | None) -> bool:
    return needed(desired, observed) and (observed is None or desired["kind"] != "ConfigMap")


PLAN, PASS, PARSE = "headrace_operator.plan", "headrace_operator.reconcile", "headrace_operator.api.parse"
GIVEN = {"mode": "json", "by_alias": True, "exclude_unset": True}

MUTANTS: tuple[Mutant, ...] = (
    Mutant("disowning", "contracts belong to nobody", ("paused",), _Disowning),
    Mutant("no-controller", "Services have an owner who is not their controller", ("paused",), _NoController),
    Mutant("clinging", "pods have a finalizer that nobody takes away", ("roles[].replicas",), _Clinging),
    Mutant("hoards-contracts", "contracts of old revisions stay", ("engine.",), _Hoarder),
    Mutant("hoards-pods", "pods that are not wanted stay", ("roles[].replicas",), _PodHoarder),
    Mutant("hoards-claims", "claims that are not wanted stay", ("kvCache.disk.volume.claimTemplate",), _ClaimHoarder),
    Mutant("makes-twice", "a pod is made, deleted and made", ("paused",), _Twice),
    Mutant("deletes-twice", "a pod that goes is deleted once more", ("roles[].replicas",), _DeletesTwice),
    Mutant("salted", "names of pods are drawn", ("paused",), _Salted),
    Mutant("old-generation", "the status is always of the first spec", ("rollout.maxSurge",), _OldGeneration),
    Mutant("tells-token", "Events tell the Ray token", ("slo",), _TellsToken),
    Mutant("marks-token", "the gateway's Deployment holds the Ray token", ("paused",), _MarksToken),
    Mutant("stubborn", "the gateway's Deployment is never changed", ("gateway.replicas",), _Stubborn),
    Mutant("panicking", "Services go when an edit is bad", ("rollout",), _Panicking, sort="invalid"),
    Mutant("clock", "the status says what time it is", ("paused",), patches={f"{PASS}.new_status": _clock}),
    Mutant("busy", "everything is applied in every pass", ("paused",),
           patches={"headrace_operator.apply.needed": lambda *_: True}),
    Mutant("half-blind", "a contract is made once and not changed", ("gateway.limits.queue",),
           patches={"headrace_operator.apply.needed": _needed_but_deployments}),
    Mutant("silent-ignorer", "what is not acted on is ignored", ("observability", "gateway.tls"),
           patches={f"{PARSE}.unsupported": lambda *_: []}),
    Mutant("lawless", "rules between fields are left to the API server", ("rollout.canary", "recovery.backoff"),
           patches={f"{PARSE}.check": lambda *_: []}, sort="invalid"),
    Mutant("vague", "what is refused is not named", ("rollout.maxSurge",), sort="invalid",
           patches={"headrace_operator.ladders.sentence": lambda *_: "the object is not valid"}),
    Mutant("shouting", "a bad spec is said aloud", ("engine.env[].value",), sort="invalid",
           patches={f"{PASS}.parse": _shouting}),
    Mutant("grudge", "a spec that was bad once stays bad", ("rollout.maxSurge",), sort="invalid",
           patches={f"{PASS}.parse": _Grudge()}),
    Mutant("greedy", "one more engine than maxSurge", ("engine.maxModelLen",),
           patches={f"{PLAN}.Bounds": lambda surge, unavailable: Bounds(surge + 1, unavailable)}),
    Mutant("reckless", "one fewer engine than maxUnavailable", ("engine.maxModelLen",),
           patches={f"{PLAN}.Bounds": lambda surge, unavailable: Bounds(surge, unavailable + 1)}),
    Mutant("restless", "engines are made anew for the gateway's sake", ("gateway.limits",),
           patches={f"{PLAN}.engine_revision": _restless}),
    Mutant("short-sighted", "drain and recovery reach no engine", ("drain", "recovery"),
           patches={f"{PLAN}.engine_revision": _short_sighted}),
    Mutant("deaf-head", "the head is never made anew", ("ray.headResources",),
           patches={f"{PLAN}.head_revision": lambda *_: "0000000000"}),
    Mutant("literal", "a default that is written out is news", ("engine.dtype", "kvCache.dtype"),
           patches={f"{PLAN}.revision._words": lambda part, **which: part.model_dump(**GIVEN, **which)}),
    Mutant("sleepless", "suspend is ignored", ("suspend",), patches=_reading(suspend=False)),
    Mutant("relentless", "paused is ignored", ("paused",), patches=_reading(paused=False)),
    Mutant("drops-env", "environment variables of engines are dropped", ("engine.env",),
           patches={f"{PASS}.parse": _read_without_env}),
    Mutant("old-answer", "one answered request is enough for ever", ("engine.maxModelLen",),
           patches={f"{PASS}.canary_due": lambda known: known.previous.canary is None and canary_due(known)}),
)  # fmt: skip
