"""Sizes follow a real load on real engines: more prefill, then more decode, then nothing at all, and back. No request
is lost on the way."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from local.programs import run
from tests.cluster.deployments import Infd, Json, prompt_of, tiny
from tests.cluster.streams import Crowd, Load, Shape, Stream
from tests.cluster.test_deployment_roles import roles

PROMPTS, ANSWERS = Shape(1800, 2), Shape(100, 300)
CLIENTS, WRITTEN_TO = 12, 48
"""More than one engine can prefill for, and write to, without making them wait."""
TRIES = 5
LAX = {"target": "60s"}
QUIET_SECONDS = 20.0


@pytest.fixture(scope="module")
def moving(headrace: Any) -> Any:
    infd: Infd = headrace.infd("moving")
    manifest = tiny(infd.name)
    manifest["spec"] |= {
        "roles": [_bounded(role) for role in roles(infd.name, 1, 1)],
        "slo": {"ttft": LAX, "itl": LAX},
        "scaling": {"mode": "SLO", "toZero": {"after": f"{QUIET_SECONDS:.0f}s", "holdTimeout": "180s"}},
        "disaggregation": {"roleChange": {"enabled": True, "cooldown": "10s"}},
        "drain": {"timeout": "120s"},
    }
    infd.apply(manifest)
    try:
        infd.until_ready(240)
        yield infd
    finally:
        infd.delete()


def _bounded(role: Json) -> Json:
    return {name: value for name, value in role.items() if name != "replicas"} | {"scaling": {"min": 1, "max": 2}}


@pytest.mark.timeout(900)
def test_sizes_follow_the_load_to_nothing_and_back_and_no_request_is_lost(moving: Infd, tmp_path: Path) -> None:
    ttft, itl = what_one_client_gets(moving)
    prompts = Crowd(moving, shapes=(PROMPTS,), clients=CLIENTS)
    answers = Crowd(moving, shapes=(ANSWERS,), clients=WRITTEN_TO)
    # Engines of both roles share the cores here, so that each phase of the work is late where the other one is busy:
    # one target at a time.
    for crowd, slo, wanted in (
        (prompts, {"ttft": target(4 * ttft), "itl": LAX}, (2, 1)),
        (answers, {"ttft": LAX, "itl": target(1.2 * itl)}, (1, 2)),
    ):
        moving.patch(slo=slo)
        with crowd.flowing():
            seconds = moving.until(f"the sizes are {wanted}", lambda want=wanted: sizes(moving) == want, 240)
            recorded = typed(moving, "record", "--minutes", "0", "--output", str(tmp_path / "moving.jsonl"))
            assert "1 of 1 gateways" in recorded
        print(f"prefill, decode {wanted} after {seconds:.0f} s; {slo}; {crowd}")
    asleep = moving.until("no engine is left", lambda: not engines(moving), QUIET_SECONDS + 180)
    assert moving.conditions()[c.READY]["status"] == "True", moving.report()
    print(f"asleep {asleep:.0f} s after the last request")
    began, woken = monotonic(), Load(moving, shapes=(Shape(100, 6),))
    with woken.flowing():
        print(f"first answer {monotonic() - began:.1f} s after the first request")
        moving.until("both roles are back", lambda: min(sizes(moving)) >= 1, 120)
    said = typed(moving, "explain", "--last", "20")
    print(said)
    assert all(told in said for told in ("prefill 1 -> 2", "decode 1 -> 2", "decode 0 -> "))
    assert [one.lost for one in (prompts, answers, woken)] == [[], [], []]


def what_one_client_gets(infd: Infd) -> tuple[float, float]:
    """Seconds to the first token of a long prompt, and between tokens, on this machine."""
    firsts, gaps = [], []
    with infd.gateway() as url:
        for seed in range(TRIES):
            began = monotonic()
            stream = Stream(url, infd.model, prompt_of(90_000 + seed, PROMPTS.prompt), ANSWERS.answer)
            stream.until_first_token()
            first = monotonic()
            told = stream.rest()
            gaps.append((monotonic() - first) / (told - 1))
            firsts.append(first - began)
    return median(firsts), median(gaps)


def target(seconds: float) -> Json:
    return {"target": f"{max(1, round(seconds * 1e3))}ms"}


def sizes(infd: Infd) -> tuple[int, int]:
    """Ready engines of prefill and of decode."""
    ready = {role["name"]: role["ready"] for role in infd.read()["status"]["roles"]}
    return ready["prefill"], ready["decode"]


def engines(infd: Infd) -> list[Json]:
    """All its engine pods, those included that are going away: while one drains it still answers."""
    selector = f"{names.DEPLOYMENT}={infd.name},{names.COMPONENT}=engine"
    found: list[Json] = infd.json("get", "pods", "--selector", selector)["items"]
    return found


def typed(infd: Infd, command: str, *options: str) -> str:
    """What the command says of it."""
    to = ("--kubeconfig", str(infd.kubectl.kubeconfig), "--namespace", infd.kubectl.namespace)
    return run(sys.executable, "-m", "headrace_operator", command, infd.name, *to, *options)
