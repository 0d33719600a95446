"""KV blocks on a disk of the node: they outlive their engine, which goes back to them, within what they may take."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, time
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from headrace_runtime.contract import KV_MOUNT, KvState
from local.errors import LocalError
from local.readiness import is_ready
from tests.cluster.deployments import Infd, Json, prompt_of, tiny
from tests.cluster.test_deployment_faults import KILL_THE_ENGINE_CORE

# A bare node has a /var/log of its own, on its disk; many other folders are the machine's.
FOLDER = "/var/log/headrace-test-kv"
SIZE = 64 * 2**20
STORAGE = "headrace-test-kv"
SECRET = "claimed-kv"
PROMPTS = 6
TOKENS = 1500  # eleven blocks of 128 tokens
QUIET_SECONDS = 6.0
FIRST = int(time())
"""Seed of the first prompt: what an earlier run asked may still be on the disk."""
# Runs in an engine's pod: what `du` says of a folder in which files come and go.
MEASURE = """
import os, sys
def taken(path):
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0
print(sum(taken(path) for folder, _, files in os.walk(sys.argv[1])
          for path in [folder, *(os.path.join(folder, name) for name in files)]))
"""


def with_disk(name: str, volume: Json, **disk: Any) -> Json:
    """One engine of the tiny model that keeps its KV blocks. It waits for its node far longer than a test does."""
    manifest = tiny(name)
    tier = {"size": "64Mi", "volume": volume, "returnToNode": {"timeout": "1h"}, **disk}
    manifest["spec"]["kvCache"] |= {"host": {"size": "64Mi"}, "disk": tier}
    return manifest


def kv(infd: Infd) -> KvState:
    """What the one engine's agent says of its disk."""
    found = infd.agent(infd.pod()).kv
    assert found is not None
    return found


def node_of(infd: Infd) -> str:
    return str(infd.pods()[infd.pod()]["spec"]["nodeName"])


def ask(infd: Infd, url: str, seeds: range) -> None:
    for seed in seeds:
        assert infd.complete(url, prompt_of(seed, TOKENS)).status == 200


def until_stored(infd: Infd) -> None:
    """Until a block of each prompt and more are on the disk, and no more come."""
    seen, since = -1, monotonic()

    def at_rest() -> bool:
        nonlocal seen, since
        blocks = kv(infd).blocks
        if blocks != seen:
            seen, since = blocks, monotonic()
        return blocks > PROMPTS and monotonic() - since > QUIET_SECONDS

    infd.until("the blocks are on the disk", at_rest, 120)


def until_replaced(infd: Infd, lost: set[str], limit: float = 200) -> float:
    seconds = infd.until("the engine is replaced", lambda: infd.uids(ready=True) - lost, limit)
    seconds += infd.until("the old one is gone", lambda: len(infd.pods()) == 1, 120)
    return seconds + infd.until_ready(120)


def from_disk(infd: Infd) -> float:
    """The share of the prompts' tokens that the engine read from the disk since its start."""
    return infd.cached_tokens(infd.pod())["disk"] / (PROMPTS * TOKENS)


@pytest.fixture(scope="module")
def kept(headrace: Any) -> Iterator[Infd]:
    infd: Infd = headrace.infd("kept")
    infd.apply(with_disk("kept", {"hostPath": FOLDER}))
    try:
        infd.until_ready(240)
        yield infd
    finally:
        infd.delete()


@pytest.mark.timeout(900)
def test_an_engine_that_is_lost_returns_to_its_node_and_reads_what_it_had_computed(kept: Infd) -> None:
    kept.until_condition(c.KV_CACHE_READY, "True", Reason.ON_DISK, 60)
    node, lost = node_of(kept), kept.uids()
    seeds = range(FIRST, FIRST + PROMPTS)
    with kept.gateway() as url:
        ask(kept, url, seeds)
    until_stored(kept)
    kept.kubectl("delete", "pod", kept.pod(), "--wait=false")
    seconds = until_replaced(kept, lost)
    assert node_of(kept) == node
    pod = kept.pods()[kept.pod()]
    assert pod["metadata"]["annotations"][names.RETURNS_TO] == node
    with kept.gateway() as url:
        ask(kept, url, seeds)
    rate = from_disk(kept)
    print(f"back on {node} after {seconds:.0f} s; {rate:.0%} of the prompts' tokens came from its disk")
    assert rate > 0.5
    kept.until_condition(c.KV_CACHE_READY, "True", Reason.ON_DISK, 60)
    kept.until("the status says how often they are found", lambda: (figures(kept).get("hitRate") or 0) > 0, 120)
    told = figures(kept)
    assert (told["node"], told["limit"]) == (node, SIZE)
    assert 0 < told["bytes"] <= SIZE


def figures(infd: Infd) -> Json:
    """What the status says of the one node."""
    status = infd.read()["status"]["kvCache"]
    assert [place["node"] for place in status["placement"]] == [node_of(infd)]
    (found,) = status["nodes"]
    return dict(found)


@pytest.mark.timeout(300)
def test_a_killed_engine_reads_its_blocks_again_in_the_same_pod(kept: Infd) -> None:
    pod, lives = kept.pod(), kept.lives()
    seeds = range(FIRST + 100, FIRST + 100 + PROMPTS)
    with kept.gateway() as url:
        ask(kept, url, seeds)
    until_stored(kept)
    before = kept.agent(pod)
    assert before.engine_pid
    kept.kubectl("exec", pod, "--", "python3.11", "-c", KILL_THE_ENGINE_CORE, str(before.engine_pid))

    def again() -> bool:
        state = kept.agent(pod)
        return state.engine_restarts > before.engine_restarts and state.phase == "Ready"

    kept.until("the engine is up again", again, 120)
    with kept.gateway() as url:
        kept.until("it answers", lambda: kept.complete(url, "Hello").status == 200, 120)
        ask(kept, url, seeds)
    rate = from_disk(kept)
    print(f"killed: {rate:.0%} of the prompts' tokens came from the disk")
    assert rate > 0.5
    assert kept.lives() == lives


@pytest.mark.timeout(600)
def test_the_folder_of_the_node_never_takes_more_than_it_may(kept: Infd) -> None:
    pod = kept.pod()
    folder = f"{KV_MOUNT}/{kept.kubectl.namespace}_{kept.name}"
    most, seed = 0, FIRST + 200
    deadline = monotonic() + 400
    with kept.gateway() as url:
        while not kv(kept).evicted:
            assert monotonic() < deadline, f"nothing was evicted: {kv(kept)}"
            ask(kept, url, range(seed, seed + 4))
            seed += 4
            most = max(most, int(kept.kubectl("exec", pod, "--", "python3.11", "-c", MEASURE, folder)))
            assert most <= SIZE
    print(f"{(seed - FIRST - 200) * TOKENS} tokens of prompts; {most / SIZE:.0%} of the limit taken at most")
    assert most > SIZE // 2
    assert kv(kept).ready
    assert is_ready(kept.read())


@pytest.mark.timeout(600)
def test_a_node_that_is_cordoned_is_not_waited_for(kept: Infd) -> None:
    node, lost = node_of(kept), kept.uids()
    kept.kubectl("cordon", node)
    try:
        kept.kubectl("delete", "pod", kept.pod(), "--wait=false")
        seconds = until_replaced(kept, lost)
    finally:
        kept.kubectl("uncordon", node)
    print(f"the node cordoned: Ready on another after {seconds:.0f} s")
    assert node_of(kept) != node
    placed = kept.read()["status"]["kvCache"]["placement"]
    assert [place["node"] for place in placed] == [node_of(kept)]


def volume_of(node: str, path: str) -> list[Json]:
    """A disk of one node, as an administrator would offer it."""
    storage = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": STORAGE}}
    storage |= {"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": STORAGE},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE,
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
    return [storage, volume]


@pytest.fixture
def claimed(headrace: Any, kept: Infd) -> Iterator[Infd]:
    """Its blocks are in a volume claim, encrypted; the disk behind it is a folder of the node where `kept` is."""
    infd: Infd = headrace.infd("claimed")
    kept.kubectl("exec", kept.pod(), "--", "mkdir", "-p", f"{KV_MOUNT}/volume")
    key = base64.b64encode(os.urandom(32)).decode()
    headrace.kubectl("create", "secret", "generic", SECRET, f"--from-literal=key={key}")
    try:
        for thing in volume_of(node_of(kept), f"{FOLDER}/headrace-kv/volume"):
            headrace.cluster.kubectl("apply", "--filename=-", stdin=json.dumps(thing))
        claim = {"claimTemplate": {"size": "128Mi", "storageClassName": STORAGE}}
        infd.apply(with_disk("claimed", claim, encryption={"keySecretRef": {"name": SECRET}}))
        yield infd
    finally:
        infd.delete()
        with suppress(LocalError):
            headrace.cluster.kubectl("delete", f"persistentvolume/{STORAGE}", f"storageclass/{STORAGE}", "--wait=false")
        headrace.kubectl("delete", "secret", SECRET, "--ignore-not-found")


@pytest.mark.timeout(900)
def test_blocks_in_a_claim_outlive_their_pod_and_the_claim_goes_with_the_disk(claimed: Infd) -> None:
    claimed.until_ready(240)
    claimed.until_condition(c.KV_CACHE_READY, "True", Reason.ON_DISK, 60)
    claim = names.kv_claim("claimed", "serve-0")
    uid = claimed.json("get", "persistentvolumeclaim", claim)["metadata"]["uid"]
    lost = claimed.uids()
    with claimed.gateway() as url:
        ask(claimed, url, range(PROMPTS))
    until_stored(claimed)
    claimed.kubectl("delete", "pod", claimed.pod(), "--wait=false")
    until_replaced(claimed, lost)
    assert claimed.json("get", "persistentvolumeclaim", claim)["metadata"]["uid"] == uid
    with claimed.gateway() as url:
        ask(claimed, url, range(PROMPTS))
    rate = from_disk(claimed)
    print(f"the pod replaced: {rate:.0%} of the prompts' tokens came from its claim, encrypted")
    assert rate > 0.5
    claimed.patch(kvCache={"disk": None})
    claimed.until("the claim is gone", lambda: f"PersistentVolumeClaim/{claim}" not in claimed.children(), 240)
    claimed.until_condition(c.KV_CACHE_READY, "True", Reason.IN_MEMORY, 60)
    claimed.until_ready(240)
