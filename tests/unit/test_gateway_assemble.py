"""Events of a completion, read: errors among them, and all of them joined to one answer."""

import orjson
import pytest

from headrace_runtime.gateway.assemble import begun, error_of, events, one_answer
from headrace_runtime.gateway.request import CHAT, COMPLETIONS, RESPONSES


def stream(*chunks: object) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


def joined(path: str, *chunks: object) -> dict:  # type: ignore[type-arg]
    return dict(orjson.loads(one_answer(path, stream(*chunks))))


def delta(finish: str | None = None, logprobs: object = None, **fields: object) -> dict[str, object]:
    choice = {"index": 0, "delta": fields, "logprobs": logprobs, "finish_reason": finish}
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": None,
    }


USAGE = {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def test_an_ordinary_event_is_no_error() -> None:
    assert error_of(stream(delta(content="error"))) is None
    assert error_of(b"") is None


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (b'data: {"error": {"message": "full", "code": 503}}\n\n', 503),
        (b'data: {"error":{"message":"bad","code":400}}\n\ndata: [DONE]\n\n', 400),
        (b'data: {"error": {"message": "no code"}}\n\n', 500),
        (b'data: {"error": {"code": 200}}\n\n', 500),
        (b'data: {"error": "text"}\n\n', 500),
        (b'data: {"error": {"mess', 500),
    ],
)
def test_an_error_event_has_a_status_and_its_own_body(event: bytes, status: int) -> None:
    found = error_of(event)
    assert found is not None
    assert found[0] == status
    assert b"data:" not in found[1]


def test_joins_a_chat() -> None:
    answer = joined(CHAT, delta(role="assistant", content=""), delta(content="Hel"), delta("stop", content="lo"), USAGE)
    message = {"role": "assistant", "content": "Hello"}
    assert answer == {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE["usage"],
    }


def test_joins_logprobs_and_reasoning() -> None:
    answer = joined(
        CHAT, delta(reasoning="a", logprobs={"content": [1]}), delta(reasoning="b", logprobs={"content": [2]})
    )
    assert answer["choices"][0]["message"]["reasoning"] == "ab"
    assert answer["choices"][0]["logprobs"] == {"content": [1, 2]}


def test_joins_tool_calls_by_their_index() -> None:
    def call(index: int, **function: str) -> dict[str, object]:
        return delta(tool_calls=[{"index": index, "type": "function", "function": function}])

    answer = joined(
        CHAT, call(0, name="f", arguments=""), call(0, arguments='{"a"'), call(1, name="g"), call(0, arguments=":1}")
    )
    calls = [one["function"] for one in answer["choices"][0]["message"]["tool_calls"]]
    assert calls == [{"name": "f", "arguments": '{"a":1}'}, {"name": "g"}]


def test_joins_a_completion() -> None:
    def piece(text: str, **fields: object) -> dict[str, object]:
        return {"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": text, **fields}]}

    answer = joined(COMPLETIONS, piece("a", token_ids=[1]), piece("b", token_ids=[2], finish_reason="length"), USAGE)
    assert answer["choices"] == [
        {"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length", "token_ids": [1, 2]}
    ]
    assert answer["object"] == "text_completion"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"data: [DONE]\n\n",
        b"data: {\n\n",
        stream(delta(content="a"))[: -len(b"data: [DONE]\n\n")],
        stream(delta(content="a"), {"error": {"message": "engine dead", "code": 500}}),
    ],
    ids=["nothing", "only the end", "half", "no end", "an error"],
)
def test_what_is_not_a_whole_answer_is_refused(nonsense: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        one_answer(CHAT, nonsense)


def test_events_leave_out_the_last_word() -> None:
    assert list(events(b"data: 1\n\n: comment\n\ndata:2\n\ndata: [DONE]\n\n")) == [b"1", b"2"]


def test_a_response_has_begun_once_more_is_said_than_its_id() -> None:
    created = b"event: response.created\ndata: {}\n\nevent: response.in_progress\ndata: {}\n\n"
    assert not begun(RESPONSES, created)
    assert begun(RESPONSES, created + b"event: response.output_item.added\ndata: {}\n\n")
    assert begun(RESPONSES, b'data: {"error": {}}\n\n')
    assert begun(CHAT, created)
