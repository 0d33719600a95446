"""The chart on a real cluster, in its namespaced form: installed, upgraded, uninstalled, and what each leaves alone.

Beside the operator that the other tests share, under a release name of its own. The deployment asks for GPUs, so that
its engines are made and stay Pending: what is looked at is which pods exist, not what they compute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from local import build, demo, toolchain
from local.chart import CHART
from local.programs import attempt, run, wait_until

RELEASE = "headrace-chart"
SYSTEM, WATCHED = "headrace-chart-system", "headrace-chart-team"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:{RELEASE}"
DEPLOYMENT = {
    "apiVersion": "headrace.dev/v1alpha1",
    "kind": "InferenceDeployment",
    "metadata": {"name": "waiting"},
    "spec": {
        "model": {"source": "node:///opt/headrace/models/none", "servedName": "none"},
        "engine": {"device": {"resource": "nvidia.com/gpu", "count": 1}},
        "roles": [{"name": "serve", "replicas": 1}],
        "gateway": {"replicas": 1},
    },
}
ENGINES = "--selector=headrace.dev/deployment=waiting,headrace.dev/component=engine"


@dataclass(frozen=True)
class Release:
    """One release of the chart, and the cluster it is in."""

    cluster: Any
    values: tuple[str, ...]

    def helm(self, *words: str) -> str:
        return run(toolchain.helm(), *words, "--kubeconfig", self.cluster.kubeconfig, "--namespace", SYSTEM)

    def install(self, *values: str) -> str:
        """Installs or upgrades, and waits until the operator is Ready."""
        chosen = [word for value in (*self.values, *values) for word in ("--set-string", value)]
        watch = ("--set", f"watchNamespaces={{{WATCHED}}}")
        return self.helm("upgrade", "--install", RELEASE, str(CHART), *watch, *chosen, "--wait", "--timeout", "120s")

    def objects(self, *words: str, namespace: str = WATCHED) -> list[dict[str, Any]]:
        found = json.loads(self.cluster.kubectl("--namespace", namespace, "get", *words, "--output=json"))
        items: list[dict[str, Any]] = found["items"]
        return items

    def engines(self) -> set[str]:
        """The uids of the engines' pods: another uid is another pod."""
        return {pod["metadata"]["uid"] for pod in self.objects("pods", ENGINES)}

    def operators(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.objects("pods", namespace=SYSTEM)}

    def may(self, verb: str, resource: str, namespace: str) -> bool:
        words = ("auth", "can-i", verb, resource, "--namespace", namespace, f"--as={ACCOUNT}")
        said = attempt(toolchain.kubectl(), "--kubeconfig", self.cluster.kubeconfig, *words)
        return said.stdout.strip() == "yes"


@pytest.fixture(scope="module")
def release(cluster: Any) -> Iterator[Release]:
    if cluster.provider.name == "current":
        pytest.skip("images cannot be put into a cluster that was not made here: unset CLUSTER")
    operator, runtime = (build.build(build.TARGETS[name]) for name in build.LOCAL_TARGETS)
    cluster.load(operator.archive, runtime.archive)
    # The documented way: these CRDs first, whatever is there; then Helm finds what it would have put there itself.
    cluster.kubectl(*demo.APPLY_CRDS)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name, metadata in ((SYSTEM, {"name": SYSTEM, "labels": labels}), (WATCHED, {"name": WATCHED})):
        cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait")
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        cluster.kubectl("create", "--filename=-", stdin=json.dumps(namespace))
    try:
        yield Release(cluster, tuple(demo.image_values(demo.Prepared(operator, runtime, ()))))
    finally:
        cluster.kubectl("delete", "namespace", SYSTEM, WATCHED, "--ignore-not-found", "--wait")


def test_installs_where_the_restricted_standard_is_enforced(release: Release) -> None:
    assert "STATUS: deployed" in release.install()
    pods = release.objects("pods", namespace=SYSTEM)
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0, 0]


def test_has_no_rights_outside_of_the_namespaces_it_was_given(release: Release) -> None:
    assert release.may("create", "pods", WATCHED)
    assert not release.may("list", "pods", "default")
    assert not release.may("get", "secrets", WATCHED)


def test_looks_after_what_is_applied_there(release: Release) -> None:
    release.cluster.kubectl("--namespace", WATCHED, "apply", "--filename=-", stdin=json.dumps(DEPLOYMENT))
    wait_until("the engine's pod exists", lambda: len(release.engines()) == 1, 120)


def test_an_upgrade_leaves_engines_alone(release: Release) -> None:
    engines = release.engines()
    before = release.operators()
    release.install("logLevel=DEBUG")
    renewed = "the operators are new ones"
    wait_until(renewed, lambda: len(release.operators()) == 2 and release.operators().isdisjoint(before), 120)
    deployed = json.loads(release.helm("status", RELEASE, "--output", "json"))
    assert deployed["version"] == 2
    assert release.engines() == engines


def test_uninstalling_leaves_what_serves_and_nothing_that_gets_stuck(release: Release) -> None:
    engines = release.engines()
    release.helm("uninstall", RELEASE, "--wait", "--timeout", "60s")
    assert release.objects("roles,rolebindings", "--selector=app.kubernetes.io/name=headrace") == []
    wait_until("the operator is gone", lambda: not release.operators(), 120)
    assert release.engines() == engines
    (left,) = release.objects("infd")
    assert "finalizers" not in left["metadata"]
    release.cluster.kubectl("--namespace", WATCHED, "delete", "infd", "waiting", "--timeout=30s")
    children = ("pods,services,configmaps,secrets,deployments", "--selector=headrace.dev/deployment=waiting")
    wait_until("Kubernetes has removed the children", lambda: not release.objects(*children), 90)
