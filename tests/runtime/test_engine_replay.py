"""Real engines take up requests where another was lost: what a client sees is what it would have seen undisturbed.

In float32, where computing a prompt at once or token by token gives the same greedy choices.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import REPLAY_FIELD, Place
from tests.runtime.engines import Server, Warm, command, end, up
from tests.runtime.processes import free_port

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RIVERS = [{"role": "user", "content": "Write three sentences about rivers."}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
LONG = [(17 * i) % 4000 + 10 for i in range(700)]
"""More tokens than the engine computes in one step."""
STEP_TOKENS = 512
SCHEMA = {
    "type": "object",
    "properties": {"river": {"type": "string", "maxLength": 20}, "km": {"type": "integer"}},
    "required": ["river", "km"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
            },
        },
    }
]
TOOL_CALL = (
    'Sure: <tool_call>\n\\{"name": "get_weather", "arguments": \\{"city": "[A-Z][a-z]{2,9}", "days": [0-9]\\}\\}\n'
    "</tool_call>"
)
FRANCE: dict[str, Any] = {"prompt": "The capital of France is", "max_tokens": 24}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": RIVERS, "max_tokens": 24}),
    "text": (TEXT, FRANCE),
    "penalties": (TEXT, {**FRANCE, "frequency_penalty": 0.9, "presence_penalty": 0.7, "repetition_penalty": 1.1}),
    "bad words": (TEXT, {**FRANCE, "bad_words": ["answer is", "2018"]}),
    "at least so many": (TEXT, {**FRANCE, "max_tokens": 36, "min_tokens": 32}),
    "a seed": (TEXT, {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0.9, "seed": 7}),
    "a seed, a prompt in parts": (TEXT, {"prompt": LONG, "max_tokens": 12, "temperature": 0.9, "seed": 7}),
    "a stop string": (TEXT, {**FRANCE, "stop": ["answer is: 2018"]}),
    "a stop string that is kept": (TEXT, {**FRANCE, "stop": ["is: 2"], "include_stop_str_in_output": True}),
    "a schema": (
        CHAT,
        {
            "messages": RIVERS,
            "max_tokens": 60,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
    ),
    "characters of several tokens": (
        TEXT,
        {"prompt": "hi", "max_tokens": 60, "structured_outputs": {"regex": "(🙂|😀|🎉){4}"}},
    ),
    "a tool of its choice": (
        CHAT,
        {"messages": WEATHER, "max_tokens": 80, "tools": TOOLS, "structured_outputs": {"regex": TOOL_CALL}},
    ),
    "a tool it must call": (CHAT, {"messages": WEATHER, "max_tokens": 80, "tools": TOOLS, "tool_choice": "required"}),
}
SEAMS: dict[str, tuple[int, ...]] = {
    "a stop string": (-6, -5, -4, -3, -2, -1),
    "a stop string that is kept": (-3, -2, -1),
    "characters of several tokens": (1, 2, 3, 4, 5, 6, 7),
}
"""Where these are cut: within the string, within characters. Counted from the end where negative."""


@dataclass
class Seen:
    """What a client has of a stream."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    tools: list[str] = field(default_factory=list)
    arguments: str = ""
    finish_reason: str | None = None
    stop_reason: object = None
    usage: dict[str, int] | None = None


def events(answer: bytes) -> list[dict[str, Any]]:
    *lines, done = answer.decode().rstrip("\n").split("\n\n")
    assert done == "data: [DONE]", answer
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def stream(server: Server, path: str, body: dict[str, Any], replay: object = None) -> list[dict[str, Any]]:
    asked = {"model": "tiny", "temperature": 0, "stream": True, "return_token_ids": True, **body}
    asked["stream_options"] = {"include_usage": True}
    if replay is not None:
        asked["vllm_xargs"] = {REPLAY_FIELD: replay}
    status, answer = server.ask(path, asked)
    assert status == 200, answer
    return events(answer)


def seen(documents: list[dict[str, Any]]) -> Seen:
    what = Seen(usage=documents[-1]["usage"])
    for choice in (choice for document in documents for choice in document["choices"]):
        delta = choice.get("delta", {})
        what.token_ids += choice.get("token_ids") or []
        what.text += choice.get("text") or delta.get("content") or ""
        for call in delta.get("tool_calls") or []:
            what.tools += [name for name in [call["function"].get("name")] if name]
            what.arguments += call["function"].get("arguments") or ""
        what.finish_reason = choice.get("finish_reason") or what.finish_reason
        what.stop_reason = choice.get("stop_reason") or what.stop_reason
    return what


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def warm(engine_python: Path, model: Callable[[str], Path], folder: Path) -> Iterator[Warm]:
    env = command(model("tiny"), Place(name="engine", address="127.0.0.1", run_dir=str(folder))).env
    zygote = Warm(engine_python, folder, dict(env))
    yield zygote
    zygote.close()


def somewhere(folder: Path) -> Place:
    ports = {"engine_port": free_port(), "kv_transfer_port": free_port()}
    return Place(name="engine", address="127.0.0.1", run_dir=str(folder), **ports)


@pytest.fixture(scope="module")
def engine(warm: Warm, model: Callable[[str], Path], folder: Path) -> Iterator[Server]:
    """A model that says something, and calls tools in the way of Hermes."""
    here = somewhere(folder)
    options = {"max-num-batched-tokens": STEP_TOKENS, "enable-auto-tool-choice": True, "tool-call-parser": "hermes"}
    launch = command(model("smollm2"), here, dtype="float32", max_model_len=2048, extra_args=options)
    server = Server(here)
    group = up(warm, launch, server, "real.log")
    yield server
    assert "Traceback" not in (folder / "real.log").read_text()
    end(warm, group)


@pytest.fixture(scope="module")
def undisturbed(engine: Server) -> Callable[[str], Seen]:
    """The whole answer to one of the requests above, asked for once."""
    return cache(lambda name: seen(stream(engine, *REQUESTS[name])))


@pytest.fixture(scope="module")
def pair(warm: Warm, model: Callable[[str], Path], folder: Path) -> Iterator[tuple[Server, Server]]:
    """A prefill and a decode engine."""
    places = [somewhere(folder), somewhere(folder)]
    servers = Server(places[0]), Server(places[1])
    prefill = up(warm, command(model("tiny"), places[0], "prefill", dtype="float32"), servers[0], "prefill.log")
    decode = up(warm, command(model("tiny"), places[1], "decode", dtype="float32"), servers[1], "decode.log")
    yield servers
    end(warm, prefill, decode)


@pytest.mark.parametrize("name", REQUESTS)
def test_goes_on_as_if_undisturbed_wherever_it_was_cut(
    engine: Server, undisturbed: Callable[[str], Seen], name: str
) -> None:
    path, body = REQUESTS[name]
    whole = undisturbed(name)
    tokens = len(whole.token_ids)
    assert tokens >= 6, whole
    for cut in SEAMS.get(name, (1, tokens // 2, -1)):
        assert seen(stream(engine, path, body, whole.token_ids[:cut])) == whole, f"cut at {cut} of {tokens} tokens"


def test_the_requests_above_are_what_they_are_for(undisturbed: Callable[[str], Seen]) -> None:
    met = {name: undisturbed(name) for name in REQUESTS}
    assert met["penalties"].text != met["text"].text
    assert met["a stop string"].stop_reason == "answer is: 2018"
    assert met["a stop string that is kept"].text.endswith("is: 2")
    assert set(json.loads(met["a schema"].text)) == {"river", "km"}
    assert len(met["characters of several tokens"].text) == 4 < len(met["characters of several tokens"].token_ids)
    assert met["a tool of its choice"].tools == ["get_weather"]
    assert set(json.loads(met["a tool of its choice"].arguments)) == {"city", "days"}


@pytest.mark.parametrize(
    ("path", "more"), [(TEXT, {"logprobs": 2}), (CHAT, {"logprobs": True, "top_logprobs": 2})], ids=["text", "chat"]
)
def test_logprobs_are_one_a_token_true_for_the_new_ones(engine: Server, path: str, more: dict[str, Any]) -> None:
    body = {**(FRANCE if path == TEXT else {"messages": RIVERS}), "max_tokens": 10, **more}

    def scores(documents: list[dict[str, Any]]) -> list[float]:
        parts = [choice["logprobs"] for document in documents for choice in document["choices"]]
        if path == TEXT:
            return [score for part in parts if part for score in part["token_logprobs"]]
        return [row["logprob"] for part in parts if part for row in part["content"]]

    whole = stream(engine, path, body)
    taken_up = scores(stream(engine, path, body, seen(whole).token_ids[:4]))
    assert taken_up[:4] == [0.0] * 4
    assert taken_up[4:] == pytest.approx(scores(whole)[4:], abs=1e-3)


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_the_replayed_tokens_all_come_first(engine: Server, path: str) -> None:
    body = {**(FRANCE if path == TEXT else {"messages": RIVERS}), "max_tokens": 10}
    token_ids = seen(stream(engine, path, body)).token_ids
    documents = stream(engine, path, body, token_ids[:4])
    if path == CHAT:
        role, *documents = documents
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert role["prompt_token_ids"]
    else:
        assert documents[0]["choices"][0]["prompt_token_ids"]
    first = documents[0]["choices"][0]["token_ids"]
    assert first == token_ids[: len(first)]
    assert len(first) >= 5


@pytest.mark.parametrize("more", [{"max_tokens": 8}, {"max_tokens": 40}], ids=["its limit", "a stop token"])
def test_one_that_was_over_already_ends_as_it_did(engine: Server, more: dict[str, Any]) -> None:
    body = {**FRANCE, **more, "logprobs": 1}
    whole = seen(stream(engine, TEXT, body))
    assert whole.finish_reason == ("length" if more["max_tokens"] == 8 else "stop")
    documents = stream(engine, TEXT, body, whole.token_ids)
    assert seen(documents) == whole
    assert len(documents) == 2, "all tokens in one event, then the usage"
    assert len(documents[0]["choices"][0]["logprobs"]["tokens"]) == len(whole.token_ids)


@pytest.mark.parametrize("replay", ["abc", 5, [1.5], ["a"], [-1], [10**6]])
def test_what_is_no_list_of_token_ids_is_an_error_of_that_request_alone(engine: Server, replay: object) -> None:
    documents = stream(engine, TEXT, FRANCE, replay)
    assert [document["error"]["code"] for document in documents] == [500]
    assert seen(stream(engine, TEXT, FRANCE)).usage


def test_tokens_that_its_grammar_forbids_are_an_error_of_that_request_alone(engine: Server) -> None:
    digits = {"prompt": "hi", "max_tokens": 8, "structured_outputs": {"regex": "[0-9]{5}"}}
    documents = stream(engine, TEXT, digits, seen(stream(engine, TEXT, FRANCE)).token_ids[:3])
    assert [document["error"]["code"] for document in documents] == [500]
    assert seen(stream(engine, TEXT, digits)).text.isdigit()


def test_nothing_to_replay_is_a_request_as_any(engine: Server) -> None:
    assert seen(stream(engine, TEXT, FRANCE, [])) == seen(stream(engine, TEXT, FRANCE))


def test_many_are_taken_up_among_others_that_run(engine: Server) -> None:
    whole = seen(stream(engine, TEXT, FRANCE))

    def ask(index: int) -> tuple[int, Seen]:
        cut = index % len(whole.token_ids)
        return cut, seen(stream(engine, TEXT, FRANCE, whole.token_ids[:cut]))

    with ThreadPoolExecutor(12) as pool:
        for cut, again in pool.map(ask, range(12)):
            assert again.token_ids[:cut] == whole.token_ids[:cut]
            assert again.usage == whole.usage


def test_a_lost_decode_is_followed_by_another_which_takes_all_kv_from_prefill(pair: tuple[Server, Server]) -> None:
    prefill, decode = pair
    body = {"prompt": LONG, "max_tokens": 200, "ignore_eos": True}
    whole = seen(stream(prefill, TEXT, body))
    delivered = whole.token_ids[:150]
    turned = {**body, "prompt": LONG[::-1]}  # a prompt that neither has met
    elsewhere = seen(stream(decode, TEXT, turned)).token_ids[:150]

    asked = {"do_remote_decode": True, "do_remote_prefill": False}
    answer = prefill.complete(LONG, 1, kv_transfer_params=asked, vllm_xargs={REPLAY_FIELD: delivered})
    assert answer["usage"]["completion_tokens"] == 1
    before = decode.prompt_tokens("external_kv_transfer"), decode.prompt_tokens("local_compute")
    taken = {**body, "kv_transfer_params": answer["kv_transfer_params"]}
    assert seen(stream(decode, TEXT, taken, delivered)) == whole
    assert decode.prompt_tokens("external_kv_transfer") - before[0] == len(LONG) + len(delivered)
    assert decode.prompt_tokens("local_compute") == before[1]

    # The other way round, prefill's blocks being lost: the other engine computes prompt and tokens itself.
    assert seen(stream(prefill, TEXT, turned, elsewhere)) == seen(stream(decode, TEXT, turned))
