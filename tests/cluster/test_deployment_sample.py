"""The sample end to end: from `kubectl apply` to an answer that is right, each role doing its part."""

from __future__ import annotations

import json
from time import monotonic, sleep
from typing import Any

import pytest

from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from local.demo import MANNERS, QUESTION, SAMPLE
from local.question import ask
from tests.cluster.deployments import post, prompt_of

TARGET_SECONDS = 60
QUIET_SECONDS = 30
EXPECTED = {
    c.ACCEPTED: ("True", Reason.VALID),
    c.MODEL_READY: ("True", Reason.LOADED),
    c.WEIGHTS_VERIFIED: ("True", Reason.DIGEST_PINNED),
    c.RAY_READY: ("True", Reason.NODES_JOINED),
    c.ROLES_READY: ("True", Reason.ENGINES_READY),
    c.GATEWAY_READY: ("True", Reason.GATEWAY_ANSWERS),
    c.KV_CACHE_READY: ("True", Reason.NOT_CONFIGURED),
    c.SCALING_ACTIVE: ("False", Reason.NOT_CONFIGURED),
    c.PROGRESSING: ("False", Reason.UP_TO_DATE),
    c.DEGRADED: ("False", Reason.AS_WANTED),
    c.READY: ("True", Reason.ANSWERED),
}
MESSAGES = [{"role": "system", "content": MANNERS}, {"role": "user", "content": QUESTION}]
# Runs in a pod, so that the Service is reached as a program in the cluster reaches it: by its name.
IN_A_POD = """
import json, sys, urllib.request as u
request = u.Request(sys.argv[1], sys.argv[2].encode(), {"content-type": "application/json"})
answer = u.urlopen(request, timeout=60)
print(json.dumps({"headers": {key.lower(): value for key, value in answer.headers.items()}, "body": json.load(answer)}))
"""


@pytest.mark.timeout(400)
def test_it_is_ready_within_two_minutes_of_apply(chat: Any) -> None:
    print(f"Ready {chat.seconds:.1f} s after it was applied (target: {TARGET_SECONDS} s)")
    assert chat.seconds < 2 * TARGET_SECONDS


def test_every_condition_reads_as_it_should_of_the_newest_spec(chat: Any) -> None:
    chat.infd.until_condition(c.RAY_READY, "True", Reason.NODES_JOINED)  # not needed to answer, so it may come later
    current = chat.infd.read()
    generation = current["metadata"]["generation"]
    found = {one["type"]: one for one in current["status"]["conditions"]}
    assert {kind: (one["status"], one["reason"]) for kind, one in found.items()} == EXPECTED
    assert {one["observedGeneration"] for one in found.values()} == {generation}
    assert current["status"]["observedGeneration"] == generation
    assert current["status"]["ray"]["nodes"] == {"alive": 3, "expected": 3}


def test_a_program_in_the_cluster_is_told_that_it_is_paris(chat: Any) -> None:
    infd = chat.infd
    url = infd.read()["status"]["url"] + "/v1/chat/completions"
    body = {"model": infd.model, "messages": MESSAGES, "max_tokens": 32, "temperature": 0}
    command = ("python3.11", "-c", IN_A_POD, url, json.dumps(body))
    answer = json.loads(infd.kubectl("exec", f"deployment/{infd.name}-gateway", "--", *command))
    assert "Paris" in answer["body"]["choices"][0]["message"]["content"]
    assert answer["headers"]["x-headrace-prefill"] == infd.pod(role="prefill")
    assert answer["headers"]["x-headrace-decode"] == infd.pod(role="decode")
    assert answer["headers"]["x-headrace-revision"] == infd.read()["status"]["revision"]["current"]
    assert answer["headers"]["x-request-id"]


def test_the_answer_is_streamed(chat: Any) -> None:
    pieces: list[str] = []
    with chat.infd.gateway() as url:
        answer = ask(url, chat.infd.model, MESSAGES, pieces.append)
    print(f"first token after {answer.first_token_seconds:.2f} s, whole answer after {answer.seconds:.2f} s")
    assert "Paris" in answer.text
    assert len(pieces) > 3
    assert (answer.prefill, answer.decode) == (chat.infd.pod(role="prefill"), chat.infd.pod(role="decode"))


def test_decode_computes_no_token_of_a_long_prompt(chat: Any) -> None:
    infd = chat.infd
    prefill, decode = infd.pod(role="prefill"), infd.pod(role="decode")
    prompt = prompt_of(int(monotonic()))
    before = infd.prompt_tokens(prefill), infd.prompt_tokens(decode)
    with infd.gateway() as url:
        assert infd.complete(url, prompt).text
    after = infd.prompt_tokens(prefill), infd.prompt_tokens(decode)
    assert after[0]["local_compute"] - before[0]["local_compute"] == len(prompt)
    assert after[1]["external_kv_transfer"] - before[1]["external_kv_transfer"] == len(prompt)
    assert after[1]["local_compute"] == before[1]["local_compute"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param({"model": "another"}, 404, id="an unknown model"),
        pytest.param({"prompt": prompt_of(1, 5000)}, 400, id="a prompt that is too long"),
    ],
)
def test_a_bad_request_is_answered_in_openais_words(chat: Any, change: dict[str, Any], status: int) -> None:
    with chat.infd.gateway() as url:
        reply = post(url, "/v1/completions", {"model": chat.infd.model, "prompt": "Hello", "max_tokens": 1, **change})
    assert reply.status == status
    assert json.loads(reply.body)["error"]["message"]


def test_kubectl_get_shows_the_state_in_one_line(chat: Any) -> None:
    head, line = chat.infd.kubectl("get", "infd", chat.infd.name).splitlines()
    print(head, line, sep="\n")
    revision = chat.infd.read()["status"]["revision"]["current"]
    assert head.split() == ["NAME", "MODEL", "READY", "REASON", "PREFILL", "DECODE", "REVISION", "AGE"]
    assert line.split()[:-1] == [chat.infd.name, chat.infd.model, "True", "Answered", "1/1", "1/1", revision]


@pytest.mark.timeout(120)
def test_applying_the_same_file_again_changes_nothing(chat: Any) -> None:
    infd = chat.infd
    before, version = infd.children(), infd.read()["metadata"]["resourceVersion"]
    assert "unchanged" in infd.kubectl("apply", "--filename", str(SAMPLE))
    end = monotonic() + QUIET_SECONDS
    while monotonic() < end:  # nothing shall happen: that can only be watched for a time
        assert infd.children() == before
        assert infd.read()["metadata"]["resourceVersion"] == version
        sleep(2)
