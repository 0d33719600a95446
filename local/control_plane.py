"""The command lines of etcd and the Kubernetes control plane, as pure functions of where things are.

Used twice: whole, as the hub of the bare cluster (`bare`), and as etcd and API server alone for tests
(`api_server`). Every flag that is not a plain path says why it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local.layout import SERVICES

AUDIT_POLICY: Final[dict[str, Any]] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}
"""Who of the workloads asked for what, without bodies: a test compares what an operator may do with what it does."""


@dataclass(frozen=True)
class ControlPlane:
    """One control plane: the program, its folders, and the ports on which it listens."""

    program: Path
    pki: Path
    data: Path  # etcd's files and the kubeconfigs of the components
    address: str  # where nodes and pods find the API server
    api_port: int
    etcd_port: int = 2379
    etcd_peer_port: int = 2380

    @property
    def url(self) -> str:
        """Where nodes and components call the API server."""
        return f"https://{self.address}:{self.api_port}"

    @property
    def audit_policy(self) -> Path:
        return self.data / "audit-policy.json"

    @property
    def etcd_url(self) -> str:
        return f"http://127.0.0.1:{self.etcd_port}"


def etcd(plane: ControlPlane) -> list[str]:
    """A single member on loopback, which forgets nothing while it lives and need not survive the machine."""
    peer = f"http://127.0.0.1:{plane.etcd_peer_port}"
    return [
        str(plane.program),
        "etcd",
        f"--data-dir={plane.data / 'etcd'}",
        f"--listen-client-urls={plane.etcd_url}",
        f"--advertise-client-urls={plane.etcd_url}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # its data dies with the cluster: waiting for the disk would buy nothing
        "--log-level=warn",
    ]


def api_server(plane: ControlPlane) -> list[str]:
    """The API server with the authorization and admission of a usual cluster."""
    pki = plane.pki
    return [
        str(plane.program),
        "kube-apiserver",
        f"--etcd-servers={plane.etcd_url}",
        f"--service-cluster-ip-range={SERVICES}",
        f"--advertise-address={plane.address}",
        f"--secure-port={plane.api_port}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",  # nothing here resolves the names of nodes
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
        "--enable-aggregator-routing=true",  # webhooks are called by endpoint, kube-proxy or not
        # A lost node's pods are replaced after 5 s, not after 5 minutes: tests wait for it.
        "--default-not-ready-toleration-seconds=5",
        "--default-unreachable-toleration-seconds=5",
        "--profiling=false",
    ]


def api_server_audited(plane: ControlPlane, log: Path) -> list[str]:
    """The API server that writes down the calls of `AUDIT_POLICY`, one JSON object per line of `log`."""
    return [*api_server(plane), f"--audit-policy-file={plane.audit_policy}", f"--audit-log-path={log}"]


def api_server_alone(plane: ControlPlane) -> list[str]:
    """The API server with nothing beside it: no controller makes the service accounts that pods must name."""
    return [*api_server(plane), "--bind-address=127.0.0.1", "--disable-admission-plugins=ServiceAccount"]


def controller_manager(plane: ControlPlane, grace_seconds: int) -> list[str]:
    """All controllers; a node silent for `grace_seconds` is NotReady."""
    kubeconfig = plane.data / "controller-manager.kubeconfig"
    return [
        str(plane.program),
        "kube-controller-manager",
        *_client(kubeconfig),
        f"--root-ca-file={plane.pki / 'ca.crt'}",
        f"--service-account-private-key-file={plane.pki / 'service-accounts.key'}",
        "--use-service-account-credentials=true",
        f"--cluster-signing-cert-file={plane.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={plane.pki / 'ca.key'}",
        "--allocate-node-cidrs=false",  # pod ranges follow from a node's number
        f"--flex-volume-plugin-dir={plane.data / 'flex'}",  # the default makes a folder under /usr/libexec
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={grace_seconds}s",
        # Its controllers start one after the other and ask for a token each: the default of 20 a second takes 4 s.
        "--kube-api-qps=400",
        "--kube-api-burst=800",
    ]


def scheduler(plane: ControlPlane) -> list[str]:
    return [str(plane.program), "kube-scheduler", *_client(plane.data / "scheduler.kubeconfig")]


def _client(kubeconfig: Path) -> list[str]:
    """The flags that controller-manager and scheduler share: there is one of each, so nobody is elected."""
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]
