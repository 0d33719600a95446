"""Runtime processes under test: started as a pod starts them, looked at over HTTP and in /proc, never left behind."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from headrace_runtime.contract import (
    Engine,
    HeadContract,
    Integrity,
    Model,
    NodeContract,
    NodeState,
    Place,
    RayNode,
    RoleName,
    Transfer,
)

RUNTIME = Path(__file__).parents[2] / "runtime"
KV_BYTES = 64 * 1024**2
DRAIN_SECONDS = 30.0


def node_contract(
    model: Path,
    role: RoleName = "serve",
    integrity: Integrity | None = None,
    ray: str | None = None,
    transfer: Transfer | None = None,
) -> NodeContract:
    return NodeContract(
        namespace="demo",
        deployment="chat",
        revision="r1",
        role=role,
        model=Model(source="node:///m", path=str(model), served_name="m", integrity=integrity or Integrity()),
        engine=Engine(device="cpu", dtype="bfloat16", max_model_len=4096, kv_cache_bytes=KV_BYTES, transfer=transfer),
        ray=RayNode(address=ray, token_file=None) if ray else None,
        drain_seconds=DRAIN_SECONDS,
    )


def free_port() -> int:
    """A port below those that the kernel gives out by itself: it must still be free when an engine binds it, later."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    pytest.fail("no free port between 20000 and 32000")


def request(
    url: str, body: Mapping[str, Any] | None = None, seconds: float = 20.0
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """An answer whose body is still to be read, and the connection to close after. OSError if there is none."""
    parts = urlsplit(url)
    assert parts.hostname
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
    encoded = json.dumps(body) if body is not None else None
    connection.request("POST" if body is not None else "GET", parts.path, encoded, {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def fetch(url: str, body: Mapping[str, Any] | None = None, seconds: float = 20.0) -> tuple[int, bytes]:
    connection, answer = request(url, body, seconds)
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def tree(root: int) -> set[int]:
    """`root` and everything it started that lives, by the parents that /proc shows."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            parents[int(stat.parent.name)] = int(parent)
    found = {root} & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def named(pids: set[int], word: str) -> int:
    """The process among `pids` whose command line holds `word`."""
    return next(pid for pid in sorted(pids) if word in command_of(pid))


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if tree(pid)}


def seconds_until(condition: Callable[[], bool], limit: float) -> float:
    """How long `condition` took to hold; fails the test after `limit` seconds. A connection refused is a no."""
    began = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - began
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() - began > limit:
            pytest.fail(f"did not come true within {limit:.0f} s")
        time.sleep(0.1)


class Process:
    """One `headrace_runtime` process and where it stands."""

    def __init__(self, python: Path, command: str, contract: NodeContract | HeadContract, place: Place) -> None:
        self.place = place
        self.url = f"http://{place.address}:{place.agent_port}"
        self.engine_url = f"http://{place.address}:{place.engine_port}"
        self.folder = Path(place.run_dir).parent
        file = self.folder / f"{place.name}.json"
        file.write_text(contract.model_dump_json(by_alias=True))
        options = [f"--{key.replace('_', '-')}={value}" for key, value in place.model_dump().items()]
        self.argv = [str(python), "-m", "headrace_runtime", command, f"--contract={file}", *options]
        self.log = self.folder / f"{place.name}.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            env = {**os.environ, "PYTHONPATH": str(RUNTIME)}
            self.popen = subprocess.Popen(self.argv, env=env, stdout=log, stderr=log)

    def state(self) -> dict[str, Any]:
        status, body = fetch(f"{self.url}/state", seconds=3)
        assert status == 200
        state: dict[str, Any] = json.loads(body)
        return state

    def node(self) -> NodeState:
        return NodeState.model_validate(self.state())

    def seconds_until(self, condition: Callable[[NodeState], bool], limit: float = 120.0) -> float:
        return seconds_until(lambda: self._here() and condition(self.node()), limit)

    def _here(self) -> bool:
        if self.popen.poll() is not None:
            pytest.fail(f"{self.place.name} left with {self.popen.returncode}:\n{self.log.read_text()[-3000:]}")
        return True

    def kill(self) -> set[int]:
        """SIGKILL to the process alone, as a crash would; returns everything that it had started."""
        family = tree(self.popen.pid)
        self.popen.kill()
        self.popen.wait()
        return family

    def close(self) -> None:
        family = tree(self.popen.pid)
        self.popen.kill()
        self.popen.wait()
        for pid in alive(family):
            os.kill(pid, signal.SIGKILL)


def place(folder: Path, name: str, address: str = "127.0.0.1") -> Place:
    ports = {"engine_port": free_port(), "agent_port": free_port(), "kv_transfer_port": free_port()}
    return Place(name=name, address=address, run_dir=str(folder / name), **ports)
