"""A simulated engine: the part of vLLM's HTTP surface that Headrace uses, with scripted timings and faults. No model
in it.

For the gateway's tests and benchmarks, and to try a gateway without an engine:
`python -m headrace_runtime.engine.fake --port 8000 --tokens 64 --itl 0.005`. Its words are `t0 t1 t2 …`, and its token
ids `0 1 2 …`, so that a reader sees which are missing. A request that brings tokens to replay (`contract.REPLAY_FIELD`)
gets them again in one event, as the words of the ids it brought, and then goes on. A figure measured against it is
*simulated*. The same cases run against it and against vLLM.
"""

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import click
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest

from headrace_runtime.contract import REPLAY_FIELD
from headrace_runtime.engine import fake_routes
from headrace_runtime.engine.fake_adapters import FakeAdapters, unknown_model

Fault = Literal["none", "status", "error_line", "error_event", "stall", "cut", "torn", "reset", "hang_transfer", "hang"]
"""What goes wrong with every completion. status: an HTTP 500 · error_line: vLLM's error event inside HTTP 200 ·
error_event: the same in place of token `at`, as when its core dies · stall: silence from token `at` on · cut: the
connection ends before token `at`, or before the last event · torn: it ends within token `at` · reset: it ends before
any byte · hang_transfer: an answer that is to start from transferred KV never does · hang: as after SIGSTOP,
connections are made and nothing is answered, `/health` included, until another fault is set."""

Document = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Script:
    """How the engine behaves. Times in seconds. `prefill_rate`: prompt tokens computed per second, 0 for no time at
    all."""

    model: str = "fake"
    tokens: int = 16
    """Of an answer whose request does not say `max_tokens`."""
    burst: int = 1
    """Tokens in one event."""
    reasoning: int = 0
    """Tokens of a chat's answer that come first, as reasoning."""
    calls_tool: bool = False
    """A chat's answer is a call of the tool `f`, its words the arguments."""
    ttft: float = 0.0
    itl: float = 0.0
    prefill_rate: float = 0.0
    max_model_len: int = 4096
    fault: Fault = "none"
    at: int = 0
    error_code: int = 503
    """In the error line, and the status of fault `status`."""
    healthy: bool = True
    embedding: int = 0
    """Length of an embedding; 0 where the model has none, and so no such route."""


class FakeEngine:
    """One engine. `script` may be changed while it runs; `seen` holds every completion's body, `headers` its headers;
    `aborted` counts clients that left before their answer's end; `adapters` are those that it was given."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.seen: list[Document] = []
        self.headers: list[dict[str, str]] = []
        self.aborted = 0
        self.adapters = FakeAdapters()
        self.url = ""
        self._changed = asyncio.Event()
        self._engine_id = str(uuid.uuid4())
        self._ids = itertools.count()
        self._registry = CollectorRegistry()
        self._running = Gauge("vllm:num_requests_running", "Requests being computed", registry=self._registry)
        self._sources = Counter("vllm:prompt_tokens_by_source", "Prompt tokens", ["source"], registry=self._registry)
        self._generated = Counter("vllm:generation_tokens", "Tokens of answers", registry=self._registry)

    @property
    def running(self) -> int:
        return int(self._running._value.get())

    def become(self, **changes: Any) -> None:
        """Change some fields of the script: they hold from the next token on."""
        self.script = replace(self.script, **changes)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def computed(self, source: Literal["local_compute", "external_kv_transfer"]) -> int:
        """Prompt tokens so far, by where their KV blocks came from."""
        return int(self._sources.labels(source)._value.get())

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Listen while the block runs; gives the URL."""
        runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            self.url = f"http://{host}:{runner.addresses[0][1]}"
            yield self.url
        finally:
            await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._hang])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/responses", self._complete)
        app.router.add_post("/v1/embeddings", self._embed)
        self.adapters.add_routes(app)
        app.router.add_post("/tokenize", fake_routes.tokenize)
        app.router.add_post("/detokenize", fake_routes.detokenize)
        return app

    @web.middleware
    async def _hang(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await self._while_hanging()
        return await handler(request)

    async def _while_hanging(self) -> None:
        while self.script.fault == "hang":
            await self._changed.wait()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.script.healthy else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), content_type="text/plain")

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self.script.model, "object": "model", "max_model_len": self.script.max_model_len}
        return web.json_response({"object": "list", "data": [model, *self.adapters.cards(self.script.model)]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        self.seen.append(document)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if not self.adapters.answers_to(document.get("model"), self.script.model):
            return unknown_model(document["model"])
        answer = self._respond if request.path == "/v1/responses" else self._answer
        self._running.inc()
        try:
            return await answer(request, document)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self._running.dec()

    async def _answer(self, request: web.Request, document: Document) -> web.StreamResponse:
        script = self.script
        if script.fault == "reset":
            _end_connection(request)
        problem = _problem(document, script)
        if problem:
            return _error(400, problem)
        if script.fault == "status":
            return _error(script.error_code, "scripted failure")
        answer = _Answer(request.path, document, script, f"fake-{next(self._ids)}")
        if script.fault == "error_line" and answer.stream:
            return await self._error_line(request)
        await self._compute_prompt(document, answer.prompt_tokens)
        if answer.stream:
            return await self._stream(request, answer)
        for span in answer.spans:
            await self._wait_for(request, span)
        return web.json_response(answer.whole(self._transfer_parameters(document, answer)))

    async def _respond(self, request: web.Request, document: Document) -> web.StreamResponse:
        if self.script.fault == "status":
            return _error(self.script.error_code, "scripted failure")
        return await fake_routes.respond(
            request, document, self.script.tokens, lambda number: self._wait_for(request, slice(number, number + 1))
        )

    async def _embed(self, request: web.Request) -> web.Response:
        if not self.script.embedding:
            raise web.HTTPNotFound(text='{"detail":"Not Found"}', content_type="application/json")
        return fake_routes.embed(await request.json(), self.script.embedding)

    async def _compute_prompt(self, document: Document, tokens: int) -> None:
        transferred = (document.get("kv_transfer_params") or {}).get("do_remote_prefill")
        if transferred and self.script.fault == "hang_transfer":
            await asyncio.Event().wait()
        self._sources.labels("external_kv_transfer" if transferred else "local_compute").inc(tokens)
        if not transferred and self.script.prefill_rate:
            await asyncio.sleep(tokens / self.script.prefill_rate)
        await asyncio.sleep(self.script.ttft)

    async def _wait_for(self, request: web.Request, span: slice) -> None:
        await self._while_hanging()
        script = self.script
        if script.fault == "cut" and span.stop > script.at:
            _end_connection(request)
        if script.fault == "stall" and span.stop > script.at:
            await asyncio.Event().wait()
        if span.start and script.itl:
            await asyncio.sleep(script.itl)
        self._generated.inc(span.stop - span.start)

    async def _stream(self, request: web.Request, answer: "_Answer") -> web.StreamResponse:
        response = await _open_stream(request)
        for span in answer.spans:
            await self._wait_for(request, span)
            events = b"".join(map(_event, answer.chunks(span)))
            if self.script.fault == "error_event" and span.stop > self.script.at:
                return await self._refuse_in(response)
            if self.script.fault == "torn" and span.stop > self.script.at:
                await response.write(events[: len(events) // 2])
                await asyncio.sleep(0.01)  # the half event goes out before the connection does
                _end_connection(request)
            await response.write(events)
        if self.script.fault == "cut":
            _end_connection(request)
        if answer.wants_usage:
            await response.write(_event(answer.usage_chunk()))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _error_line(self, request: web.Request) -> web.StreamResponse:
        return await self._refuse_in(await _open_stream(request))

    async def _refuse_in(self, response: web.StreamResponse) -> web.StreamResponse:
        code = self.script.error_code
        await response.write(_event({"error": {"message": "scripted refusal", "type": "scripted", "code": code}}))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _transfer_parameters(self, document: Document, answer: "_Answer") -> Document | None:
        asked = document.get("kv_transfer_params") or {}
        if not asked.get("do_remote_decode"):
            return None
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[0]],
            "remote_engine_id": self._engine_id,
            "remote_request_id": answer.id,
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
            "tp_size": 1,
            "remote_num_tokens": answer.prompt_tokens,
        }


class _Answer:
    """The documents of one answer, in the shapes of vLLM."""

    def __init__(self, path: str, document: Document, script: Script, answer_id: str) -> None:
        self.id = answer_id
        self.chat = path.endswith("/chat/completions")
        self.stream = bool(document.get("stream"))
        self.prompt_tokens = prompt_tokens(document)
        self.tokens: int = document.get("max_completion_tokens") or document.get("max_tokens") or script.tokens
        replayed = _replayed(document)[: self.tokens]
        self.token_ids = [*replayed, *range(len(replayed), self.tokens)]
        first = [slice(0, len(replayed))] if replayed else []
        self.spans = first + [
            slice(at, min(at + script.burst, self.tokens)) for at in range(len(replayed), self.tokens, script.burst)
        ]
        options = document.get("stream_options") or {}
        self.wants_usage = bool(options.get("include_usage"))
        self._counts_on = self.wants_usage and bool(options.get("continuous_usage_stats"))
        self._returns_ids = bool(document.get("return_token_ids"))
        self._logprobs = document.get("logprobs") not in (None, False)
        self._choices: int = document.get("n") or 1
        self._script = script
        self._model = document.get("model") or script.model
        self._call_id = f"chatcmpl-tool-{uuid.uuid4().hex}"

    def whole(self, transfer: Document | None) -> Document:
        everything = slice(0, self.tokens)
        text = self._text(everything)
        said: Document = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": self._scores(everything), "finish_reason": "length"}
        kind = "chat.completion" if self.chat else "text_completion"
        usage = self._usage(self.tokens)
        choices = [choice | self._ids(everything) | {"index": index} for index in range(self._choices)]
        return self._document(kind, choices) | {"usage": usage, "kv_transfer_params": transfer}

    def chunks(self, span: slice) -> list[Document]:
        """The events of these tokens. The first of a chat come after one that holds the role alone."""
        deltas = self._deltas(span) if self.chat else [{"text": self._text(span)}]
        last = {"finish_reason": "length" if span.stop == self.tokens else None}
        rest = {"logprobs": self._scores(span), **last, **self._ids(span)}
        events = [self._chunk([{"index": 0, **said}]) for said in deltas]
        events[-1]["choices"][0] |= rest
        if self._counts_on:
            events[-1]["usage"] = self._usage(span.stop)
        if span.start == 0 and self._returns_ids:
            (events[0] if self.chat else events[0]["choices"][0])["prompt_token_ids"] = list(range(self.prompt_tokens))
        return [
            event | {"choices": [event["choices"][0] | {"index": index}]}
            for event in events
            for index in range(self._choices)
        ]

    def usage_chunk(self) -> Document:
        return self._chunk([]) | {"usage": self._usage(self.tokens)}

    def _deltas(self, span: slice) -> list[Document]:
        thought = slice(span.start, max(span.start, min(span.stop, self._script.reasoning)))
        said = slice(thought.stop, span.stop)
        deltas: list[Document] = [{"role": "assistant", "content": ""}] if span.start == 0 else []
        if thought.start < thought.stop:
            deltas.append({"reasoning": self._text(thought)})
        if said.start < said.stop:
            deltas.append(self._tool_call(said) if self._script.calls_tool else {"content": self._text(said)})
        return [{"delta": delta} for delta in deltas]

    def _tool_call(self, span: slice) -> Document:
        call: Document = {"index": 0, "function": {"arguments": self._text(span)}}
        if span.start == self._script.reasoning:
            call |= {"id": self._call_id, "type": "function"}
            call["function"]["name"] = "f"
        return {"tool_calls": [call]}

    def _text(self, span: slice) -> str:
        return "".join(map(_word, self.token_ids[span]))

    def _ids(self, span: slice) -> Document:
        return {"token_ids": self.token_ids[span]} if self._returns_ids else {}

    def _scores(self, span: slice) -> Document | None:
        """Logprobs: minus a hundredth of the token's number."""
        if not self._logprobs:
            return None
        scores = [(_word(token), -0.01 * token) for token in self.token_ids[span]]
        if self.chat:
            rows = [
                {"token": word, "logprob": score, "bytes": list(word.encode()), "top_logprobs": []}
                for word, score in scores
            ]
            return {"content": rows}
        offsets = [len(self._text(slice(0, at))) for at in range(span.start, span.stop)]
        words, numbers = [word for word, _ in scores], [score for _, score in scores]
        return {"text_offset": offsets, "token_logprobs": numbers, "tokens": words, "top_logprobs": None}

    def _chunk(self, choices: list[Document]) -> Document:
        return self._document("chat.completion.chunk" if self.chat else "text_completion", choices)

    def _document(self, kind: str, choices: list[Document]) -> Document:
        return {"id": self.id, "object": kind, "created": 1_700_000_000, "model": self._model, "choices": choices}

    def _usage(self, tokens: int) -> Document:
        tokens *= self._choices
        total = self.prompt_tokens + tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": total}


def _replayed(document: Document) -> list[int]:
    token_ids: list[int] = (document.get("vllm_xargs") or {}).get(REPLAY_FIELD, [])
    return token_ids


def prompt_tokens(document: Document) -> int:
    """Token ids exactly; of text, a token per word."""
    prompt = document.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    if isinstance(prompt, str):
        return len(prompt.split())
    return sum(len(str(message.get("content")).split()) for message in document.get("messages", []))


def _word(token: int) -> str:
    return f" t{token}"


def _problem(document: Document, script: Script) -> str:
    """What vLLM refuses of a request with status 400, of the things the gateway could get wrong."""
    limit = document.get("max_completion_tokens") or document.get("max_tokens") or script.tokens
    if document.get("stream_options") and not document.get("stream"):
        return "stream_options can only be defined when stream is true"
    if (document.get("min_tokens") or 0) > limit:
        return "min_tokens must be less than or equal to max_tokens"
    if prompt_tokens(document) + limit > script.max_model_len:
        return f"This model's maximum context length is {script.max_model_len} tokens"
    return ""


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError" if status < 500 else "InternalServerError", "code": status}
    return web.json_response({"error": error}, status=status)


def _event(document: Document) -> bytes:
    return b"data: %b\n\n" % json.dumps(document, separators=(",", ":")).encode()


async def _open_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


def _end_connection(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()
    raise ConnectionResetError("scripted")


@click.command(help="Run a simulated engine until it is interrupted.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--model", default="fake", show_default=True, help="Name under which the model is served.")
@click.option("--tokens", default=16, show_default=True, help="Tokens of an answer without max_tokens.")
@click.option("--ttft", default=0.0, show_default=True, help="Seconds to the first token.")
@click.option("--itl", default=0.0, show_default=True, help="Seconds between tokens.")
def main(host: str, port: int, **script: Any) -> None:
    async def serve() -> None:
        async with FakeEngine(Script(**script)).serving(host, port) as url:
            click.echo(f"a simulated engine listens on {url}")
            await asyncio.Event().wait()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
