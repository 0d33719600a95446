"""The bare cluster's pure parts: cgroups, command lines, configurations, and the relay to the API."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from local import control_plane, node_config, packages, sandbox
from local.control_plane import ControlPlane
from local.errors import LocalError
from local.forward import relay
from local.layout import Node
from local.programs import run, wait_until

PLANE = ControlPlane(Path("/bin/k8s-node"), Path("/home/pki"), Path("/home/hub"), "172.31.240.1", 16443)
FOLDER = Path("/home/n1")


def test_every_controller_that_nodes_need_is_found_alone_or_together() -> None:
    apart = "9:name=systemd:/\n8:pids:/a\n4:memory:/b\n2:cpuacct:/\n1:cpu:/\n0::/\n"
    assert sandbox.hierarchies(apart) == ["cpu", "cpuacct", "memory", "pids", "systemd", "unified"]
    together = "5:cpu,cpuacct:/\n4:net_cls,net_prio:/\n3:perf_event:/\n1:name=systemd:/\n"
    assert sandbox.hierarchies(together) == ["cpu,cpuacct", "systemd"]


def test_a_machine_with_cgroup_v2_alone_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(sandbox, "_membership", lambda: "0::/init.scope\n")
    reason = sandbox.obstacle()
    assert reason is not None
    assert "cgroup v1" in reason


def test_a_user_without_rights_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert sandbox.obstacle() == "the bare cluster needs root"


def test_no_command_line_names_a_flag_twice() -> None:
    commands = (
        control_plane.etcd(PLANE),
        control_plane.api_server_alone(PLANE),
        control_plane.api_server_audited(PLANE, FOLDER / "audit.log"),
        control_plane.controller_manager(PLANE, 8),
        control_plane.scheduler(PLANE),
        node_config.kubelet_command(PLANE.program, FOLDER, Node(1)),
    )
    for command in commands:
        flags = [word.partition("=")[0] for word in command[2:]]
        assert len(set(flags)) == len(flags)
        assert all(flag.startswith("--") for flag in flags)


def test_an_api_server_for_tests_is_on_loopback_alone() -> None:
    assert "--bind-address=127.0.0.1" in control_plane.api_server_alone(PLANE)
    assert "--bind-address=127.0.0.1" not in control_plane.api_server(PLANE)


def test_what_a_node_may_give_its_pods_does_not_grow_with_the_machine() -> None:
    small = node_config.kubelet(FOLDER, PLANE.pki, Node(1), machine_memory_mi=4096)
    large = node_config.kubelet(FOLDER, PLANE.pki, Node(1), machine_memory_mi=65536)
    assert small["systemReserved"]["memory"] == "0Mi"
    assert large["systemReserved"]["memory"] == f"{65536 - node_config.POD_MEMORY_MI - 100}Mi"


def test_a_nodes_folder_is_the_only_one_that_its_containerd_writes() -> None:
    text = node_config.containerd(FOLDER)
    places = [
        line.split('"')[1]
        for line in text.splitlines()
        if line.strip().split(" ")[0] in {"root", "state", "path", "address"}
    ]
    assert len(places) == 4
    assert all(place.startswith(f"{FOLDER}/") for place in places)


def test_the_packages_of_absent_programs_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "found", lambda program: None)
    assert packages.missing("containerd", "ctr", "gcc") == ["containerd", "gcc", "libc6-dev"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LocalError, match=r"names as in Debian\): containerd$"):
        packages.require("containerd", "ctr")


def test_nothing_is_installed_where_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "found", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(packages, "run", lambda *words, **rest: pytest.fail("apt was started"))
    packages.require("containerd", "gcc")


def test_a_failed_program_is_quoted() -> None:
    assert run("sh", "-c", "cat; echo $WORD", stdin="in ", env={"WORD": "env"}) == "in env"
    with pytest.raises(LocalError, match="ended with status 3: what went wrong"):
        run("sh", "-c", "echo what went wrong >&2; exit 3")
    with pytest.raises(LocalError, match="no-such-program is not installed"):
        run("no-such-program")


def test_waiting_in_vain_says_for_what() -> None:
    wait_until("the sun rises", lambda: True, limit=0)
    with pytest.raises(LocalError, match="in vain: the sun rises"):
        wait_until("the sun rises", lambda: False, limit=0, step=0)


async def test_the_relay_carries_both_directions_and_ends_them_apart() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = await reader.read()  # until the other side says that there is no more
        writer.write(heard.upper())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    task = asyncio.create_task(relay(listener, *server.sockets[0].getsockname()))
    try:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello" * 50_000)
        writer.write_eof()
        assert await reader.read() == b"HELLO" * 50_000
        writer.close()
        await writer.wait_closed()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        await server.wait_closed()


async def test_the_relay_closes_a_connection_that_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        unused = taken.getsockname()[1]
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    task = asyncio.create_task(relay(listener, "127.0.0.1", unused))
    try:
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
