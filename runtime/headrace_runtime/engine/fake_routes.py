"""Routes of the simulated engine beside completions, in the shapes of vLLM: responses, tokenisation, embeddings.

As vLLM does, it begins the stream of a response before anything is computed, and answers tokenisation by its front end
alone. Embeddings are served where the script says how long one is; else the route is not there.
"""

import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Document = dict[str, Any]
Pause = Callable[[int], Awaitable[None]]
"""Called before the token of this number: waits, or does what the script says goes wrong."""

_ids = itertools.count()


async def respond(request: web.Request, document: Document, tokens: int, before: Pause) -> web.StreamResponse:
    """`POST /v1/responses`: as many words as tokens."""
    words = [f" t{number}" for number in range(document.get("max_output_tokens") or tokens)]
    answer = _response(document)
    if not document.get("stream"):
        for number in range(len(words)):
            await before(number)
        return web.json_response(answer | _finished("".join(words)))
    stream = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await stream.prepare(request)
    numbers = itertools.count()
    place: Document = {"item_id": "msg_1", "output_index": 0, "content_index": 0}

    async def say(kind: str, **fields: Any) -> None:
        event = {"type": kind, "sequence_number": next(numbers), **fields}
        await stream.write(f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode())

    await say("response.created", response=answer)
    await say("response.in_progress", response=answer)
    for number, word in enumerate(words):
        await before(number)
        if number == 0:
            await say("response.output_item.added", output_index=0, item=_message("", "in_progress"))
            await say("response.content_part.added", part=_text(""), **place)
        await say("response.output_text.delta", delta=word, logprobs=[], **place)
    await say("response.output_text.done", text="".join(words), logprobs=[], **place)
    await say("response.completed", response=answer | _finished("".join(words)))
    return stream


async def tokenize(request: web.Request) -> web.Response:
    """A word is a token, its number in the text its id."""
    document = await request.json()
    messages = [{"content": document["prompt"]}] if "prompt" in document else document["messages"]
    count = sum(len(message["content"].split()) for message in messages)
    return web.json_response({"count": count, "max_model_len": 4096, "tokens": list(range(count)), "token_strs": None})


async def detokenize(request: web.Request) -> web.Response:
    document = await request.json()
    return web.json_response({"prompt": "".join(f" t{token}" for token in document["tokens"])})


def embed(document: Document, length: int) -> web.Response:
    """`POST /v1/embeddings`."""
    given = document["input"]
    texts = given if isinstance(given, list) else [given]
    data = [{"object": "embedding", "index": at, "embedding": [0.5] * length} for at in range(len(texts))]
    tokens = sum(len(str(text).split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return web.json_response({"object": "list", "model": document["model"], "data": data, "usage": usage})


def _response(document: Document) -> Document:
    return {
        "id": f"resp_{next(_ids)}",
        "object": "response",
        "created_at": 1_700_000_000,
        "model": document["model"],
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _finished(text: str) -> Document:
    tokens = len(text.split())
    usage = {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1 + tokens,
    }
    return {"status": "completed", "output": [_message(text, "completed")], "usage": usage}


def _message(text: str, status: str) -> Document:
    content = [_text(text)] if text else []
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content}


def _text(text: str) -> Document:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
