"""The cluster itself: what the other cluster tests take for granted."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from time import monotonic, sleep
from typing import Any

import pytest

from local import images
from local.bare import Bare
from local.errors import LocalError
from local.layout import Mount
from local.steps import Steps

NAMESPACE = "local-cluster-test"
WRECK = "headrace-wreck"  # a second cluster, which the shared one does not notice
GET = "import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"

WEB = dedent("""
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web}
    spec:
      replicas: 1
      selector: {matchLabels: {app: web}}
      template:
        metadata: {labels: {app: web}}
        spec:
          terminationGracePeriodSeconds: 0
          containers:
          - name: web
            image: %(image)s
            command: [python3.11, -m, http.server, "8080"]
            workingDir: /opt/headrace/page
            readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
            volumeMounts: [{name: page, mountPath: /opt/headrace/page}]
          volumes: [{name: page, hostPath: {path: /opt/headrace/page, type: Directory}}]
    ---
    apiVersion: v1
    kind: Service
    metadata: {name: web}
    spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
    ---
    apiVersion: apps/v1
    kind: DaemonSet
    metadata: {name: client}
    spec:
      selector: {matchLabels: {app: client}}
      template:
        metadata: {labels: {app: client}}
        spec:
          terminationGracePeriodSeconds: 0
          containers:
          - {name: client, image: %(image)s, command: [python3.11, -c, "import time; time.sleep(1e6)"]}
    """) % {"image": images.DEBIAN}


def eventually(condition: Callable[[], Any], limit: float = 60) -> Any:
    """The first true answer of `condition` within `limit` seconds."""
    end = monotonic() + limit
    while not (answer := condition()):
        assert monotonic() < end, "it did not come true in time"
        sleep(0.2)
    return answer


def answer(run: Callable[..., str], *command: str) -> str:
    """What the command says, or nothing: kube-proxy learns of a new endpoint a moment after the rollout is complete."""
    try:
        return run(*command)
    except LocalError as error:
        if "refused" in error.message or "not known" in error.message:
            return ""
        raise


def readiness(cluster: Any) -> dict[str, bool]:
    return {node.name: node.ready for node in cluster.provider.status().nodes}


def pods(cluster: Any, app: str) -> list[dict[str, Any]]:
    listed = cluster.kubectl("-n", NAMESPACE, "get", "pods", "-l", f"app={app}", "--output=json")
    items: list[dict[str, Any]] = json.loads(listed)["items"]
    return items


def place(cluster: Any) -> str:
    """The node on which a Ready web server runs, or nothing."""
    for pod in pods(cluster, "web"):
        states = {item["type"]: item["status"] for item in pod["status"].get("conditions", ())}
        if states.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
            return str(pod["spec"]["nodeName"])
    return ""


@pytest.fixture(scope="module")
def bare(cluster: Any) -> Any:
    if not isinstance(cluster.provider, Bare):
        pytest.skip("these are checks of the bare cluster")
    return cluster


@pytest.fixture(scope="module")
def web(bare: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A web server on one node, which serves a folder of this machine, and a client on every node."""
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_text("served")
    bare.load(images.debian_base())
    if Path("/opt/headrace/page") not in [mount.target for mount in bare.provider.mounts()]:
        bare.provider.mount([Mount(page, Path("/opt/headrace/page"))], Steps())
    bare.kubectl("create", "namespace", NAMESPACE)
    bare.kubectl("-n", NAMESPACE, "apply", "--filename=-", stdin=WEB)
    try:
        for what in ("deployment/web", "daemonset/client"):
            bare.kubectl("-n", NAMESPACE, "rollout", "status", what, "--timeout=60s")
        yield bare
    finally:
        bare.kubectl("delete", "namespace", NAMESPACE, "--wait")


def test_all_nodes_are_ready(cluster: Any) -> None:
    states = readiness(cluster)
    assert len(states) >= 1
    assert all(states.values())


def test_a_service_is_reached_by_name_from_every_node(web: Any) -> None:
    clients = {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in pods(web, "client")}
    assert set(clients) == set(readiness(web))
    for name in clients.values():
        command = ("-n", NAMESPACE, "exec", name, "--", "python3.11", "-c", GET.format(url=f"http://web.{NAMESPACE}/"))
        assert eventually(functools.partial(answer, web.kubectl, *command)) == "served"


def test_a_service_is_reached_by_name_from_the_hub(web: Any) -> None:
    command = (sys.executable, "-c", GET.format(url=f"http://web.{NAMESPACE}/"))
    assert eventually(functools.partial(answer, web.run, *command)) == "served"


def test_an_image_that_is_there_is_not_loaded_again(web: Any) -> None:
    began = monotonic()
    web.load(images.debian_base())
    assert monotonic() - began < 2


def test_a_second_up_changes_nothing(bare: Any) -> None:
    before = bare.kubectl("get", "nodes", "--output=jsonpath={.items[*].metadata.uid}")
    bare.provider.up(len(readiness(bare)), (), fresh=False, steps=Steps())
    assert bare.kubectl("get", "nodes", "--output=jsonpath={.items[*].metadata.uid}") == before


@pytest.mark.timeout(180)
def test_a_killed_nodes_pod_moves_and_the_node_comes_back(web: Any) -> None:
    lost = eventually(lambda: place(web))
    web.provider.kill(lost)
    try:
        eventually(lambda: not readiness(web)[lost])
        assert eventually(lambda: place(web)) != lost
    finally:
        web.provider.start(lost)
    eventually(lambda: all(readiness(web).values()))


@pytest.mark.timeout(180)
def test_a_cut_nodes_pod_moves_and_the_node_comes_back(web: Any) -> None:
    lost = eventually(lambda: place(web))
    web.provider.cut(lost)
    try:
        eventually(lambda: not readiness(web)[lost])
        assert eventually(lambda: place(web)) != lost
    finally:
        web.provider.heal(lost)
    eventually(lambda: all(readiness(web).values()))


def traces() -> list[str]:
    """What a cluster called WRECK has on this machine: processes, cgroups, namespaces, folders."""
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{WRECK}")]
    found += [str(path) for path in Path("/run/netns").glob(f"{WRECK}-*")]
    found += [str(path) for path in Path("/var/lib").glob(WRECK)]
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        found += [words] if f"/var/lib/{WRECK}/" in words else []
    return found


def machine_network() -> list[str]:
    """What must be the same with a cluster and without."""
    commands = (["ip", "-oneline", "address"], ["ip", "route"], ["iptables-save"])
    rules = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    uncounted = ["\n".join(line for line in text.splitlines() if not line.startswith(("#", ":"))) for text in rules]
    return [*uncounted, Path("/proc/sys/net/ipv4/ip_forward").read_text()]


@pytest.mark.timeout(180)
def test_down_leaves_nothing_of_an_up_that_was_killed_half_way(bare: Any) -> None:
    environment = {**os.environ, "CLUSTER": "bare", "HEADRACE_LOCAL_NAME": WRECK}
    environment.pop("HEADRACE_LOCAL_HOME", None)
    local = (sys.executable, "-m", "local")
    before = machine_network()

    launcher = subprocess.Popen([*local, "up", "--nodes", "1"], env=environment, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: any("kubelet" in trace for trace in traces()))
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    assert machine_network() == before
    assert traces()

    for _ in range(2):  # the second has nothing to do
        subprocess.run([*local, "down"], env=environment, check=True, capture_output=True)
        assert traces() == []
    assert machine_network() == before
    assert all(readiness(bare).values())
