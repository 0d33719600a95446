"""What every kind of local cluster can do, and which kind this machine gets.

`bare` is a cluster of namespaces and needs only a Linux kernel and root, `kind` is kind's over a Docker engine, and
`current` is whatever the kubeconfig points at. The command line and the tests speak to this protocol alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from local.layout import Mount
from local.steps import Steps


@dataclass(frozen=True)
class NodeStatus:
    """One node as seen from outside (does it run, is it connected) and by Kubernetes (is it Ready)."""

    name: str
    running: bool
    connected: bool
    ready: bool


@dataclass(frozen=True)
class ClusterStatus:
    """What there is: no nodes and an API that does not answer mean that nothing is up."""

    provider: str
    up: bool
    nodes: tuple[NodeStatus, ...] = ()


class Provider(Protocol):
    """The verbs. Each raises LocalError with a sentence for a person when it cannot be done."""

    @property
    def name(self) -> str: ...

    def up(self, count: int, mounts: Sequence[Mount], fresh: bool, steps: Steps) -> None:
        """Brings up `count` nodes, ready for pods; does nothing if they are there, unless all is to be `fresh`."""

    def down(self, steps: Steps) -> None:
        """Removes everything that `up` made; harmless when there is nothing."""

    def status(self) -> ClusterStatus: ...

    def load(self, archives: Sequence[Path], steps: Steps) -> None:
        """Puts images into every running node; an image that a node has already is skipped."""

    def mount(self, mounts: Sequence[Mount], steps: Steps) -> None:
        """Shows folders of the machine in every node."""

    def kill(self, name: str) -> None:
        """The node loses power."""

    def start(self, name: str) -> None:
        """A killed node boots again, on its old disk."""

    def cut(self, name: str) -> None:
        """The node loses its network and runs on."""

    def heal(self, name: str) -> None: ...

    def kubeconfig(self) -> Path: ...

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` where pods and Services can be reached."""
