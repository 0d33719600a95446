"""One agent and a real engine: it comes back from what kills or hangs it, and leaves as it should."""

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace_runtime.contract import Integrity, NodeState
from headrace_runtime.node.sweep import SHARED_MEMORY
from tests.runtime.processes import Process, alive, fetch, named, node_contract, place, request, seconds_until, tree


def ready(state: NodeState) -> bool:
    return state.phase == "Ready"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def node(folder: Path, engine_python: Path, model: Callable[[str], Path]) -> Iterator[Process]:
    """One agent for the whole module; each test leaves it with a ready engine, but for the last."""
    process = Process(engine_python, "node", node_contract(model("tiny")), place(folder, "chat-serve-r1-0"))
    yield process
    process.close()


@pytest.fixture
def left_in_memory() -> Iterator[Path]:
    """A segment of shared memory that nobody maps, named as Python and vLLM name theirs."""
    path = SHARED_MEMORY / f"psm_{uuid.uuid4().hex[:8]}"
    path.write_bytes(b"\0" * 4096)
    yield path
    path.unlink(missing_ok=True)


def test_the_engine_becomes_ready_with_verified_weights(node: Process) -> None:
    took = node.seconds_until(ready)
    state = node.node()
    print(f"ready {took:.1f} s after the agent's start, {state.ready_seconds:.1f} s after the engine's")
    assert state.weights.verified is True
    assert state.weights.digest
    assert state.engine_version
    assert fetch(f"{node.url}/readyz")[0] == 200


def test_an_engine_that_loses_its_core_is_ready_again(node: Process) -> None:
    first = node.node().engine_pid
    os.kill(named(tree(node.popen.pid), "EngineCore"), signal.SIGKILL)
    took = node.seconds_until(lambda state: ready(state) and state.engine_pid != first)
    print(f"ready again {took:.1f} s after EngineCore was killed")
    assert took < 60
    assert node.node().engine_restarts == 1


def test_a_hung_engine_is_found_and_started_again(node: Process) -> None:
    first = node.node().engine_pid
    assert first
    os.kill(first, signal.SIGSTOP)
    took = node.seconds_until(lambda state: ready(state) and state.engine_pid != first)
    print(f"ready again {took:.1f} s after the engine was stopped")
    assert node.node().engine_restarts == 2


def test_a_core_that_hangs_behind_its_front_end_is_found_and_started_again(node: Process) -> None:
    first = node.node().engine_pid
    os.kill(named(tree(node.popen.pid), "EngineCore"), signal.SIGSTOP)
    assert fetch(f"{node.engine_url}/health")[0] == 200
    took = node.seconds_until(lambda state: ready(state) and state.engine_pid != first)
    print(f"ready again {took:.1f} s after EngineCore was stopped")
    assert took < 50, "well before the limit of an engine that is busy"
    assert node.node().engine_restarts == 3


def test_an_engine_that_loses_its_front_end_leaves_nothing_behind(node: Process, left_in_memory: Path) -> None:
    first = node.node().engine_pid
    assert first
    family = tree(first)
    assert len(family) > 1
    os.kill(first, signal.SIGKILL)
    node.seconds_until(lambda state: ready(state) and state.engine_pid != first)
    assert not alive(family)
    assert not left_in_memory.exists()
    assert node.node().engine_restarts == 4


def test_a_drain_lets_a_running_stream_end_and_leaves_nothing(node: Process) -> None:
    question = {"model": "m", "prompt": "Once", "max_tokens": 600, "ignore_eos": True, "stream": True}
    connection, stream = request(f"{node.engine_url}/v1/completions", question)
    assert stream.readline().startswith(b"data: ")
    family = tree(node.popen.pid)
    node.popen.terminate()
    seconds_until(lambda: fetch(f"{node.url}/readyz")[0] == 503, 60)
    rest = stream.read()
    connection.close()
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert rest.count(b"data: ") > 500
    assert node.popen.wait(40) == 0
    seconds_until(lambda: not alive(family), 60)


def test_weights_with_another_digest_start_no_engine(
    folder: Path, engine_python: Path, model: Callable[[str], Path]
) -> None:
    wrong = Integrity(digest="sha256:" + "0" * 64)
    contract = node_contract(model("tiny"), integrity=wrong)
    process = Process(engine_python, "node", contract, place(folder, "chat-serve-r1-1"))
    try:
        process.seconds_until(lambda state: state.phase == "Failed", 60)
        state = process.node()
        assert (state.reason, state.engine_pid, state.weights.verified) == ("DigestMismatch", None, False)
        assert state.weights.problems
        process.popen.terminate()
        assert process.popen.wait(10) == 0
    finally:
        process.close()


def test_an_image_without_vllm_or_ray_is_told_apart_from_a_crash(folder: Path, model: Callable[[str], Path]) -> None:
    """The development environment has neither."""
    process = Process(Path(sys.executable), "node", node_contract(model("tiny")), place(folder, "chat-serve-r1-2"))
    try:
        process.seconds_until(lambda state: state.phase == "Failed", 60)
        assert process.node().reason == "EngineMissing"
        assert fetch(f"{process.url}/healthz")[0] == 200
    finally:
        process.close()
