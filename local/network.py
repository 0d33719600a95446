"""The network of the bare cluster: a hub namespace with a switch, and one namespace per node plugged into it.

Routes are static and nothing is masqueraded, so every pod reaches every other by its own address. The machine's own
network (addresses, routes, iptables, forwarding) is not touched: it does not even have a link to the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from local.layout import HUB, HUB_ADDRESS, NAME, SERVICES, Node
from local.programs import attempt, run, wait_until

NAMESPACES = Path("/run/netns")
SWITCH = "br0"


def namespaces() -> list[str]:
    """The network namespaces of this cluster that exist."""
    ours = re.compile(rf"{re.escape(NAME)}-(hub|n[1-9])")
    return sorted(entry.name for entry in NAMESPACES.glob(f"{NAME}-*") if ours.fullmatch(entry.name))


def create_hub() -> None:
    run("ip", "netns", "add", HUB)
    _batch(
        HUB,
        "link set lo up",
        f"link add {SWITCH} type bridge",
        f"addr add {HUB_ADDRESS}/24 dev {SWITCH}",
        f"link set {SWITCH} up",
        # A client here needs a route, and no blackhole, for the packet that kube-proxy then turns to an endpoint.
        f"route add {SERVICES} dev {SWITCH} src {HUB_ADDRESS}",
    )
    # What crosses the switch between two nodes must not meet the hub's own kube-proxy rules.
    _set(HUB, {"net/ipv4/ip_forward": 1, "net/bridge/bridge-nf-call-iptables": 0})


def create_node(node: Node, others: Sequence[Node]) -> None:
    """A fresh namespace for the node, as after a reboot, with routes to and from the other nodes' pods."""
    delete(node.namespace)
    # The old link goes with its namespace, a moment later.
    wait_until(f"the old link of {node.name} goes", lambda: not _has_link(node), 10, step=0.02)
    run("ip", "netns", "add", node.namespace)
    _batch(
        HUB,
        f"link add {node.link} type veth peer name eth0 netns {node.namespace}",
        f"link set {node.link} master {SWITCH}",
        f"link set {node.link} up",
        f"route replace {node.pods} via {node.address}",
    )
    _batch(
        node.namespace,
        "link set lo up",
        "link set eth0 up",
        f"addr add {node.address}/24 dev eth0",
        f"route add default via {HUB_ADDRESS}",
        *(f"route add {other.pods} via {other.address}" for other in others),
    )
    for other in others:
        if other.namespace in namespaces():
            _batch(other.namespace, f"route replace {node.pods} via {node.address}")
    _set(node.namespace, {"net/ipv4/ip_forward": 1, "net/bridge/bridge-nf-call-iptables": 1})


def set_link(node: Node, up: bool) -> None:
    """Cuts a node off from everything else, or plugs it in again."""
    run("ip", "-n", HUB, "link", "set", node.link, "up" if up else "down")


def is_cut(node: Node) -> bool:
    """Whether the node's link is down, or gone."""
    answer = attempt("ip", "-json", "-n", HUB, "link", "show", node.link)
    return answer.returncode != 0 or "UP" not in json.loads(answer.stdout)[0]["flags"]


def delete(namespace: str) -> None:
    """Removes a namespace with its links. Harmless when there is none."""
    if namespace in namespaces():
        run("ip", "netns", "delete", namespace)


def delete_all() -> None:
    for namespace in namespaces():
        delete(namespace)


def _has_link(node: Node) -> bool:
    return attempt("ip", "-n", HUB, "link", "show", node.link).returncode == 0


def _batch(namespace: str, *lines: str) -> None:
    run("ip", "-n", namespace, "-batch", "-", stdin="\n".join(lines) + "\n")


def _set(namespace: str, values: dict[str, int]) -> None:
    script = "; ".join(f"echo {value} > /proc/sys/{key}" for key, value in values.items())
    run("nsenter", f"--net={NAMESPACES / namespace}", "sh", "-ec", script)
