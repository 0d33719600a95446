"""InferenceDeployments under test: applied with kubectl, watched through their status, asked through their gateway.

Nothing here knows how the operator works: it reads what a user reads. What a pod serves (an engine's figures, an
agent's state) is fetched through the API server's proxy, so that every kind of cluster will do.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from headrace_operator import names
from headrace_operator.api.conditions import Reason
from headrace_runtime.contract import AGENT_PORT, ENGINE_PORT, NodeState
from local import toolchain
from local.programs import run
from local.question import forwarded
from local.readiness import Kubectl, is_ready

ENGINE_FOLDER = "/opt/headrace/engine"
MODELS = "/opt/headrace/models"
# Everything that the operator makes for a deployment, and what comes of it.
CHILDREN = (
    "pods,services,configmaps,secrets,serviceaccounts,deployments,replicasets,roles,rolebindings,persistentvolumeclaims,"
    "poddisruptionbudgets,controllerrevisions,inferenceroles"
)
Json = dict[str, Any]


def tiny(name: str, *, replicas: int = 1, source: str = f"node://{MODELS}/tiny", mounted: bool = True) -> Json:
    """A deployment of the smallest model on CPUs, one role. Not `mounted`: its image has no engine in it."""
    engine: Json = {"device": {"resource": "cpu"}, "maxModelLen": 2048}
    role: Json = {"name": "serve", "replicas": replicas, "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}}
    head: Json = {"headResources": {"requests": {"cpu": "50m", "memory": "300Mi"}}}
    if mounted:
        environment = [{"name": "PATH", "value": f"{ENGINE_FOLDER}/bin:/usr/local/bin:/usr/bin:/bin"}]
        engine["env"] = environment
        role["podTemplate"] = _mounting("engine")
        head["headPodTemplate"] = _mounting("head", env=environment)
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"source": source, "servedName": "tiny"},
            "engine": engine,
            "kvCache": {"device": {"size": "64Mi"}},
            "roles": [role],
            "gateway": {"replicas": 1},
            "ray": head,
            "drain": {"timeout": "5s"},
        },
    }


def _mounting(container: str, **more: Any) -> Json:
    mount = {"name": "engine", "mountPath": ENGINE_FOLDER, "readOnly": True}
    volume = {"name": "engine", "hostPath": {"path": ENGINE_FOLDER, "type": "Directory"}}
    return {"spec": {"containers": [{"name": container, "volumeMounts": [mount], **more}], "volumes": [volume]}}


@dataclass(frozen=True)
class Reply:
    """One answer of a gateway, complete."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """What the model wrote, of a completion or of a chat."""
        assert self.status == 200, self.body[:1000]
        choice = json.loads(self.body)["choices"][0]
        text: str = choice["text"] if "text" in choice else choice["message"]["content"]
        return text


def post(url: str, path: str, body: Json, seconds: float = 60, key: str = "") -> Reply:
    """One request over a connection of its own. OSError or HTTPException: the connection broke."""
    parts = urlsplit(url)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return Reply(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Infd:
    """One InferenceDeployment of a cluster, which need not exist (yet)."""

    kubectl: Kubectl
    name: str
    model: str

    # ---- what is there

    def read(self) -> Json:
        return self.json("get", "infd", self.name)

    def json(self, *words: str) -> Json:
        found: Json = json.loads(self.kubectl(*words, "--output=json"))
        return found

    def conditions(self) -> dict[str, Json]:
        return {one["type"]: one for one in self.read().get("status", {}).get("conditions", [])}

    def pods(self, component: str = "engine", role: str | None = None) -> dict[str, Json]:
        """Its pods by name, those that are going away left out."""
        selector = f"{names.DEPLOYMENT}={self.name},{names.COMPONENT}={component}"
        selector += f",{names.ROLE}={role}" if role else ""
        items = self.json("get", "pods", "--selector", selector)["items"]
        return {one["metadata"]["name"]: one for one in items if "deletionTimestamp" not in one["metadata"]}

    def pod(self, component: str = "engine", role: str | None = None) -> str:
        (name,) = self.pods(component, role)
        return name

    def uids(self, component: str = "engine", role: str | None = None, *, ready: bool = False) -> set[str]:
        """Of its pods, or of those that are Ready: names may come back, uids do not."""
        found = self.pods(component, role).values()
        return {pod["metadata"]["uid"] for pod in found if pod_is_ready(pod) or not ready}

    def children(self) -> dict[str, str]:
        """Everything made for it: `Kind/name` and the resourceVersion."""
        items = self.json("get", CHILDREN, "--selector", f"{names.DEPLOYMENT}={self.name}")["items"]
        return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["resourceVersion"] for one in items}

    def lives(self) -> dict[str, tuple[str, int]]:
        """Its engine pods: uid and restarts. Equal twice: nobody touched them."""
        return {name: (pod["metadata"]["uid"], restarts(pod)) for name, pod in self.pods().items()}

    def fetch(self, pod: str, port: int, path: str) -> str:
        """What a pod answers to GET, asked for by the API server."""
        return self.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{self.kubectl.namespace}/pods/{pod}:{port}/proxy{path}"
        )

    def agent(self, pod: str) -> NodeState:
        return NodeState.model_validate_json(self.fetch(pod, AGENT_PORT, "/state"))

    def prompt_tokens(self, pod: str) -> Counter[str]:
        """Tokens of prompts that an engine met, by where their KV blocks came from."""
        return self._by_source(pod, "vllm:prompt_tokens_by_source_total")

    def cached_tokens(self, pod: str) -> Counter[str]:
        """Tokens of prompts that an engine did not compute, by the tier that had them: device, host, disk."""
        return self._by_source(pod, "vllm:prompt_tokens_cached_by_source_total")

    def _by_source(self, pod: str, metric: str) -> Counter[str]:
        text = self.fetch(pod, ENGINE_PORT, "/metrics")
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return Counter({one.labels["source"]: int(one.value) for one in samples if one.name == metric})

    # ---- what is done

    def apply(self, manifest: Json) -> None:
        to = ("--kubeconfig", self.kubectl.kubeconfig, "--namespace", self.kubectl.namespace)
        how = ("apply", "--server-side", "--force-conflicts", "--filename=-")
        run(toolchain.kubectl(), *to, *how, stdin=json.dumps(manifest))

    def patch(self, **spec: Any) -> None:
        """Lays `spec` over the spec."""
        self.kubectl("patch", "infd", self.name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def scale(self, replicas: int) -> None:
        """Sets the size of the first role."""
        change = [{"op": "replace", "path": "/spec/roles/0/replicas", "value": replicas}]
        self.kubectl("patch", "infd", self.name, "--type=json", "--patch", json.dumps(change))

    def delete(self) -> None:
        """Deletes it and returns once nothing of it is left."""
        self.kubectl("delete", "infd", self.name, "--ignore-not-found", "--wait")
        self.until_gone()

    # ---- what is waited for

    def until(self, what: str, condition: Callable[[], Any], limit: float) -> float:
        """Seconds until `condition` holds. Fails with the status and the pods after `limit` seconds."""
        began = monotonic()
        while not condition():
            if monotonic() - began > limit:
                raise AssertionError(f"waited {limit:.0f} s in vain until {what}\n{self.report()}")
            sleep(0.3)
        return monotonic() - began

    def until_ready(self, limit: float = 150) -> float:
        return self.until(f"{self.name} is Ready", lambda: is_ready(self.read()), limit)

    def until_gone(self, limit: float = 120) -> float:
        """Seconds until nothing is left of what was made for it."""
        began = monotonic()
        while left := self.children():
            assert monotonic() - began < limit, f"still there: {', '.join(left)}"
            sleep(0.3)
        return monotonic() - began

    def until_condition(self, kind: str, status: str, reason: Reason | str, limit: float = 60) -> float:
        """Seconds until the condition reads `status` and `reason`, said of the newest spec."""

        def holds() -> bool:
            current = self.read()
            one = _condition(current, kind)
            said = (one.get("status"), one.get("reason"), one.get("observedGeneration"))
            return said == (status, reason, current["metadata"]["generation"])

        return self.until(f"{kind} is {status} with reason {reason}", holds, limit)

    def message(self, kind: str) -> str:
        """What a condition says."""
        said: str = self.conditions()[kind]["message"]
        return said

    def report(self) -> str:
        """What a person would look at."""
        lines = [f"{kind} {one['status']} {one['reason']}: {one['message']}" for kind, one in self.conditions().items()]
        pods = self.kubectl.words("get", "pods", "--output=wide", "--selector", f"{names.DEPLOYMENT}={self.name}")
        return "\n".join([*lines, pods])

    # ---- what is asked

    @contextmanager
    def gateway(self) -> Iterator[str]:
        """The gateway's address on this machine."""
        with forwarded(self.kubectl.kubeconfig, self.kubectl.namespace, self.name) as url:
            yield url

    def complete(self, url: str, prompt: str | list[int], tokens: int = 4, key: str = "") -> Reply:
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        return post(url, "/v1/completions", body, key=key)


def _condition(deployment: Json, kind: str) -> Json:
    conditions = deployment.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def restarts(pod: Json) -> int:
    """How often containers of this pod were started again."""
    return sum(one["restartCount"] for one in pod.get("status", {}).get("containerStatuses", []))


def pod_is_ready(pod: Json) -> bool:
    """Whether it is Ready and stays."""
    states = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions", [])}
    return states.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def prompt_of(seed: int, tokens: int = 600) -> list[int]:
    """A prompt that no engine has seen, as token ids: long enough for several KV blocks on CPU (128 tokens each)."""
    return [(31 * seed + 17 * place) % 3000 + 100 for place in range(tokens)]


@dataclass
class Traffic:
    """One client that asks without a pause, with fresh long prompts, and remembers how each request ended."""

    infd: Infd
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    without_prefill: int = 0
    longest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def flowing(self) -> Iterator[Traffic]:
        """Requests flow while the block runs, the first of them answered before it begins."""
        with self.infd.gateway() as url:
            thread = threading.Thread(target=self._ask, args=(url,), daemon=True)
            thread.start()
            try:
                self.infd.until("a first request has ended", lambda: self.answered or self.failed, 120)
                yield self
            finally:
                self._stop.set()
                thread.join()

    def _ask(self, url: str) -> None:
        seed = int(monotonic() * 1000)
        while not self._stop.is_set():
            seed += 1
            began = monotonic()
            try:
                reply = self.infd.complete(url, prompt_of(seed, 200))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                sleep(0.2)  # a refused connection costs nothing: not a million of them
                continue
            self.longest = max(self.longest, monotonic() - began)
            if reply.status == 200:
                self.answered += 1
                self.without_prefill += "x-headrace-prefill" not in reply.headers
            else:
                self.failed.append(f"{reply.status} {reply.body[:200].decode(errors='replace')}")

    def __str__(self) -> str:
        return f"{self.answered} answered, {len(self.failed)} failed, the longest took {self.longest:.1f} s"
