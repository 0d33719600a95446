"""Server-sent events of a completion, read: whether the first is an error, and all of them joined to one answer.

Pure. Used for the first event of every stream, and for answers that the client wants in one piece while the gateway
had to see their first token (see `request.decode_body`). One sequence per answer: requests for several are never
split.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from headrace_runtime.gateway.request import CHAT, RESPONSES

_DONE = b"[DONE]"
_PROMPT_IDS = b'"prompt_token_ids":'
_BEFORE_ANY_TOKEN = frozenset({b"response.created", b"response.in_progress"})
# Deltas of text are appended; these say something about the whole and the last one stands.
_WHOLE = frozenset(
    {"id", "object", "model", "role", "type", "name", "finish_reason", "stop_reason", "system_fingerprint"}
)


def error_of(event: bytes) -> tuple[int, bytes] | None:
    """Status and JSON body of an error that an engine sent as an event inside HTTP 200, else None."""
    if not event.startswith(b'data: {"error"'):
        return None
    data = event[len(b"data: ") :].partition(b"\n")[0]
    try:
        code = orjson.loads(data)["error"].get("code")
    except (orjson.JSONDecodeError, AttributeError):
        return 500, data
    return (code if isinstance(code, int) and 400 <= code < 600 else 500), data


def begun(path: str, received: bytes) -> bool:
    """Whether more is among the first events than what a front end says before its engine has computed anything."""
    if path != RESPONSES:
        return True
    named = [line[len(b"event:") :].strip() for line in received.split(b"\n") if line.startswith(b"event:")]
    return not named or any(name not in _BEFORE_ANY_TOKEN for name in named)


def prompt_ids_in(answer: bytes) -> slice | None:
    """Where an answer, whole or its first event, names the ids of its prompt's tokens: the JSON list; None if nowhere.

    By bytes, since they may be most of it. Within JSON's strings quotes are escaped, so that no text can look like the
    member's name.
    """
    name = answer.find(_PROMPT_IDS)
    begin = name + len(_PROMPT_IDS)
    end = answer.find(b"]", begin)
    if name < 0 or end < 0 or answer[begin : begin + 1] != b"[":
        return None
    return slice(begin, end + 1)


def events(stream: bytes) -> Iterator[bytes]:
    """The data of each event but the last, `[DONE]`."""
    for line in stream.split(b"\n"):
        if line.startswith(b"data:"):
            data = line[len(b"data:") :].strip()
            if data != _DONE:
                yield data


def one_answer(path: str, stream: bytes, token_ids: bool = True) -> bytes:
    """The chat completion or completion whose chunks `stream` holds; without the ids of its tokens where nobody asked
    for them. Raises ValueError where it is not whole."""
    chunks = [orjson.loads(data) for data in events(stream)]
    if not chunks or not stream.rstrip().endswith(_DONE):
        raise ValueError("the stream has no end")
    if any("error" in chunk for chunk in chunks):
        raise ValueError("an error in the midst of the stream")
    answer: dict[str, Any] = {}
    choice: dict[str, Any] = {"index": 0}
    for chunk in chunks:
        for piece in chunk.pop("choices", None) or []:
            _merge(choice, piece)
        _merge(answer, {key: value for key, value in chunk.items() if key != "usage"})
        answer["usage"] = chunk.get("usage") or answer.get("usage")
    if not token_ids:
        choice.pop("token_ids", None)
    if path == CHAT:
        message = {"role": "assistant", "content": None, **choice.pop("delta", {})}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": None, **choice}
        answer["object"] = "chat.completion"
    else:
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None, **choice}
    return orjson.dumps(answer | {"choices": [choice]})


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if value is None:
            continue
        known = into.get(key)
        if isinstance(known, str) and key not in _WHOLE:
            into[key] = known + value
        elif isinstance(known, dict):
            _merge(known, value)
        elif key == "tool_calls":
            _merge_calls(into.setdefault(key, []), value)
        elif isinstance(known, list):
            known.extend(value)
        else:
            into[key] = value


def _merge_calls(known: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    """Tool calls come in pieces that carry the index of their call."""
    for delta in deltas:
        piece = dict(delta)
        index = piece.pop("index", 0)
        while len(known) <= index:
            known.append({})
        _merge(known[index], piece)
