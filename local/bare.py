"""A Kubernetes cluster of several nodes on one Linux machine, without Docker: nodes are namespaces and cgroups.

The hub holds etcd and the control plane, a node holds containerd, a kubelet and kube-proxy, and all of them are the
real programs. What exists is always read from the kernel (cgroups, network namespaces) and never from memory, so
`down` and the next `up` clean up after a command that was killed anywhere. Commands that change something take one
lock per machine.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local import hub, images, network, node, node_config, packages, sandbox, toolchain
from local.current import node_readiness
from local.errors import LocalError
from local.files import write_json
from local.imports import import_archive
from local.layout import (
    HUB,
    MOST_NODES,
    Layout,
    Mount,
    Node,
    nodes,
    parse_node,
    require_visible,
)
from local.programs import run, wait_until
from local.provider import ClusterStatus, NodeStatus
from local.steps import Steps

# Mount points that nodes need on the machine; made if absent, and then removed again by `down`.
MOUNT_POINTS = ("/var/lib/kubelet", "/var/lib/cni", "/var/lib/headrace")
PROGRAMS = (
    "containerd",
    "ctr",
    "runc",
    "iptables",
    "conntrack",
    "ip",
    "nsenter",
    "setsid",
    "unshare",
    "openssl",
    "/usr/lib/cni/bridge",
)
COREDNS_MANIFEST = Path(__file__).with_name("coredns") / "coredns.yaml"

obstacle = sandbox.obstacle


@dataclass(frozen=True)
class Bare:
    """The one bare cluster of this machine."""

    layout: Layout
    name: str = "bare"

    @classmethod
    def of_machine(cls) -> Bare:
        return cls(Layout.of_machine())

    # ---- the whole cluster

    def up(self, count: int, mounts: Sequence[Mount], fresh: bool, steps: Steps) -> None:
        if not 1 <= count <= MOST_NODES:
            raise LocalError(f"--nodes {count}: from 1 to {MOST_NODES} nodes fit on one machine")
        with self._locked():
            there = self._nodes() if self._runs() else []
            if there and not fresh:
                self._reuse(there, count, mounts, steps)
                return
            archives = self._prepare(steps)
            if sandbox.names() or self.layout.home.exists():
                with steps.step("what was left of an earlier cluster is gone"):
                    self._remove()
            try:
                self._create(nodes(count), mounts, archives, steps)
            except LocalError as error:
                where = f"the logs are under {self.layout.home}, and `down` removes what was started"
                raise LocalError(f"{error.message} ({where})") from error

    def down(self, steps: Steps) -> None:
        with self._locked(), steps.step("nothing is left"):
            self._remove()

    def status(self) -> ClusterStatus:
        if not self._runs():
            return ClusterStatus(self.name, up=False)
        ready = node_readiness(self.layout.kubeconfig)
        return ClusterStatus(self.name, True, tuple(self._status(one, ready) for one in self._nodes()))

    def _status(self, one: Node, ready: dict[str, bool]) -> NodeStatus:
        running = sandbox.init_pid(one.name) is not None
        return NodeStatus(one.name, running, running and not network.is_cut(one), ready.get(one.name, False))

    def kubeconfig(self) -> Path:
        self._require_up()
        return self.layout.kubeconfig

    def inside(self, command: Sequence[str]) -> list[str]:
        self._require_up()
        # A mount namespace of its own, in which the cluster's name server is the resolver.
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        enter = ["nsenter", f"--net={network.NAMESPACES / HUB}", "unshare", "--mount", "--propagation", "private"]
        return [*enter, "sh", "-c", script, str(self.layout.resolver), *command]

    # ---- images and folders

    def load(self, archives: Sequence[Path], steps: Steps) -> None:
        self._require_up()
        running = self._running_nodes()
        for archive in archives:
            with steps.step(f"{archive.name} on {', '.join(one.name for one in running)}"):
                self._import([archive], running)

    def mount(self, mounts: Sequence[Mount], steps: Steps) -> None:
        with self._locked():
            self._require_up()
            self._mount(mounts, steps)

    def mounts(self) -> list[Mount]:
        """The folders that its nodes show."""
        self._require_up()
        return node.read_mounts(self.layout)

    # ---- one node

    def kill(self, name: str) -> None:
        with self._locked():
            one = self._known(name)
            sandbox.end(one.name)
            # Else the machine's kernel would go on answering for the dead node's address.
            network.delete(one.namespace)

    def start(self, name: str) -> None:
        with self._locked():
            one = self._known(name)
            if sandbox.init_pid(one.name):
                raise LocalError(f"{name} is running")
            node.start(self.layout, one, self._nodes(), toolchain.kubernetes())

    def cut(self, name: str) -> None:
        with self._locked():
            network.set_link(self._running(name), up=False)

    def heal(self, name: str) -> None:
        with self._locked():
            network.set_link(self._running(name), up=True)

    # ---- how it is done

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One changing command at a time. The lock is on a folder that is always there, so it leaves no file."""
        folder = os.open(sandbox.CGROUPS, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _runs(self) -> bool:
        return self.layout.state.exists() and sandbox.init_pid(hub.NAME) is not None

    def _require_up(self) -> None:
        if not self._runs():
            raise LocalError("no cluster is up: `python -m local up` brings one up")

    def _nodes(self) -> list[Node]:
        return nodes(int(json.loads(self.layout.state.read_text())["nodes"]))

    def _running_nodes(self) -> list[Node]:
        return [one for one in self._nodes() if sandbox.init_pid(one.name)]

    def _known(self, name: str) -> Node:
        self._require_up()
        one = parse_node(name)
        if one not in self._nodes():
            raise LocalError(f"there is no {name}: the nodes are {', '.join(known.name for known in self._nodes())}")
        return one

    def _running(self, name: str) -> Node:
        one = self._known(name)
        if sandbox.init_pid(one.name) is None:
            raise LocalError(f"{name} does not run: `start-node {name}` starts it")
        return one

    def _reuse(self, there: Sequence[Node], count: int, mounts: Sequence[Mount], steps: Steps) -> None:
        if len(there) != count:
            raise LocalError(f"a cluster with {len(there)} nodes is up: `up --fresh` starts anew with {count}")
        states = [f"{one.name} {'runs' if sandbox.init_pid(one.name) else 'is down'}" for one in there]
        steps.say(f"already up: {', '.join(states)}")
        self._mount(mounts, steps)

    def _prepare(self, steps: Steps) -> list[Path]:
        """Everything that needs the network or a compiler; returns the image archives that a cluster starts from."""
        with steps.step("system packages"):
            packages.require(*PROGRAMS)
        with steps.step("programs (the first time they are built from source: 6 to 8 minutes)"):
            for program in (toolchain.kubectl(), toolchain.kubernetes()):
                require_visible(program)
            return [images.pause_image(), images.coredns_image()]

    def _create(self, cluster: Sequence[Node], mounts: Sequence[Mount], archives: Sequence[Path], steps: Steps) -> None:
        layout, program = self.layout, toolchain.kubernetes()
        layout.home.mkdir(parents=True, mode=0o700)
        with hub.listen() as listener:
            with steps.step("certificates"):
                plane = hub.write(layout, program, listener.getsockname()[1])
                for one in cluster:
                    node.write(layout, one, plane)
                node.write_mounts(layout, mounts)
            with steps.step("hub and nodes started"):
                self._make_mount_points()
                network.create_hub()
                hub.start(layout, plane, listener)
                for one in cluster:
                    node.start(layout, one, cluster, program)
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self._import, archives, cluster)
            with steps.step("API server ready"):
                hub.wait_for_api(layout, plane)
                self._kubectl("apply", "--filename", str(COREDNS_MANIFEST))
            with steps.step("images in"):
                loading.result()
        with steps.step(f"{len(cluster)} nodes Ready"):
            names = {one.name for one in cluster}
            wait_until("all nodes are Ready", lambda: self._ready_nodes() == names, 120)
        with steps.step("DNS ready"):
            self._kubectl("--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
        write_json(layout.state, {"nodes": len(cluster)})

    def _remove(self) -> None:
        sandbox.end()
        network.delete_all()
        made = self.layout.home / "made"
        # Removing a folder takes it from every mount namespace: another cluster's nodes may stand on it.
        removable = made.exists() and not sandbox.other_clusters()
        for point in made.read_text().split() if removable else ():
            # Only if nothing else has come to use it.
            if Path(point).is_dir() and not any(Path(point).iterdir()):
                Path(point).rmdir()
        # A process that is being killed may still finish a write, and so fill a folder that was just emptied.
        wait_until(f"{self.layout.home} goes", lambda: _gone(self.layout.home), 10)

    def _make_mount_points(self) -> None:
        # What another cluster made is for the last of them to remove.
        shared = bool(sandbox.other_clusters())
        made = [point for point in MOUNT_POINTS if shared or not Path(point).exists()]
        (self.layout.home / "made").write_text("\n".join(made))
        for point in made:
            Path(point).mkdir(parents=True, exist_ok=True)

    def _import(self, archives: Sequence[Path], cluster: Sequence[Node]) -> None:
        """One archive after the other, each to all nodes at once: the disk is the limit, and the page cache helps."""
        sockets = [node_config.socket(self.layout.node(one)) for one in cluster]
        with ThreadPoolExecutor(MOST_NODES) as pool:
            for archive in archives:
                list(pool.map(functools.partial(import_archive, archive), sockets))

    def _mount(self, mounts: Sequence[Mount], steps: Steps) -> None:
        for mount in mounts:
            known = {there.target: there for there in node.read_mounts(self.layout)}
            if mount in known.values():
                continue
            if mount.target in known:
                raise LocalError(f"{mount.target} shows {known[mount.target].source} already: `up --fresh` starts anew")
            with steps.step(f"{mount.source} at {mount.target}"):
                for one in self._running_nodes():
                    node.show(one, mount)
                node.write_mounts(self.layout, [*known.values(), mount])

    def _ready_nodes(self) -> set[str]:
        return {name for name, ready in node_readiness(self.layout.kubeconfig).items() if ready}

    def _kubectl(self, *arguments: str) -> str:
        return run(toolchain.kubectl(), "--kubeconfig", self.layout.kubeconfig, *arguments)


def _gone(folder: Path) -> bool:
    """Whether the folder is no more, after an attempt to remove it."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()
