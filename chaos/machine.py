"""Processes and ports of this machine, as /proc and the kernel show them, and one question over HTTP."""

import json
import os
import random
import signal
import socket
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from local.errors import LocalError

PORTS = range(20000, 32000)
"""Below those that the kernel gives out by itself: a port must still be free when an engine takes it again."""


def fetch(url: str) -> dict[str, Any]:
    """JSON. OSError: no answer within two seconds, or another status than 200."""
    with urllib.request.urlopen(url, timeout=2) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def holds(condition: Callable[[], bool]) -> bool:
    """Asked of something that may be away just now, which is a no."""
    try:
        return condition()
    except (OSError, LocalError):
        return False


def free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} ports are free in {PORTS}")


def children(pid: int) -> list[int]:
    """The processes that it started and that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def processes_of(word: str) -> list[int]:
    """The processes of this machine in a cgroup whose path holds `word`, such as a pod's uid."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if word in file.read_text():
                found.append(int(file.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def command_of(pid: int) -> list[str]:
    """Its command line; [''] of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # another one's end took it along
