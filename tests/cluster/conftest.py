"""One cluster for all tests of this folder: the one that is up, or one that is brought up and taken down again.

On it one Headrace, installed as `make demo` installs it from the images that are built here, and one deployment of the
sample. Tests share them, and put right what they broke.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from local import demo, images, programs, toolchain
from local.choice import choose, why_none
from local.demo import MODEL, NAME, RELEASE, SAMPLE, SYSTEM_NAMESPACE
from local.provider import Provider
from local.readiness import Kubectl
from local.steps import Steps
from tests.cluster.deployments import Infd, pod_is_ready

HERE = Path(__file__).parent
NODES = 3
NAMESPACE = "headrace-test"
# The ground first, since it kills nodes; then what stands on it; last what looks back at all that was done.
# As many as the chart has by default.
OPERATORS = 2
ORDER = ("test_local_", "test_chart_", "test_deployment_sample", "test_deployment_", "test_operator_")


@dataclass(frozen=True)
class Cluster:
    """The cluster under test. Whoever kills or cuts a node starts or heals it again."""

    provider: Provider
    kubeconfig: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Runs kubectl and returns its output; a failure raises with its words."""
        options = ("--kubeconfig", str(self.kubeconfig))
        return programs.run(toolchain.kubectl(), *options, *arguments, stdin=stdin, timeout=timeout)

    def run(self, *command: str, timeout: float = 60) -> str:
        """Runs a command where pods and Services can be reached, by name too."""
        return programs.run(*self.provider.inside(command), env={"KUBECONFIG": str(self.kubeconfig)}, timeout=timeout)

    def load(self, *archives: Path) -> None:
        """Puts images into all nodes that lack them."""
        self.provider.load(archives, Steps())


def _is_here(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HERE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_here(item):
            item.add_marker(pytest.mark.cluster)
    items.sort(key=_place)  # keeps the order of equals


def _place(item: pytest.Item) -> int:
    if not _is_here(item):
        return -1
    return next((place for place, prefix in enumerate(ORDER) if item.path.name.startswith(prefix)), len(ORDER))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is not there yet before any test's clock runs: the first time that takes minutes."""
    wanted = [item for item in session.items if _is_here(item)]
    if not wanted or session.config.option.collectonly or why_none() is not None:
        return
    provider = choose()
    if provider.name == "bare":
        toolchain.kubernetes()
        toolchain.kubectl()
        images.coredns_image()
        images.debian_base()
    if provider.name != "current" and any("headrace" in getattr(item, "fixturenames", ()) for item in wanted):
        demo.prepare(provider, Console(stderr=True))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_none():
        pytest.skip(reason)
    provider = choose()
    ours = not provider.status().up
    if ours:
        provider.up(NODES, (), fresh=False, steps=Steps())
    try:
        yield Cluster(provider, provider.kubeconfig())
    finally:
        if ours:
            provider.down(Steps())


@dataclass(frozen=True)
class Headrace:
    """The operator under test, installed by its chart, and a namespace for the deployments."""

    cluster: Cluster
    system: Kubectl
    """For the operator's namespace."""
    kubectl: Kubectl
    """For the namespace of the deployments."""

    def infd(self, name: str, model: str = "tiny") -> Infd:
        return Infd(self.kubectl, name, model)

    def operator_pod(self) -> str:
        """The name of the pod that leads, once all operators are Ready and one of them is it."""
        leader = ""

        def settled() -> bool:
            nonlocal leader
            listed = self.system("get", "pods", f"--selector=app.kubernetes.io/instance={RELEASE}", "--output=json")
            pods = json.loads(listed)["items"]
            ready = [pod["metadata"]["name"] for pod in pods if pod_is_ready(pod)]
            # `--ignore-not-found`: the first of them makes the Lease.
            lease = self.system(
                "get", "lease", RELEASE, "--ignore-not-found", "--output=jsonpath={.spec.holderIdentity}"
            )
            leader = lease.strip().rpartition("_")[0]
            return len(pods) == len(ready) == OPERATORS and leader in ready

        programs.wait_until("all operators are Ready, and one of them leads", settled, 90)
        return leader


@dataclass(frozen=True)
class Chat:
    """The sample, and how long it took from `kubectl apply` to Ready."""

    infd: Infd
    seconds: float


@pytest.fixture(scope="session")
def headrace(cluster: Cluster) -> Iterator[Headrace]:
    provider, console, steps = cluster.provider, Console(stderr=True), Steps()
    if provider.name == "current":
        pytest.skip("images and the engine cannot be put into a cluster that was not made here: unset CLUSTER")
    prepared = demo.prepare(provider, console)
    provider.mount(prepared.mounts, steps)
    provider.load([prepared.operator.archive, prepared.runtime.archive], steps)
    demo.install(provider, prepared, console)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
    cluster.kubectl("create", "namespace", NAMESPACE)
    made = Headrace(cluster, Kubectl(cluster.kubeconfig, SYSTEM_NAMESPACE), Kubectl(cluster.kubeconfig, NAMESPACE))
    try:
        yield made
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait")


@pytest.fixture(scope="session")
def chat(headrace: Headrace) -> Chat:
    """The sample of `make demo`, applied and Ready."""
    infd = headrace.infd(NAME, MODEL)
    headrace.kubectl("apply", "--filename", str(SAMPLE))
    return Chat(infd, infd.until_ready(240))
