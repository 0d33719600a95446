"""The hub of the bare cluster: writes the files of its control plane, and starts it.

The API server is reached at one address from everywhere: 127.0.0.1 on the machine (through `forward`) and in the hub
(directly).
"""

from __future__ import annotations

import shlex
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from local import api_server, certificates, control_plane, node_config, sandbox
from local.control_plane import ControlPlane
from local.errors import LocalError
from local.files import write_json
from local.layout import API_SERVICE, DNS_SERVICE, HUB, HUB_ADDRESS, Layout
from local.programs import wait_until

NAME = "hub"
FIRST_PORT = 16443
PORTS = 20
READY_WITHIN = 120.0


def listen() -> socket.socket:
    """A listening socket on the machine's loopback, at the first port from 16443 that is free."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        listener.listen(128)
        return listener
    raise LocalError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of 127.0.0.1 is free")


def write(layout: Layout, program: Path, port: int) -> ControlPlane:
    """Writes certificates and kubeconfigs; `port` is where the API server will listen."""
    layout.hub.mkdir()
    plane = ControlPlane(program, layout.pki, layout.hub, HUB_ADDRESS, port)
    certificates.create_authorities(layout.pki)
    clients = (certificates.CONTROLLER_MANAGER, certificates.SCHEDULER, certificates.PROXY)
    server = certificates.api_server(("127.0.0.1", API_SERVICE, HUB_ADDRESS))
    others = (server, certificates.ADMIN, certificates.KUBELET_CLIENT, certificates.FRONT_PROXY_CLIENT)
    for identity in (*clients, *others):
        certificates.issue(layout.pki, identity)
    for client in clients:
        path = layout.hub / f"{client.file}.kubeconfig"
        certificates.write_kubeconfig(path, layout.pki, client, plane.url)
    certificates.write_kubeconfig(layout.kubeconfig, layout.pki, certificates.ADMIN, f"https://127.0.0.1:{port}")
    write_json(plane.audit_policy, control_plane.AUDIT_POLICY)
    # kube-proxy gives clients in the hub their Services; it wants the name of some node.
    write_json(layout.hub / "kube-proxy.yaml", node_config.kube_proxy(layout.hub / "proxy.kubeconfig", "n1"))
    search = "search default.svc.cluster.local svc.cluster.local cluster.local"
    layout.resolver.write_text(f"nameserver {DNS_SERVICE}\n{search}\noptions ndots:5\n")
    return plane


def start(layout: Layout, plane: ControlPlane, listener: socket.socket) -> None:
    """Starts etcd, the control plane and the relay behind `listener`, in the hub's network namespace."""
    folder = layout.hub
    # Before the API server has made the roles these would end, or back off for seconds.
    once_ready = f"until [ -e {folder / 'api-ready'} ]; do sleep 0.05; done; exec "
    proxy = [str(plane.program), "kube-proxy", f"--config={folder / 'kube-proxy.yaml'}"]
    daemons = {
        "etcd": "exec " + shlex.join(control_plane.etcd(plane)),
        "kube-apiserver": "exec " + shlex.join(control_plane.api_server_audited(plane, layout.audit_log)),
        "kube-controller-manager": once_ready
        + shlex.join(control_plane.controller_manager(plane, node_config.GRACE_SECONDS)),
        "kube-scheduler": once_ready + shlex.join(control_plane.scheduler(plane)),
        "kube-proxy": once_ready + shlex.join(proxy),
        "forward": "exec " + shlex.join(_forward(plane, listener)),
    }
    sandbox.launch(NAME, HUB, folder, daemons, "hub", pass_fd=listener.fileno())


def wait_for_api(layout: Layout, plane: ControlPlane) -> None:
    """Returns once the API server is ready, and lets the components start that waited for it."""
    context = ssl.create_default_context(cafile=str(plane.pki / "ca.crt"))
    wait_until(
        f"the API server is ready (its log: {layout.hub / 'kube-apiserver.log'})",
        lambda: api_server.answers(plane.api_port, context),
        READY_WITHIN,
        step=0.05,
    )
    (layout.hub / "api-ready").touch()


def _forward(plane: ControlPlane, listener: socket.socket) -> Sequence[str]:
    program = Path(__file__).with_name("forward.py")
    return [sys.executable, str(program), str(listener.fileno()), plane.address, str(plane.api_port)]
