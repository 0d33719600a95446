"""The world of the cluster: one InferenceDeployment of real engines on the local cluster.

Everything is read as a user reads it, through the API server; the load comes in by the gateway's Service. Faults
(`faults.py`) that Kubernetes has no word for, such as a control plane that hangs or a link that drops packets, are done
to the machine under it, so they need the bare cluster of `python -m local`.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from bench.programs import running
from chaos.faults import FAULTS
from chaos.journal import Truth
from chaos.kinds import Pod, is_ready, restarts
from chaos.machine import fetch, free_ports, holds
from chaos.questions import Shape
from chaos.scenario import Deployment, Fault, Scenario
from chaos.world import Blow
from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_runtime.contract import (
    AGENT_PORT,
    ENGINE_PORT,
    GATEWAY_ADMIN_PORT,
    Endpoint,
    FixedDiscovery,
    GatewayContract,
    NodeState,
)
from local import demo, readiness, toolchain
from local.choice import choose
from local.errors import LocalError
from local.programs import attempt, run, wait_until
from local.provider import Provider
from local.readiness import Kubectl
from local.steps import Steps

MANIFEST = Path(__file__).with_name("deployment.yaml")
NAMESPACE, NAME = "headrace-chaos", "chaos"
MODEL = "tiny"
VOCABULARY = 4000
NODES = 3
READY_SECONDS = 300.0
SELECTOR = f"{names.DEPLOYMENT}={NAME}"
OPERATOR = f"app.kubernetes.io/instance={demo.RELEASE}"
DNS = ("kube-system", "k8s-app=kube-dns")
CONTAINERS_KILLED: Mapping[Fault, str] = {
    "gateway_killed": "gateway",
    "head_killed": "head",
    "operator_killed": "operator",
}
"""Faults that end a container, and of what."""

Json = dict[str, Any]


@dataclass
class Cluster:
    """The running deployment."""

    provider: Provider
    kubectl: Kubectl
    deployment: Deployment
    api: str
    """Of `kubectl proxy`: an API server that can be asked without a process for each question."""
    url: str = ""
    model: str = MODEL
    vocabulary: int = VOCABULARY
    answers: dict[Shape, list[Truth]] = field(default_factory=dict)

    def inside(self, command: Sequence[str]) -> list[str]:
        return self.provider.inside(command)

    def targets(self, scenario: Scenario) -> list[str]:
        self._renew(scenario.fault)
        role = scenario.target
        return [""] if role == "none" else sorted(self.pods("engine", role))

    def _renew(self, fault: Fault) -> None:
        """Replace, one after the other, the pods that a strike has restarted before: the kubelet waits longer each time
        before it starts a container again, and it is one fault that is measured."""
        component = CONTAINERS_KILLED.get(fault)
        if component is None:
            return
        for name, pod in self._pods_of(component).items():
            if restarts(pod):
                namespace = pod["metadata"]["namespace"]
                Kubectl(self.kubectl.kubeconfig, namespace)("delete", "pod", name, "--wait")
                wait_until(f"a new pod is there for {name}", lambda: holds(self._all_well), READY_SECONDS, step=0.5)

    def _all_well(self) -> bool:
        """Whether every pod is Ready and all engines serve, and the deployment says so."""
        pods = [*self.operator_pods().values(), *self.pods("gateway").values(), *self.pods("head").values()]
        return all(map(is_ready, pods)) and self.status(c.READY) == "True" and self.all_serve()

    def _pods_of(self, component: str) -> dict[str, Pod]:
        return self.operator_pods() if component == "operator" else self.pods(component)

    def note(self) -> str:
        return self.kubectl.words("get", "infd,pods", "--output=wide")

    # ---- what is there

    def get(self, path: str) -> Json:
        """OSError: the API server, or what it asked, does not answer."""
        return fetch(f"{self.api}{path}")

    def listed(self, namespace: str, selector: str) -> dict[str, Pod]:
        """Pods by name, those that are going away too."""
        found = self.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector.replace('=', '%3D')}")
        return {one["metadata"]["name"]: one for one in found["items"]}

    def pods(self, component: str, role: str = "") -> dict[str, Pod]:
        """Of the deployment."""
        selector = f"{SELECTOR},{names.COMPONENT}={component}" + (f",{names.ROLE}={role}" if role else "")
        return self.listed(NAMESPACE, selector)

    def ask(self, pod: str, port: int, path: str) -> Json:
        """What a pod answers, asked for by the API server."""
        return self.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{port}/proxy{path}")

    def routed(self) -> list[set[str]]:
        """Of each gateway, the engines that it sends requests to."""
        states = [self.ask(pod, GATEWAY_ADMIN_PORT, "/state") for pod in self.pods("gateway")]
        return [{one["name"] for one in state["engines"] if takes_requests(one)} for state in states]

    def status(self, condition: str) -> str:
        """Of the InferenceDeployment."""
        found = self.get(f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}/{NAME}")
        return next((one["status"] for one in found["status"]["conditions"] if one["type"] == condition), "Unknown")

    def all_serve(self) -> bool:
        """Whether every engine that is wanted is Ready, and every gateway sends requests to it."""
        engines = {name for name, pod in self.pods("engine").items() if is_ready(pod)}
        gateways = self.pods("gateway").values()
        return (
            len(engines) == self.deployment.prefill + self.deployment.decode
            and len(gateways) == self.deployment.gateways
            and all(map(is_ready, gateways))
            and all(engines == routed for routed in self.routed())
        )

    def leaves_out(self, pod: str) -> bool:
        """Whether a gateway sends no requests to this engine."""
        return any(pod not in routed for routed in self.routed())

    def ray_is_broken(self) -> bool:
        return self.status(c.RAY_READY) == "False"

    def node_is_ready(self, node: str) -> bool:
        return is_ready(self.get(f"/api/v1/nodes/{node}"))

    def agent(self, pod: str) -> NodeState:
        return NodeState.model_validate(self.ask(pod, AGENT_PORT, "/state"))

    def operator_pods(self) -> dict[str, Pod]:
        return self.listed(demo.SYSTEM_NAMESPACE, OPERATOR)

    def leader(self) -> str:
        """The operator that works, as the Lease names it: its pod, `_`, and what no other process has."""
        lease = self.get(f"/apis/coordination.k8s.io/v1/namespaces/{demo.SYSTEM_NAMESPACE}/leases/{demo.RELEASE}")
        return str(lease["spec"].get("holderIdentity") or "")

    def dns_pods(self) -> dict[str, Pod]:
        return self.listed(*DNS)

    def strike(self, scenario: Scenario, target: str) -> Blow:
        return FAULTS[scenario.fault](self, target)

    # ---- the planted arm

    @contextmanager
    def planted(self) -> Iterator[str]:
        """A gateway of this machine, in the cluster's network, before the engines as they are now."""
        engines = self.pods("engine")
        endpoints = tuple(
            Endpoint(
                name=name,
                url=f"http://{pod['status']['podIP']}:{ENGINE_PORT}",
                role=pod["metadata"]["labels"][names.ROLE],
                revision=pod["metadata"]["labels"][names.REVISION],
            )
            for name, pod in engines.items()
        )
        port, admin = free_ports(2)
        contract = GatewayContract(
            namespace=NAMESPACE,
            deployment=NAME,
            served_name=MODEL,
            discovery=FixedDiscovery(endpoints=endpoints),
            max_retries=0,
            engine_wait_seconds=0,
            resume=None,
            drain_seconds=1.0,
            port=port,
            admin_port=admin,
        )
        with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
            file = Path(folder) / "gateway.json"
            file.write_text(contract.model_dump_json(by_alias=True))
            argv = [sys.executable, "-m", "headrace_runtime", "gateway", f"--contract={file}", "--name=planted"]
            with running(self.inside([*argv, "--address=127.0.0.1"]), Path(folder) / "gateway.log"):
                url = f"http://127.0.0.1:{port}"
                wait_until("the planted gateway serves", lambda: self._is_well(f"{url}/health"), 60)
                yield url

    def _is_well(self, url: str) -> bool:
        script = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=2)"
        return attempt(*self.inside([sys.executable, "-c", script])).returncode == 0


def takes_requests(engine: Mapping[str, Any]) -> bool:
    """Whether a gateway sends requests to this engine, of its `/state`."""
    return bool(engine["healthy"] and engine["ready"] and not engine["draining"])


@contextmanager
def opened(deployment: Deployment) -> Iterator[Cluster]:
    """The deployment on the cluster that is up, or on one that is brought up and taken down again."""
    provider, console, steps = choose(), Console(stderr=True), Steps()
    if provider.name != "bare":
        raise LocalError(f"cluster scenarios reach into the machine under a bare cluster; this is {provider.name}")
    prepared = demo.prepare(provider, console)
    ours = not provider.status().up
    provider.up(NODES, prepared.mounts, fresh=False, steps=steps)
    try:
        provider.load([prepared.operator.archive, prepared.runtime.archive], steps)
        demo.install(provider, prepared, console)
        with deployed(provider, deployment) as cluster:
            yield cluster
    finally:
        if ours:
            provider.down(steps)


@contextmanager
def deployed(provider: Provider, deployment: Deployment) -> Iterator[Cluster]:
    """The deployment in a namespace of its own, Ready; the operator is installed already."""
    kubectl = Kubectl(provider.kubeconfig(), NAMESPACE)
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
    kubectl("create", "namespace", NAMESPACE)
    (port,) = free_ports(1)
    proxy = [str(toolchain.kubectl()), "--kubeconfig", str(kubectl.kubeconfig), "proxy", f"--port={port}"]
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder, running(proxy, Path(folder) / "proxy.log"):
        cluster = Cluster(provider, kubectl, deployment, f"http://127.0.0.1:{port}")
        words = ("--kubeconfig", kubectl.kubeconfig, "--namespace", NAMESPACE, "apply", "--server-side", "--filename=-")
        run(toolchain.kubectl(), *words, stdin=json.dumps(manifest(deployment)))

        def ready() -> bool:
            return readiness.is_ready(json.loads(kubectl("get", "infd", NAME, "--output=json"))) and cluster.all_serve()

        try:
            wait_until(f"{NAME} is Ready and all serve", lambda: holds(ready), READY_SECONDS, step=0.5)
            service = json.loads(kubectl("get", "service", NAME, "--output=json"))
            # By address: names are the clients' affair, and DNS is one of the things that are taken away.
            cluster.url = f"http://{service['spec']['clusterIP']}"
            yield cluster
        finally:
            kubectl("delete", "namespace", NAMESPACE, "--wait")


def manifest(deployment: Deployment) -> Json:
    """The InferenceDeployment with these numbers of engines and gateways."""
    found: Json = yaml.safe_load(MANIFEST.read_text())
    for role in found["spec"]["roles"]:
        role["replicas"] = getattr(deployment, role["name"])
    found["spec"]["gateway"]["replicas"] = deployment.gateways
    return found
