"""Engine to client: however the engine's bytes are cut, the client gets the same body, and bounded memory is held."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway import upstream
from headrace_runtime.gateway.http import Answer, Request
from headrace_runtime.gateway.kept import bodies, chunk
from headrace_runtime.gateway.port import Server
from headrace_runtime.gateway.upstream import Connection, EngineError, Exchange, Pool, are_whole_chunks, notice_loss

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = b"7\r\ndata: \n\r\n"
END = b"0\r\n\r\n"


@asynccontextmanager
async def engine_that_sends(pieces: Sequence[bytes], *, end: bool = False) -> AsyncIterator[str]:
    """A server that answers every request with these bytes, each in a write of its own."""

    serving: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if end:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):  # it left first
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.gather(*serving)


class Collected:
    """A sink that keeps what it gets; `raw` is what came as whole chunks."""

    def __init__(self) -> None:
        self.body = b""
        self.raw = b""

    def write(self, data: bytes) -> None:
        self.body += data

    def chunk_writer(self):  # type: ignore[no-untyped-def]
        def take(data: bytes) -> None:
            self.raw += data
            self.body += bodies(data)

        return take


async def relayed(url: str, pool: Pool) -> Collected:
    sink = Collected()
    exchange = await pool.get(url, "/")
    await exchange.head()
    await exchange.relay(sink)
    return sink


def cuts(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`data` cut into pieces of these sizes, and the rest."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [piece for piece in [*pieces, data[at:]] if piece]


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(
        st.binary(min_size=1, max_size=40) | st.sampled_from([b"a\r\n", b"1\r\nx\r\n", b"0\r\n\r\n"]), max_size=8
    ),
    sizes=st.lists(st.integers(1, 30), max_size=30),
)
def test_the_body_survives_any_cut_of_its_bytes(bodies: list[bytes], sizes: list[int]) -> None:
    async def check() -> None:
        pool = Pool()
        async with engine_that_sends(cuts(HEAD + b"".join(map(chunk, bodies)) + END, sizes)) as url:
            for _ in range(2):  # the second on the same connection
                assert (await relayed(url, pool)).body == b"".join(bodies)
            pool.close()

    asyncio.run(check())


class Wire(asyncio.Transport):
    """A transport that goes nowhere: reads are handed to the connection by the test."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        pass


async def test_a_read_of_whole_chunks_passes_unparsed_and_others_do_not() -> None:
    connection, sink = Connection(Pool(), ("h", 1)), Collected()
    connection.connection_made(Wire())
    exchange = connection.send(b"", reused=False)
    connection.data_received(HEAD + chunk(b"first"))
    relaying = asyncio.create_task(exchange.relay(sink))
    await asyncio.sleep(0)
    for read in (
        chunk(b"whole"),
        chunk(b"cut")[:-3],
        chunk(b"cut")[-3:],
        chunk(b"again"),
        chunk(b"two") + chunk(b"three"),
        END,
    ):
        connection.data_received(read)
    await relaying
    assert sink.raw == chunk(b"whole") + chunk(b"again") + chunk(b"two") + chunk(b"three")
    assert sink.body == b"firstwholecutagaintwothree"


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"1\r\na\r\n", True),
        (b"a\r\n0123456789\r\n", True),
        (b"1\r\na\r\n2\r\nbc\r\n", True),
        (b"1\r\na\r\n2\r\nb", False),
        (b"1\r\na\r\n0\r\n\r\n", False),
        (b"2\r\na\r\n", False),
        (b"1\r\na", False),
        (b"0\r\n\r\n", False),
        (b"1;name=value\r\na\r\n", False),
        (b"", False),
        (b"\r\n", False),
        (b"data: 1\r\n", False),
    ],
)
def test_knows_whole_chunks(data: bytes, whole: bool) -> None:
    assert are_whole_chunks(data) is whole


@pytest.mark.parametrize("pieces", [[HEAD + chunk(b"a")], [HEAD + chunk(b"a"), b"5\r\nab"], [HEAD[:20]], []], ids=len)
async def test_a_cut_answer_is_never_taken_for_complete(pieces: list[bytes]) -> None:
    async with engine_that_sends(pieces, end=True) as url:
        pool = Pool()
        with pytest.raises(EngineError) as caught:
            await relayed(url, pool)
        pool.close()
        assert caught.value.cause == "reset"


@contextlib.contextmanager
def listener_that_never_accepts() -> Iterator[str]:
    """Its queue has one place, which is taken: who connects hears nothing."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_an_engine_that_does_not_answer_is_told_from_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(upstream, "LATE", 1000.0)  # of a busy machine nothing is asked here
    with listener_that_never_accepts() as url:
        with pytest.raises(EngineError, match="no connection within") as silent:
            await Pool().get(url, "/health")
    with pytest.raises(EngineError) as refused:
        await Pool().get(url, "/health")
    assert (silent.value.cause, refused.value.cause) == ("connect_timeout", "connect")


async def test_a_process_that_was_kept_from_running_tries_to_connect_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(upstream, "LATE", 1.0)  # a machine that is busier than the test thinks makes no difference
    pool = Pool()
    async with engine_that_sends([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]) as url:
        asyncio.get_running_loop().call_soon(time.sleep, 0.2)
        exchange = await pool.get(url, "/health")
        assert await exchange.whole() == b"ok"
        pool.close()


async def test_keeps_a_connection_for_the_next_request_and_notices_its_end() -> None:
    async with engine_that_sends([HEAD + chunk(b"a") + END]) as url:
        pool = Pool()
        exchanges: list[Exchange] = []
        for _ in range(2):
            exchange = await pool.get(url, "/")
            assert await exchange.whole() == b"a"
            exchanges.append(exchange)
        assert [exchange.reused for exchange in exchanges] == [False, True]
        pool.close()
    async with engine_that_sends([HEAD + chunk(b"a") + END], end=True) as url:
        for _ in range(2):
            exchange = await pool.get(url, "/")
            assert await exchange.whole() == b"a"
            await asyncio.sleep(0.01)
            assert not exchange.reused
        pool.close()


class Flood:
    """An engine whose answer is large; `sent` bytes of it have left its process."""

    total = 50_000_000

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        while self.sent < self.total:
            writer.write(chunk(b"x" * 10_000))
            await writer.drain()
            self.sent += 10_000
        writer.write(END)
        await writer.drain()
        writer.close()


async def stalled(flood: Flood) -> None:
    """Until the engine gets nothing away any more."""
    before = -1
    while before != flood.sent:
        before = flood.sent
        await asyncio.sleep(0.1)


async def test_a_client_that_reads_slowly_holds_the_engine_back() -> None:
    flood, pool = Flood(), Pool()

    async def relay(request: Request, reply: Answer) -> None:
        exchange = await pool.get(url, "/")
        await exchange.head()
        reply.source = exchange
        reply.start(200, [], b"begin")
        await exchange.relay(reply)
        reply.finish()

    async with await asyncio.start_server(flood, "127.0.0.1", 0) as engine:
        url = f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}"
        server = Server({"/": {"GET": relay}})
        reader, writer = await asyncio.open_connection("127.0.0.1", await server.listen("127.0.0.1", 0), limit=10_000)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await reader.readuntil(b"begin")
        await stalled(flood)
        assert flood.sent < flood.total / 2  # what the kernel's buffers take, and no more
        received = 0
        while data := await reader.read(1_000_000):
            received += len(data)
        assert received > flood.sent == flood.total
        writer.close()
        await server.drain(0.0)
        pool.close()


def test_an_engine_that_vanishes_without_a_word_is_noticed_within_seconds() -> None:
    with socket.socket() as one:
        notice_loss(one)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, every, times = (one.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert idle + every * times < 15
