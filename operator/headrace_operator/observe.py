"""Step 3 of a pass: every read there is, gathered into one frozen `Observed`. Facts, never judgements. Called by
reconcile.

A read of the API server that fails makes everything unknown, since a set that may be incomplete must not be acted upon.
An agent that gives no answer is a fact about that pod.
"""

import asyncio
from dataclasses import replace

from headrace_operator import names
from headrace_operator.api.manifest import read_checksums
from headrace_operator.cluster import CONFIG_MAP, Cluster, Runtime
from headrace_operator.errors import ClusterError
from headrace_operator.facts import mount_blocker, read_pod, secrets_missed, waits_for_volumes
from headrace_operator.state import Blocker, Object, Observed, Pod, Ref
from headrace_runtime.contract import GatewayFigures


async def observe(cluster: Cluster, runtime: Runtime, ref: Ref, manifest: str | None) -> Observed:
    """Everything about one deployment. `manifest` names the ConfigMap with the model's checksums, if there is one."""
    try:
        objects, checksums = await asyncio.gather(cluster.list_owned(ref), _manifest(cluster, ref, manifest))
        pods, lacks_token = await _pods(cluster, runtime, ref, [o for o in objects if o["kind"] == "Pod"])
    except ClusterError as error:
        return Observed(failure=str(error))
    return Observed(
        children={_key(o): o for o in objects if ref.owns(o)},
        foreign={_key(o): o for o in objects if not ref.owns(o)},
        pods=pods,
        manifest=checksums,
        lacks_token=lacks_token,
    )


async def read_figures(runtime: Runtime, observed: Observed) -> dict[str, GatewayFigures | None]:
    """What each ready gateway has counted, by its pod; None of one that gave no usable answer. Asked only where it is
    needed."""
    asked = [pod for pod in observed.gateways if pod.ready and pod.live and pod.ip]
    told = await asyncio.gather(*(runtime.figures(pod.ip) for pod in asked))
    return {pod.name: reading for pod, reading in zip(asked, told, strict=True)}


def _key(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


async def _manifest(cluster: Cluster, ref: Ref, name: str | None) -> dict[str, str] | None:
    if name is None:
        return None
    found = await cluster.get(CONFIG_MAP, ref.namespace, name)
    return None if found is None else read_checksums(found.get("data") or {})


async def _pods(cluster: Cluster, runtime: Runtime, ref: Ref, objects: list[Object]) -> tuple[tuple[Pod, ...], bool]:
    """All pods with the deployment's label, gateways included: those belong to a ReplicaSet of our Deployment."""
    token = names.ray_token(ref.name)
    found = await asyncio.gather(*(_pod(cluster, runtime, ref, obj, token) for obj in objects))
    return tuple(sorted((pod for pod, _ in found), key=lambda p: p.name)), any(lacks for _, lacks in found)


async def _pod(cluster: Cluster, runtime: Runtime, ref: Ref, obj: Object, token: str) -> tuple[Pod, bool]:
    pod = read_pod(obj)
    if waits_for_volumes(obj):
        events = await cluster.pod_events(ref.namespace, pod.name)
        # Events outlive a pod, and this one may have its predecessor's name.
        events = [e for e in events if e.get("involvedObject", {}).get("uid") in (None, obj["metadata"]["uid"])]
        return replace(pod, blocker=pod.blocker or mount_blocker(pod.name, events)), token in secrets_missed(events)
    if pod.component == "engine" and pod.ip and not pod.failed and obj.get("status", {}).get("phase") == "Running":
        state = await runtime.node_state(pod.ip)
        # A pod's address may be another's by now.
        if state is not None and state.pod == pod.name:
            blocker = Blocker(pod.name, state.reason, state.message) if state.reason and not pod.ready else pod.blocker
            return replace(pod, agent=state, blocker=blocker), False
    return pod, False
