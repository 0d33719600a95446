"""A real Ray head and one engine pod, on two loopback addresses: nothing that Ray loses costs the engine anything."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_runtime.contract import HeadContract
from tests.runtime.processes import (
    Process,
    alive,
    command_of,
    fetch,
    free_port,
    named,
    node_contract,
    place,
    seconds_until,
    tree,
)

# Ray takes any loopback address but the first, which it replaces by one of the machine's own.
HEAD, NODE = "127.0.0.2", "127.0.0.3"
POD = "chat-serve-r1-0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("head")


@pytest.fixture(scope="module")
def token(folder: Path) -> str:
    file = folder / "token"
    file.write_text("0123456789abcdef0123456789abcdef")
    file.chmod(0o600)
    return str(file)


@pytest.fixture(scope="module")
def head(folder: Path, engine_python: Path, token: str) -> Iterator[Process]:
    contract = HeadContract(
        namespace="demo", deployment="chat", gcs_path=str(folder / "gcs"), port=free_port(), token_file=token
    )
    process = Process(engine_python, "head", contract, place(folder, "chat-head", HEAD))
    process.ray_address = f"{HEAD}:{contract.port}"  # type: ignore[attr-defined]
    yield process
    process.close()


@pytest.fixture(scope="module")
def node(
    folder: Path, engine_python: Path, model: Callable[[str], Path], head: Process, token: str
) -> Iterator[Process]:
    contract = node_contract(model("tiny"), ray=head.ray_address)  # type: ignore[attr-defined]
    assert contract.ray
    contract = contract.model_copy(update={"ray": contract.ray.model_copy(update={"token_file": token})})
    process = Process(engine_python, "node", contract, place(folder, POD, NODE))
    yield process
    process.close()


@pytest.fixture
def streams(node: Process) -> Iterator[None]:
    """One stream after the other while a test lasts; all of them must be whole."""
    body = {"model": "m", "prompt": "Once", "max_tokens": 50, "ignore_eos": True, "stream": True}
    done, answers = threading.Event(), list[bytes]()

    def ask() -> None:
        while not done.is_set():
            answers.append(fetch(f"{node.engine_url}/v1/completions", body, seconds=60)[1])
            done.wait(0.2)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        yield
        done.set()
        asking.result()
    assert answers
    assert {answer.rstrip().endswith(b"data: [DONE]") for answer in answers} == {True}


def supervised(head: Process) -> bool:
    """The fleet's report names the engine as ready, as its actor heard it from the agent."""
    fleet = head.state()["fleet"]
    return bool(fleet) and [(one["pod"], one["phase"]) for one in fleet["supervisors"]] == [(POD, "Ready")]


def has_supervisor(node: Process) -> bool:
    """Whether the actor's own process runs below this node's raylet."""
    return any(command_of(pid).startswith("ray::Supervisor") for pid in tree(node.popen.pid))


def test_the_supervisor_adopts_a_running_engine(head: Process, node: Process) -> None:
    took = node.seconds_until(lambda state: state.phase == "Ready")
    joined = node.seconds_until(lambda state: state.supervisor is not None)
    seconds_until(lambda: supervised(head), 60)
    state = node.node()
    print(f"engine ready after {took:.1f} s, supervised {joined:.1f} s later")
    assert state.ray
    assert state.ray.joined
    assert fetch(f"{head.url}/readyz")[0] == 200


@pytest.mark.usefixtures("streams")
def test_a_killed_head_comes_back_and_adopts_the_same_engine(head: Process, node: Process) -> None:
    before = node.node()
    family = head.kill()
    gone = seconds_until(lambda: not alive(family), 60)
    assert fetch(f"{node.engine_url}/health")[0] == 200
    head.start()
    took = seconds_until(lambda: supervised(head), 90)
    after = node.node()
    print(f"head's processes gone after {gone:.1f} s; engine adopted again {took:.1f} s after the head's start")
    assert after.engine_pid == before.engine_pid
    assert after.engine_restarts == 0
    assert after.phase == "Ready"


@pytest.mark.usefixtures("streams")
def test_a_killed_raylet_joins_again_beside_the_same_engine(head: Process, node: Process) -> None:
    before = node.node()
    os.kill(named(tree(node.popen.pid), "raylet/raylet"), signal.SIGKILL)
    node.seconds_until(lambda state: bool(state.ray and state.ray.restarts == 1))
    took = seconds_until(lambda: has_supervisor(node), 90)
    node.seconds_until(lambda state: bool(state.ray and state.ray.joined and state.supervisor), 60)
    seconds_until(lambda: supervised(head), 60)
    print(f"a new actor runs {took:.1f} s after the raylet was restarted")
    assert node.node().engine_pid == before.engine_pid


@pytest.mark.usefixtures("streams")
def test_a_killed_supervisor_and_a_killed_fleet_are_back_beside_the_same_engine(head: Process, node: Process) -> None:
    before = node.node()
    os.kill(named(tree(head.popen.pid), "headrace_runtime fleet"), signal.SIGKILL)
    actor = named(tree(node.popen.pid), "ray::Supervisor")
    os.kill(actor, signal.SIGKILL)
    took = seconds_until(lambda: has_supervisor(node) and not alive({actor}), 90)
    node.seconds_until(lambda state: bool(state.supervisor), 60)
    seconds_until(lambda: supervised(head), 60)
    print(f"a new actor runs {took:.1f} s after the old one was killed")
    assert node.node().engine_pid == before.engine_pid


def test_nothing_outlives_a_killed_agent(node: Process) -> None:
    family = node.kill()
    assert len(family) >= 6
    took = seconds_until(lambda: not alive(family), 60)
    print(f"{len(family)} processes gone {took:.1f} s after the agent was killed")
