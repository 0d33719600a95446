"""A stream cut anywhere and continued elsewhere is, for its client, the undisturbed stream."""

from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway.assemble import events, one_answer
from headrace_runtime.gateway.request import CHAT, COMPLETIONS
from headrace_runtime.gateway.resume import (
    DONE,
    Delivered,
    MismatchError,
    Splice,
    read,
    rest_without_engine,
    without_prompt_ids,
)

PROMPT = [5, 6, 7]
PLACEHOLDER = -9999.0


@dataclass(frozen=True)
class Said:
    """One token: its text, and where a chat says it: `content`, `reasoning`, or the arguments of tool call N."""

    text: str
    where: str | int = "content"


@dataclass(frozen=True)
class Asked:
    """An engine's answer, undisturbed."""

    path: str
    tokens: tuple[Said, ...]
    logprobs: bool = False
    usage: bool = False
    continuous: bool = False
    lag: int = 0
    """Tokens by which text comes later than ids, as it may be the begin of a stop string."""


@dataclass(frozen=True)
class Engine:
    """One that answers. `sizes`: tokens of its events, in turn."""

    name: str = "a"
    created: int = 1
    sizes: tuple[int, ...] = (1,)

    def stream(self, asked: Asked, replayed: int = 0) -> bytes:
        """The answer. The logprobs of replayed tokens are placeholders."""
        written, texts, found = 0, 0, []
        if asked.path == CHAT:
            delta = {"role": "assistant", "content": ""}
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
            found.append(self._event(asked, [choice], 0) | {"prompt_token_ids": PROMPT})
        at = 0
        while written < len(asked.tokens):
            span = slice(written, min(written + self.sizes[at % len(self.sizes)], len(asked.tokens)))
            at += 1
            written = span.stop
            last = written == len(asked.tokens)
            until = written if last else max(texts, written - asked.lag)
            choices = self._choices(asked, slice(texts, until))
            rest = {
                "token_ids": list(range(100 + span.start, 100 + span.stop)),
                "logprobs": _logprobs(asked, span, replayed),
                "finish_reason": "stop" if last else None,
            }
            choices[-1] |= rest
            found += [self._event(asked, [choice], written) for choice in choices]
            if asked.path == COMPLETIONS and span.start == 0:
                found[0]["choices"][0]["prompt_token_ids"] = PROMPT
            texts = until
        if asked.usage:
            found.append(self._event(asked, [], written) | {"usage": _usage(written)})
        return b"".join(b"data: %b\n\n" % orjson.dumps(one) for one in found) + DONE

    def _event(self, asked: Asked, choices: list[dict[str, Any]], written: int) -> dict[str, Any]:
        event = {"id": self.name, "object": "chunk", "created": self.created, "model": "m", "choices": choices}
        return event | ({"usage": _usage(written)} if asked.continuous else {})

    def _choices(self, asked: Asked, span: slice) -> list[dict[str, Any]]:
        """A delta for each token of a chat; only the last names the tokens."""
        if asked.path == COMPLETIONS:
            return [{"index": 0, "text": "".join(said.text for said in asked.tokens[span])}]
        deltas: list[dict[str, Any]] = []
        opened = {said.where for said in asked.tokens[: span.start]}
        for said in asked.tokens[span]:
            if isinstance(said.where, int):
                call: dict[str, Any] = {"index": said.where, "function": {"arguments": said.text}}
                if said.where not in opened:
                    call |= {"id": f"call-{self.name}-{said.where}", "type": "function"}
                    call["function"]["name"] = f"f{said.where}"
                deltas.append({"tool_calls": [call]})
            else:
                deltas.append({said.where: said.text})
            opened.add(said.where)
        return [{"index": 0, "delta": delta} for delta in deltas or [{}]]


def _usage(written: int) -> dict[str, int]:
    return {"prompt_tokens": len(PROMPT), "total_tokens": len(PROMPT) + written, "completion_tokens": written}


def _logprobs(asked: Asked, span: slice, replayed: int) -> dict[str, Any] | None:
    if not asked.logprobs:
        return None
    scores = [PLACEHOLDER if at < replayed else -0.1 * at for at in range(span.start, span.stop)]
    tokens = [said.text for said in asked.tokens[span]]
    if asked.path == CHAT:
        return {"content": [{"token": text, "logprob": score} for text, score in zip(tokens, scores, strict=True)]}
    return {"tokens": tokens, "token_logprobs": scores, "top_logprobs": None}


def _calls_of(choice: dict[str, Any]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = choice.get("delta", {}).get("tool_calls", [])
    return calls


def whole_events(stream: bytes, at: int) -> bytes:
    """What the relay has passed on of the first `at` bytes."""
    return stream[: stream.rfind(b"\n\n", 0, at) + 2] if b"\n\n" in stream[:at] else b""


def continued(asked: Asked, sent: bytes, engine: Engine) -> bytes:
    """What another engine adds to what was sent, to its end."""
    delivered = read(sent)
    rest = rest_without_engine(delivered, asked.usage)
    if rest is not None:
        return rest
    return Splice(delivered).feed(engine.stream(asked, len(delivered.token_ids)))


def answer(path: str, stream: bytes) -> dict[str, Any]:
    """All that a client reads, but for text that is empty and the ids of tool calls: whoever opens a call names it,
    once."""
    found: dict[str, Any] = orjson.loads(one_answer(path, stream))
    message = found["choices"][0].get("message", {})
    found["choices"][0]["message"] = {name: said for name, said in message.items() if said != ""}
    for call in message.get("tool_calls", ()):
        assert not call or call.pop("id").startswith("call-")
    return found


texts = st.sampled_from(["", " a", "b", "é🙂", '"', '\\","id":"b","created":2', "\n\n", "data: [DONE]"])
said = st.builds(Said, texts, st.sampled_from(["content", "reasoning", 0, 1]))
asked = st.builds(
    Asked,
    path=st.sampled_from([CHAT, COMPLETIONS]),
    tokens=st.lists(said, min_size=1, max_size=12).map(tuple),
    logprobs=st.booleans(),
    usage=st.booleans(),
    continuous=st.booleans(),
    lag=st.integers(0, 3),
)
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(asked, st.lists(st.tuples(sizes, st.floats(0, 1)), min_size=1, max_size=4), sizes)
def test_a_stream_cut_anywhere_and_continued_equals_the_undisturbed_one(
    asked: Asked, broken: list[tuple[tuple[int, ...], float]], last: tuple[int, ...]
) -> None:
    undisturbed = Engine().stream(asked)
    sent = b""
    for index, (sizes, share) in enumerate(broken):
        engine = Engine("a" if not index else f"b{index}", index + 1, sizes)
        more = engine.stream(asked) if not index else continued(asked, sent, engine)
        sent += whole_events(more, round(share * len(more)))
        if not sent:
            return  # nothing delivered: the request is tried again, not resumed
    sent += continued(asked, sent, Engine("z", 99, last))
    assert answer(asked.path, sent) == answer(asked.path, undisturbed)
    assert sent.endswith(DONE)
    chunks = [orjson.loads(data) for data in events(sent)]
    calls = [call for chunk in chunks for choice in chunk["choices"] for call in _calls_of(choice)]
    assert len([call for call in calls if "id" in call]) == len({call["index"] for call in calls})
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {("a", 1)}
    roles = [choice["delta"].get("role") for chunk in chunks for choice in chunk["choices"] if "delta" in choice]
    assert roles[:1] == (["assistant"] if asked.path == CHAT else [])
    assert not any(roles[1:])


@settings(deadline=None, max_examples=100)
@given(asked, sizes, st.floats(0, 1), st.data())
def test_how_a_continuation_arrives_makes_no_difference(
    asked: Asked, sizes: tuple[int, ...], share: float, data: st.DataObject
) -> None:
    undisturbed = Engine().stream(asked)
    delivered = read(whole_events(undisturbed, round(share * len(undisturbed))) or undisturbed[:0])
    if delivered.finished:
        return
    stream = Engine("b", 2, sizes).stream(asked, len(delivered.token_ids))
    whole = Splice(delivered).feed(stream)
    splice, pieces = Splice(delivered), []
    while stream:
        ends = [at + 2 for at in range(len(stream)) if stream.startswith(b"\n\n", at)]
        end = data.draw(st.sampled_from(ends))
        pieces.append(splice.feed(stream[:end]))
        stream = stream[end:]
    assert b"".join(pieces) == whole


TOKENS = tuple(Said(f" w{index}") for index in range(6))
CHATTED = Asked(CHAT, TOKENS)


def test_nothing_is_missing_of_a_complete_stream() -> None:
    assert rest_without_engine(read(Engine().stream(CHATTED)), wants_usage=True) == b""


def test_reads_what_was_delivered() -> None:
    tokens = (Said("think", "reasoning"), Said("{", 0), Said("}", 0), Said("so"))
    delivered = read(Engine().stream(Asked(CHAT, tokens, logprobs=True))[: -len(DONE)])
    assert delivered == Delivered(
        envelope={"id": "a", "object": "chunk", "created": 1, "model": "m"},
        token_ids=[100, 101, 102, 103],
        text={
            ("content",): "so",
            ("reasoning",): "think",
            ("tool_calls", 0, "name"): "f0",
            ("tool_calls", 0, "arguments"): "{}",
        },
        call_ids={0: "call-a-0"},
        logprobs=4,
        role=True,
        finished=True,
        prompt_tokens=3,
    )


@pytest.mark.parametrize("stream", [b"data: {\n\n", b"data: \xff\n\n"])
def test_what_is_no_stream_of_a_completion_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read(stream)


@pytest.mark.parametrize("wants_usage", [True, False])
def test_needs_no_engine_once_the_last_token_is_there(wants_usage: bool) -> None:
    stream = Engine().stream(replace(CHATTED, usage=wants_usage))
    last = stream.index(b'"finish_reason":"stop"')
    end = stream.index(b"\n\n", last) + 2
    assert rest_without_engine(read(stream[:end]), wants_usage) == stream[end:]


def test_without_the_prompts_length_only_an_engine_knows_the_usage() -> None:
    delivered = read(Engine().stream(CHATTED)[: -len(DONE)])
    delivered.prompt_tokens = None
    assert rest_without_engine(delivered, wants_usage=True) is None


def test_before_the_last_token_an_engine_is_needed() -> None:
    assert rest_without_engine(read(whole_events(Engine().stream(CHATTED), 400)), wants_usage=False) is None


# Another answer is never spliced on


def other(at: int) -> Asked:
    return replace(CHATTED, tokens=(*TOKENS[:at], Said(" other"), *TOKENS[at + 1 :]))


def cut_after(tokens: int, engine: Engine | None = None) -> Delivered:
    stream = (engine or Engine()).stream(CHATTED)
    return read(b"".join(b"data: %b\n\n" % data for data in list(events(stream))[: tokens + 1]))


def test_another_text_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match="another content"):
        Splice(cut_after(4)).feed(Engine("b").stream(other(2)))


def test_other_tokens_are_a_mismatch() -> None:
    stream = Engine("b").stream(CHATTED).replace(b"[101]", b"[999]")
    with pytest.raises(MismatchError, match="other tokens"):
        Splice(cut_after(4)).feed(stream)


def test_a_shorter_answer_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match="ended before"):
        Splice(cut_after(4)).feed(Engine("b").stream(replace(CHATTED, tokens=TOKENS[:3])))


@pytest.mark.parametrize("stream", [DONE, b"data: 7\n\n", b'data: {"choices":[3]}\n\n', b"data: {\n\n"])
def test_nonsense_is_a_mismatch(stream: bytes) -> None:
    with pytest.raises(MismatchError):
        Splice(cut_after(2)).feed(stream)


def test_comments_are_no_events() -> None:
    assert Splice(cut_after(2)).feed(b": still here\n\n") == b""


def test_an_answer_that_differs_after_what_was_delivered_is_a_valid_continuation() -> None:
    added = Splice(cut_after(2)).feed(Engine("b").stream(other(4), 2))
    assert b'"content":" w2"' in added
    assert b" other" in added


# The ids of the prompt


@pytest.mark.parametrize(
    ("event", "left", "count"),
    [
        (b'data: {"choices":[],"prompt_token_ids":[1,2,3]}', b'data: {"choices":[],"prompt_token_ids":null}', 3),
        (b'data: {"prompt_token_ids": [1]}', b'data: {"prompt_token_ids": [1]}', None),
        (b'data: {"prompt_token_ids":[],"x":[1]}', b'data: {"prompt_token_ids":null,"x":[1]}', 0),
        (b'data: {"prompt_token_ids":null}', b'data: {"prompt_token_ids":null}', None),
        (b'data: {"text":"x"}', b'data: {"text":"x"}', None),
        (b"", b"", None),
    ],
)
def test_cuts_the_ids_of_the_prompt_out(event: bytes, left: bytes, count: int | None) -> None:
    assert without_prompt_ids(event) == (left, count)


def test_text_that_looks_like_the_ids_of_the_prompt_stays() -> None:
    event = b"data: %b\n\n" % orjson.dumps({"text": '"prompt_token_ids":[1]', "prompt_token_ids": [1, 2]})
    left, count = without_prompt_ids(event)
    assert (orjson.loads(left[6:]), count) == ({"text": '"prompt_token_ids":[1]', "prompt_token_ids": None}, 2)
