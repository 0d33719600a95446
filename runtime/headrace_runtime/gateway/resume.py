"""A stream that goes on at another engine: what its client has already, and the continuation without it.

Pure: bytes in, values and bytes out. The continuation (`request.continuation`) says the whole answer again from its
first token; `Splice` takes away exactly what was delivered and proves on the way that both agree on it. Text is taken
away by characters for each channel (a completion's text, a chat's content, its reasoning, the name and arguments of
each tool call), token ids and logprobs by count: engines may cut the same answer into other events, and the logprobs
of replayed tokens are placeholders. Called by `delivery.py`, for streams that broke.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from headrace_runtime.gateway.assemble import events, prompt_ids_in

DONE = b"data: [DONE]\n\n"

Channel = tuple[str | int, ...]
Document = dict[str, Any]

_ENVELOPE = ("id", "object", "created", "model")
_CREATED = re.compile(rb'("created":\s*)\d+')


class MismatchError(Exception):
    """The continuation says something else than what the client has."""


@dataclass(slots=True)
class Delivered:
    """What a client has of one streamed answer. Text by channel: `("text",)`, `("content",)`,
    `("tool_calls", 0, "arguments")`."""

    envelope: Document = field(default_factory=dict)
    """`id`, `object`, `created` and `model` of every event."""
    token_ids: list[int] = field(default_factory=list)
    text: dict[Channel, str] = field(default_factory=dict)
    call_ids: dict[int, str] = field(default_factory=dict)
    """Ids of the tool calls by their index."""
    logprobs: int = 0
    role: bool = False
    finished: bool = False
    """The last token is there, with the reason for it."""
    usage: bool = False
    """The usage of the whole answer is there."""
    done: bool = False
    prompt_tokens: int | None = None


def read(stream: bytes) -> Delivered:
    """What whole events say. Raises ValueError where they are not those of a completion."""
    found, pieces = Delivered(done=stream.endswith(DONE)), defaultdict[Channel, list[str]](list)
    for data in events(stream):
        chunk = orjson.loads(data)
        found.envelope = found.envelope or {name: chunk.get(name) for name in _ENVELOPE}
        for choice in chunk.get("choices", ()):
            for channel, holder, name in _texts(choice):
                pieces[channel].append(holder[name])
            _read_choice(found, choice)
            _read_prompt(found, choice)
        _read_prompt(found, chunk)
        found.usage = found.usage or (not chunk.get("choices") and chunk.get("usage") is not None)
    found.text = {channel: "".join(texts) for channel, texts in pieces.items()}
    return found


def _read_choice(found: Delivered, choice: Document) -> None:
    for call in _calls(choice):
        if call.get("id"):
            found.call_ids.setdefault(call.get("index", 0), call["id"])
    found.token_ids += choice.get("token_ids") or ()
    found.logprobs += _count(choice.get("logprobs"))
    found.role = found.role or bool((choice.get("delta") or {}).get("role"))
    found.finished = found.finished or choice.get("finish_reason") is not None


def _read_prompt(found: Delivered, holder: Document) -> None:
    ids = holder.get("prompt_token_ids")
    if isinstance(ids, list):
        found.prompt_tokens = len(ids)


def rest_without_engine(delivered: Delivered, wants_usage: bool) -> bytes | None:
    """What is missing of an answer whose last token was delivered; None where only an engine can say it."""
    if delivered.done:
        return b""
    if not delivered.finished:
        return None
    if not wants_usage or delivered.usage:
        return DONE
    if delivered.prompt_tokens is None:
        return None
    written = len(delivered.token_ids)
    usage = {
        "prompt_tokens": delivered.prompt_tokens,
        "total_tokens": delivered.prompt_tokens + written,
        "completion_tokens": written,
    }
    return _event({**delivered.envelope, "choices": [], "usage": usage}) + DONE


def without_prompt_ids(event: bytes) -> tuple[bytes, int | None]:
    """An answer's first event as it were had nobody asked for token ids, and how many tokens the prompt has."""
    place = prompt_ids_in(event)
    if place is None:
        return event, None
    ids = event[place][1:-1]
    count = ids.count(b",") + 1 if ids else 0
    return event[: place.start] + b"null" + event[place.stop :], count


class Splice:
    """Continues one stream: `feed` it the whole events of the continuation, and send what it gives to the client."""

    def __init__(self, delivered: Delivered) -> None:
        self._delivered = delivered
        self._text = {channel: text for channel, text in delivered.text.items() if text}
        """Still to be said again, by channel."""
        self._ids = 0
        self._logprobs = 0
        self._role = not delivered.role
        self._renamed: list[tuple[re.Pattern[bytes], bytes]] = []
        self.passed = False
        """All that was delivered has been said again: from here on events pass, under the first engine's names."""

    def feed(self, stream: bytes) -> bytes:
        """Raises MismatchError."""
        kept = []
        while stream and not self.passed:
            event, _, stream = stream.partition(b"\n\n")
            try:
                kept.append(self._cut(event))
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise MismatchError(f"not an event of a completion: {error!r}") from error
        return b"".join(kept) + (self._rename(stream) if stream else b"")

    def _cut(self, event: bytes) -> bytes:
        """What is left of one event; nothing in most cases."""
        data = next(events(event), None)
        if data is None:
            if event.startswith(DONE.strip()):
                raise MismatchError("the continuation ended before what was delivered")
            return b""
        chunk: Document = orjson.loads(data)
        if not self._renamed:
            self._learn_names(chunk)
        chunk |= {name: self._delivered.envelope.get(name, chunk.get(name)) for name in ("id", "created")}
        chunk.pop("prompt_token_ids", None)
        kept = [choice for choice in chunk.get("choices", ()) if self._cut_choice(choice)]
        self.passed = (
            self._role
            and not self._text
            and self._ids == len(self._delivered.token_ids)
            and self._logprobs == self._delivered.logprobs
        )
        if not self.passed and any(choice.get("finish_reason") for choice in chunk.get("choices", ())):
            raise MismatchError("the continuation ended before what was delivered")
        return _event({**chunk, "choices": kept}) if kept else b""

    def _learn_names(self, chunk: Document) -> None:
        envelope = self._delivered.envelope
        self._rename_from(chunk.get("id"), envelope.get("id"))
        self._renamed.append((_CREATED, b"\\g<1>%d" % envelope.get("created", 0)))

    def _rename_from(self, theirs: object, ours: object) -> None:
        """Ids are words of an engine: no escapes in them."""
        if theirs != ours and isinstance(theirs, str) and isinstance(ours, str):
            pattern = re.compile(rb'("id":\s*)"%b"' % re.escape(theirs.encode()))
            self._renamed.append((pattern, b'\\g<1>"%b"' % ours.encode()))

    def _rename(self, stream: bytes) -> bytes:
        for pattern, ours in self._renamed:
            stream = pattern.sub(ours, stream)
        return stream

    def _cut_choice(self, choice: Document) -> bool:
        """Take away what was delivered; says whether anything is left."""
        choice.pop("prompt_token_ids", None)
        for channel, holder, name in _texts(choice):
            holder[name] = self._cut_text(channel, holder[name])
        self._cut_ids(choice)
        count = _count(choice.get("logprobs"))
        again = min(count, self._delivered.logprobs - self._logprobs)
        self._logprobs += again
        if again:
            choice["logprobs"] = _without(choice["logprobs"], again) if again < count else None
        delta = choice.get("delta") or {}
        if not self._role and delta.pop("role", None):
            self._role = True
        self._cut_calls(delta)
        said = any(holder[name] for _, holder, name in _texts(choice))
        new = count > again or choice.get("token_ids") or choice.get("finish_reason") is not None
        return bool(said or new or delta.get("role") or delta.get("tool_calls"))

    def _cut_text(self, channel: Channel, text: str) -> str:
        missing = self._text.get(channel, "")
        again = min(len(missing), len(text))
        if missing[:again] != text[:again]:
            raise MismatchError(f"another {channel[-1]} than what was delivered")
        if len(missing) > again:
            self._text[channel] = missing[again:]
        else:
            self._text.pop(channel, None)
        return text[again:]

    def _cut_ids(self, choice: Document) -> None:
        ids = choice.get("token_ids")
        if not ids:
            return
        missing = self._delivered.token_ids[self._ids : self._ids + len(ids)]
        if ids[: len(missing)] != missing:
            raise MismatchError("other tokens than those delivered")
        self._ids += len(missing)
        choice["token_ids"] = ids[len(missing) :]

    def _cut_calls(self, delta: Document) -> None:
        """A call that was opened already is not opened again, and keeps the id that the client knows."""
        left = []
        for call in delta.get("tool_calls") or ():
            known = self._delivered.call_ids.get(call.get("index", 0))
            function = call.get("function") or {}
            if known is not None:
                self._rename_from(call.pop("id", None), known)
                call.pop("type", None)
                if not function.get("name"):
                    function.pop("name", None)
            if call.get("id") or function.get("name") or function.get("arguments"):
                left.append(call)
        if left:
            delta["tool_calls"] = left
        else:
            delta.pop("tool_calls", None)


def _texts(choice: Document) -> Iterator[tuple[Channel, Document, str]]:
    """Each string of a choice that deltas append to: its channel, and the object and member that hold it."""
    if isinstance(choice.get("text"), str):
        yield ("text",), choice, "text"
    delta = choice.get("delta") or {}
    for name, value in delta.items():
        if isinstance(value, str) and name != "role":
            yield (name,), delta, name
    for call in _calls(choice):
        function = call.get("function") or {}
        for name in ("name", "arguments"):
            if isinstance(function.get(name), str):
                yield ("tool_calls", call.get("index", 0), name), function, name


def _calls(choice: Document) -> list[Document]:
    calls: list[Document] = (choice.get("delta") or {}).get("tool_calls") or []
    return calls


def _count(logprobs: Document | None) -> int:
    """Tokens that a choice's logprobs speak of: a chat's are a list of objects, a completion's an object of lists."""
    rows = (logprobs or {}).get("content") or (logprobs or {}).get("tokens") or ()
    return len(rows)


def _without(logprobs: Document, count: int) -> Document:
    """Logprobs without those of their first tokens."""
    return {name: rows[count:] if isinstance(rows, list) else rows for name, rows in logprobs.items()}


def _event(chunk: Document) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(chunk)
