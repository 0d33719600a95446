"""The same verbs over kind, where a Docker engine answers.

A node is a container: losing power is `docker kill`, losing the network is `docker network disconnect`. Nodes are
called n1, n2, ... as in the bare cluster; what Docker and Kubernetes call them is `container(n)`. Every command line
is made by a pure function.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import cache, toolchain
from local.current import node_readiness
from local.errors import LocalError
from local.layout import NAME, Mount, parse_node
from local.node_config import GRACE_SECONDS, SYNC
from local.programs import attempt, found, run
from local.provider import ClusterStatus, NodeStatus
from local.steps import Steps

NETWORK = "kind"
READY_WITHIN = "180s"
CONTROL_PLANE = f"{NAME}-control-plane"


def obstacle() -> str | None:
    """Why kind cannot work here, or None."""
    if found("docker") is None:
        return "docker is not installed"
    answer = attempt("docker", "version", "--format", "{{.Server.Version}}", timeout=10)
    return None if answer.returncode == 0 else "no Docker engine answers"


def container(node: str) -> str:
    """The name that kind gives the container, and the Kubernetes node, of `n1`, `n2`, ..."""
    number = parse_node(node).number
    return f"{NAME}-worker" + (str(number) if number > 1 else "")


def configuration(count: int, mounts: Sequence[Mount]) -> dict[str, Any]:
    """kind's cluster file: a control plane and `count` workers, which notices a lost node as fast as the bare one."""
    patch = {
        "kind": "ClusterConfiguration",
        "apiServer": {
            "extraArgs": {
                "default-not-ready-toleration-seconds": "5",
                "default-unreachable-toleration-seconds": "5",
            }
        },
        "controllerManager": {
            "extraArgs": {"node-monitor-period": "1s", "node-monitor-grace-period": f"{GRACE_SECONDS}s"}
        },
    }
    lease = {"kind": "KubeletConfiguration", "nodeLeaseDurationSeconds": GRACE_SECONDS, "syncFrequency": SYNC}
    folders = [
        {"hostPath": str(mount.source), "containerPath": str(mount.target), "readOnly": True} for mount in mounts
    ]
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "kubeadmConfigPatches": [json.dumps(patch), json.dumps(lease)],
        "nodes": [{"role": "control-plane"}, *({"role": "worker", "extraMounts": folders} for _ in range(count))],
    }


def create_command(kubeconfig: Path) -> list[str]:
    """Reads the cluster file from standard input."""
    options = ("--name", NAME, "--config", "-", "--kubeconfig", str(kubeconfig), "--wait", READY_WITHIN)
    return ["create", "cluster", *options]


def load_command(archive: Path, nodes: Sequence[str]) -> list[str]:
    return [
        "load",
        "image-archive",
        str(archive),
        "--name",
        NAME,
        "--nodes",
        ",".join(container(node) for node in nodes),
    ]


def kill_command(node: str) -> list[str]:
    return ["docker", "kill", container(node)]


def start_command(node: str) -> list[str]:
    return ["docker", "start", container(node)]


def cut_command(node: str) -> list[str]:
    return ["docker", "network", "disconnect", "--force", NETWORK, container(node)]


def heal_command(node: str, address: str) -> list[str]:
    """Connects the node under the address it had: its kubelet and its certificates know it by no other."""
    return ["docker", "network", "connect", "--ip", address, NETWORK, container(node)]


@dataclass(frozen=True)
class Kind:
    """One kind cluster called `headrace-local`."""

    name: str = "kind"

    def up(self, count: int, mounts: Sequence[Mount], fresh: bool, steps: Steps) -> None:
        if fresh:
            self.down(steps)
        if there := self._containers():
            if len(there) - 1 != count:
                raise LocalError(f"a cluster with {len(there) - 1} nodes is up: `up --fresh` starts anew with {count}")
            steps.say(f"already up with {count} nodes")
            return
        with steps.step(f"kind with {count} nodes"):
            self.kubeconfig().parent.mkdir(parents=True, exist_ok=True)
            run(toolchain.kind(), *create_command(self.kubeconfig()), stdin=json.dumps(configuration(count, mounts)))

    def down(self, steps: Steps) -> None:
        with steps.step("nothing is left"):
            run(toolchain.kind(), "delete", "cluster", "--name", NAME, "--kubeconfig", self.kubeconfig())
            self.kubeconfig().unlink(missing_ok=True)
            self._addresses().unlink(missing_ok=True)

    def status(self) -> ClusterStatus:
        containers = self._containers()
        if CONTROL_PLANE not in containers:
            return ClusterStatus(self.name, up=False)
        ready = node_readiness(self.kubeconfig())
        workers = sorted(set(containers) - {CONTROL_PLANE})
        nodes = tuple(
            NodeStatus(worker, containers[worker], self._address(worker) != "", ready.get(worker, False))
            for worker in workers
        )
        return ClusterStatus(self.name, True, nodes)

    def load(self, archives: Sequence[Path], steps: Steps) -> None:
        running = [worker for worker, runs in self._containers().items() if runs and worker != CONTROL_PLANE]
        nodes = [f"n{worker.removeprefix(f'{NAME}-worker') or '1'}" for worker in sorted(running)]
        for archive in archives:
            with steps.step(f"{archive.name} on {', '.join(nodes)}"):
                run(toolchain.kind(), *load_command(archive, nodes))

    def mount(self, mounts: Sequence[Mount], steps: Steps) -> None:
        raise LocalError("a kind cluster gets its mounts when it is made: `up --fresh --mount SRC:DST`")

    def kill(self, name: str) -> None:
        run(*kill_command(name))

    def start(self, name: str) -> None:
        run(*start_command(name))

    def cut(self, name: str) -> None:
        known = self._known_addresses()
        known[name] = self._address(container(name)) or known.get(name, "")
        self._addresses().write_text(json.dumps(known))
        run(*cut_command(name))

    def heal(self, name: str) -> None:
        address = self._known_addresses().get(name)
        if not address:
            raise LocalError(f"{name} was not cut: there is nothing to heal")
        run(*heal_command(name, address))

    def kubeconfig(self) -> Path:
        return cache.root() / "kind.kubeconfig"

    def inside(self, command: Sequence[str]) -> list[str]:
        if os.geteuid() != 0:
            raise LocalError(
                "a kind cluster's pods are reached from its control plane's network only, and entering it needs root"
            )
        pid = run("docker", "inspect", "--format", "{{.State.Pid}}", CONTROL_PLANE)
        return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *command]

    def _containers(self) -> dict[str, bool]:
        """Every container of the cluster by name, and whether it runs."""
        label = f"label=io.x-k8s.kind.cluster={NAME}"
        lines = run("docker", "ps", "--all", "--filter", label, "--format", "{{.Names}} {{.State}}").splitlines()
        return {name: state == "running" for name, state in (line.split() for line in lines)}

    def _address(self, name: str) -> str:
        """The container's address on kind's network; empty while it is cut off."""
        template = f'{{{{with index .NetworkSettings.Networks "{NETWORK}"}}}}{{{{.IPAddress}}}}{{{{end}}}}'
        return run("docker", "inspect", "--format", template, name)

    def _addresses(self) -> Path:
        return cache.root() / "kind-addresses.json"

    def _known_addresses(self) -> dict[str, str]:
        known: dict[str, str] = json.loads(self._addresses().read_text()) if self._addresses().exists() else {}
        return known
