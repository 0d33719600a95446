"""One node of the bare cluster: writes its files, starts it, and shows it folders of the machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from local import certificates, network, node_config, sandbox
from local.certificates import Identity
from local.control_plane import ControlPlane
from local.files import write_json
from local.layout import Layout, Mount, Node
from local.programs import run


def write(layout: Layout, node: Node, plane: ControlPlane) -> None:
    """Writes the node's certificate, kubeconfig and the configuration of its daemons."""
    folder, pki = layout.node(node), layout.pki
    (folder / "cni").mkdir(parents=True)
    serves = (f"DNS:{node.name}", f"IP:{node.address}")
    identity = Identity(node.name, f"system:node:{node.name}", "system:nodes", serves)
    certificates.issue(pki, identity)
    certificates.write_kubeconfig(folder / "kubelet.kubeconfig", pki, identity, plane.url)
    write_json(folder / "kubelet.yaml", node_config.kubelet(folder, pki, node, _machine_memory_mi()))
    write_json(folder / "kube-proxy.yaml", node_config.kube_proxy(layout.hub / "proxy.kubeconfig", node.name))
    write_json(folder / "cni" / "10-pods.conflist", node_config.cni(folder, node))
    (folder / "containerd.toml").write_text(node_config.containerd(folder))
    # Pods that use the node's resolver find no outside names here: there is no outside.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def start(layout: Layout, node: Node, cluster: Sequence[Node], program: Path) -> None:
    """Starts the node on its folder, with a fresh network, as after a reboot."""
    folder = layout.node(node)
    sandbox.end(node.name)
    network.create_node(node, [other for other in cluster if other != node])
    socket = node_config.socket(folder)
    # A kubelet that finds no containerd ends, and its next try costs seconds.
    socket.unlink(missing_ok=True)
    once_there = f"until [ -S {socket} ]; do sleep 0.05; done; exec "
    proxy = [str(program), "kube-proxy", f"--config={folder / 'kube-proxy.yaml'}"]
    daemons = {
        "containerd": f"exec containerd --config {folder / 'containerd.toml'}",
        "kubelet": once_there + shlex.join(node_config.kubelet_command(program, folder, node)),
        "kube-proxy": "exec " + shlex.join(proxy),
    }
    sandbox.launch(node.name, node.namespace, folder, daemons, "node")


def show(node: Node, mount: Mount) -> None:
    """Mounts a folder of the machine, read-only, in the running node. What ran before does not see it."""
    script = 'mkdir -p "$1" && mount --bind "$0" "$1" && mount -o remount,bind,ro "$1"'
    run(*sandbox.inside(node.name, "sh", "-c", script, str(mount.source), str(mount.target)))


def write_mounts(layout: Layout, mounts: Sequence[Mount]) -> None:
    """Notes what every node mounts when it starts."""
    layout.mounts.write_text("".join(f"{mount.source} {mount.target}\n" for mount in mounts))


def read_mounts(layout: Layout) -> list[Mount]:
    lines = (line.split() for line in layout.mounts.read_text().splitlines())
    return [Mount(Path(source), Path(target)) for source, target in lines]


def _machine_memory_mi() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1]) // 1024
