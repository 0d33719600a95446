"""The cluster that the kubeconfig points at: used, never started, stopped or harmed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from local import toolchain
from local.errors import LocalError
from local.layout import Mount
from local.programs import run
from local.provider import ClusterStatus, NodeStatus
from local.steps import Steps


def given_kubeconfig() -> Path:
    """The file that kubectl would read: the first of $KUBECONFIG, else ~/.kube/config."""
    first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(first) if first else Path.home() / ".kube" / "config"


def obstacle() -> str | None:
    """Why there is no current cluster, or None. Whether it answers is not asked."""
    path = given_kubeconfig()
    return None if path.is_file() else f"there is no kubeconfig at {path}"


def node_readiness(kubeconfig: Path) -> dict[str, bool]:
    """Every node of a cluster by name, and whether it is Ready.

    Raises:
        LocalError: the API does not answer.
    """
    command = (toolchain.kubectl(), "--kubeconfig", kubeconfig, "get", "nodes", "--output=json", "--request-timeout=5s")
    conditions = {
        node["metadata"]["name"]: {item["type"]: item["status"] for item in node["status"].get("conditions", ())}
        for node in json.loads(run(*command))["items"]
    }
    return {name: found.get("Ready") == "True" for name, found in conditions.items()}


@dataclass(frozen=True)
class Current:
    """Answers what can be asked of a stranger's cluster, and refuses the rest."""

    path: Path
    name: str = "current"

    @classmethod
    def of_environment(cls) -> Current:
        return cls(given_kubeconfig())

    def up(self, count: int, mounts: Sequence[Mount], fresh: bool, steps: Steps) -> None:
        self._refuse("up")

    def down(self, steps: Steps) -> None:
        self._refuse("down")

    def status(self) -> ClusterStatus:
        ready = node_readiness(self.path)
        return ClusterStatus(
            self.name, True, tuple(NodeStatus(node, True, True, ready[node]) for node in sorted(ready))
        )

    def load(self, archives: Sequence[Path], steps: Steps) -> None:
        self._refuse("load-image", "push the images to a registry that its nodes can reach")

    def mount(self, mounts: Sequence[Mount], steps: Steps) -> None:
        self._refuse("mount")

    def kill(self, name: str) -> None:
        self._refuse("kill-node")

    def start(self, name: str) -> None:
        self._refuse("start-node")

    def cut(self, name: str) -> None:
        self._refuse("cut-node")

    def heal(self, name: str) -> None:
        self._refuse("heal-node")

    def kubeconfig(self) -> Path:
        return self.path

    def inside(self, command: Sequence[str]) -> list[str]:
        self._refuse("exec", "use kubectl exec or kubectl port-forward")

    def _refuse(self, verb: str, remedy: str = "unset CLUSTER for a cluster of its own") -> NoReturn:
        raise LocalError(f"{verb} is not for a cluster that was not made here ({self.path}): {remedy}")
