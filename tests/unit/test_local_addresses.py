"""Names, addresses and mounts of the bare cluster."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from local.errors import LocalError
from local.layout import HUB_ADDRESS, MOST_NODES, PODS, SERVICES, Layout, Mount, nodes, parse_node


def test_every_node_has_an_address_and_a_range_of_its_own() -> None:
    cluster = nodes(MOST_NODES)
    addresses = {node.address for node in cluster} | {HUB_ADDRESS}
    assert len(addresses) == MOST_NODES + 1
    ranges = [IPv4Network(node.pods) for node in cluster]
    assert all(one.subnet_of(IPv4Network(PODS)) for one in ranges)
    assert not any(one.overlaps(other) for one in ranges for other in ranges if one != other)
    assert not any(IPv4Address(address) in IPv4Network(SERVICES) for address in addresses)


def test_a_nodes_name_is_read_back() -> None:
    assert [parse_node(node.name) for node in nodes(MOST_NODES)] == nodes(MOST_NODES)


@pytest.mark.parametrize("name", ["n0", "n10", "node1", "", "../n1"])
def test_anything_else_is_no_node(name: str) -> None:
    with pytest.raises(LocalError, match="called n1, n2"):
        parse_node(name)


def test_a_mount_is_read_and_shown(tmp_path: Path) -> None:
    mount = Mount.parse(f"{tmp_path}:/opt/headrace/models")
    assert mount == Mount(tmp_path, Path("/opt/headrace/models"))
    assert str(mount) == f"{tmp_path}:/opt/headrace/models"


@pytest.mark.parametrize("text", ["/tmp", "/tmp:/srv/models", ":/opt/models", "/tmp:/opt/../etc", "/tmp:/opt/a b"])
def test_a_mount_that_would_leave_a_trace_is_refused(text: str) -> None:
    with pytest.raises(LocalError, match="mount"):
        Mount.parse(text)


def test_a_mount_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="is not a folder"):
        Mount.parse(f"{tmp_path / 'absent'}:/opt/models")


def test_a_home_too_deep_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LOCAL_HOME", "/var/" + "deep/" * 20)
    with pytest.raises(LocalError, match="longer than 80"):
        Layout.of_machine()


def test_a_home_that_nodes_cannot_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LOCAL_HOME", "/opt/cluster")
    with pytest.raises(LocalError, match="lies under /opt"):
        Layout.of_machine()
