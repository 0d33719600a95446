"""What the gateway must know of a request, and the copies of it that go to a prefill and to a decode engine.

Pure: bytes and values in, values and bytes out. Nothing is tokenised. A request that is not split reaches its engine
byte for byte as the client sent it, so that every field an engine knows works without the gateway knowing it; a stream
that may have to go on elsewhere also asks for the ids of its tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from headrace_runtime.contract import REPLAY_FIELD
from headrace_runtime.gateway import errors

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
ROUTES = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, TOKENIZE, DETOKENIZE)
"""Of an engine's many routes those that clients reach, and no other: some of the rest stop it, or load what it is told.
An engine that does not serve one of these says so itself."""
BYTES_PER_TOKEN = 4
TRACESTATE_LENGTH = 512
RESERVED_PREFIX = "headrace_"
"""Of the members of `vllm_xargs` that the gateway alone sets."""

Document = Mapping[str, Any]
Headers = tuple[tuple[str, str], ...]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]+")
# What the prefill engine returns is read for its transfer parameters alone. Of the client's fields these would make the
# copy invalid beside `max_tokens: 1` and `stream: false` (stream_options, min_tokens), cost something for nothing
# (logprobs, token ids), or end the answer by another cause than its length (stop), after which not every connector of
# vLLM hands its KV blocks over.
_NOT_FOR_PREFILL = frozenset(
    {"stream_options", "min_tokens", "logprobs", "top_logprobs", "return_token_ids", "stop", "stop_token_ids"}
)
_ASK_FOR_TRANSFER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@dataclass(frozen=True, slots=True)
class Facts:
    """One parsed request. `prompt_tokens` is an estimate unless the prompt came as token ids."""

    path: str
    body: bytes
    document: Document = field(repr=False)
    stream: bool
    prompt_tokens: int
    splittable: bool
    resumable: bool = False
    """Whether its answer can go on at another engine from the ids of the tokens that were delivered."""
    canary: str | None = None
    trace: Headers = ()
    """The client's trace context, for the engines to go on with."""
    adapter: str = ""
    """The model that is asked for, where it is an adapter of the one that all engines serve."""

    @property
    def wants_token_ids(self) -> bool:
        return self.document.get("return_token_ids") is True

    @property
    def computed(self) -> bool:
        """Whether the engine computes the answer. Else its front end writes it alone."""
        return self.path not in (TOKENIZE, DETOKENIZE)

    @property
    def begun_by_engine(self) -> bool:
        """Whether the answer's first bytes come from what was computed: that of a response tells its id before."""
        return self.computed and self.path != RESPONSES


def parse(
    path: str,
    body: bytes,
    served_name: str,
    canary: str | None = None,
    trace: Headers = (),
    adapters: Sequence[str] = (),
) -> Facts:
    """Read a body of one of `ROUTES`. Raises RequestError (400, 404)."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.malformed(f"The body is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise errors.malformed("The body must be a JSON object.")
    model = document.get("model", served_name if path in (TOKENIZE, DETOKENIZE) else None)
    if not isinstance(model, str):
        raise errors.malformed("`model` must be given, as a string.", "model")
    adapter = model if model != served_name else ""
    if adapter and adapter not in adapters:
        raise errors.unknown_model(model, [served_name, *adapters])
    _refuse_transfer_fields(document)
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise errors.malformed("`stream` must be true or false.", "stream")
    return Facts(
        path=path,
        body=body,
        document=document,
        stream=bool(stream),
        prompt_tokens=_tokens_to_compute(path, document),
        splittable=path in (CHAT, COMPLETIONS) and _splittable(document),
        resumable=path in (CHAT, COMPLETIONS) and _resumable(document),
        canary=canary,
        trace=trace,
        adapter=adapter,
    )


def salted(facts: Facts, salt: str) -> Facts:
    """The request with this `cache_salt` in place of the client's own."""
    document = {**facts.document, "cache_salt": salt}
    if "cache_salt" in facts.document:
        return replace(facts, body=orjson.dumps(document), document=document)
    return replace(facts, body=_with_member(facts.body, b'"cache_salt":"%b"' % salt.encode()), document=document)


def trace_of(headers: Mapping[str, str]) -> Headers:
    """The W3C trace context among a client's headers, where it is one: it goes into the engines' headers."""
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not _TRACEPARENT.fullmatch(parent):
        return ()
    if len(state) > TRACESTATE_LENGTH or not _TRACESTATE.fullmatch(state):
        return (("traceparent", parent),)
    return (("traceparent", parent), ("tracestate", state))


def prefill_body(facts: Facts, token_ids: bool = False) -> bytes:
    """The request that makes an engine compute the prompt and keep its KV blocks for another to fetch; `token_ids`: and
    name the ids of its tokens."""
    copy = {key: value for key, value in facts.document.items() if key not in _NOT_FOR_PREFILL}
    copy |= {"stream": False, "max_tokens": 1, "ignore_eos": True, "kv_transfer_params": _ASK_FOR_TRANSFER}
    if facts.path == CHAT:
        copy["max_completion_tokens"] = 1
    if token_ids:
        copy["return_token_ids"] = True
    return orjson.dumps(copy)


def decode_body(facts: Facts, transfer: Document, token_ids: bool = False) -> bytes:
    """The client's request, to be continued from transferred KV blocks; with the ids of its tokens where they are
    asked for.

    It is always streamed, with its usage at the end: a transfer is given up when no token comes in time, and an
    answer in one piece would not show its first token. `assemble.py` makes one piece of it where the client asked for
    that.
    """
    copy = {**facts.document, "kv_transfer_params": transfer} | _streamed(facts)
    if token_ids:
        copy["return_token_ids"] = True
    return orjson.dumps(copy)


def body_with_token_ids(facts: Facts) -> bytes:
    """The client's request, byte for byte but for the wish that every event names its tokens by their ids."""
    if facts.wants_token_ids:
        return facts.body
    if "return_token_ids" in facts.document:
        return orjson.dumps({**facts.document, "return_token_ids": True})
    return _with_member(facts.body, b'"return_token_ids":true')


def continuation(facts: Facts, token_ids: Sequence[int]) -> Facts:
    """The request that makes an engine replay these tokens as its own and go on; always streamed (`decode_body`)."""
    document = {**facts.document, "return_token_ids": True} | _streamed(facts)
    if token_ids:
        document["vllm_xargs"] = {**(document.get("vllm_xargs") or {}), REPLAY_FIELD: list(token_ids)}
    return replace(
        facts,
        body=orjson.dumps(document),
        document=document,
        stream=True,
        prompt_tokens=facts.prompt_tokens + len(token_ids),
    )


def _with_member(body: bytes, member: bytes) -> bytes:
    """A JSON object with one member more, before the others, of which there is one at least."""
    after = body.index(b"{") + 1
    return b"%b%b,%b" % (body[:after], member, body[after:])


def _streamed(facts: Facts) -> dict[str, Any]:
    """What makes the answer a stream that tells its usage, where the client wants it in one piece."""
    return {} if facts.stream else {"stream": True, "stream_options": {"include_usage": True}}


def _refuse_transfer_fields(document: Document) -> None:
    """A client must not name the host that an engine then fetches KV blocks from, nor put words in its mouth."""
    extra = document.get("vllm_xargs")
    for name in extra if isinstance(extra, dict) else ():
        if name.startswith(RESERVED_PREFIX):
            raise errors.malformed(f"`vllm_xargs` must not hold `{name[:64]}`.", "vllm_xargs")
    for name in ("kv_transfer_params", "ec_transfer_params"):
        if document.get(name) is not None:
            raise errors.malformed(f"`{name}` is set by the gateway, not by clients.", name)
        if isinstance(extra, dict) and name in extra:
            raise errors.malformed(f"`vllm_xargs` must not hold `{name}`.", "vllm_xargs")


def _text_tokens(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    return size // BYTES_PER_TOKEN


def _tokens_to_compute(path: str, document: Document) -> int:
    if path == CHAT:
        return _chat_tokens(document.get("messages"))
    if path == COMPLETIONS:
        return _prompt_tokens(document.get("prompt"))
    given = document.get("input") if path in (RESPONSES, EMBEDDINGS) else None
    return _chat_tokens(given) if path == RESPONSES and not isinstance(given, str) else _prompt_tokens(given)


def _chat_tokens(messages: object) -> int:
    if not isinstance(messages, list):
        return 0
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    texts = [content for content in contents if isinstance(content, str)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return sum(map(_text_tokens, texts))


def _prompt_tokens(prompt: object) -> int:
    """Of one prompt (a text, or token ids) or of a list of such. What nests deeper is no prompt, and counts nothing."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return sum(map(_one_prompt_tokens, prompt))
    return _one_prompt_tokens(prompt)


def _one_prompt_tokens(prompt: object) -> int:
    return _text_tokens(prompt) if isinstance(prompt, str) else len(prompt) if isinstance(prompt, list) else 0


def _splittable(document: Document) -> bool:
    """Whether prefill and decode may be two engines: one text prompt, one sequence, nothing asked about the prompt
    itself.

    Transferred blocks are freed after one reader, so several sequences of one prompt cannot share them; `echo` and
    `prompt_logprobs` need the prompt computed where the answer is written; a forced tool call is parsed from the whole
    answer, which one token is not.
    """
    if document.get("n") not in (None, 1) or document.get("best_of") not in (None, 1):
        return False
    if any(document.get(key) for key in ("use_beam_search", "echo", "prompt_embeds")):
        return False
    if document.get("prompt_logprobs") is not None or document.get("tool_choice") not in (None, "none", "auto"):
        return False
    return _one_text_prompt(document)


def _resumable(document: Document) -> bool:
    """Whether the ids of the delivered tokens say all there is to say of the answer so far: one sequence of one prompt,
    nothing of the prompt in it, and no token of which the engine is to keep silent (hidden reasoning)."""
    if document.get("n") not in (None, 1) or document.get("best_of") not in (None, 1):
        return False
    if any(document.get(key) for key in ("use_beam_search", "echo", "prompt_embeds")):
        return False
    if document.get("prompt_logprobs") is not None or document.get("include_reasoning") is False:
        return False
    prompt = document.get("prompt")
    return not isinstance(prompt, list) or (bool(prompt) and (isinstance(prompt[0], int) or len(prompt) == 1))


def _one_text_prompt(document: Document) -> bool:
    prompt = document.get("prompt")
    if isinstance(prompt, list):
        return bool(prompt) and (isinstance(prompt[0], int) or len(prompt) == 1)
    messages = document.get("messages")
    if not isinstance(messages, list):
        return isinstance(prompt, str)
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return all(isinstance(part, dict) and part.get("type") == "text" for part in parts)
