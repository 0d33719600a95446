"""Which supervisor actors there should be: pure, from the nodes and actors that are seen.

An engine is known by the resource its raylet carries. Its actor stays while its node is away, since a raylet may come
back (Ray then restarts the actor by itself); when the node has been gone for long, the engine is taken to be gone for
good.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from headrace_runtime.node.raylet import AGENT_PORT_LABEL, ENGINE_RESOURCE

GONE_SECONDS = 300.0
"""A pod comes back under its own name within this time, or its actor is removed."""


@dataclass(frozen=True)
class Engine:
    """One engine pod in the Ray cluster, by its name and its agent's port."""

    pod: str
    agent_port: int


@dataclass(frozen=True)
class FleetPlan:
    create: tuple[Engine, ...] = ()
    remove: tuple[str, ...] = ()
    """Pods whose actor goes."""


def engines(nodes: Iterable[Mapping[str, object]]) -> dict[str, Engine]:
    """Engines of the living nodes, by pod, from what `ray.nodes()` returns. Nodes without an agent are not engines."""
    found = {}
    for node in nodes:
        labels, resources = node.get("Labels"), node.get("Resources")
        if not node.get("Alive") or not isinstance(labels, Mapping) or not isinstance(resources, Mapping):
            continue
        port = str(labels.get(AGENT_PORT_LABEL, ""))
        for resource in resources:
            if str(resource).startswith(ENGINE_RESOURCE) and port.isdigit():
                pod = str(resource).removeprefix(ENGINE_RESOURCE)
                found[pod] = Engine(pod, int(port))
    return found


def plan(alive: Mapping[str, Engine], supervised: Set[str], gone_seconds: Mapping[str, float]) -> FleetPlan:
    """`supervised`: pods that have an actor; `gone_seconds`: how long those without a living node have had none."""
    create = tuple(engine for pod, engine in sorted(alive.items()) if pod not in supervised)
    gone = supervised - alive.keys()
    remove = tuple(sorted(pod for pod in gone if gone_seconds.get(pod, 0.0) >= GONE_SECONDS))
    return FleetPlan(create, remove)
