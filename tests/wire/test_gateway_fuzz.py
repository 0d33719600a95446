"""Random bytes, mutated requests and documents of wrong types on the real port.

Whatever is sent is answered with a status that fits, or closed; never with a 500, a trace, or a connection that stays;
and who comes next is served. A few examples in every run of the tests; `make fuzz-gateway` takes many.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract
from headrace_runtime.gateway.serve import Gateway

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize")
FITTING = {200, 400, 401, 404, 405, 408, 413, 431, 501}
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")
EVENTS = (
    b'data: {"id":"x","object":"text_completion","model":"fake","choices":[{"index":0,"text":"t"}]}\n\ndata: [DONE]\n\n'
)


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes anything."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            streamed = orjson.loads(body).get("stream") if body else False
            answer = EVENTS if streamed else b"{}"
            kind = b"text/event-stream" if streamed else b"application/json"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(answer)))
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


@dataclass
class World:
    """A gateway in a loop that turns while something is sent."""

    runner: asyncio.Runner
    gateway: Gateway

    def send(self, *pieces: bytes) -> bytes:
        """What comes back until the connection's end, once the client has ended its side."""
        return self.runner.run(self._send(pieces))

    def answers_still(self) -> bool:
        body = orjson.dumps({"model": "fake", "prompt": "x", "max_tokens": 1})
        return statuses(self.send(request("/v1/completions", body))) == [200]

    async def _send(self, pieces: tuple[bytes, ...]) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        received = bytearray()
        try:
            async with asyncio.timeout(30):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                collecting = asyncio.create_task(reader.read())
                if b"connection: close" not in b"".join(pieces):
                    writer.write_eof()
                received += await collecting
        except ConnectionError:
            pass  # closed in the midst of what we sent: an answer, too
        finally:
            writer.close()
        return bytes(received)


@asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    """Before an engine that takes anything."""
    async with await asyncio.start_server(engine, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        endpoints = (Endpoint(name="serve-0", url=url, role="serve", revision="r1"),)
        contract = GatewayContract(
            namespace="n",
            deployment="d",
            served_name="fake",
            discovery=FixedDiscovery(endpoints=endpoints),
            access_log=False,
            port=0,
            admin_port=0,
            drain_seconds=0.0,
        )
        one = Gateway(contract)
        async with one.running():
            yield one


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with asyncio.Runner() as runner:
        running = gateway()
        yield World(runner, runner.run(running.__aenter__()))
        runner.run(running.__aexit__(None, None, None))


def request(path: str, body: bytes, close: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, *(["connection: close"] if close else []), "", ""]).encode() + body


def statuses(answer: bytes) -> list[int]:
    """Of the answers in `answer`, which must begin with one unless it is empty."""
    assert not answer or STATUS_LINE.match(answer), answer[:80]
    return [int(found) for found in STATUS_LINE.findall(answer)]


def no_trace_of_failure(caplog: pytest.LogCaptureFixture) -> bool:
    return not [record for record in caplog.records if record.levelno >= logging.ERROR]


@FUZZ
@given(pieces=st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=5))
def test_random_bytes_are_refused_or_closed(
    world: World, caplog: pytest.LogCaptureFixture, pieces: list[bytes]
) -> None:
    assert set(statuses(world.send(*pieces))) <= FITTING - {200}
    assert no_trace_of_failure(caplog)
    assert world.answers_still()


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """Good requests with some bytes cut out, doubled, put in or changed; in pieces."""
    body = orjson.dumps({"model": "fake", "prompt": "x y z", "max_tokens": 2, "stream": draw(st.booleans())})
    whole = b"".join(request(draw(st.sampled_from(ROUTES)), body, close=False) for _ in range(draw(st.integers(1, 3))))
    if draw(st.booleans()):
        chunks = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        whole = chunks % (len(body), body) + whole
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(whole)))
        upto = min(len(whole), at + draw(st.integers(0, 40)))
        put = draw(
            st.binary(max_size=12) | st.sampled_from([b"\r\n", b"\r\n\r\n", b"0", b":", b"\x00", whole[at:upto] * 2])
        )
        whole = whole[:at] + put + whole[upto:]
    cut = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [piece for piece in map(whole.__getitem__, map(slice, [0, *cut], [*cut, None])) if piece]


@FUZZ
@given(pieces=mutated())
def test_mutated_requests_are_answered_refused_or_closed(
    world: World, caplog: pytest.LogCaptureFixture, pieces: list[bytes]
) -> None:
    assert set(statuses(world.send(*pieces))) <= FITTING
    assert no_trace_of_failure(caplog)
    assert world.answers_still()


KEYS = st.sampled_from(["role", "content", "type", "text", "function", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
    "best_of", "tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "stop", "seed", "user", "echo",
    "suffix", "vllm_xargs", "kv_transfer_params", "return_token_ids", "priority", "temperature", "prompt_logprobs",
    "use_beam_search", "tokens", "cache_salt", "documents",
)  # fmt: skip


@FUZZ
@given(path=st.sampled_from(ROUTES), document=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
def test_documents_of_wrong_types_reach_an_engine_or_are_refused(
    world: World, caplog: pytest.LogCaptureFixture, path: str, document: dict[str, object]
) -> None:
    body = orjson.dumps({"model": "fake", **document})
    (status,) = statuses(world.send(request(path, body)))
    assert status in {200, 400, 404}
    assert no_trace_of_failure(caplog)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model":"fake","prompt":"\xff"}',
        b'{"model":"fake","prompt":"\\ud800"}',
        b"[" * 5000,
        b'{"model":"fake","prompt":' + b"[" * 2000 + b"]" * 2000 + b"}",
    ],
    ids=["nothing", "half", "array", "null", "no utf-8", "half a surrogate", "deep", "deep and closed"],
)
def test_malformed_json_is_said_to_be_so(world: World, body: bytes) -> None:
    assert statuses(world.send(request("/v1/completions", body))) == [400]


@pytest.mark.parametrize("depth", [300, 1000])
@pytest.mark.parametrize("field", ["prompt", "messages", "input", "tools"])
@pytest.mark.parametrize("path", ROUTES)
def test_a_deep_document_does_no_harm(
    world: World, caplog: pytest.LogCaptureFixture, path: str, field: str, depth: int
) -> None:
    body = b'{"model":"fake","' + field.encode() + b'":' + b"[" * depth + b"]" * depth + b"}"
    (status,) = statuses(world.send(request(path, body)))
    assert status in {200, 400}
    assert no_trace_of_failure(caplog)
