"""Engines leave under load: a rollout, a node that is drained, a deletion. No request is lost on the way."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace_operator import names
from headrace_runtime.contract import ENGINE_PORT
from local import toolchain
from tests.cluster.deployments import Infd, Json, pod_is_ready, prompt_of, tiny
from tests.cluster.streams import Load, Stream
from tests.cluster.test_deployment_roles import roles


@pytest.fixture(scope="module")
def pair(headrace: Any) -> Any:
    infd: Infd = headrace.infd("drained")
    manifest = tiny(infd.name)
    manifest["spec"] |= {
        "roles": roles(infd.name, 1, 1),
        "gateway": {"replicas": 1, "drainTimeout": "120s"},
        "drain": {"timeout": "300s"},
        "rollout": {"historyLimit": 0},
    }
    infd.apply(manifest)
    try:
        infd.until_ready(240)
        yield infd
    finally:
        infd.delete()


@pytest.mark.timeout(420)
def test_a_rollout_under_load_loses_no_request_and_keeps_both_roles_at_their_size(pair: Infd) -> None:
    before, load = set(pair.pods()), Load(pair)
    with load.flowing(), ready_engines(pair) as ready:
        pair.patch(engine={"maxModelLen": 1920})
        pair.until("all engines are new", lambda: pair.pods() and not before & set(pair.pods()), 240)
        pair.until_ready(120)
    print(f"{load}; fewest ready: {dict(ready.fewest)}")
    assert load.lost == [], str(load)
    assert ready.fewest == {"prefill": 1, "decode": 1}
    pair.until("the old revision's record is pruned", lambda: len(records(pair)) == 1, 90)


def records(infd: Infd) -> list[str]:
    return [child for child in infd.children() if child.startswith("ControllerRevision/")]


@pytest.mark.timeout(420)
def test_a_drained_node_loses_no_request_though_it_had_the_only_engine_of_a_role(headrace: Any, pair: Infd) -> None:
    node = pair.pods()[pair.pod(role="decode")]["spec"]["nodeName"]
    evicted = {name for name, pod in pair.pods().items() if pod["spec"]["nodeName"] == node}
    load, chosen = Load(pair), f"{names.DEPLOYMENT}={pair.name},{names.COMPONENT}=engine"
    try:
        with load.flowing():
            options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s")
            headrace.cluster.kubectl("drain", node, f"--pod-selector={chosen}", *options, timeout=260)
            assert not evicted & set(pair.pods())
            pair.until_ready(120)
    finally:
        headrace.cluster.kubectl("uncordon", node)
    print(load)
    assert load.lost == [], str(load)
    assert node not in {pod["spec"]["nodeName"] for pod in pair.pods().values()}


@pytest.mark.timeout(300)
def test_streams_under_way_end_whole_although_the_deployment_is_deleted(pair: Infd) -> None:
    tokens, decode = 1500, pair.pod(role="decode")
    with pair.gateway() as url:
        streams = [Stream(url, pair.model, prompt_of(seed, 300), tokens) for seed in range(8)]
        for stream in streams:
            stream.until_first_token()
        pair.kubectl("delete", "infd", pair.name, "--wait=false")
        pair.until("its pods are told to go", lambda: not pair.pods() and not pair.pods("gateway"), 60)
        going, running = monotonic(), _running(pair, decode)
        assert running > 0, "the streams had ended before the pods were told to go: this shows nothing"
        assert [stream.rest() for stream in streams] == [tokens] * len(streams)
        print(f"{running:g} streams went on for {monotonic() - going:.1f} s after all pods were told to go")
    pair.until_gone(120)


def _running(infd: Infd, pod: str) -> float:
    """Requests that an engine computes."""
    families = text_string_to_metric_families(infd.fetch(pod, ENGINE_PORT, "/metrics"))
    samples = (sample for family in families for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "vllm:num_requests_running")


@dataclass
class Ready:
    """Ready engines of each role that stay, and the fewest there ever were of each."""

    now: dict[str, Json] = field(default_factory=dict)
    fewest: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str, pod: Json) -> None:
        name = pod["metadata"]["name"]
        if kind == "DELETED":
            self.now.pop(name, None)
        else:
            self.now[name] = pod
        counts = Counter(one["metadata"]["labels"][names.ROLE] for one in self.now.values() if pod_is_ready(one))
        if self.fewest or len(counts) == 2:  # the first events tell one pod after the other
            for role in ("prefill", "decode"):
                self.fewest[role] = min(self.fewest.get(role, counts[role]), counts[role])


@contextmanager
def ready_engines(infd: Infd) -> Iterator[Ready]:
    """Every change of its engines' pods while the block runs, as the API server tells them."""
    chosen = f"{names.DEPLOYMENT}={infd.name},{names.COMPONENT}=engine"
    to = ("--kubeconfig", str(infd.kubectl.kubeconfig), "--namespace", infd.kubectl.namespace)
    how = ("--watch", "--output-watch-events", "--output=json", f"--selector={chosen}")
    ready = Ready()
    with subprocess.Popen([str(toolchain.kubectl()), *to, "get", "pods", *how], stdout=subprocess.PIPE) as watch:

        def follow() -> None:
            assert watch.stdout is not None
            for line in watch.stdout:
                event = json.loads(line)
                ready.note(event["type"], event["object"])

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            infd.until("both roles are seen", lambda: len(ready.fewest) == 2, 90)
            yield ready
        finally:
            watch.terminate()
            thread.join()
