"""`Cluster` whose lists cost nothing: one watch of each kind keeps a copy of all children, and tells whom they wake.

A copy is old for a moment. That harms nobody who creates (names decide what is there) or who writes a status (its
version decides). Who ends an engine or changes its role must not go by it: before that the API server is asked whether
the pods that the pass counted on are still there and ready, and if not, the pass is broken off (`Outdated`) and the
next one knows better. What this client wrote itself is in the copy at once.

Versions of objects of one kind are compared as numbers, as Kubernetes promises since 1.35.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from headrace_operator import names
from headrace_operator.cluster import INFERENCE_ROLE, OWNED, POD, WATCHED, Kind, kind_of
from headrace_operator.cluster.client import KubernetesCluster, not_defined
from headrace_operator.errors import ClusterError, Outdated, Unreachable
from headrace_operator.state import Object, Ref

logger = logging.getLogger(__name__)

PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a watch that failed is tried again, after so many failures in a row."""
UNDEFINED_SECONDS = 30.0
"""Before it is looked again whether a kind has come to be defined."""
WHOLE_SECONDS = 60.0
"""How long a pass waits for the first lists of all kinds."""

Wake = Callable[[str], None]
Family = tuple[str, str]
"""Namespace and deployment's label: whose children."""


class _Kept(NamedTuple):
    """One child as text, which takes a fraction of the memory that dictionaries take."""

    version: int
    uid: str
    text: bytes


class Copy:
    """Children of all deployments. No I/O."""

    def __init__(self) -> None:
        self._children: dict[Family, dict[tuple[str, str], _Kept]] = {}
        self._homes: dict[str, Family] = {}
        """By uid: a label that changes takes a child to another family."""
        self._heard: dict[tuple[str, str], int] = {}
        """By kind and namespace ("" for all): the version up to which its watch has told everything."""

    def of(self, namespace: str, label: str) -> list[Object]:
        """The children of one deployment, each a dictionary of the caller's own."""
        return [json.loads(kept.text) for kept in self._children.get((namespace, label), {}).values()]

    def put(self, kind: Kind, obj: Object) -> bool:
        """Keep an object as it was told; False where this version, or a later one, is known."""
        meta = obj["metadata"]
        key, version = (kind.kind, meta["name"]), int(meta["resourceVersion"])
        home = self._homes.get(meta["uid"], _family(obj))
        before = self._children.get(home, {}).get(key)
        if before is not None and before.version >= version:
            return False
        if home != _family(obj):
            self._forget(home, key)
        self._homes[meta["uid"]] = _family(obj)
        self._children.setdefault(_family(obj), {})[key] = _Kept(version, meta["uid"], _text(kind, obj))
        return True

    def wrote(self, kind: Kind, obj: Object) -> None:
        """Keep what a write was answered, unless the watch has told of it, or even of its end, by now."""
        meta = obj["metadata"]
        heard = max(self._heard.get((kind.kind, scope), 0) for scope in ("", meta["namespace"]))
        if int(meta["resourceVersion"]) > heard and names.DEPLOYMENT in (meta.get("labels") or {}):
            self.put(kind, obj)

    def ended(self, kind: Kind, obj: Object) -> None:
        """It was told to end: until the watch says more, it counts as going."""
        family = self._children.get(_family(obj), {})
        kept = family.get((kind.kind, obj["metadata"]["name"]))
        if kept is not None and kept.uid == obj["metadata"]["uid"]:
            going = json.loads(kept.text)
            going["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            family[kind.kind, obj["metadata"]["name"]] = kept._replace(text=_text(kind, going))

    def drop(self, kind: Kind, obj: Object) -> None:
        """It is gone, unless something newer is kept under its name."""
        family, name = self._children.get(_family(obj), {}), obj["metadata"]["name"]
        kept = family.get((kind.kind, name))
        if kept is not None and kept.version <= int(obj["metadata"]["resourceVersion"]):
            self._forget(_family(obj), (kind.kind, name))

    def listed(self, kind: Kind, namespace: str, version: int, found: set[str]) -> Iterator[Object]:
        """The kind was listed at this version: forgets what is not among `found` (uids), and gives it."""
        self.heard(kind, namespace, version)
        for whose, family in list(self._children.items()):
            for key, kept in list(family.items()):
                gone = key[0] == kind.kind and kept.uid not in found and kept.version <= version
                if gone and namespace in ("", whose[0]):
                    self._forget(whose, key)
                    yield json.loads(kept.text)

    def heard(self, kind: Kind, namespace: str, version: int) -> None:
        self._heard[kind.kind, namespace] = version

    def _forget(self, whose: Family, key: tuple[str, str]) -> None:
        family = self._children[whose]
        del self._homes[family.pop(key).uid]
        if not family:
            del self._children[whose]


class MirroredCluster(KubernetesCluster):
    """The client of a running operator: `mirror` runs beside its passes, whose lists wait until it is whole."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._copy = Copy()
        self._whole = asyncio.Event()
        self._missing: set[tuple[str, str]] = set()
        self._counted_on: dict[Family, dict[str, str]] = {}
        """What passes saw ready when they last looked: see `_standing`."""
        self._in_flight: dict[tuple[str, str, str], dict[str, Callable[[], None]]] = {}
        """By kind, namespace and name of what is being written: wakes for versions that may be our own."""

    async def mirror(self, namespaces: Sequence[str], wake: Wake, edited: Wake | None = None) -> None:
        """Keep the copy until cancelled; `wake` is called with the uid of each InferenceDeployment a child of which
        somebody else changed; `edited`, if given, in its place where that is an InferenceRole, which is there to be
        edited. No namespaces: all."""
        streams = [(kind, namespace) for kind in OWNED for namespace in (namespaces or ("",))]
        self._missing = {(kind.kind, namespace) for kind, namespace in streams}
        async with asyncio.TaskGroup() as group:
            for kind, namespace in streams:
                told = edited if edited is not None and kind == INFERENCE_ROLE else wake
                group.create_task(self._follow(kind, namespace, wake, told))

    async def list_owned(self, ref: Ref) -> list[Object]:
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                await self._whole.wait()
        except TimeoutError as error:
            missing = ", ".join(sorted({kind for kind, _ in self._missing}))
            raise Unreachable("watch", 0, "NotListed", f"not listed yet: {missing}") from error
        whose = ref.namespace, names.label(ref.name)
        objects = self._copy.of(*whose)
        self._counted_on[whose] = _standing(objects)
        if not objects:
            del self._counted_on[whose]
        return objects

    def wrote(self, obj: Object) -> None:
        kind, meta = kind_of(obj), obj["metadata"]
        if kind in OWNED:
            self._copy.wrote(kind, obj)
            self._in_flight.get((kind.kind, meta["namespace"], meta["name"]), {}).pop(meta["resourceVersion"], None)

    async def create_once(self, obj: Object) -> bool:
        with self._writing(obj):
            return await super().create_once(obj)

    async def apply(self, obj: Object) -> Object:
        if obj["kind"] == POD.kind:
            await self._check(obj)
        with self._writing(obj):
            kept = await super().apply(obj)
        if obj["kind"] == POD.kind:
            self._counted_on.get(_family(kept), {}).update(_standing([kept]))
        return kept

    async def apply_role_status(self, role: Object, status: Object) -> None:
        with self._writing(role):
            await super().apply_role_status(role, status)

    async def delete(self, obj: Object) -> None:
        if obj["kind"] == POD.kind:
            await self._check(obj)
        await super().delete(obj)
        self._copy.ended(kind_of(obj), obj)
        self._counted_on.get(_family(obj), {}).pop(obj["metadata"]["name"], None)

    @contextmanager
    def _writing(self, obj: Object) -> Iterator[None]:
        """The watch may tell of a write before its answer comes: whom it wakes is decided when that is there."""
        key = obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]
        held = self._in_flight[key] = {}
        try:
            yield
        finally:
            del self._in_flight[key]
            for wake in held.values():
                wake()

    async def _check(self, pod: Object) -> None:
        """Raises Outdated unless all pods that the pass saw ready are so still, each in its role."""
        namespace, label = whose = _family(pod)
        found = await self._list(POD, namespace, labelSelector=f"{names.DEPLOYMENT}={label}")
        standing = _standing(found)
        if all(standing.get(name) == what for name, what in self._counted_on.get(whose, {}).items()):
            return
        there = {one["metadata"]["uid"] for one in found}
        for one in found:
            self._copy.put(POD, one)
        for one in self._copy.of(*whose):
            if one["kind"] == POD.kind and one["metadata"]["uid"] not in there:
                self._copy.drop(POD, one)
        call = f"pods of {namespace}/{label}"
        raise Outdated(call, 409, "Outdated", "they are no longer those that this pass looked at")

    async def _follow(self, kind: Kind, namespace: str, wake: Wake, told: Wake) -> None:
        """One list, and its watch from then on, which wakes by `told`. Where the watch is broken off it goes on from
        where it was; where its version is too old, or the API server says anything else, everything is listed again."""
        version, failures = "", 0
        while True:
            try:
                if not version:
                    version = await self._read_all(kind, namespace, wake)
                async with aclosing(self.changes(kind, namespace, version)) as changes:
                    async for change, obj in changes:
                        self._hear(kind, change, obj, told)
                        version, failures = obj["metadata"]["resourceVersion"], 0
                        self._copy.heard(kind, namespace, int(version))
            except ClusterError as error:
                if not_defined(kind, error):
                    version = ""
                    self._listed(kind, namespace)
                    await asyncio.sleep(UNDEFINED_SECONDS)
                    continue
                logger.info("the watch of %s begins anew: %s", kind.plural, error)
                if not isinstance(error, Unreachable):
                    version = ""
                await asyncio.sleep(PAUSES[min(failures, len(PAUSES) - 1)])
                failures += 1

    async def _read_all(self, kind: Kind, namespace: str, wake: Wake) -> str:
        found: set[str] = set()
        version = ""
        async with aclosing(self.pages(kind, namespace)) as pages:
            async for at, objects in pages:
                version = at
                for obj in objects:
                    found.add(obj["metadata"]["uid"])
                    self._hear(kind, "ADDED", obj, wake)
        for obj in self._copy.listed(kind, namespace, int(version), found):
            _tell(kind, obj, wake)
        self._listed(kind, namespace)
        return version

    def _listed(self, kind: Kind, namespace: str) -> None:
        self._missing.discard((kind.kind, namespace))
        if not self._missing:
            self._whole.set()

    def _hear(self, kind: Kind, change: str, obj: Object, wake: Wake) -> None:
        """What this client wrote itself is no news: it wakes nobody."""
        if change == "BOOKMARK":
            return
        meta = obj["metadata"]
        if change == "DELETED":
            self._copy.drop(kind, obj)
            _tell(kind, obj, wake)
        elif self._copy.put(kind, obj):
            held = self._in_flight.get((kind.kind, meta["namespace"], meta["name"]))
            if held is None:
                _tell(kind, obj, wake)
            else:
                held[meta["resourceVersion"]] = partial(_tell, kind, obj, wake)


def _text(kind: Kind, obj: Object) -> bytes:
    """Without the history of its fields, which is as long as the object and which nobody reads."""
    meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    # Items of a list do not name their kind; everything above tells objects apart by it.
    slim = {"apiVersion": kind.api_version, "kind": kind.kind} | obj | {"metadata": meta}
    return json.dumps(slim, separators=(",", ":")).encode()


def _family(obj: Object) -> Family:
    meta = obj["metadata"]
    return meta["namespace"], (meta.get("labels") or {}).get(names.DEPLOYMENT, "")


def _standing(objects: list[Object]) -> dict[str, str]:
    """By name, uid and role of each pod that is ready and not told to end."""
    return {
        obj["metadata"]["name"]: f"{obj['metadata']['uid']} {obj['metadata']['labels'].get(names.ROLE, '')}"
        for obj in objects
        if obj["kind"] == POD.kind
        and "deletionTimestamp" not in obj["metadata"]
        and any(c["type"] == "Ready" and c["status"] == "True" for c in obj.get("status", {}).get("conditions", ()))
    }


def _tell(kind: Kind, obj: Object, wake: Wake) -> None:
    if kind in WATCHED:
        for owner in obj["metadata"].get("ownerReferences") or ():
            if owner.get("controller") and owner.get("kind") == names.KIND:
                wake(owner["uid"])
