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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_lost_engine_is_replaced_and_no_request_fails(chat: Any, role: str) -> None:
    infd: Infd = chat.infd
    (lost,) = infd.uids(role=role)
    with Traffic(infd).flowing() as traffic:
        infd.kubectl("delete", "pod", infd.pod(role=role), "--wait=false")
        seconds = infd.until(f"{role} is replaced", lambda: infd.uids(role=role, ready=True) - {lost}, 150)
        seconds += infd.until_condition(c.ROLES_READY, "True", Reason.ENGINES_READY, 30)
        with infd.gateway() as url:
            infd.until("both take part again", lambda: took_part(infd, url) == set(infd.pods()), 90)
    print(f"{role} deleted: {traffic}, {traffic.without_prefill} of them by one engine alone; back in {seconds:.0f} s")
    assert traffic.failed == []
    assert traffic.without_prefill, "requests went on while it was away"
    infd.until_ready(60)


def took_part(infd: Infd, url: str) -> set[str | None]:
    """The engines that worked on a fresh long prompt."""
    headers = infd.complete(url, prompt_of(int(monotonic() * 1000))).headers
    return {headers.get("x-headrace-prefill"), headers.get("x-headrace-decode")}


def answered_by(infd: Infd, url: str) -> str:
    """The engine that wrote the tokens of a short answer."""
    reply = infd.complete(url, "Hello")
    assert reply.status == 200
    return reply.headers["x-headrace-decode"]


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
        # Until the gateway's health checks have found it again, the prefill engine answers alone.
        seconds += infd.until("it answers", lambda: answered_by(infd, url) == pod, 90)
    print(f"EngineCore killed: the pod served again after {seconds:.1f} s")
    assert infd.lives() == lives
    infd.until_ready(60)


@pytest.mark.timeout(300)
def test_a_lost_ray_head_costs_no_request(chat: Any) -> None:
    infd: Infd = chat.infd
    (lost,), lives = infd.uids("head"), infd.lives()
    with Traffic(infd).flowing() as traffic:
        infd.kubectl("delete", "pod", infd.pod("head"), "--wait=false")
        seconds = infd.until("the head is replaced", lambda: infd.uids("head") - {lost}, 120)
        assert is_ready(infd.read())
        seconds += infd.until("the loss is seen", lambda: infd.conditions()[c.RAY_READY]["status"] == "False", 90)
        seconds += infd.until_condition(c.RAY_READY, "True", Reason.NODES_JOINED, 120)
    print(f"head deleted: {traffic}; replaced in {seconds:.1f} s")
    assert traffic.failed == []
    assert infd.lives() == lives
    assert is_ready(infd.read())


@pytest.mark.timeout(180)
def test_a_new_operator_carries_on_and_touches_no_engine(headrace: Any, chat: Any) -> None:
    infd: Infd = chat.infd
    lives, since = infd.lives(), infd.conditions()[c.READY]["lastTransitionTime"]
    headrace.system("delete", "pod", headrace.operator_pod(), "--wait")
    headrace.operator_pod()
    contract = f"configmap/{names.head(infd.name)}"
    infd.kubectl("delete", contract)  # only an operator that works brings it back
    infd.until("the new operator is at work", lambda: infd.kubectl("get", contract, "--ignore-not-found"), 120)
    ready = infd.conditions()[c.READY]
    assert (ready["status"], ready["lastTransitionTime"]) == ("True", since)
    assert infd.lives() == lives
