"""The public port as a raw protocol: framing, limits, slow and hostile clients, slow readers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from headrace_runtime.gateway.connection import PIPELINED
from headrace_runtime.gateway.http import Answer, Limits, Request
from headrace_runtime.gateway.port import Server

LIMITS = Limits(head_bytes=4096, body_bytes=1000, head_seconds=0.2, body_seconds=0.2, idle_seconds=0.2)


async def echo(request: Request, answer: Answer) -> None:
    answer.send(200, [("content-type", "text/plain")], request.method.encode() + b":" + request.body)


async def stream(request: Request, answer: Answer) -> None:
    answer.start(200, [("content-type", "text/event-stream")], b"one,")
    answer.write(b"two")
    answer.finish()


async def fail(request: Request, answer: Answer) -> None:
    raise ZeroDivisionError


async def fail_late(request: Request, answer: Answer) -> None:
    answer.start(200, [], b"half")
    raise ZeroDivisionError


async def hold(request: Request, answer: Answer) -> None:
    answer.start(200, [], b"held")
    await asyncio.Event().wait()


ROUTES = {
    "/hold": {"GET": hold},
    "/echo": {"POST": echo},
    "/stream": {"GET": stream},
    "/fail": {"GET": fail},
    "/late": {"GET": fail_late},
}


@asynccontextmanager
async def serving(limits: Limits = LIMITS) -> AsyncIterator[tuple[Server, int]]:
    server = Server(ROUTES, limits)
    port = await server.listen("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.drain(0.0)


async def talk(port: int, *pieces: bytes) -> bytes:
    """Send the pieces apart from each other; everything received until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


async def gone(server: Server) -> None:
    """Until no connection is left."""
    while server.connections:
        await asyncio.sleep(0.005)


def post(body: bytes, *headers: str, path: str = "/echo", close: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    if close:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_code(answer: bytes) -> str:
    return str(orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


async def test_answers_one_request_and_closes_when_asked_to() -> None:
    async with serving() as (server, port):
        answer = await talk(port, post(b"hello"))
        assert answer.endswith(b"connection: close\r\n\r\nPOST:hello")
        await asyncio.wait_for(gone(server), 5)


async def test_reads_a_request_in_any_pieces() -> None:
    async with serving() as (_, port):
        request = post(b"hello")
        answer = await talk(port, *(request[index : index + 1] for index in range(len(request))))
        assert answer.endswith(b"POST:hello")


async def test_reads_a_chunked_body() -> None:
    async with serving() as (_, port):
        head = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        assert (await talk(port, head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")).endswith(b"POST:abcde")


@pytest.mark.parametrize("pieces", [1, 3])
async def test_answers_pipelined_requests_in_order(pieces: int) -> None:
    async with serving() as (_, port):
        requests = [post(b"a", close=False), b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n", post(b"c")]
        answer = await talk(port, *([b"".join(requests)] if pieces == 1 else requests))
        positions = [answer.index(part) for part in (b"POST:a", b"4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n", b"POST:c")]
        assert positions == sorted(positions)


async def test_streams_to_an_old_client_without_chunks() -> None:
    async with serving() as (_, port):
        answer = await talk(port, b"GET /stream HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"\r\n\r\none,two")
        assert b"chunked" not in answer


async def test_tells_a_client_that_waits_for_it_to_go_on() -> None:
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head, body = post(b"hello", "expect: 100-continue").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).endswith(b"POST:hello")
        writer.close()


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_refuses_a_body_that_is_too_large(announced: bool) -> None:
    async with serving() as (_, port):
        chunked = (
            b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n"
            + b"x" * 1001
            + b"\r\n0\r\n\r\n"
        )
        answer = await talk(port, post(b"x" * 1001, "expect: 100-continue") if announced else chunked)
        assert (status(answer), error_code(answer)) == (413, "request_too_large")


async def test_takes_a_body_of_exactly_the_limit() -> None:
    async with serving() as (_, port):
        assert status(await talk(port, post(b"x" * 1000))) == 200


async def test_refuses_an_endless_head() -> None:
    async with serving() as (_, port):
        answer = await talk(port, b"GET /stream HTTP/1.1\r\n", b"x-filler: " + b"x" * 5000)
        assert status(answer) == 431


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"NONSENSE\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    ],
    ids=["tls", "words", "two framings", "two lengths"],
)
async def test_refuses_what_is_not_plain_http(garbage: bytes) -> None:
    async with serving() as (_, port):
        assert status(await talk(port, garbage)) == 400


async def test_an_offer_to_upgrade_is_ignored() -> None:
    async with serving() as (_, port):
        answer = await talk(port, b"GET /stream HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert status(answer) == 200


async def test_unknown_routes_and_methods_keep_the_connection() -> None:
    async with serving() as (_, port):
        answer = await talk(
            port, post(b"x", path="/nothing", close=False), post(b"y", path="/stream", close=False), post(b"z")
        )
        assert answer.count(b"HTTP/1.1 404") == answer.count(b"HTTP/1.1 405") == answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize(
    ("sent", "expected"),
    [(b"", None), (b"POST /echo HT", 408), (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf", 408)],
    ids=["silent", "slow head", "slow body"],
)
async def test_does_not_wait_for_ever(sent: bytes, expected: int | None) -> None:
    async with serving() as (server, port):
        answer = await talk(port, sent)
        assert (status(answer) if answer else None) == expected
        await asyncio.wait_for(gone(server), 5)


async def test_closes_a_connection_that_stays_idle() -> None:
    async with serving() as (_, port):
        assert status(await talk(port, post(b"x", close=False))) == 200


async def test_holds_no_more_connections_than_its_limit() -> None:
    async with serving(Limits(connections=1)) as (_, port):
        first, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n")
        await first.readuntil(b"held")
        answer = await talk(port, post(b"b"))
        assert (status(answer), error_code(answer)) == (503, "overloaded")
        writer.close()


async def test_at_the_limit_the_longest_idle_connections_make_room() -> None:
    async with serving(Limits(connections=2)) as (_, port):
        idle, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(b"a", close=False))
        await idle.readuntil(b"POST:a")
        silent, other = await asyncio.open_connection("127.0.0.1", port)
        assert status(await talk(port, post(b"b"))) == 200
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await idle.readexactly(1)
        other.write(post(b"c"))
        assert status(await silent.read()) == 200
        writer.close()
        other.close()


async def test_a_failing_handler_is_a_500_or_a_cut_answer() -> None:
    async with serving() as (_, port):
        answer = await talk(port, b"GET /fail HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (status(answer), error_code(answer)) == (500, "internal_error")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readuntil(b"0\r\n\r\n")
        writer.close()


@pytest.mark.parametrize("lines", [1, 2000], ids=["one long line", "many lines"])
async def test_refuses_a_large_head_that_comes_at_once(lines: int) -> None:
    flood = b"x-filler: " + b"x" * 6000 + b"\r\n" if lines == 1 else b"a: b\r\n" * lines
    async with serving() as (_, port):
        assert status(await talk(port, b"GET /stream HTTP/1.1\r\nhost: x\r\n" + flood + b"\r\n")) == 431


@pytest.mark.parametrize("flood", [b"a: b\r\n" * 2000, b"x" * 1_000_000], ids=["lines", "one line"])
async def test_refuses_endless_trailers(flood: bytes) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    async with serving() as (_, port):
        assert status(await talk(port, head, flood)) == 431


async def test_serves_no_more_than_so_many_requests_that_came_at_once() -> None:
    async with serving() as (_, port):
        answer = await talk(port, post(b"", close=False) * 500)
        assert answer.count(b"HTTP/1.1 200") == PIPELINED
        assert answer.count(b"HTTP/1.1 400") == 1


async def test_a_question_for_the_head_alone_gets_no_body() -> None:
    async with serving() as (_, port):
        answer = await talk(port, b"HEAD /echo HTTP/1.1\r\nhost: x\r\n\r\n" + post(b"next"))
        assert answer.startswith(b"HTTP/1.1 405")
        assert answer.partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1 200")


async def test_an_answer_that_nobody_reads_is_cut() -> None:
    cancelled = asyncio.Event()

    async def pour(request: Request, answer: Answer) -> None:
        answer.start(200, [], b"begin")
        try:
            answer.write(b"x" * 30_000_000)  # more than the kernel takes
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    server = Server({"/": {"GET": pour}}, Limits(unread_seconds=0.2))
    port = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"begin")
    async with asyncio.timeout(20):
        await cancelled.wait()
        await gone(server)
    writer.close()
    await server.drain(0.0)
