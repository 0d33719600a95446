"""Real engines that are lost in the midst of a stream: what the client gets is what one undisturbed engine says.

In float32, where computing tokens at once or one by one gives the same greedy choices. The cheap cuts are made by a
proxy before one of the engines; the dear ones by SIGKILL.
"""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract, Place
from headrace_runtime.engine.arguments import Command
from headrace_runtime.gateway.assemble import events, one_answer
from headrace_runtime.gateway.request import CHAT, COMPLETIONS
from headrace_runtime.gateway.serve import Gateway
from tests.runtime.engines import Server, Warm, command, end, up
from tests.runtime.processes import free_port, named, tree

RIVERS = [{"role": "user", "content": "Write three sentences about rivers."}]
FRANCE: dict[str, Any] = {"prompt": "The capital of France is", "max_tokens": 24}
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
SCHEMA = {"type": "object", "properties": {"km": {"type": "integer"}}, "required": ["km"]}
USAGE = {"stream_options": {"include_usage": True}}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": (COMPLETIONS, FRANCE),
    "chat with usage": (CHAT, {"messages": RIVERS, "max_tokens": 24, **USAGE}),
    "logprobs of a completion": (COMPLETIONS, {**FRANCE, "logprobs": 2, **USAGE}),
    "logprobs of a chat": (CHAT, {"messages": RIVERS, "max_tokens": 16, "logprobs": True, "top_logprobs": 2}),
    "seed": (COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0.9, "seed": 7}),
    "stop string": (COMPLETIONS, {**FRANCE, "stop": ["answer is: 2018"]}),
    "schema": (
        CHAT,
        {
            "messages": RIVERS,
            "max_tokens": 40,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
    ),
    "tool call": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "max_tokens": 60,
            "tools": TOOLS,
            "tool_choice": "required",
        },
    ),
    "characters of several tokens": (
        COMPLETIONS,
        {"prompt": "hi", "max_tokens": 60, "structured_outputs": {"regex": "(🙂|😀|🎉){6}"}},
    ),
}
LONG: dict[str, Any] = {**FRANCE, "max_tokens": 120, "ignore_eos": True, **USAGE}


@dataclass
class Running:
    """A real engine: one process group, forked by the zygote, which can fork it again."""

    warm: Warm
    launch: Command
    server: Server
    name: str
    group: int = 0

    def start(self) -> None:
        self.group = up(self.warm, self.launch, self.server, f"{self.name}.log")

    @property
    def url(self) -> str:
        host, port = self.server.address
        return f"http://{host}:{port}"


@pytest.fixture(scope="module")
def engines(
    engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Running]]:
    folder = tmp_path_factory.mktemp("resume")
    options = {"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}
    found: list[Running] = []
    warm: Warm | None = None
    for name in ("a", "b"):
        ports = {"engine_port": free_port(), "kv_transfer_port": free_port()}
        place = Place(name=name, address="127.0.0.1", run_dir=str(folder / name), **ports)
        launch = command(model("smollm2"), place, dtype="float32", max_model_len=1024, extra_args=options)
        warm = warm or Warm(engine_python, folder, dict(launch.env))
        found.append(Running(warm, launch, Server(place), name))
        found[-1].start()
    assert warm is not None
    yield found
    end(warm, *(engine.group for engine in found))
    warm.close()


class Cut:
    """A proxy before an engine. `after`: server-sent events of the next answer that it lets pass, and half of one more;
    then it ends the connection. None: everything passes."""

    def __init__(self, engine: Running) -> None:
        self._engine = engine
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.after: int | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        async with server:
            try:
                yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            finally:
                for writer in self._open:
                    writer.close()
                await asyncio.gather(*self._tasks)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_engine, to_engine = await asyncio.open_connection(*self._engine.server.address)
        self._open |= {writer, to_engine}
        there = asyncio.create_task(self._pass_on(reader, to_engine))
        with suppress(ConnectionError):
            await self._answers(from_engine, writer)
        for ended in (writer, to_engine):
            ended.close()
            with suppress(ConnectionError):
                await ended.wait_closed()
        await there

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = 0
        while data := await reader.read(65536):
            for event in _split(data):
                seen += event.startswith(b"data: ") and b"\n\n" in event
                if self.after is not None and seen > self.after:
                    self.after = None
                    writer.write(event[: len(event) // 2])
                    await writer.drain()
                    return
                writer.write(event)


def _split(data: bytes) -> list[bytes]:
    """A read of HTTP, cut before every event."""
    first, *rest = data.split(b"data: ")
    return [first, *(b"data: " + piece for piece in rest)]


@asynccontextmanager
async def gateway(first: str, second: str) -> AsyncIterator[Gateway]:
    """Before two engines by URL; the second writes only where the first does not, as prefill engines do."""
    endpoints = (
        Endpoint(name="a", url=first, role="decode", revision="r"),
        Endpoint(name="b", url=second, role="prefill", revision="r"),
    )
    contract = GatewayContract(
        namespace="n",
        deployment="d",
        served_name="tiny",
        discovery=FixedDiscovery(endpoints=endpoints),
        min_prompt_tokens=10_000,
        access_log=False,
        drain_seconds=0.0,
        port=0,
        admin_port=0,
    )
    running = Gateway(contract)
    async with running.running():
        async with asyncio.timeout(60):
            while not running.fleet.discovered or not all(slot.healthy for slot in running.fleet.slots()):
                await asyncio.sleep(0.02)
        yield running


def resumes(gateway: Gateway, result: str) -> float:
    return gateway.registry.get_sample_value("headrace_gateway_resumes_total", {"result": result}) or 0.0


async def ask(url: str, path: str, body: dict[str, Any], heard: Callable[[int], None] = lambda _: None) -> bytes:
    """The answer's body; `heard` is called with the number of events for every read."""
    asked = {"model": "tiny", "temperature": 0, "stream": True, **body}
    found = b""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as client,
        client.post(url + path, json=asked) as response,
    ):
        assert response.status == 200, await response.read()
        async for data in response.content.iter_any():
            found += data
            heard(found.count(b"\n\n"))
    return found


def answer(path: str, stream: bytes) -> dict[str, Any]:
    """All that a client reads of a stream, but for ids and times."""
    found: dict[str, Any] = orjson.loads(one_answer(path, stream, token_ids=False))
    for name in ("id", "created"):
        found.pop(name)
    for holder in (found, *found["choices"]):
        holder.pop("prompt_token_ids", None)
    for call in found["choices"][0].get("message", {}).get("tool_calls", ()):
        call.pop("id")
    return found


def close(value: Any) -> Any:
    """Equal to what has the same words and integers, and about the same logprobs."""
    if isinstance(value, dict):
        return {name: close(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [close(entry) for entry in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_cut_stream_goes_on_as_if_nothing_had_happened(engines: list[Running], name: str) -> None:
    path, body = REQUESTS[name]
    undisturbed = await ask(engines[1].url, path, body)
    whole, told = close(answer(path, undisturbed)), undisturbed.count(b"data: ")
    proxy = Cut(engines[0])
    async with proxy.serving() as url, gateway(url, engines[1].url) as before:
        for number, after in enumerate((1, told // 2, told - 3), start=1):
            proxy.after = after
            stream = await ask(f"http://127.0.0.1:{before.port}", path, body)
            assert proxy.after is None, "the answer was cut"
            assert answer(path, stream) == whole, f"cut after {after} of {told} events"
            chunks = [orjson.loads(data) for data in events(stream)]
            assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
            assert resumes(before, "resumed") + resumes(before, "completed") == number


@pytest.mark.parametrize("victim", ["core", "all"])
async def test_an_engine_killed_in_mid_stream_loses_no_token(engines: list[Running], victim: str) -> None:
    doomed, other = engines
    whole = answer(COMPLETIONS, await ask(other.url, COMPLETIONS, LONG))
    killed = itertools.count()

    def kill(heard: int) -> None:
        if heard >= 15 and next(killed) == 0:
            if victim == "core":
                os.kill(named(tree(doomed.group), "EngineCore"), signal.SIGKILL)
            else:
                os.killpg(doomed.group, signal.SIGKILL)

    try:
        async with gateway(doomed.url, other.url) as before:
            stream = await ask(f"http://127.0.0.1:{before.port}", COMPLETIONS, LONG, kill)
            assert next(killed) > 0, "the engine was killed"
            assert answer(COMPLETIONS, stream) == whole
            assert b'"error"' not in stream
            assert resumes(before, "resumed") == 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(doomed.group, signal.SIGKILL)
        assert doomed.warm.report(30)["exited"] == doomed.group
        doomed.start()
