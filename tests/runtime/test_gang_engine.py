"""One engine over two pods, as two agents of this machine and two ranks of real vLLM (tensor parallel, on CPU).

Each agent has its own loopback address, as pods have their own. The engine's answers are those of one in a single pod,
with which it exchanges KV blocks; and whatever takes a rank away, all ranks begin anew together.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from headrace_runtime.contract import Backoff, Engine, NodeContract, NodeState, Parallelism, RoleName, Transfer
from tests.runtime.engines import Server
from tests.runtime.processes import KV_BYTES, Process, alive, fetch, free_port, named, node_contract, place, tree

pytestmark = pytest.mark.timeout(600)

START_SECONDS = 240.0
ASKED = {"do_remote_decode": True, "do_remote_prefill": False}
PROMPTS = ("The river", "Two pods hold one model, and", "ready")


def ready(state: NodeState) -> bool:
    return state.phase == "Ready"


def contract(model: Path, role: RoleName, pods: int) -> NodeContract:
    """float32, so that a sum in two parts rounds to the same word."""
    sizes = Parallelism(tensor=pods, pods=pods)
    engine = Engine(
        device="cpu",
        dtype="float32",
        max_model_len=1024,
        kv_cache_bytes=KV_BYTES,
        parallelism=sizes,
        transfer=Transfer(on_failure="Fail"),
    )
    backoff = Backoff(base_seconds=0.5, max_seconds=1)
    return node_contract(model, role).model_copy(update={"engine": engine, "backoff": backoff})


def complete(node: Process, prompt: str | list[int], **more: Any) -> dict[str, Any]:
    body = {"model": "m", "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, **more}
    status, answer = fetch(f"{node.engine_url}/v1/completions", body, seconds=60)
    assert status == 200, answer
    parsed: dict[str, Any] = json.loads(answer)
    return parsed


def text(answer: dict[str, Any]) -> str:
    words: str = answer["choices"][0]["text"]
    return words


def answers(node: Process) -> list[str]:
    return [text(complete(node, prompt)) for prompt in PROMPTS]


class Gang(NamedTuple):
    leader: Process
    follower: Process
    alone: Process
    """An engine in one pod, with the same model."""

    def until_ready(self) -> float:
        took = self.leader.seconds_until(ready, START_SECONDS)
        self.follower.seconds_until(ready, 60)
        return took


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory, engine_python: Path, model: Callable[[str], Path]) -> Iterator[Gang]:
    folder = tmp_path_factory.mktemp("gang")
    alone = Process(engine_python, "node", contract(model("tiny"), "decode", 1), place(folder, "chat-decode-r1-0"))
    processes = [alone]
    try:
        alone.seconds_until(ready, START_SECONDS)
        spread = contract(model("tiny"), "prefill", 2)
        first = place(folder, "chat-prefill-r1-0", "127.0.0.3").model_copy(update={"gang_port": free_port()})
        processes.append(Process(engine_python, "node", spread, first))
        told = {"rank": 1, "leader": f"{first.address}:{first.agent_port}"}
        second = place(folder, "chat-prefill-r1-0-r1", "127.0.0.4").model_copy(update=told)
        processes.append(Process(engine_python, "node", spread, second))
        yield Gang(processes[1], processes[2], alone)
    finally:
        for process in processes:
            process.close()


def test_both_ranks_become_ready_and_answer_as_one_engine_does(gang: Gang) -> None:
    print(f"ready {gang.until_ready():.1f} s after the agents' start")
    assert answers(gang.leader) == answers(gang.alone)
    assert fetch(f"{gang.follower.url}/readyz")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        fetch(f"{gang.follower.engine_url}/health", seconds=3)


@pytest.mark.parametrize("spread_first", [True, False])
def test_it_exchanges_kv_blocks_with_an_engine_in_one_pod(gang: Gang, *, spread_first: bool) -> None:
    gang.until_ready()
    prefill, decode = (gang.leader, gang.alone) if spread_first else (gang.alone, gang.leader)
    prompt = [(31 * place + 17 + spread_first) % 3000 + 100 for place in range(600)]
    handed = complete(prefill, prompt, max_tokens=1, kv_transfer_params=ASKED)["kv_transfer_params"]
    before = moved(decode)
    split = text(complete(decode, prompt, kv_transfer_params=handed))
    assert moved(decode) - before == len(prompt)
    assert split == text(complete(prefill, prompt))


def moved(node: Process) -> float:
    """Tokens of prompts whose KV blocks the engine was given by another."""
    return Server(node.place).prompt_tokens("external_kv_transfer")


def test_a_rank_whose_worker_is_killed_ends_the_whole_engine_which_begins_anew(gang: Gang) -> None:
    before = gang.leader.node().engine_pid, gang.follower.node().engine_pid
    parts = tree(before[0] or 0) | tree(before[1] or 0)
    os.kill(named(tree(gang.follower.popen.pid), "Worker"), signal.SIGKILL)
    gang.leader.seconds_until(lambda state: state.engine_restarts == 1, 60)
    print(f"ready again {gang.until_ready():.1f} s after its parts were ended")
    assert answers(gang.leader) == answers(gang.alone)
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
