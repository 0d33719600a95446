"""A whole control plane on loopback with kwok in place of kubelets: pods are scheduled and become ready, nothing runs.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok are the real programs, children of this process.
Writes are counted by the API server's audit log, each with who made it. Called by `scale`.
"""

import json
import ssl
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kube import APPLY, Api, RefusedError
from bench.programs import cpu_seconds
from headrace_operator.api.crd import crd, role_crd
from headrace_operator.permissions import RULES
from local import api_server, certificates, control_plane, packages, toolchain
from local.certificates import Identity
from local.control_plane import ControlPlane
from local.programs import wait_until

OPERATOR = Identity("operator", "headrace")
KWOK = Identity("kwok", "kwok", "system:masters")
PODS = "127.64.0.1/12"
"""Addresses of pods: all of them are this machine's own, so that one server can answer for every pod."""
NODES = 100
CALLS_PER_SECOND = ("--kube-api-qps=1000", "--kube-api-burst=2000")
STAGES = Path(__file__).with_name("kwok.yaml")
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "users": [OPERATOR.user], "verbs": ["create", "update", "patch", "delete"]},
        {"level": "None"},
    ],
}


@dataclass(frozen=True)
class Plane:
    """One that runs."""

    kubeconfig: Path
    """With all rights."""
    operator: Path
    """A kubeconfig with the operator's rights and no others."""
    audit: Path
    programs: dict[str, "subprocess.Popen[bytes]"]

    def cpu(self) -> dict[str, float]:
        """Processor seconds of each program so far."""
        return {name: cpu_seconds(program.pid) for name, program in self.programs.items()}

    def check(self) -> None:
        """RuntimeError: one of the programs has ended."""
        for name, program in self.programs.items():
            if program.poll() is not None:
                log = self.audit.with_name(f"{name}.log")
                raise RuntimeError(f"{name} ended with status {program.returncode}: {log.read_text()[-1500:]}")


class Audit:
    """Writes of the operator, from one moment to the next."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0

    def since(self) -> "Counter[tuple[str, str, bool]]":
        """Writes since the last call by verb, resource (`pods`, `pods/status`) and whether they were done. An apply
        that made an object is a `create`."""
        counted: Counter[tuple[str, str, bool]] = Counter()
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                event = json.loads(line)
                code, ref = event["responseStatus"]["code"], event["objectRef"]
                resource = "/".join(filter(None, (ref["resource"], ref.get("subresource"))))
                verb = "create" if code == 201 else event["verb"]
                counted[verb, resource, code < 300] += 1
        return counted


@contextmanager
def plane() -> Iterator[Plane]:
    """Runs one while the block lasts. LocalError: it cannot be built or does not start here."""
    packages.require(*api_server.PROGRAMS)
    program, kwok = toolchain.kubernetes(), toolchain.kwok()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-scale-")))
        where = _prepared(ControlPlane(program, home / "pki", home, "127.0.0.1", *api_server.free_ports()))
        programs: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str, command: list[str]) -> None:
            programs[name] = stack.enter_context(api_server.child(command, home / f"{name}.log"))

        found = Plane(home / "admin.kubeconfig", home / "operator.kubeconfig", home / "audit.log", programs)
        # The operator and its pods name service accounts that there are: admission stays whole.
        start("etcd", control_plane.etcd(where))
        start("apiserver", [*control_plane.api_server_audited(where, found.audit), "--bind-address=127.0.0.1"])
        context = ssl.create_default_context(cafile=str(where.pki / "ca.crt"))
        _wait(found, "the API server is ready", lambda: api_server.answers(where.api_port, context))
        quiet = ("--secure-port=0", *CALLS_PER_SECOND)
        # kwok renews no leases and writes a node's status every quarter of an hour: a node is never late.
        start("controller-manager", [*control_plane.controller_manager(where, 7200), *quiet])
        start("scheduler", [*control_plane.scheduler(where), *quiet])
        start("kwok", _kwok(kwok, home))
        api = Api(found.kubeconfig)
        _install(api)
        _wait(found, f"{NODES} nodes are ready", lambda: _ready_nodes(api) == NODES)
        _wait(found, "the operator's kind is served", lambda: _served(api))
        yield found


def _prepared(where: ControlPlane) -> ControlPlane:
    pki = where.pki
    certificates.create_authorities(pki)
    users = {
        "admin": certificates.ADMIN,
        "controller-manager": certificates.CONTROLLER_MANAGER,
        "scheduler": certificates.SCHEDULER,
        "operator": OPERATOR,
        "kwok": KWOK,
    }
    servers = (certificates.api_server(["127.0.0.1"]), certificates.KUBELET_CLIENT, certificates.FRONT_PROXY_CLIENT)
    for identity in (*servers, *users.values()):
        certificates.issue(pki, identity)
    for name, identity in users.items():
        certificates.write_kubeconfig(where.data / f"{name}.kubeconfig", pki, identity, where.url)
    where.audit_policy.write_text(json.dumps(AUDIT_POLICY))
    return where


def _kwok(program: Path, home: Path) -> list[str]:
    return [
        str(program),
        f"--kubeconfig={home / 'kwok.kubeconfig'}",
        f"--config={STAGES}",
        "--manage-all-nodes=true",
        f"--cidr={PODS}",
        "--node-ip=127.0.0.1",
        "--node-lease-duration-seconds=0",
        "--server-address=",
        "-v=WARN",
    ]


def _install(api: Api) -> None:
    """Our kinds, the operator's rights, and the nodes."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for body in (crd(), role_crd()):
        api.call("PATCH", f"{definitions}/{body['metadata']['name']}", body, APPLY, fieldManager="bench")
    rights = "/apis/rbac.authorization.k8s.io/v1"
    rules = [{"apiGroups": [r.group], "resources": list(r.resources), "verbs": list(r.verbs)} for r in RULES]
    api.call("POST", f"{rights}/clusterroles", {"metadata": {"name": OPERATOR.user}, "rules": rules})
    api.call("POST", f"{rights}/clusterrolebindings", _binding())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: api.call("POST", "/api/v1/nodes", _node(number)), range(NODES)))


def _binding() -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "metadata": {"name": OPERATOR.user},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": OPERATOR.user},
        "subjects": [{"apiGroup": group, "kind": "User", "name": OPERATOR.user}],
    }


def _node(number: int) -> dict[str, Any]:
    name = f"kwok-{number}"
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "type": "kwok"}}}


def _ready_nodes(api: Api) -> int:
    nodes = api.call("GET", "/api/v1/nodes")["items"]
    return sum(not node["spec"].get("taints") and bool(node.get("status", {}).get("allocatable")) for node in nodes)


def _served(api: Api) -> bool:
    try:
        api.call("GET", "/apis/headrace.dev/v1alpha1/inferencedeployments")
    except RefusedError:
        return False
    return True


def _wait(plane: Plane, what: str, condition: Any) -> None:
    def holds() -> bool:
        plane.check()
        return bool(condition())

    wait_until(what, holds, 180.0, step=0.1)
