"""`Cluster` over aiohttp, with what the official Kubernetes client knows of clusters; the only module that imports it.

The official client finds the API server and who we are (kubeconfig or service account, tokens that are renewed, TLS,
proxies). Requests go past its serialiser and its generated models: objects stay plain dictionaries, and a call costs
about half of its processor time (docs/decisions/0024). Every call has a deadline.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from headrace_operator import __version__, names
from headrace_operator.cluster import EVENT, INFERENCE_DEPLOYMENT, INFERENCE_ROLE, OWNED, POD, Kind, kind_of
from headrace_operator.cluster.fence import Fence
from headrace_operator.errors import ClusterError, Conflict, SettingsError, Unreachable
from headrace_operator.metrics import CALLS
from headrace_operator.state import Object, Ref

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
USER = "headrace-cli"
"""The field manager of what people change through our command line."""
JSON = "application/json"
DEADLINE_SECONDS = 15.0
PAGE = 250
"""Objects that are listed in one answer: what is held in memory at once."""
WATCH_SECONDS = 50
USER_AGENT = f"{names.OPERATOR}/{__version__}"
IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class KubernetesCluster:
    """One API server. Use as an async context manager, or call `close`."""

    def __init__(self, api: ApiClient, *, instance: str = names.OPERATOR, fence: Fence | None = None) -> None:
        self._api = api
        self._instance = instance
        self._fence = fence
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def connect(
        cls, *, instance: str = names.OPERATOR, kubeconfig: Path | None = None, fence: Fence | None = None
    ) -> Self:
        """With `kubeconfig`; or else the pod's service account; or else the user's (`KUBECONFIG`, `~/.kube/config`).

        `instance` is what Events name as their reporter. With `fence` writes go out only while it is open.
        SettingsError: no configuration is there, or it is not usable.
        """
        configuration = Configuration()
        try:
            if kubeconfig is not None:
                await load_kube_config(str(kubeconfig), client_configuration=configuration)
            elif IN_POD.exists():  # noqa: ASYNC240 - once, at start
                load_incluster_config(client_configuration=configuration)
            else:
                await load_kube_config(client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise SettingsError(f"no Kubernetes API: not in a pod, and no usable kubeconfig ({error})") from error
        return cls(ApiClient(configuration), instance=instance, fence=fence)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        await self._api.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return await self._call("GET", kind.path(namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def list_owned(self, ref: Ref) -> list[Object]:
        selector = f"{names.DEPLOYMENT}={names.label(ref.name)}"
        answers = await asyncio.gather(*(self._list_known(kind, ref.namespace, selector) for kind in OWNED))
        return [obj for objects in answers for obj in objects]

    async def _list_known(self, kind: Kind, namespace: str, selector: str) -> list[Object]:
        """Of a kind whose definition is not there, nothing is."""
        try:
            return await self._list(kind, namespace, labelSelector=selector)
        except ClusterError as error:
            if not_defined(kind, error):
                return []
            raise

    async def list_children(self, kind: Kind, ref: Ref) -> list[Object]:
        """The same of one kind. For people, who may have no right to the others."""
        return await self._list(kind, ref.namespace, labelSelector=f"{names.DEPLOYMENT}={names.label(ref.name)}")

    async def proxied(self, namespace: str, pod: str, port: int, path: str) -> Object:
        """What a pod answers to a GET, by way of the API server. For people, who need the right to `pods/proxy`."""
        return await self._call("GET", f"{POD.path(namespace, f'{pod}:{port}', 'proxy')}/{path}")

    async def edit(self, obj: Object, change: Object) -> Object:
        """Merge `change` into an object as it was read, as its user would. Conflict: it is another by now."""
        meta = obj["metadata"]
        body = {**change, "metadata": {"resourceVersion": meta["resourceVersion"]}}
        path = kind_of(obj).path(meta["namespace"], meta["name"])
        return await self._call("PATCH", path, {"fieldManager": USER}, body, content_type=MERGE)

    async def _list(self, kind: Kind, namespace: str, **query: str) -> list[Object]:
        answer = await self._call("GET", kind.path(namespace), query)
        items: list[Object] = answer.get("items") or []
        # Items of a list do not name their kind; everything above tells objects apart by it.
        return [{"apiVersion": kind.api_version, "kind": kind.kind} | item for item in items]

    async def pages(self, kind: Kind, namespace: str) -> AsyncGenerator[tuple[str, list[Object]], None]:
        """All objects of a kind with a deployment's label, in one namespace or ("") in all, as they were at one
        version, which comes with every page."""
        query = {"labelSelector": names.DEPLOYMENT, "limit": str(PAGE)}
        while True:
            answer = await self._call("GET", kind.path(namespace), query)
            listed = answer["metadata"]
            yield listed["resourceVersion"], answer.get("items") or []
            if not listed.get("continue"):
                return
            query["continue"] = listed["continue"]

    async def changes(self, kind: Kind, namespace: str, version: str) -> AsyncGenerator[tuple[str, Object], None]:
        """What happens to them after this version, as the API server's watch tells it, bookmarks included. Ends after
        a while. ClusterError, with status 410: the version is too old."""
        call = f"GET {kind.path(namespace)}"
        query = {"watch": "1", "labelSelector": names.DEPLOYMENT, "resourceVersion": version}
        query |= {"allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        CALLS.labels(method="WATCH", resource=kind.plural).inc()
        # A connection that died without a word: the server itself would have ended the stream by then.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=DEADLINE_SECONDS, sock_read=WATCH_SECONDS + 10)
        async with self._request(call, query, limits) as response:
            if response.status != 200:
                raw = await response.read()
                raise _failure(call, response.status, _decoded(raw), raw)
            try:
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            raise _failure(call, event["object"].get("code", 0), event["object"])
                        yield event["type"], event["object"]
            finally:
                # A stream that is left before its end is cut: the farewell of TLS would wait for an answer.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()

    def wrote(self, obj: Object) -> None:
        """A child was created or applied, and the API server keeps it like this: for a client that remembers it."""

    async def apply(self, obj: Object) -> Object:
        meta = obj["metadata"]
        kept = await self._apply(kind_of(obj).path(meta["namespace"], meta["name"]), obj)
        self.wrote(kept)
        return kept

    async def apply_status(self, ref: Ref, version: str, status: Object) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            # Not the uid: on a status the API server does not compare it.
            "metadata": {"name": ref.name, "namespace": ref.namespace, "resourceVersion": version},
            "status": status,
        }
        await self._apply(INFERENCE_DEPLOYMENT.path(ref.namespace, ref.name, "status"), body)

    async def apply_role_status(self, role: Object, status: Object) -> None:
        meta = {name: role["metadata"][name] for name in ("name", "namespace", "resourceVersion")}
        body = {"apiVersion": names.API_VERSION, "kind": names.ROLE_KIND, "metadata": meta, "status": status}
        self.wrote(await self._apply(INFERENCE_ROLE.path(meta["namespace"], meta["name"], "status"), body))

    async def _apply(self, path: str, body: Object) -> Object:
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return await self._call("PATCH", path, query, body, content_type=APPLY)

    async def create_once(self, obj: Object) -> bool:
        query = {"fieldManager": names.FIELD_MANAGER}
        try:
            self.wrote(await self._call("POST", kind_of(obj).path(obj["metadata"]["namespace"]), query, obj))
        except Conflict:
            return False
        return True

    async def delete(self, obj: Object) -> None:
        meta = obj["metadata"]
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": meta["uid"]},
        }
        try:
            await self._call("DELETE", kind_of(obj).path(meta["namespace"], meta["name"]), body=options)
        except ClusterError as error:
            # 404: gone already. 409: the uid is another one, so ours is gone too.
            if error.status not in (404, 409):
                raise

    async def event(self, ref: Ref, event_type: str, reason: str, message: str) -> None:
        now = datetime.now(UTC)
        stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"generateName": f"{ref.name[:50]}-", "namespace": ref.namespace},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": ref.name,
                "namespace": ref.namespace,
                "uid": ref.uid,
            },
            "type": event_type,
            "reason": reason,
            "message": message[:1000],
            "source": {"component": names.OPERATOR},
            "reportingComponent": f"{names.GROUP}/{names.OPERATOR}",
            "reportingInstance": self._instance,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        await self._call("POST", EVENT.path(ref.namespace), {"fieldManager": names.FIELD_MANAGER}, body)

    async def pod_events(self, namespace: str, pod: str) -> list[Object]:
        fields = f"involvedObject.kind={POD.kind},involvedObject.name={pod},type=Warning"
        events = await self._list(EVENT, namespace, fieldSelector=fields)
        return sorted(events, key=lambda e: str(e.get("lastTimestamp") or e["metadata"].get("creationTimestamp") or ""))

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        *,
        content_type: str = JSON,
    ) -> Object:
        """One request. Raises Unreachable, Conflict, Fenced or ClusterError; the answer of a success is always an
        object."""
        call = f"{method} {path}"
        fence = self._fence if method != "GET" else None
        with fence.writing(call) if fence is not None else nullcontext(DEADLINE_SECONDS) as seconds:
            return await self._send(call, min(seconds, DEADLINE_SECONDS), query, body, content_type=content_type)

    async def _send(
        self, call: str, seconds: float, query: dict[str, str] | None, body: Object | None, *, content_type: str
    ) -> Object:
        method, _, path = call.partition(" ")
        CALLS.labels(method=method, resource=_resource(path)).inc()
        limits = aiohttp.ClientTimeout(total=seconds)
        async with self._request(call, query, limits, body=body, content_type=content_type) as response:
            raw = await response.read()
        answer = _decoded(raw)
        if 200 <= response.status < 300:
            return answer
        raise _failure(call, response.status, answer, raw)

    @asynccontextmanager
    async def _request(
        self,
        call: str,
        query: dict[str, str] | None,
        limits: aiohttp.ClientTimeout,
        *,
        body: Object | None = None,
        content_type: str = JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request as it goes out. Unreachable: it broke, while it was sent or while its answer was read."""
        method, _, path = call.partition(" ")
        configuration = self._api.configuration
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": USER_AGENT}
        for setting in (await configuration.auth_settings()).values():
            headers[setting["key"]] = setting["value"]
        try:
            async with self._connections().request(
                method,
                configuration.host + path,
                params=query,
                data=None if body is None else json.dumps(body, separators=(",", ":")).encode(),
                headers=headers,
                timeout=limits,
                proxy=configuration.proxy,
                proxy_headers=configuration.proxy_headers,
                server_hostname=configuration.tls_server_name,
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(call, 0, type(error).__name__, str(error)) from error

    def _connections(self) -> aiohttp.ClientSession:
        """Made by the first call, which has a loop to run in."""
        if self._session is None:
            context = self._api.rest_client.ssl_context
            # No limit: a watch holds its connection. How many calls there are at once, the workers decide.
            connector = aiohttp.TCPConnector(ssl=context, limit=0)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=True)
        return self._session


def not_defined(kind: Kind, error: ClusterError) -> bool:
    """Whether a list failed since the API server has no InferenceRoles: Helm never adds a definition to a release that
    is there, and who forgot to apply it is to miss nothing but what needs it."""
    return kind == INFERENCE_ROLE and error.status == 404


def _failure(call: str, status: int, answer: Object, raw: bytes = b"") -> ClusterError:
    failure = Conflict if status == 409 else ClusterError
    message = answer.get("message", raw[:200].decode(errors="replace"))
    return failure(call, status, answer.get("reason", ""), message)


def _resource(path: str) -> str:
    """`pods`, or `inferencedeployments/status`: what a path is about, without any name."""
    kind, _, rest = path.partition("/namespaces/")[2].partition("/")[2].partition("/")
    _, _, subresource = rest.partition("/")
    return f"{kind}/{subresource}" if subresource else kind


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
