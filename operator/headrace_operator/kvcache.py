"""What the agents say of their KV tiers, put together: who cannot keep blocks, and figures of each node. Pure.

Called by `ladders.py` and `status.py`. Figures move all the time, and each write of a status wakes every watcher:
`calm` says when they have moved far enough to be told by themselves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace_operator.api.v1alpha1 import CacheNode, CachePlacement, InferenceDeploymentSpec, KVCacheStatus
from headrace_operator.state import Blocker, Plan, Pod
from headrace_runtime.contract import KvState

MOVED = 0.1
"""Part of a node's bytes, or of all lookups, by which a figure must have moved before it is told by itself."""


@dataclass(frozen=True)
class Disks:
    """Engines of which the spec wants a disk tier."""

    troubled: tuple[Blocker, ...]
    opened: int
    """Those that keep blocks."""
    nodes: frozenset[str]
    """Where they are."""


def disks(pods: Iterable[Pod]) -> Disks:
    """What the agents of live engines say of their disk tiers."""
    told = [(pod, pod.agent.kv) for pod in pods if pod.live and pod.agent is not None and pod.agent.kv is not None]
    bad = tuple(Blocker(pod.name, kv.reason, kv.message) for pod, kv in told if not kv.ready and kv.reason)
    good = [pod for pod, kv in told if kv.ready]
    return Disks(bad, len(good), frozenset(pod.node for pod in good))


def reported(
    spec: InferenceDeploymentSpec, plan: Plan, pods: Iterable[Pod], before: KVCacheStatus | None
) -> KVCacheStatus | None:
    """The status of the disk tier as it is now; None where the spec has none.

    A node whose agents are silent keeps the figures that it had.
    """
    disk = spec.kv_cache.disk
    if disk is None:
        return None
    by_node: dict[str, list[KvState]] = {}
    for pod in pods:
        if pod.live and pod.node:
            kv = pod.agent.kv if pod.agent is not None else None
            by_node.setdefault(pod.node, []).extend([kv] if kv is not None else [])
    known = {node.node: node for node in before.nodes} if before is not None else {}
    shared = disk.volume.host_path is not None
    figures = {node: _figures(node, states, shared) if states else known.get(node) for node, states in by_node.items()}
    placement = [CachePlacement(slot=slot, node=node) for slot, node in plan.placement.items()]
    return KVCacheStatus(
        nodes=tuple(figure for _, figure in sorted(figures.items()) if figure is not None), placement=tuple(placement)
    )


def calm(before: KVCacheStatus | None, after: KVCacheStatus | None) -> KVCacheStatus | None:
    """`after` with the figures of `before`, where they have not moved far: equal to `before` where nothing else has."""
    if before is None or after is None:
        return after
    still = [node.node for node in before.nodes] == [node.node for node in after.nodes] and not any(
        _moved(one, other) for one, other in zip(before.nodes, after.nodes, strict=True)
    )
    return after.model_copy(update={"nodes": before.nodes}) if still else after


def _figures(node: str, states: Sequence[KvState], shared: bool) -> CacheNode:
    """In a folder that all engines of the node share each of them measures the same bytes."""
    together = max if shared else sum
    looked_up = sum(state.looked_up for state in states)
    found = sum(state.found for state in states)
    return CacheNode(
        node=node,
        bytes=together(state.bytes_used for state in states),
        limit=together(state.bytes_limit for state in states),
        hit_rate=round(min(1.0, found / looked_up), 2) if looked_up else None,
    )


def _moved(before: CacheNode, after: CacheNode) -> bool:
    if before.limit != after.limit or (before.hit_rate is None) != (after.hit_rate is None):
        return True
    rates = abs((before.hit_rate or 0.0) - (after.hit_rate or 0.0))
    return abs(after.bytes - before.bytes) >= max(1, MOVED * before.bytes) or rates >= MOVED
