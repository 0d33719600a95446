"""Which engines exist: given once (`FixedDiscovery`), read from a file (`FileDiscovery`), or watched as pods of the
deployment (`PodDiscovery`).

Each way is a coroutine that calls `publish` with the complete set, first when it knows it and then whenever it changes.
While the API server is away the last set stands: an engine that answers is not dropped because nobody can be asked
about it. The only module of the runtime that imports the Kubernetes client, of which only the connection is used
(authentication, TLS): its generated models would cost a hundred megabytes. `endpoint_of` is pure.
"""

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config.incluster_config import load_incluster_config
from pydantic import TypeAdapter, ValidationError

from headrace_runtime.contract import (
    COMPONENT_LABEL,
    DEPLOYMENT_LABEL,
    DRAINING_ANNOTATION,
    ENGINE_PORT,
    KV_LAYOUT_LABEL,
    RANK_LABEL,
    REVISION_LABEL,
    ROLE_LABEL,
    Endpoint,
    FileDiscovery,
    FixedDiscovery,
    RoleName,
)
from headrace_runtime.engine.arguments import kv_events_at

log = logging.getLogger(__name__)

WATCH_SECONDS = 300
"""The server ends a watch after this; the client gives up a little later, so that a cut link is noticed."""
BACKOFF_SECONDS = 0.5
BACKOFF_LIMIT_SECONDS = 15.0
LIST_SECONDS = 10.0
FILE_SECONDS = 0.05
"""Between two looks at a file of engines."""
ENDPOINTS: TypeAdapter[tuple[Endpoint, ...]] = TypeAdapter(tuple[Endpoint, ...])

Publish = Callable[[tuple[Endpoint, ...]], None]
Pod = Mapping[str, Any]
"""A pod as the API gives it, in JSON."""


class WatchEndedError(Exception):
    """The watch cannot go on; list again. `status` 410: the resource version is too old."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


async def publish_fixed(discovery: FixedDiscovery, publish: Publish) -> None:
    """The engines never change. Runs until cancelled, as every discovery does."""
    publish(discovery.endpoints)
    await asyncio.Event().wait()


async def watch_file(discovery: FileDiscovery, publish: Publish) -> None:
    """Runs until cancelled. While the file cannot be read the last known set stands."""
    file, last, complained = Path(discovery.path), b"", ""
    while True:
        try:
            text = await asyncio.to_thread(file.read_bytes)
            if text != last:
                publish(ENDPOINTS.validate_json(text))
                last, complained = text, ""
        except (OSError, ValidationError) as error:
            if str(error) != complained:
                complained = str(error)
                log.warning("%s: no list of engines, the last known set stands: %s", file, error)
        await asyncio.sleep(FILE_SECONDS)


async def watch_pods(api: ApiClient, namespace: str, deployment: str, publish: Publish) -> None:
    """Runs until cancelled: list, watch from there, list again when the watch cannot go on."""
    selector = f"{DEPLOYMENT_LABEL}={deployment},{COMPONENT_LABEL}=engine"
    failures = 0
    while True:
        try:
            async with aclosing(pod_sets(api, namespace, selector)) as sets:
                async for pods in sets:
                    failures = 0
                    publish(endpoints_of(pods))
        except (ApiException, aiohttp.ClientError, WatchEndedError, TimeoutError, OSError) as error:
            failures += 1
            log.warning("watching the engines' pods failed, the last known set stands: %s", _short(error))
            limit = min(BACKOFF_SECONDS * 2**failures, BACKOFF_LIMIT_SECONDS)
            await asyncio.sleep(random.uniform(limit / 2, limit))  # noqa: S311


async def pod_sets(api: ApiClient, namespace: str, selector: str) -> AsyncGenerator[dict[str, Pod], None]:
    """The pods by name: once as listed, then after every event. Raises when the watch has to begin anew."""
    response = await _get(api, namespace, LIST_SECONDS, labelSelector=selector)
    listed = json.loads(await response.read())
    pods: dict[str, Pod] = {pod["metadata"]["name"]: pod for pod in listed["items"]}
    version: str = listed["metadata"]["resourceVersion"]
    yield dict(pods)
    while True:  # the server ends a watch in time; the next goes on where it ended
        async with aclosing(_events(api, namespace, selector, version)) as events:
            async for kind, pod in events:
                version = pod["metadata"]["resourceVersion"]
                if kind == "BOOKMARK":
                    continue
                if kind == "DELETED":
                    pods.pop(pod["metadata"]["name"], None)
                else:
                    pods[pod["metadata"]["name"]] = pod
                yield dict(pods)


async def _events(api: ApiClient, namespace: str, selector: str, version: str) -> AsyncGenerator[tuple[str, Pod], None]:
    """One watch, until the server ends it. Raises WatchEndedError for an error event."""
    response = await _get(
        api,
        namespace,
        WATCH_SECONDS + LIST_SECONDS,
        labelSelector=selector,
        resourceVersion=version,
        watch="true",
        allowWatchBookmarks="true",
        timeoutSeconds=str(WATCH_SECONDS),
    )
    try:
        buffer = b""
        async for data in response.content.iter_any():
            *lines, buffer = (buffer + data).split(b"\n")
            for line in filter(None, lines):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise WatchEndedError(event["object"].get("code", 0), event["object"].get("message", ""))
                yield event["type"], event["object"]
    finally:
        response.close()


async def _get(api: ApiClient, namespace: str, seconds: float, **query: str) -> aiohttp.ClientResponse:
    """Pods of the namespace, listed or watched; the body is still to be read. Raises WatchEndedError unless 200."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    parameters = list(query.items())
    _, url, headers, _, _ = await api.param_serialize(
        "GET", path, query_params=parameters, auth_settings=["BearerToken"]
    )
    answer = await api.call_api("GET", url, headers, _request_timeout=seconds)
    response: aiohttp.ClientResponse = answer.response
    if response.status != 200:
        raise WatchEndedError(response.status, await response.text())
    return response


def endpoints_of(pods: Mapping[str, Pod]) -> tuple[Endpoint, ...]:
    found = (endpoint_of(pod) for pod in pods.values())
    return tuple(sorted((endpoint for endpoint in found if endpoint is not None), key=lambda endpoint: endpoint.name))


def endpoint_of(pod: Pod) -> Endpoint | None:
    """The engine in a pod; None while it has no address or has ended, and for a rank that takes no requests.

    One whose label names no role, as when somebody took it, gets nothing new, and what it computes goes on.
    """
    metadata, status = pod["metadata"], pod.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    address = status.get("podIP")
    role = labels.get(ROLE_LABEL)
    if labels.get(RANK_LABEL, "0") != "0":
        return None
    if not address or status.get("phase") in ("Succeeded", "Failed"):
        return None
    known = role in get_args(RoleName)
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
    host = f"[{address}]" if ":" in address else address
    ready, leaving = conditions.get("Ready") == "True", "deletionTimestamp" in metadata
    asked_to_drain = DRAINING_ANNOTATION in annotations or not known
    return Endpoint(
        name=metadata["name"],
        url=f"http://{host}:{ENGINE_PORT}",
        role=role if known else "serve",
        revision=labels.get(REVISION_LABEL, ""),
        kv_layout=labels.get(KV_LAYOUT_LABEL, ""),
        draining=leaving or asked_to_drain,
        ready=ready,
        # An agent that drains is Ready only while it was asked to stay.
        stays=leaving and ready and not asked_to_drain,
        kv_events=kv_events_at(address),
    )


async def watch_pods_in_cluster(namespace: str, deployment: str, publish: Publish) -> None:
    """`watch_pods` with the pod's own service account. Raises ConfigException outside of a cluster."""
    settings = Configuration()
    load_incluster_config(client_configuration=settings)
    async with ApiClient(settings) as api:
        await watch_pods(api, namespace, deployment, publish)


def _short(error: Exception) -> str:
    """An API error's text holds the answer's headers and body: one line is enough."""
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else f"{error}" or type(error).__name__
