"""`headrace explain` and `headrace record` against a real API server, by a user's own rights."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headrace_operator import names
from headrace_operator.__main__ import main
from headrace_operator.cluster import INFERENCE_DEPLOYMENT, POD, Kind
from headrace_operator.cluster.client import APPLY, MERGE, KubernetesCluster
from headrace_operator.commands.recording import sessions
from headrace_operator.state import Object
from headrace_operator.testing import Sample, running
from tests.api.hands import in_namespace, typed

NAMESPACE = "sizes"
SLO = {"ttft": {"target": "500ms"}, "itl": {"target": "50ms"}}
DECISION = {
    "time": "2026-03-01T02:48:00Z",
    "role": "prefill",
    "from": 1,
    "to": 2,
    "reason": "1 more: 8.00 requests/s foreseen in 120 s.",
    "inputs": {"rate": "7.10/s"},
}
STATUS = {
    "roles": [{"name": "prefill", "desired": 2, "ready": 1}, {"name": "decode", "desired": 1, "ready": 1}],
    "scaling": {
        "sizes": [{"name": "prefill", "size": 2}, {"name": "decode", "size": 1}],
        "lastDecisions": [DECISION],
        "model": {
            "pace": 5e-5,
            "step": 0.0044,
            "perRequest": 4.8e-5,
            "perToken": 2.27e-8,
            "queueing": 1.0,
            "startup": 120,
        },
    },
}


class Caller:
    """Somebody with a kubeconfig."""

    def __init__(self, cluster: KubernetesCluster, kubeconfig: Path) -> None:
        self.cluster = cluster
        self.kubeconfig = kubeconfig

    async def apply(self, kind: Kind, obj: Object, status: Object) -> None:
        name = obj["metadata"]["name"]
        body = {"apiVersion": kind.api_version, "kind": kind.kind} | obj
        query = {"fieldManager": "user", "force": "true"}
        await self.cluster._call("PATCH", kind.path(NAMESPACE, name), query, body, content_type=APPLY)
        path = kind.path(NAMESPACE, name, "status")
        await self.cluster._call("PATCH", path, None, {"status": status}, content_type=MERGE)

    async def pod(self, name: str, component: str, role: str = "") -> None:
        labels = {names.DEPLOYMENT: "chat", names.COMPONENT: component, names.REVISION: "r"}
        labels |= {names.ROLE: role} if role else {}
        meta = {"name": name, "namespace": NAMESPACE, "labels": labels}
        spec = {"containers": [{"name": component, "image": "example.org/one:1"}]}
        await self.apply(POD, {"metadata": meta, "spec": spec}, running("127.0.0.1"))

    async def call(self, *arguments: str) -> Result:
        return await typed(self.kubeconfig, NAMESPACE, *arguments)


@pytest.fixture
async def caller(api_kubeconfig: Path) -> AsyncIterator[Caller]:
    async with in_namespace(api_kubeconfig, NAMESPACE) as cluster:
        yield Caller(cluster, api_kubeconfig)


async def test_a_deployment_is_explained_and_recorded_as_the_api_server_keeps_it(
    caller: Caller, tmp_path: Path
) -> None:
    missing = await caller.call("explain", "chat")
    assert missing.exit_code == 1
    assert "no InferenceDeployment chat in the namespace sizes" in missing.output

    roles = [{"name": name, "scaling": {"min": 1, "max": 4}} for name in ("prefill", "decode")]
    sample = Sample().set("roles", roles).set("slo", SLO).set("scaling", {"mode": "SLO"})
    obj = sample.build() | {"metadata": {"name": "chat", "namespace": NAMESPACE}}
    await caller.apply(INFERENCE_DEPLOYMENT, obj, STATUS)
    said = await caller.call("explain", "chat")
    assert said.exit_code == 0, said.output
    assert "prefill 1 -> 2" in said.output
    assert "time to first token: 500ms or less for 95 % of requests" in said.output
    assert "computes 20,000 prompt tokens/s" in said.output
    read = json.loads((await caller.call("explain", "chat", "-o", "json")).stdout)
    assert read["lastDecisions"] == [DECISION | {"swap": False}]
    assert [(role["name"], role["decided"], role["max"]) for role in read["roles"]] == [
        ("prefill", 2, 4),
        ("decode", 1, 4),
    ]

    await caller.pod("chat-prefill-r-0", "engine", "prefill")
    await caller.pod("chat-gateway-0", "gateway")
    file = tmp_path / "chat.jsonl"
    ran = await caller.call("record", "chat", "--minutes", "0", "-o", str(file))
    assert ran.exit_code == 0, ran.output
    # There is no kubelet here, and nobody at the pod's address: that the gateway is missing is recorded.
    assert "missing: chat-gateway-0" in ran.output
    (session,) = sessions(file)
    (taken,) = session.moments
    assert taken.gateways == {"chat-gateway-0": None}
    assert [pod.name for pod in taken.pods] == ["chat-gateway-0", "chat-prefill-r-0"]
    assert taken.deployment()[1].scaling is not None
    replayed = await asyncio.to_thread(CliRunner().invoke, main, ["replay", str(file)])
    assert replayed.exit_code == 0, replayed.output
    assert "2P 1D" in replayed.output
