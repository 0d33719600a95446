"""What the chaos suite does inside a pod, done to processes of a test."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from chaos.faults import IN_A_POD
from chaos.machine import children, command_of, processes_of, resident

# A server with two children, of which the second holds the model.
SERVER = """
import subprocess, sys
small = "import time; time.sleep(600)"
large = "import time; model = b'x' * (50 << 20); time.sleep(600)"
for child in [subprocess.Popen([sys.executable, "-c", code]) for code in (small, large)]:
    child.wait()
"""


@pytest.fixture
def server() -> Iterator[int]:
    with serving() as pid:
        yield pid


@contextmanager
def serving(*within: str) -> Iterator[int]:
    with subprocess.Popen([*within, sys.executable, "-c", SERVER]) as popen:
        until(lambda: len(children(popen.pid)) == 2 and resident(core_of(popen.pid)) * 4096 > 50 << 20)
        its = children(popen.pid)
        yield popen.pid
        for pid in its:
            subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)
        popen.kill()


def until(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator] # a function without arguments
        assert time.monotonic() < end
        time.sleep(0.02)


def core_of(server: int) -> int:
    return max(children(server), key=resident)


def act(name: str, server: int, *within: str) -> float:
    words = [*within, sys.executable, "-c", IN_A_POD, name, str(server)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_it_kills_the_child_that_holds_the_model_and_says_when(server: int) -> None:
    core, before = core_of(server), time.monotonic()
    assert before < act("core", server) < time.monotonic()
    until(lambda: core not in children(server))
    assert state_of(server) in "SRD"


def test_it_kills_the_server_and_leaves_the_core(server: int) -> None:
    core = core_of(server)
    act("server", server)
    until(lambda: state_of(server) == "Z")
    assert state_of(core) in "SRD"


def test_it_stops_the_core_and_lets_it_go_on(server: int) -> None:
    core = core_of(server)
    act("SIGSTOP", server)
    until(lambda: state_of(core) == "T")
    act("SIGCONT", server)
    until(lambda: state_of(core) in "SR")


@pytest.fixture
def limited() -> Iterator[tuple[str, ...]]:
    """The begin of a command: what follows may take 300 MiB, and no more."""
    old = Path("/sys/fs/cgroup/memory")
    home, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (old.parent, "memory.max")
    group = home / f"headrace-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(300 << 20))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no limit of memory can be set here: {error}")
    yield "sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'
    until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_out_of_memory_the_kernel_ends_the_core_and_nothing_else(limited: tuple[str, ...]) -> None:
    with serving(*limited) as server:
        core, other = core_of(server), min(children(server), key=resident)
        before = time.monotonic()
        assert before < act("memory", server, *limited) < time.monotonic()
        until(lambda: core not in children(server) or state_of(core) == "Z")
        assert state_of(server) in "SRD"
        assert state_of(other) in "SRD"


def test_processes_are_found_by_their_cgroup_and_a_gone_one_has_no_command(server: int) -> None:
    cgroup = Path(f"/proc/{server}/cgroup").read_text().splitlines()[0]
    assert server in processes_of(cgroup)
    assert "-c" in command_of(server)
    assert command_of(2**22 + 1) == [""]
