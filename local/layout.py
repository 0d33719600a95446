"""Names, addresses and paths of the bare cluster: what `bare`, `sandbox`, `network` and the tests must agree on.

Every name follows from the cluster's, so whatever a killed command left is found by name alone. Addresses are the same
in all clusters: each has a network of its own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from local.errors import LocalError

# Another name is another cluster, beside the first: how the tests wreck one without harm to the other.
NAME = os.environ.get("HEADRACE_LOCAL_NAME") or "headrace-local"
# The network namespace that holds the switch between the nodes and the control plane.
HUB = f"{NAME}-hub"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
PODS = "10.244.0.0/16"
HUB_ADDRESS = "172.31.240.1"
# Machine-wide facts of a node that a bind mount cannot replace: these folders are empty inside a node, or its own.
HIDDEN_IN_A_NODE = ("/opt", "/run", "/var/log", "/var/lib/kubelet", "/var/lib/cni", "/var/lib/headrace")
MOST_NODES = 9
LONGEST_HOME = 80  # the kernel takes 107 letters for the path of a socket


@dataclass(frozen=True)
class Node:
    """One node, by its number from 1."""

    number: int

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def namespace(self) -> str:
        """Its network namespace on the machine."""
        return f"{NAME}-{self.name}"

    @property
    def link(self) -> str:
        """Its port on the hub's switch."""
        return f"v{self.number}"

    @property
    def address(self) -> str:
        return f"172.31.240.{10 + self.number}"

    @property
    def pods(self) -> str:
        return f"10.244.{self.number}.0/24"


def nodes(count: int) -> list[Node]:
    return [Node(number) for number in range(1, count + 1)]


def parse_node(name: str) -> Node:
    """The node called `n1`, `n2`, ..."""
    match = re.fullmatch(r"n([1-9])", name)
    if not match:
        raise LocalError(f"{name!r} is not a node of this cluster: they are called n1, n2, ...")
    return Node(int(match[1]))


@dataclass(frozen=True)
class Mount:
    """A folder of the machine that every node shows its pods, read-only, at another path."""

    source: Path
    target: Path

    @classmethod
    def parse(cls, text: str) -> Mount:
        """Reads `SRC:DST`.

        Raises:
            LocalError: it is not of that form, or a node could not mount it.
        """
        source, colon, target = text.rpartition(":")
        if not colon or not source or not target.startswith("/opt/"):
            raise LocalError(
                f"mount {text!r}: write SRC:DST with DST under /opt/, for example ~/models:/opt/headrace/models"
            )
        folder = Path(source).expanduser().absolute()
        if not folder.is_dir():
            raise LocalError(f"mount {text!r}: {folder} is not a folder")
        require_visible(folder)
        if any(letter.isspace() for letter in f"{folder}{target}") or ".." in Path(target).parts:
            raise LocalError(f"mount {text!r}: neither blanks nor .. may be in the paths")
        return cls(folder, Path(target))

    def __str__(self) -> str:
        return f"{self.source}:{self.target}"


def require_visible(path: Path) -> None:
    """Refuses a path that a node does not see, because the node has its own folder there."""
    for hidden in HIDDEN_IN_A_NODE:
        if path.resolve().is_relative_to(hidden):
            raise LocalError(f"{path} lies under {hidden}, which every node has for itself; use another folder")


@dataclass(frozen=True)
class Layout:
    """Where a cluster keeps its files: a folder of its own name, all of which is removed by `down`."""

    home: Path

    @classmethod
    def of_machine(cls) -> Layout:
        # By its name below it: two clusters that are given one folder must not remove each other's files.
        home = Path(os.environ.get("HEADRACE_LOCAL_HOME") or "/var/lib").absolute() / NAME
        require_visible(home)
        if len(str(home)) > LONGEST_HOME:
            raise LocalError(f"HEADRACE_LOCAL_HOME: {home} is longer than {LONGEST_HOME} letters, too long for sockets")
        return cls(home)

    @property
    def pki(self) -> Path:
        return self.home / "pki"

    @property
    def hub(self) -> Path:
        return self.home / "hub"

    @property
    def kubeconfig(self) -> Path:
        return self.home / "kubeconfig"

    @property
    def state(self) -> Path:
        """Written once the cluster is complete: without it, whatever is there is a wreck."""
        return self.home / "cluster.json"

    @property
    def mounts(self) -> Path:
        """One line `SRC DST` for each folder that nodes mount when they start."""
        return self.home / "mounts"

    @property
    def audit_log(self) -> Path:
        """The calls of workloads' service accounts to the API server, a JSON object per line."""
        return self.hub / "audit.log"

    @property
    def resolver(self) -> Path:
        return self.home / "resolv.conf"

    def node(self, node: Node) -> Path:
        return self.home / node.name
