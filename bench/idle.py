"""What an operator with nothing to do costs: writes to the API server, processor time and memory while all is Ready.

Runs against the cluster that `make demo` leaves behind (or any with Headrace in it) and changes nothing there. Writes
are counted twice: by the operator's own count of its calls, and by the versions of everything that carries a
deployment's label, which move with a write of anybody.
"""

import json
import time
from pathlib import Path

import click
from prometheus_client.parser import text_string_to_metric_families

from bench.report import Options, Report, at_most
from local import toolchain
from local.choice import choose
from local.programs import run as run_program

SECONDS, QUICK_SECONDS = 600.0, 30.0
QUIET_SECONDS, SETTLE_SECONDS = 20.0, 180.0
MEMORY_LIMIT_MB = 120.0
NAMESPACE = "headrace-system"
OPERATOR = "app.kubernetes.io/name=headrace"
PORT = 8080
KINDS = "inferencedeployments,pods,services,configmaps,deployments.apps,serviceaccounts,roles,rolebindings"
LABEL = "headrace.dev/deployment"
CALLS = "headrace_api_calls_total{"
"""Followed by the method and the resource."""
RENEWALS = CALLS + "PATCH,leases}"


def run(options: Options) -> Report:
    cluster = _Cluster(choose().kubeconfig())
    pod = cluster.operator()
    cluster.require_ready()
    cluster.settle()
    seconds = QUICK_SECONDS if options.quick else SECONDS
    versions, before, began = cluster.versions(), cluster.metrics(pod), time.monotonic()
    time.sleep(seconds)  # the quiet itself is what is measured
    after, took = cluster.metrics(pod), time.monotonic() - began
    moved = {name: version for name, version in cluster.versions().items() if versions.get(name) != version}
    writes, renewals = _writes(after) - _writes(before), after.get(RENEWALS, 0) - before.get(RENEWALS, 0)
    reads = _calls(after) - _calls(before) - writes - renewals
    cpu = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    memory = after["process_resident_memory_bytes"] / 1e6
    report = Report("idle", "the operator while nothing changes", ("", "value"))
    report.rows = [
        ["seconds watched", f"{took:.0f}"],
        ["InferenceDeployments", f"{after['headrace_workers']:.0f}"],
        ["writes to the API server", f"{writes:.0f}"],
        ["renewals of its Lease", f"{renewals:.0f}"],
        ["reads", f"{reads:.0f}"],
        ["objects that changed", f"{len(moved)}"],
        ["processor, millicores", f"{1000 * cpu / took:.1f}"],
        ["resident memory, MB", f"{memory:.0f}"],
    ]
    report.notes = [f"changed: {name}" for name in sorted(moved)]
    report.checks = [
        at_most("writes of the operator", writes, 0),
        at_most("objects of deployments that changed", len(moved), 0),
        at_most("resident memory of the operator, MB", memory, MEMORY_LIMIT_MB),
    ]
    return report


class _Cluster:
    """Reads through kubectl."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = (toolchain.kubectl(), "--kubeconfig", kubeconfig)

    def _kubectl(self, *words: str) -> str:
        return run_program(*self._command, *words)

    def operator(self) -> str:
        """The name of the operator's pod that leads. Raises ClickException where there is none."""
        listed = json.loads(
            self._kubectl("get", "pods", "--namespace", NAMESPACE, "--selector", OPERATOR, "-o", "json")
        )
        running = [pod["metadata"]["name"] for pod in listed["items"] if pod["status"]["phase"] == "Running"]
        for name in running:
            if self.metrics(name).get("headrace_operator_leader"):
                return str(name)
        raise click.ClickException(f"no operator runs in namespace {NAMESPACE}: `make demo` brings one up")

    def require_ready(self) -> None:
        """Raises ClickException unless there is an InferenceDeployment and all of them are Ready."""
        listed = json.loads(self._kubectl("get", "inferencedeployments", "--all-namespaces", "-o", "json"))["items"]
        ready = [
            condition["status"] == "True"
            for item in listed
            for condition in item.get("status", {}).get("conditions", [])
            if condition["type"] == "Ready"
        ]
        if not ready or not all(ready):
            raise click.ClickException(
                f"{sum(ready)} of {len(listed)} InferenceDeployments are Ready: nothing is idle yet"
            )

    def settle(self) -> None:
        """Wait until nothing has changed for a while: Ray may join after Ready. ClickException: it never stops."""
        versions, since, began = self.versions(), time.monotonic(), time.monotonic()
        while time.monotonic() - since < QUIET_SECONDS:
            if time.monotonic() - began > SETTLE_SECONDS:
                raise click.ClickException(f"objects of deployments still change after {SETTLE_SECONDS:.0f} s")
            time.sleep(1)
            if (now := self.versions()) != versions:
                versions, since = now, time.monotonic()

    def versions(self) -> dict[str, str]:
        """`Kind namespace/name` → resourceVersion of every child, and of the deployments themselves."""
        children = self._kubectl("get", KINDS, "--all-namespaces", "--selector", LABEL, "-o", "json")
        own = self._kubectl("get", "inferencedeployments", "--all-namespaces", "-o", "json")
        items = [*json.loads(children)["items"], *json.loads(own)["items"]]
        return {
            f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}": item["metadata"][
                "resourceVersion"
            ]
            for item in items
        }

    def metrics(self, pod: str) -> dict[str, float]:
        """Samples by name, those with labels as `name{value,value}`."""
        text = self._kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{PORT}/proxy/metrics")
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(value for _, value in sorted(sample.labels.items()))
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples


def _calls(samples: dict[str, float]) -> float:
    return sum(value for name, value in samples.items() if name.startswith(CALLS))


def _writes(samples: dict[str, float]) -> float:
    """All calls but GET, which watches and lists are too, and but renewals of the Lease."""
    told = {name: value for name, value in samples.items() if name.startswith(CALLS) and name != RENEWALS}
    return sum(value for name, value in told.items() if not name.startswith(CALLS + "GET,"))
