"""The bytes of all requests together are bounded: whoever sends large ones cannot fill the gateway's memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from headrace_runtime.gateway.connection import SMALL_BYTES
from headrace_runtime.gateway.http import Answer, Limits, Request
from headrace_runtime.gateway.port import Server

LARGE = 3 * SMALL_BYTES
LIMITS = Limits(body_bytes=10 * LARGE, held_bytes=2 * LARGE + SMALL_BYTES)


class Port:
    """A server whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.server = Server({"/": {"POST": self._answer}}, LIMITS)
        self.number = 0

    async def _answer(self, request: Request, answer: Answer) -> None:
        await self.go.wait()
        answer.send(200, [], b"")

    async def post(self, size: int, *, cut: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request, but for its last `cut` bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * (size - cut))
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def listening() -> AsyncIterator[Port]:
    port = Port()
    port.number = await port.server.listen("127.0.0.1", 0)
    try:
        yield port
    finally:
        port.go.set()
        await port.server.drain(1.0)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


async def status(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(20):
        return int((await reader.readline()).split()[1])


async def test_idle_connections_hold_nothing() -> None:
    async with listening() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port.number)
        await until(lambda: port.server.connections)
        assert port.server.held == 0
        writer.close()


@pytest.mark.parametrize("cut", [0, 1], ids=["whole requests", "requests without an end"])
async def test_large_requests_above_the_bound_are_refused_and_small_ones_are_not(cut: int) -> None:
    async with listening() as port:
        held = [await port.post(LARGE, cut=cut) for _ in range(2)]
        await until(lambda: port.server.held == 2 * (LARGE - cut))
        refused, other = await port.post(LARGE)
        assert await status(refused) == 503
        other.close()
        small, another = await port.post(SMALL_BYTES)
        port.go.set()
        assert await status(small) == 200
        another.close()
        for _, writer in held:
            writer.close()
        await until(lambda: port.server.held == 0)


async def test_an_answered_request_makes_room_on_a_connection_that_stays() -> None:
    async with listening() as port:
        port.go.set()
        reader, writer = await port.post(LARGE)
        assert await status(reader) == 200
        await until(lambda: port.server.held == 0)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi")
        await reader.readuntil(b"\r\n\r\n")
        assert await status(reader) == 200
        await until(lambda: port.server.held == 0)
        writer.close()
