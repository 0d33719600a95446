"""What is lost comes back, and whoever asks meanwhile is answered."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from local.readiness import is_ready
from tests.cluster.deployments import Infd, Traffic, prompt_of

# Runs in an engine's pod: ends the child of vLLM's server that holds the model.
KILL_THE_ENGINE_CORE = """
import os, pathlib, re, signal, sys
def number(pid, key):
    return int(re.search(rf"^{key}:\\s+(\\d+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1])
pids = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")]
children = [pid for pid in pids if number(pid, "PPid") == int(sys.argv[1])]
os.kill(max(children, key=lambda pid: number(pid, "VmRSS")), signal.SIGKILL)
"""


def uid(infd: Infd, pod: str) -> str:
    """Of a pod by name, or nothing; names come back, uids do not."""
    return infd.kubectl("get", "pod", pod, "--ignore-not-found", "--output=jsonpath={.metadata.uid}")


@pytest.mark.timeout(300)
def test_a_lost_prefill_engine_is_replaced_and_no_request_fails(chat: Any) -> None:
    infd: Infd = chat.infd
    pod = infd.pod(role="prefill")
    lost = uid(infd, pod)
    with Traffic(infd).flowing() as traffic:
        infd.kubectl("delete", "pod", pod, "--wait=false")
        infd.until("prefill is replaced", lambda: uid(infd, pod) not in ("", lost), 60)
        seconds = infd.until_condition(c.ROLES_READY, "True", Reason.ENGINES_READY, 150) and infd.until_ready(60)
        with infd.gateway() as url:
            infd.until(
                "prefill takes part again",
                lambda: infd.complete(url, prompt_of(int(monotonic()))).headers.get("x-headrace-prefill") == pod,
                30,
            )
    print(f"prefill deleted: {traffic}, {traffic.without_prefill} of them computed by decode; Ready in {seconds:.0f} s")
    assert traffic.failed == []
    assert traffic.without_prefill, "requests went on while prefill was away"


@pytest.mark.timeout(180)
def test_a_killed_engine_serves_again_in_the_same_pod(chat: Any) -> None:
    infd: Infd = chat.infd
    pod = infd.pod(role="decode")
    before, lives = infd.agent(pod), infd.lives()
    assert before.engine_pid
    infd.kubectl("exec", pod, "--", "python3.11", "-c", KILL_THE_ENGINE_CORE, str(before.engine_pid))

    def again() -> bool:
        state = infd.agent(pod)
        return state.engine_restarts > before.engine_restarts and state.phase == "Ready"

    seconds = infd.until("the engine is up again", again, 90)
    with infd.gateway() as url:
        seconds += infd.until("it answers", lambda: infd.complete(url, "Hello").status == 200, 30)
        assert infd.complete(url, "Hello").headers["x-headrace-decode"] == pod
    print(f"EngineCore killed: the pod served again after {seconds:.1f} s")
    assert infd.lives() == lives
    infd.until_ready(60)


@pytest.mark.timeout(300)
def test_a_lost_ray_head_costs_no_request(chat: Any) -> None:
    infd: Infd = chat.infd
    head, lives = names.head(infd.name), infd.lives()
    lost = uid(infd, head)
    with Traffic(infd).flowing() as traffic:
        infd.kubectl("delete", "pod", head, "--wait=false")
        seconds = infd.until("the head is replaced", lambda: uid(infd, head) not in ("", lost), 60)
        assert is_ready(infd.read())
        seconds += infd.until("the new head is seen", lambda: infd.conditions()[c.RAY_READY]["status"] == "False", 30)
        infd.until_condition(c.RAY_READY, "True", Reason.NODES_JOINED, 120)
    print(f"head deleted: {traffic}; replaced in {seconds:.1f} s")
    assert traffic.failed == []
    assert infd.lives() == lives
    assert is_ready(infd.read())


@pytest.mark.timeout(180)
def test_a_new_operator_carries_on_and_touches_no_engine(headrace: Any, chat: Any) -> None:
    infd: Infd = chat.infd
    lives, since = infd.lives(), infd.conditions()[c.READY]["lastTransitionTime"]
    headrace.system("delete", headrace.operator_pod(), "--wait")
    headrace.operator_pod()
    contract = f"configmap/{names.head(infd.name)}"
    infd.kubectl("delete", contract)  # only an operator that works brings it back
    infd.until("the new operator is at work", lambda: infd.kubectl("get", contract, "--ignore-not-found"), 60)
    ready = infd.conditions()[c.READY]
    assert (ready["status"], ready["lastTransitionTime"]) == ("True", since)
    assert infd.lives() == lives
