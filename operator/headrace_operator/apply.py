"""Steps 6 and 7 of a pass: apply what differs, then prune what is no longer wanted. Called by reconcile.

Nothing is written for an object that is as it should be: its annotation holds the hash of what we would apply, and what
the server keeps still *covers* it. The first tells that we changed our mind, the second that somebody else changed it.
Pruning comes last and only after a clean apply, so that a failing pass never takes away what it could not replace.
"""

import hashlib
import json
import logging
from typing import Any

from headrace_operator import names
from headrace_operator.api.types import Quantity
from headrace_operator.cluster import ATOMIC, MADE_ONCE, POD, Cluster, kind_of
from headrace_operator.errors import ClusterError, Outdated
from headrace_operator.state import Object, Observed, Outcome, Ref

logger = logging.getLogger(__name__)

KEYS = ("name", "mountPath", "port", "containerPort", "uid")
"""Fields that tell the entries of a Kubernetes list apart, in order of preference."""
REFUSALS = frozenset({400, 403, 422})
"""Answers that another try will not change: invalid, forbidden, over a quota, refused by an admission webhook."""
QUANTITIES = frozenset({"requests", "limits"})


def stamp(obj: Object) -> Object:
    """The object with the hash of itself in its annotations: what is sent."""
    digest = hashlib.sha256(json.dumps(obj, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
    meta = obj["metadata"]
    return obj | {"metadata": meta | {"annotations": meta.get("annotations", {}) | {names.APPLIED: digest}}}


def covers(observed: Any, desired: Any, key: str = "") -> bool:
    """Whether `observed` says all that `desired` says. Additions, by defaults or other writers, are no difference."""
    if not desired and isinstance(desired, dict | list | None):
        return observed is None or isinstance(observed, type(desired))
    if key in ATOMIC:
        return bool(observed == desired)
    if isinstance(desired, dict):
        return isinstance(observed, dict) and all(
            covers(observed.get(name), value, key if key in QUANTITIES else name) for name, value in desired.items()
        )
    if isinstance(desired, list):
        return isinstance(observed, list) and _list_covers(observed, desired, key)
    return bool(observed == desired) or (key in {*QUANTITIES, "sizeLimit"} and _same_quantity(observed, desired))


def _list_covers(observed: list[Any], desired: list[Any], key: str) -> bool:
    merge_key = next((k for k in KEYS if all(isinstance(entry, dict) and k in entry for entry in desired)), None)
    if merge_key is None:
        return len(observed) == len(desired) and all(covers(o, d, key) for o, d in zip(observed, desired, strict=True))
    by_key = {entry.get(merge_key): entry for entry in observed if isinstance(entry, dict)}
    return all(covers(by_key.get(entry[merge_key]), entry, key) for entry in desired)


def _same_quantity(observed: Any, desired: Any) -> bool:
    try:
        return Quantity._read(observed) == Quantity._read(desired)
    except ValueError:
        return False


def needed(desired: Object, observed: Object | None) -> bool:
    """Whether a stamped object must be applied. Of what is made once only the metadata is compared."""
    if observed is None:
        return True
    if desired["kind"] in MADE_ONCE:
        wanted = desired["metadata"]
        have = observed["metadata"]
        return not all(covers(have.get(part), wanted.get(part), part) for part in ("labels", "ownerReferences"))
    return not covers(observed, desired)


def relabel(desired: Object, observed: Object) -> Object:
    """What is applied to what was made once and exists: our metadata; of a pod, its own spec as it stands, of another
    kind none, for what an apply names is the operator's from then on. With its uid, since an apply makes what is not
    there: a pod that went meanwhile would come back, on its old node and past the plan."""
    meta = desired["metadata"] | {"uid": observed["metadata"]["uid"]}
    bare = {"apiVersion": desired["apiVersion"], "kind": desired["kind"], "metadata": meta}
    return bare | ({"spec": observed["spec"]} if desired["kind"] == POD.kind else {})


async def apply_and_prune(
    cluster: Cluster, ref: Ref, desired: list[Object], observed: Observed, kept: frozenset[tuple[str, str]]
) -> Outcome:
    """Write what differs, then delete what is owned and neither desired nor kept. An error of one object stops no
    other."""
    work = _Work(cluster, ref, observed)
    for obj in desired:
        await work.apply(stamp(obj))
    wanted = {(obj["kind"], obj["metadata"]["name"]) for obj in desired} | kept
    if not work.errors:
        for key, obj in observed.children.items():
            if key not in wanted and "deletionTimestamp" not in obj["metadata"]:
                await work.delete(obj)
    return Outcome(
        tuple(work.applied), tuple(work.deleted), tuple(work.not_owned), tuple(work.refused), tuple(work.errors)
    )


class _Work:
    """The calls of one pass and what became of them."""

    def __init__(self, cluster: Cluster, ref: Ref, observed: Observed) -> None:
        self._cluster = cluster
        self._ref = ref
        self._observed = observed
        self.applied: list[str] = []
        self.deleted: list[str] = []
        self.not_owned: list[str] = []
        self.refused: list[str] = []
        self.errors: list[str] = []

    async def apply(self, obj: Object) -> None:
        key = (obj["kind"], obj["metadata"]["name"])
        if key in self._observed.foreign:
            self.not_owned.append("/".join(key))
            return
        current = self._observed.children.get(key)
        if not needed(obj, current):
            return
        try:
            if current is None:
                await self._create(obj, key)
            else:
                await self._cluster.apply(relabel(obj, current) if obj["kind"] in MADE_ONCE else obj)
                self.applied.append("/".join(key))
        except Outdated:
            raise
        except ClusterError as error:
            self._failed(key, error)

    async def _create(self, obj: Object, key: tuple[str, str]) -> None:
        """Make what was not seen, unless something of that name is there without our label, and so is not ours."""
        if obj["kind"] in MADE_ONCE:
            # A plain create says so itself, in one call, and nothing of it but its metadata is ever applied again.
            if await self._cluster.create_once(obj):
                self.applied.append("/".join(key))
                return
        elif await self._cluster.get(kind_of(obj), obj["metadata"]["namespace"], key[1]) is None:
            await self._cluster.apply(obj)
            self.applied.append("/".join(key))
            return
        existing = await self._cluster.get(kind_of(obj), obj["metadata"]["namespace"], key[1])
        if existing is not None and not self._ref.owns(existing):
            self.not_owned.append("/".join(key))
        elif existing is not None and obj["kind"] != POD.kind:
            # Ours, but somebody took its label: put it back.
            await self._cluster.apply(relabel(obj, existing) if obj["kind"] in MADE_ONCE else obj)
            self.applied.append("/".join(key))

    async def delete(self, obj: Object) -> None:
        key = (obj["kind"], obj["metadata"]["name"])
        try:
            await self._cluster.delete(obj)
            self.deleted.append("/".join(key))
        except Outdated:
            raise
        except ClusterError as error:
            self._failed(key, error)

    def _failed(self, key: tuple[str, str], error: ClusterError) -> None:
        logger.warning("%s: %s", self._ref, error)
        text = f"{'/'.join(key)}: {error.reason or error.status}: {error.message}"
        self.errors.append(text)
        if error.status in REFUSALS:
            self.refused.append(text)
