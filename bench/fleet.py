"""Many InferenceDeployments on one API server: made, edited, watched and deleted as users would. Called by `scale`."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.kube import MERGE, METADATA, Api, RefusedError, watching
from headrace_operator import names
from headrace_operator.cluster import INFERENCE_DEPLOYMENT
from headrace_operator.testing import Sample

PER_NAMESPACE = 10
USERS = 4
"""Threads that create and edit."""
PODS = f"/api/v1/pods?labelSelector={names.DEPLOYMENT}"
EVERYWHERE = f"/apis/{names.API_VERSION}/{names.PLURAL}"

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Said:
    """What the status of one deployment says."""

    current: bool
    """Of the spec as it is."""
    ready: bool
    settled: bool
    """Nothing is on its way any more."""
    at: float
    """When this was first seen (seconds of the monotonic clock)."""


class Eyes:
    """All deployments and their pods, as two watches tell of them."""

    def __init__(self, api: Api) -> None:
        self.said: dict[Key, Said] = {}
        self.pods: dict[Key, float] = {}
        """When each pod that is there was first seen."""
        self._stop = threading.Event()
        watching(api, EVERYWHERE, self._deployment, self._stop)
        watching(api, PODS, self._pod, self._stop, accept=METADATA)

    def close(self) -> None:
        self._stop.set()

    def until(self, what: str, condition: Callable[[], bool], limit: float) -> None:
        """Waits until it holds. When things happened is noted as they are seen, not here. RuntimeError: it did not hold
        within `limit` seconds, with what was there then."""
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                ready = sum(one.ready for one in list(self.said.values()))
                raise RuntimeError(
                    f"waited {limit:.0f} s in vain: {what}; there are {len(self.said)} deployments, {ready} Ready, "
                    f"and {len(self.pods)} pods"
                )
            time.sleep(0.05)

    def _deployment(self, change: str, obj: Any) -> None:
        key = obj["metadata"]["namespace"], obj["metadata"]["name"]
        status = obj.get("status", {})
        truth = {one["type"]: one["status"] for one in status.get("conditions", ())}
        current = status.get("observedGeneration") == obj["metadata"]["generation"]
        ready, settled = truth.get("Ready") == "True", truth.get("Progressing") == "False"
        before = self.said.get(key)
        if change == "DELETED":
            self.said.pop(key, None)
        elif before is None or (before.current, before.ready, before.settled) != (current, ready, settled):
            self.said[key] = Said(current, ready, settled, time.monotonic())

    def _pod(self, change: str, obj: Any) -> None:
        key = obj["metadata"]["namespace"], obj["metadata"]["name"]
        if change == "DELETED":
            self.pods.pop(key, None)
        else:
            self.pods.setdefault(key, time.monotonic())


class Fleet:
    """`size` deployments of four pods each: head, prefill, decode, gateway."""

    def __init__(self, api: Api, eyes: Eyes, size: int) -> None:
        self._api = api
        self.eyes = eyes
        self.keys = [(f"scale-{number // PER_NAMESPACE}", f"d-{number}") for number in range(size)]

    @property
    def namespaces(self) -> list[str]:
        return sorted({namespace for namespace, _ in self.keys})

    def open(self) -> None:
        """Make the namespaces, where they are not there yet."""

        def make(namespace: str) -> None:
            try:
                self._api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            except RefusedError as error:
                if error.status != 409:
                    raise

        self._by_many(make, self.namespaces)
        # Else the first pods are refused: their service account is not there yet.
        self._by_many(self._await_account, self.namespaces)

    def _await_account(self, namespace: str) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                self._api.call("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
                return
            except RefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def create(self) -> float:
        """Create all; seconds that it took."""
        began = time.monotonic()
        self._by_many(
            lambda key: self._api.call("POST", INFERENCE_DEPLOYMENT.path(key[0]), sample(key).build()), self.keys
        )
        return time.monotonic() - began

    def edit(self, key: Key, **spec: Any) -> None:
        self._api.call("PATCH", INFERENCE_DEPLOYMENT.path(*key), {"spec": spec}, MERGE)

    def edit_all(self, keys: list[Key], **spec: Any) -> None:
        self._by_many(lambda key: self.edit(key, **spec), keys)

    def scale(self, key: Key, decode: int) -> float:
        """Seconds from the moment before the edit to the moment at which the new decode engine was seen."""
        with self.expecting(key, decode) as seen:
            began = time.monotonic()
            self.edit(key, roles=roles(decode))
            return seen() - began

    @contextmanager
    def expecting(self, key: Key, decode: int) -> Iterator[Callable[[], float]]:
        """Gives a function that waits for decode engine number `decode` and returns when it was seen."""
        there = set(self.eyes.pods)

        def new() -> Key | None:
            start, end = f"{key[1]}-decode-", f"-{decode - 1}"
            pods = (pod for pod in list(self.eyes.pods) if pod not in there and pod[0] == key[0])
            return next((pod for pod in pods if pod[1].startswith(start) and pod[1].endswith(end)), None)

        def seen() -> float:
            self.eyes.until(f"decode engine {decode} of {key[1]}", lambda: new() is not None, 120)
            found = new()
            assert found is not None
            return self.eyes.pods[found]

        yield seen

    def ready(self) -> bool:
        said = self.eyes.said
        return len(said) >= len(self.keys) and all(
            key in said and said[key].current and said[key].ready for key in self.keys
        )

    def settled(self) -> bool:
        return self.ready() and all(self.eyes.said[key].settled for key in self.keys)

    def delete(self, limit: float) -> float:
        """Delete all; seconds until neither deployments nor pods are left."""
        began = time.monotonic()
        self._by_many(lambda namespace: self._api.call("DELETE", INFERENCE_DEPLOYMENT.path(namespace)), self.namespaces)
        self.eyes.until("all are gone", lambda: not self.eyes.said and not self.eyes.pods, limit)
        return time.monotonic() - began

    @staticmethod
    def _by_many(do: Callable[[Any], Any], things: list[Any]) -> None:
        with ThreadPoolExecutor(USERS) as pool:
            list(pool.map(do, things))


def roles(decode: int) -> list[dict[str, Any]]:
    return [{"name": "prefill", "replicas": 1}, {"name": "decode", "replicas": decode}]


def sample(key: Key = ("scale-0", "d-0")) -> Sample:
    """One deployment. Nothing of it is particular: what is measured is what everybody has."""
    return Plain(key[1], key[0]).set("roles", roles(1))


class Plain(Sample):
    """A sample as a user writes it, without what a server adds."""

    def build(self) -> dict[str, Any]:
        obj = super().build()
        meta = obj["metadata"]
        return obj | {"metadata": {"name": meta["name"], "namespace": meta["namespace"]}}
