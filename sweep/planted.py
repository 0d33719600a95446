"""Operators with a bug planted in them. A sweep that does not notice every one of them proves nothing.

Each bug is one that real operators had: it rests on memory that a restart takes away, on a write that was never
applied, or on a list that is not true any more. Most come through a run without any cut unharmed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace_operator import names
from headrace_operator.cluster import INFERENCE_DEPLOYMENT, SECRET, Kind, kind_of
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.errors import Unreachable
from headrace_operator.reconcile import World, reconcile
from headrace_operator.state import Look, Object, Ref
from sweep.life import Build, Pass
from sweep.proxy import Way


@dataclass(frozen=True)
class Planted:
    """One bug, and where it is looked for."""

    name: str
    story: str
    build: Build
    scenario: str
    ways: tuple[Way, ...]


def _edge_triggered(world: World) -> Pass:
    """Acts when the generation is not the observed one, and until it saw itself done; the status is written early."""
    busy = False

    async def make_pass(ref: Ref) -> Look:
        nonlocal busy
        obj = await world.cluster.get(INFERENCE_DEPLOYMENT, ref.namespace, ref.name)
        if obj is not None:
            status = obj.get("status", {})
            busy = busy or status.get("observedGeneration") != obj["metadata"]["generation"]
        if not busy:
            return Look()
        look = await reconcile(world, ref)
        busy = look.retry or look.seconds is not None
        return look

    return make_pass


class _TokenRemembered(KubernetesCluster):
    """Knows from memory alone that the token was made, and makes it anew otherwise."""

    _made = False

    async def create_once(self, obj: Object) -> bool:
        if obj["kind"] != "Secret" or self._made:
            return await super().create_once(obj)
        path = SECRET.path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        if not await super().create_once(obj):
            await self._call("DELETE", path, body={"preconditions": {"uid": await self._uid(path)}})
            await super().create_once(obj)
        self._made = True
        return True

    async def _uid(self, path: str) -> str:
        uid: str = (await self._call("GET", path))["metadata"]["uid"]
        return uid


class _OwnerSecond(KubernetesCluster):
    """Makes a pod first, and says whose it is in a second write."""

    async def create_once(self, obj: Object) -> bool:
        if obj["kind"] != "Pod":
            return await super().create_once(obj)
        meta = {k: v for k, v in obj["metadata"].items() if k != "ownerReferences"}
        made = await super().create_once(obj | {"metadata": meta})
        if made:
            body = {"metadata": {"ownerReferences": obj["metadata"]["ownerReferences"]}}
            path = kind_of(obj).path(meta["namespace"], meta["name"])
            await self._call("PATCH", path, None, body, content_type="application/merge-patch+json")
        return made


class _Believer(KubernetesCluster):
    """Holds a write that broke off for done, and never sends the same again."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._sent: set[str] = set()

    async def apply(self, obj: Object) -> Object:
        digest = obj["metadata"]["name"] + obj["metadata"]["annotations"][names.APPLIED]
        if digest in self._sent:
            return obj
        self._sent.add(digest)
        try:
            return await super().apply(obj)
        except Unreachable:
            return obj


class _Replacer(KubernetesCluster):
    """Where a pod of the name is there already, takes it away and makes its own."""

    async def create_once(self, obj: Object) -> bool:
        if await super().create_once(obj) or obj["kind"] != "Pod":
            return True
        meta = obj["metadata"]
        there = await self.get(kind_of(obj), meta["namespace"], meta["name"])
        if there is not None:
            await self.delete(there)
        return False


class _NamesOfItsOwn(KubernetesCluster):
    """Names pods by chance, and remembers which name stands for which: at first, and until it is started anew."""

    _lives: dict[str, int] = {}  # noqa: RUF012 - of all lives, on purpose: it stands for the chance in the names

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._salt: str | None = None

    async def create_once(self, obj: Object) -> bool:
        meta = obj["metadata"]
        if self._salt is None:
            life = self._lives[meta["namespace"]] = self._lives.get(meta["namespace"], 0) + 1
            self._salt = "" if life == 1 else f"-{life}"
        if obj["kind"] != "Pod":
            return await super().create_once(obj)
        return await super().create_once(obj | {"metadata": meta | {"name": meta["name"] + self._salt}})


class _FromMemory(KubernetesCluster):
    """Remembers a deployment that it saw, and works for it when it is gone."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._seen: Object | None = None

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        found = await super().get(kind, namespace, name)
        if kind is not INFERENCE_DEPLOYMENT:
            return found
        self._seen = found or self._seen
        return self._seen


class _Necromancer(KubernetesCluster):
    """Puts the labels of a pod right without saying which pod: where it went meanwhile, it comes back."""

    async def apply(self, obj: Object) -> Object:
        meta = {k: v for k, v in obj["metadata"].items() if k != "uid"}
        return await super().apply(obj | {"metadata": meta})


class _Optimist(KubernetesCluster):
    """Counts a pod as ready from the moment it was made."""

    async def list_owned(self, ref: Ref) -> list[Object]:
        found = await super().list_owned(ref)
        for obj in found:
            if obj["kind"] == "Pod":
                ready = [{"type": "Ready", "status": "True"}]
                obj["status"] = obj["status"] | {"phase": "Running", "conditions": ready}
        return found


def _with(cluster: type[KubernetesCluster]) -> Build:
    return Build(cluster)


def _passing(make_pass: Callable[[World], Pass]) -> Build:
    return Build(make_pass=make_pass)


KILLED = (Way.BEFORE, Way.AFTER)
PLANTED = (
    Planted("edge-triggered", "acts on a new generation only", _passing(_edge_triggered), "update", KILLED),
    Planted("token-remembered", "makes the token anew after a restart", _with(_TokenRemembered), "create", KILLED),
    Planted("owner-second", "says whose a pod is in a second write", _with(_OwnerSecond), "create", KILLED),
    Planted("believer", "holds a write that broke off for done", _with(_Believer), "create", (Way.REFUSED,)),
    Planted("replacer", "deletes what is in the way", _with(_Replacer), "create", (Way.OLD, Way.OLDEST)),
    Planted("names-of-its-own", "names pods by chance", _with(_NamesOfItsOwn), "create", KILLED),
    Planted("from-memory", "works for a deployment that is gone", _with(_FromMemory), "delete", (Way.LOST,)),
    Planted("necromancer", "labels a pod that is gone", _with(_Necromancer), "role-gone", (Way.OLDEST,)),
    Planted("optimist", "counts pods as ready once made", _with(_Optimist), "update", KILLED),
)
