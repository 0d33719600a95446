"""One engine over two pods, as two agents of this machine and two ranks of real vLLM (tensor parallel, on CPU).

Each agent has its own loopback address, as pods have their own. The engine's answers are those of one that is whole,
and whatever takes a rank away, all ranks begin anew together.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace_runtime.contract import Backoff, Engine, NodeContract, NodeState, Parallelism
from tests.runtime.processes import KV_BYTES, Process, alive, fetch, free_port, named, node_contract, place, tree

pytestmark = pytest.mark.timeout(600)

START_SECONDS = 240.0
PROMPTS = ("The river", "Two pods hold one model, and", "ready")


def ready(state: NodeState) -> bool:
    return state.phase == "Ready"


def contract(model: Path, pods: int) -> NodeContract:
    """float32, so that a sum in two parts rounds to the same word."""
    sizes = Parallelism(tensor=pods, pods=pods)
    engine = Engine(device="cpu", dtype="float32", max_model_len=512, kv_cache_bytes=KV_BYTES, parallelism=sizes)
    backoff = Backoff(base_seconds=0.5, max_seconds=1)
    return node_contract(model).model_copy(update={"engine": engine, "backoff": backoff})


def answers(node: Process) -> list[str]:
    found = []
    for prompt in PROMPTS:
        body = {"model": "m", "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        status, answer = fetch(f"{node.engine_url}/v1/completions", body, seconds=60)
        assert status == 200, answer
        found.append(json.loads(answer)["choices"][0]["text"])
    return found


class Gang(NamedTuple):
    leader: Process
    follower: Process
    whole: list[str]
    """What an engine in one pod answers."""

    def until_ready(self) -> float:
        took = self.leader.seconds_until(ready, START_SECONDS)
        self.follower.seconds_until(ready, 60)
        return took


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory, engine_python: Path, model: Callable[[str], Path]) -> Iterator[Gang]:
    folder = tmp_path_factory.mktemp("gang")
    alone = Process(engine_python, "node", contract(model("tiny"), 1), place(folder, "chat-serve-r0-0"))
    try:
        alone.seconds_until(ready, START_SECONDS)
        whole = answers(alone)
    finally:
        alone.close()
    spread = contract(model("tiny"), 2)
    first = place(folder, "chat-serve-r1-0", "127.0.0.3").model_copy(update={"gang_port": free_port()})
    leader = Process(engine_python, "node", spread, first)
    told = {"rank": 1, "leader": f"{first.address}:{first.agent_port}"}
    second = place(folder, "chat-serve-r1-0-r1", "127.0.0.4").model_copy(update=told)
    follower = Process(engine_python, "node", spread, second)
    yield Gang(leader, follower, whole)
    leader.close()
    follower.close()


def test_both_ranks_become_ready_and_answer_as_one_engine_does(gang: Gang) -> None:
    print(f"ready {gang.until_ready():.1f} s after the agents' start")
    assert answers(gang.leader) == gang.whole
    assert fetch(f"{gang.follower.url}/readyz")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        fetch(f"{gang.follower.engine_url}/health", seconds=3)


def test_a_rank_whose_worker_is_killed_ends_the_whole_engine_which_begins_anew(gang: Gang) -> None:
    before = gang.leader.node().engine_pid, gang.follower.node().engine_pid
    parts = tree(before[0] or 0) | tree(before[1] or 0)
    os.kill(named(tree(gang.follower.popen.pid), "Worker"), signal.SIGKILL)
    gang.leader.seconds_until(lambda state: state.engine_restarts == 1, 60)
    print(f"ready again {gang.until_ready():.1f} s after its parts were ended")
    assert answers(gang.leader) == gang.whole
    after = gang.leader.node().engine_pid, gang.follower.node().engine_pid
    assert not set(before) & set(after)
    assert alive(parts) == set(), "nothing of the first life is left"


def test_a_pod_that_is_told_to_leave_lets_the_engine_drain_and_both_leave(gang: Gang) -> None:
    parts = tree(gang.leader.popen.pid) | tree(gang.follower.popen.pid)
    gang.follower.popen.terminate()
    gang.leader.seconds_until(lambda state: state.phase in ("Draining", "Waiting"), 60)
    assert gang.follower.popen.wait(90) == 0
    gang.leader.seconds_until(lambda state: state.reason == "RanksMissing", 60)
    gang.leader.popen.terminate()
    assert gang.leader.popen.wait(60) == 0
    assert alive(parts) == set()
