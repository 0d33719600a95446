"""Clients that are slow, half gone, many or huge, while a good one asks: it is served, and memory stays bounded."""

import asyncio
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract
from headrace_runtime.gateway.kept import chunk
from headrace_runtime.gateway.serve import Gateway

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
SLOW = 12
ENDLESS = 1_000_000
"""As `max_tokens`: the engine writes until nobody takes it any more."""


def event(text: str) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None}
    return b"data: " + orjson.dumps({"id": "x", "model": "fake", "choices": [choice]}) + b"\n\n"


class Engine:
    """Writes short answers, and endless ones. `open` endless answers are under way; `sent` bytes of them have left,
    and `longest` is the largest body it was sent."""

    def __init__(self) -> None:
        self.open = 0
        self.sent = 0
        self.longest = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.longest = max(self.longest, len(body))
                if not body:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                elif orjson.loads(body)["max_tokens"] == ENDLESS:
                    await self._endless(writer)
                else:
                    writer.write(HEAD + chunk(event("short")) + chunk(DONE) + b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _endless(self, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            piece = chunk(event("x" * 20_000))
            writer.write(HEAD)
            while True:
                writer.write(piece)
                await writer.drain()
                self.sent += len(piece)
                await asyncio.sleep(0)
        finally:
            self.open -= 1


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Engine, int]]:
    """The engine, and the gateway's port."""
    engine = Engine()
    server = await asyncio.start_server(engine, "127.0.0.1", 0, limit=32 * 1024 * 1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    contract = GatewayContract(
        namespace="n",
        deployment="d",
        served_name="fake",
        discovery=FixedDiscovery(endpoints=(Endpoint(name="serve-0", url=url, role="serve", revision="r1"),)),
        access_log=False,
        port=0,
        admin_port=0,
        drain_seconds=0.0,
    )
    one = Gateway(contract)
    async with one.running():
        yield engine, one.port
    server.close()
    await until(lambda: not engine.open)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.01)


def request(tokens: int, prompt: str = "x") -> bytes:
    body = orjson.dumps({"model": "fake", "prompt": prompt, "max_tokens": tokens, "stream": True})
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def answer(port: int, sent: bytes) -> tuple[int, bytes]:
    """Status and all that comes until the answer's last event, or the connection's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024 * 1024)
    try:
        async with asyncio.timeout(30):
            writer.write(sent)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            return status, await (reader.readuntil(DONE) if status == 200 else reader.read())
    finally:
        writer.close()


async def slow_client(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Has read the head of an endless answer, and no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
    writer.write(request(ENDLESS))
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def stalled(engine: Engine) -> None:
    """Until the engine gets nothing away any more."""
    before, still = -1, 0
    async with asyncio.timeout(40):
        while still < 5:
            still = still + 1 if before == engine.sent else 0
            before = engine.sent
            await asyncio.sleep(0.1)


async def test_clients_that_hardly_read_cost_no_other_client_and_little_memory() -> None:
    async with gateway() as (engine, port):
        tracemalloc.start()
        try:
            slow = [await slow_client(port) for _ in range(SLOW)]
            await stalled(engine)
            assert (await answer(port, request(1)))[0] == 200
            for reader, _ in slow:  # a byte at a time is as good as none
                assert len(await reader.readexactly(1)) == 1
            status, body = await answer(port, request(1))
            assert status == 200
            assert b"short" in body
            assert engine.open == SLOW
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # Both sides' buffers, in and out, of engine, gateway and client, which all are this process.
        assert held < SLOW * 1_500_000
        for _, writer in slow:
            writer.transport.abort()
        await until(lambda: not engine.open)


async def test_a_client_that_ends_its_side_has_left_and_frees_the_engine() -> None:
    async with gateway() as (engine, port):
        _, writer = await slow_client(port)
        await until(lambda: engine.open == 1)
        writer.transport.abort()
        await until(lambda: engine.open == 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(request(ENDLESS))
        reading = asyncio.create_task(reader.read(-1))
        await until(lambda: engine.open == 1)
        writer.write_eof()
        await until(lambda: engine.open == 0)
        await reading
        writer.close()


async def test_many_connections_at_once_do_not_keep_a_good_client_out() -> None:
    async with gateway() as (_, port):
        silent = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(300)))
        answers = await asyncio.gather(*(answer(port, request(1)) for _ in range(100)))
        assert {status for status, _ in answers} == {200}
        for _, writer in silent:
            writer.close()


async def test_ten_megabytes_of_prompt_reach_the_engine_and_seventeen_are_refused_unread() -> None:
    async with gateway() as (engine, port):
        assert (await answer(port, request(1, "y" * 10_000_000)))[0] == 200
        assert engine.longest > 10_000_000
        announced = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 17000000\r\n\r\n"
        assert (await answer(port, announced))[0] == 413
        assert (await answer(port, request(1)))[0] == 200
