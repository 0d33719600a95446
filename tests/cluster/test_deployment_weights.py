"""Weights whose bytes change on one node, and weights that are fetched: what a user sees, and what goes on serving."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from local.demo import RELEASE
from local.readiness import Kubectl
from tests.cluster.deployments import MODELS, Infd, Json, pod_is_ready, restarts, tiny

# Folders below this one are a node's own, also where its other folders are the machine's.
OWN = "/var/lib/headrace"
FOLDER = f"{OWN}/test-weights"
CACHE = f"{OWN}/models"
WEIGHTS = "model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_PORT = 8000
RESCAN = "2s"

COPY = "import shutil, sys; shutil.rmtree(sys.argv[2], True); shutil.copytree(sys.argv[1], sys.argv[2])"
REMOVE = "import shutil, sys; shutil.rmtree(sys.argv[1], True)"
# One bit in the middle of each file of this name below a folder; twice, and all is as it was.
FLIP = """
import pathlib, sys
for file in pathlib.Path(sys.argv[1]).rglob(sys.argv[2]):
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    with file.open("r+b") as out:
        out.write(body)
    print(file)
"""
# As much of a model hub as a fetch asks for, over a folder: one commit, all files kept by their SHA-256.
HUB = """
import hashlib, http.server, json, pathlib, sys
root, commit = pathlib.Path(sys.argv[1]), sys.argv[2]
files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
tree = [{"type": "file", "path": name, "oid": "", "size": len(body),
         "lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}} for name, body in files.items()]
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        name = path.partition(f"/resolve/{commit}/")[2]
        body = json.dumps(tree).encode() if path.endswith(f"/tree/{commit}") else files.get(name)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")
http.server.ThreadingHTTPServer(("", int(sys.argv[3])), Hub).serve_forever()
"""


def image(headrace: Any) -> str:
    """Of the engines, as the operator was told."""
    listed = headrace.system("get", "deployments", f"--selector=app.kubernetes.io/instance={RELEASE}", "--output=json")
    (deployment,) = json.loads(listed)["items"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    found: str = next(one["value"] for one in container["env"] if one["name"] == "HEADRACE_ENGINE_IMAGE")
    return found


def helper(name: str, image: str, command: list[str], mounts: dict[str, str], **spec: Any) -> Json:
    """A pod beside the deployments, as root: `mounts` are folders of its node, by where it sees them."""
    volumes = {f"v{number}": (path, seen) for number, (seen, path) in enumerate(mounts.items())}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": command,
                    "securityContext": {"runAsUser": 0},
                    "volumeMounts": [{"name": name, "mountPath": seen} for name, (_, seen) in volumes.items()],
                }
            ],
            "volumes": [
                {"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
                for name, (path, _) in volumes.items()
            ],
            **spec,
        },
    }


@dataclass(frozen=True)
class Hands:
    """A pod on each node, that changes the node's files."""

    kubectl: Kubectl
    nodes: tuple[str, ...]

    def run(self, node: str, script: str, *arguments: str) -> str:
        return self.kubectl("exec", f"hands-{node}", "--", "python3", "-c", script, *arguments)


def apply(kubectl: Kubectl, infd: Infd, *objects: Json) -> None:
    for one in objects:
        infd.apply(one)
    for one in objects:
        if one["kind"] == "Pod":
            kubectl("wait", "--for=condition=Ready", f"pod/{one['metadata']['name']}", "--timeout=90s")


@pytest.fixture(scope="module")
def hands(headrace: Any) -> Iterator[Hands]:
    kubectl: Kubectl = headrace.kubectl
    listed = json.loads(kubectl("get", "nodes", "--output=json"))["items"]
    nodes = tuple(sorted(one["metadata"]["name"] for one in listed))
    mounts = {MODELS: MODELS, OWN: OWN}
    command = ["python3", "-c", "import time; time.sleep(86400)"]
    pods = [helper(f"hands-{node}", image(headrace), command, mounts, nodeName=node) for node in nodes]
    try:
        apply(kubectl, headrace.infd("any"), *pods)
        yield Hands(kubectl, nodes)
    finally:
        for pod in pods:
            kubectl("delete", "pod", pod["metadata"]["name"], "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def copies(headrace: Any, hands: Hands) -> Iterator[Infd]:
    """Two engines on two nodes, each with a copy of the model that is its node's own, read again every two seconds."""
    infd: Infd = headrace.infd("copies")
    manifest = tiny("copies", replicas=2, source=f"node://{FOLDER}/tiny")
    spec = manifest["spec"]
    spec["model"]["integrity"] = {"rescan": RESCAN}
    apart = {
        "labelSelector": {"matchLabels": {names.DEPLOYMENT: "copies", names.COMPONENT: "engine"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    spec["roles"][0]["podTemplate"]["spec"]["affinity"] = {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}
    }
    for node in hands.nodes:
        hands.run(node, COPY, f"{MODELS}/tiny", f"{FOLDER}/tiny")
    try:
        infd.apply(manifest)
        infd.until_ready(300)
        yield infd
    finally:
        infd.delete()
        for node in hands.nodes:
            hands.run(node, REMOVE, FOLDER)


def engines(infd: Infd) -> dict[str, str]:
    """Names of the engine pods and their nodes."""
    return {name: pod["spec"]["nodeName"] for name, pod in infd.pods().items()}


@pytest.mark.timeout(900)
def test_a_flipped_bit_takes_out_the_engine_of_its_node_and_no_other(copies: Infd, hands: Hands) -> None:
    placed, lives = engines(copies), copies.lives()
    good, bad = sorted(placed)
    hands.run(placed[bad], FLIP, f"{FOLDER}/tiny", WEIGHTS)
    seconds = copies.until_condition(c.WEIGHTS_VERIFIED, "False", Reason.DIGEST_MISMATCH, 90)
    print(f"told {seconds:.1f} s after the bit flipped")
    assert f"{bad} on {placed[bad]}: DigestMismatch: {WEIGHTS}: " in copies.message(c.WEIGHTS_VERIFIED)
    assert good not in copies.message(c.WEIGHTS_VERIFIED)
    copies.until("its engine is gone", lambda: copies.agent(bad).engine_pid is None, 120)
    state = copies.agent(bad)
    assert (state.phase, state.reason, state.weights.verified) == ("Failed", "DigestMismatch", False)
    copies.until("its pod is not ready", lambda: not pod_is_ready(copies.pods()[bad]), 90)
    with copies.gateway() as url:
        for _ in range(5):
            reply = copies.complete(url, "Hello")
            assert (reply.status, reply.headers["x-headrace-decode"]) == (200, good)
    assert copies.conditions()[c.DEGRADED]["status"] == "True"
    assert copies.lives() == lives, "nothing was started again"

    hands.run(placed[bad], FLIP, f"{FOLDER}/tiny", WEIGHTS)
    seconds = copies.until("its engine is ready again", lambda: len(copies.uids(ready=True)) == 2, 200)
    print(f"serving again {seconds:.1f} s after the repair")
    copies.until_condition(c.WEIGHTS_VERIFIED, "True", Reason.DIGEST_PINNED, 60)
    copies.until_ready(60)
    assert copies.lives() == lives, "the same pods, and no container started again"


@pytest.mark.timeout(900)
def test_no_engine_starts_on_bytes_that_are_not_those_of_the_first_load(copies: Infd, hands: Hands) -> None:
    placed = engines(copies)
    good, bad = sorted(placed)
    for node in set(hands.nodes) - {placed[good]}:  # wherever its successor comes to be
        hands.run(node, FLIP, f"{FOLDER}/tiny", WEIGHTS)
    before = copies.uids()
    copies.kubectl("delete", "pod", bad, "--wait=false")
    copies.until("a new pod says why not", lambda: refused(copies, before), 120)
    (new,) = set(copies.pods()) - {good}
    assert copies.agent(new).ready_seconds is None, "no engine was ever started"
    for node in set(hands.nodes) - {placed[good]}:
        hands.run(node, FLIP, f"{FOLDER}/tiny", WEIGHTS)
    copies.until("it serves", lambda: len(copies.uids(ready=True)) == 2, 200)
    assert restarts(copies.pods()[new]) == 0


def refused(infd: Infd, before: set[str]) -> bool:
    """Whether a pod that is new refuses its weights."""
    condition = infd.conditions()[c.WEIGHTS_VERIFIED]
    new = [name for name, pod in infd.pods().items() if pod["metadata"]["uid"] not in before]
    return condition["reason"] == Reason.DIGEST_MISMATCH and any(name in condition["message"] for name in new)


# ---- fetched


@pytest.fixture(scope="module")
def fetched(headrace: Any, hands: Hands) -> Iterator[Infd]:
    """An engine on one node with a model that comes from a hub in the cluster."""
    infd: Infd = headrace.infd("fetched")
    command = ["python3", "-c", HUB, f"{MODELS}/tiny", COMMIT, str(HUB_PORT)]
    hub = helper("test-hub", image(headrace), command, {MODELS: MODELS})
    hub["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": HUB_PORT}, "periodSeconds": 1}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "test-hub"},
        "spec": {"selector": {"app": "test-hub"}, "ports": [{"port": HUB_PORT}]},
    }
    manifest = tiny("fetched", source=f"hf://headrace/tiny@{COMMIT}")
    manifest["spec"]["engine"]["env"].append({"name": "HF_ENDPOINT", "value": f"http://test-hub:{HUB_PORT}"})
    manifest["spec"]["model"]["integrity"] = {"rescan": RESCAN}
    manifest["spec"]["roles"][0]["nodeSelector"] = {"kubernetes.io/hostname": hands.nodes[-1]}
    hands.run(hands.nodes[-1], REMOVE, CACHE)
    try:
        apply(headrace.kubectl, infd, service, hub)
        infd.apply(manifest)
        infd.until_ready(300)
        yield infd
    finally:
        infd.delete()
        headrace.kubectl("delete", "pod/test-hub", "service/test-hub", "--ignore-not-found", "--wait=false")
        hands.run(hands.nodes[-1], REMOVE, CACHE)


def test_a_fetched_model_serves_and_its_digest_is_told(fetched: Infd) -> None:
    state = fetched.agent(fetched.pod())
    assert state.weights.fetched == state.weights.fetch_total == state.weights.bytes_total > 0
    model = fetched.read()["status"]["model"]
    assert (model["digest"], model["bytes"]) == (state.weights.digest, state.weights.bytes_total)
    with fetched.gateway() as url:
        assert fetched.complete(url, "Hello").status == 200


@pytest.mark.timeout(600)
def test_a_damaged_copy_is_fetched_again_by_itself(fetched: Infd, hands: Hands) -> None:
    lives, pod = fetched.lives(), fetched.pod()
    (file,) = hands.run(hands.nodes[-1], FLIP, CACHE, WEIGHTS).split()
    # The agent itself is asked: its engine ends and the copy is replaced within seconds, which the status may not see.
    fetched.until("the agent has found it", lambda: fetched.agent(pod).reason == "DigestMismatch", 90)
    seconds = fetched.until("it is ready again", lambda: fetched.agent(pod).phase == "Ready", 200)
    print(f"serving from a fresh copy {seconds:.1f} s after the bad one was found ({file})")
    fetched.until_condition(c.WEIGHTS_VERIFIED, "True", Reason.DIGEST_PINNED, 60)
    fetched.until_ready(200)
    assert fetched.lives() == lives


@pytest.mark.timeout(600)
def test_a_node_that_has_the_model_needs_no_hub(fetched: Infd) -> None:
    before, pod = fetched.uids(), fetched.pod()
    fetched.kubectl("delete", "pod", "test-hub", "--wait")
    fetched.kubectl("delete", "pod", pod, "--wait=false")
    fetched.until("another engine is ready", lambda: fetched.uids(ready=True) - before, 300)
    fetched.until("the old one is gone", lambda: len(fetched.pods()) == 1, 120)
    assert fetched.agent(fetched.pod()).weights.fetched == 0
    fetched.until_ready(60)
