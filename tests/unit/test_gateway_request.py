"""What the gateway reads from a request, and the copies it makes of it."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway.errors import RequestError
from headrace_runtime.gateway.request import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    RESPONSES,
    TOKENIZE,
    Facts,
    body_with_token_ids,
    continuation,
    decode_body,
    parse,
    prefill_body,
    trace_of,
)

IDS = list(range(100))


def facts(path: str = COMPLETIONS, **document: Any) -> Facts:
    return parse(path, orjson.dumps({"model": "m", **document}), "m")


def refusal(body: bytes, path: str = CHAT) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(path, body, "m")
    return caught.value


def test_a_request_that_is_not_split_keeps_its_bytes() -> None:
    body = b'{ "model":"m" , "prompt": "x", "unknown_field": [1, 2.50] }'
    assert parse(COMPLETIONS, body, "m").body is body


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"", 400, None),
        (b"\xff", 400, None),
        (b"{}", 400, "model"),
        (b'{"model": 3}', 400, "model"),
        (b'{"model": "other"}', 404, "model"),
        (b'{"model": "m", "stream": "yes"}', 400, "stream"),
        (b'{"model": "m", "kv_transfer_params": {"remote_host": "10.0.0.1"}}', 400, "kv_transfer_params"),
        (b'{"model": "m", "vllm_xargs": {"kv_transfer_params": {}}}', 400, "vllm_xargs"),
        (b'{"model": "m", "vllm_xargs": {"headrace_replay": [1]}}', 400, "vllm_xargs"),
    ],
)
def test_refuses_a_bad_request_and_names_the_field(body: bytes, status: int, param: str | None) -> None:
    error = refusal(body)
    assert (error.status, error.param) == (status, param)
    shape = orjson.loads(error.body())["error"]
    assert set(shape) == {"message", "type", "param", "code"}
    assert shape["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "document", "tokens"),
    [
        (COMPLETIONS, {"prompt": IDS}, 100),
        (COMPLETIONS, {"prompt": [IDS]}, 100),
        (COMPLETIONS, {"prompt": "x" * 400}, 100),
        (COMPLETIONS, {"prompt": "é" * 200}, 100),
        (COMPLETIONS, {"prompt": ["x" * 40, "y" * 40]}, 20),
        (COMPLETIONS, {"prompt": []}, 0),
        (COMPLETIONS, {}, 0),
        (CHAT, {"messages": [{"role": "system", "content": "x" * 40}, {"role": "user", "content": "y" * 40}]}, 20),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}]}, 10),
        (CHAT, {"messages": [{"role": "assistant", "content": None}]}, 0),
        (CHAT, {"messages": "nonsense"}, 0),
    ],
)
def test_counts_a_token_per_four_bytes_and_ids_exactly(path: str, document: dict[str, Any], tokens: int) -> None:
    assert facts(path, **document).prompt_tokens == tokens


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": IDS},
        {"prompt": "text"},
        {"prompt": [IDS]},
        {"prompt": "text", "n": 1, "echo": False, "stop": ["x"], "logprobs": 3},
    ],
)
def test_one_prompt_with_one_answer_may_be_split(document: dict[str, Any]) -> None:
    assert facts(**document).splittable


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": IDS, "n": 2},
        {"prompt": IDS, "best_of": 2},
        {"prompt": IDS, "use_beam_search": True},
        {"prompt": IDS, "echo": True},
        {"prompt": IDS, "prompt_logprobs": 0},
        {"prompt": ["a", "b"]},
        {"prompt": [IDS, IDS]},
        {"prompt_embeds": "AAAA"},
        {},
    ],
)
def test_what_needs_the_prompt_where_the_answer_is_written_is_not_split(document: dict[str, Any]) -> None:
    assert not facts(**document).splittable


def test_chats_are_split_by_their_content() -> None:
    text = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    assert facts(CHAT, messages=text, tools=[], tool_choice="auto").splittable
    assert not facts(CHAT, messages=image).splittable
    assert not facts(CHAT, messages=text, tool_choice="required").splittable
    assert not facts(CHAT, messages=text, tool_choice={"type": "function", "function": {"name": "f"}}).splittable


def test_the_prefill_copy_asks_for_one_token_and_its_blocks() -> None:
    split = facts(
        CHAT,
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=50,
        min_tokens=10,
        logprobs=True,
        top_logprobs=2,
        stop=["x"],
        temperature=0.5,
        cache_salt="s",
    )
    copy = orjson.loads(prefill_body(split))
    assert copy.pop("kv_transfer_params")["do_remote_decode"] is True
    assert copy == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": False,
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "ignore_eos": True,
        "temperature": 0.5,
        "cache_salt": "s",
    }


def test_the_decode_copy_is_the_request_with_the_transfer_unchanged() -> None:
    transfer = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "field of a later version": None}
    streamed = facts(prompt=IDS, stream=True, max_tokens=5, seed=7)
    assert orjson.loads(decode_body(streamed, transfer)) == dict(streamed.document) | {"kv_transfer_params": transfer}


def test_the_decode_copy_of_an_answer_in_one_piece_is_streamed_with_its_usage() -> None:
    copy = orjson.loads(decode_body(facts(prompt=IDS), {}))
    assert copy["stream"] is True
    assert copy["stream_options"] == {"include_usage": True}


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=4)
    ),
)


@given(anything)
def test_reads_any_json_without_failing(value: Any) -> None:
    for path in (CHAT, COMPLETIONS):
        for field in ("messages", "prompt"):
            assert facts(path, **{field: value}).prompt_tokens >= 0


# Resume: token ids are asked for, and replayed


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b'{"model":"m","stream":true}', b'{"return_token_ids":true,"model":"m","stream":true}'),
        (b' { "model": "m", "seed": 1.50 }', b' {"return_token_ids":true, "model": "m", "seed": 1.50 }'),
        (b'{"model": "m", "return_token_ids": true}', b'{"model": "m", "return_token_ids": true}'),
        (b'{"model": "m", "return_token_ids": false}', b'{"model":"m","return_token_ids":true}'),
    ],
)
def test_asks_for_token_ids_and_leaves_the_rest_as_it_came(given: bytes, sent: bytes) -> None:
    assert body_with_token_ids(parse(CHAT, given, "m")) == sent


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": "x"},
        {"prompt": IDS, "n": 1, "echo": False, "logprobs": 3},
        {"prompt": ["x"]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [], "tool_choice": "required"},
    ],
)
def test_one_sequence_of_one_prompt_is_resumable(document: dict[str, Any]) -> None:
    assert facts(**document).resumable


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": ["x", "y"]},
        {"prompt": [[1], [2]]},
        {"prompt": []},
        {"prompt": "x", "n": 2},
        {"prompt": "x", "best_of": 2},
        {"prompt": "x", "echo": True},
        {"prompt": "x", "use_beam_search": True},
        {"prompt": "x", "prompt_logprobs": 0},
        {"messages": [], "include_reasoning": False},
    ],
)
def test_what_its_tokens_do_not_say_is_not_resumable(document: dict[str, Any]) -> None:
    assert not facts(**document).resumable


def test_a_continuation_is_the_clients_request_and_the_tokens_it_has() -> None:
    asked = facts(prompt="x" * 40, stream=True, seed=3, vllm_xargs={"mine": 1})
    going_on = continuation(asked, [7, 8])
    assert orjson.loads(going_on.body) == {
        **asked.document,
        "return_token_ids": True,
        "vllm_xargs": {"mine": 1, "headrace_replay": [7, 8]},
    }
    assert (going_on.stream, going_on.prompt_tokens, going_on.splittable) == (True, 12, True)


def test_a_continuation_without_tokens_replays_none_and_is_streamed() -> None:
    going_on = continuation(facts(prompt="x"), [])
    assert "vllm_xargs" not in going_on.document
    assert going_on.document["stream"] is True
    assert going_on.document["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("path", "fields", "tokens"),
    [
        (RESPONSES, {"input": "x" * 40}, 10),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x" * 40}]}]}, 10),
        (RESPONSES, {}, 0),
        (EMBEDDINGS, {"input": ["x" * 40, "x" * 20]}, 15),
        (EMBEDDINGS, {"input": [1, 2, 3]}, 3),
        (TOKENIZE, {"prompt": "x" * 40}, 0),
        (DETOKENIZE, {"tokens": [1, 2]}, 0),
    ],
)
def test_other_routes_are_neither_split_nor_resumed(path: str, fields: dict[str, Any], tokens: int) -> None:
    found = parse(path, orjson.dumps({"model": "m", "stream": True, **fields}), "m")
    assert (found.prompt_tokens, found.splittable, found.resumable) == (tokens, False, False)
    assert found.computed == (path in (RESPONSES, EMBEDDINGS))
    assert found.begun_by_engine == (path == EMBEDDINGS)


def test_tokenisation_needs_no_model_and_takes_no_other() -> None:
    assert parse(TOKENIZE, b'{"prompt": "x"}', "m").path == TOKENIZE
    with pytest.raises(RequestError, match="does not exist"):
        parse(TOKENIZE, b'{"prompt": "x", "model": "other"}', "m")
    with pytest.raises(RequestError, match="must be given"):
        parse(RESPONSES, b'{"input": "x"}', "m")


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@settings(deadline=None)
@given(st.text(), st.text())
def test_no_trace_context_smuggles_a_header(parent: str, state: str) -> None:
    for headers in ({"traceparent": parent, "tracestate": state}, {"traceparent": PARENT, "tracestate": state}):
        for name, value in trace_of(headers):
            assert name in ("traceparent", "tracestate")
            assert value.isprintable()
            assert value.isascii()
            assert len(value) <= 512


def test_a_trace_goes_on_only_with_its_parent() -> None:
    assert trace_of({}) == trace_of({"tracestate": "a=1"}) == ()
    assert trace_of({"traceparent": PARENT}) == (("traceparent", PARENT),)
    assert trace_of({"traceparent": PARENT, "tracestate": "a=1"})[1] == ("tracestate", "a=1")
