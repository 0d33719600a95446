"""What the relay passes on: whole events, however they arrive, and never an engine's last words."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway.http import Answer
from headrace_runtime.gateway.kept import Allowance, Kept, chunk
from headrace_runtime.gateway.relay import EVENT_BYTES, Relay
from headrace_runtime.gateway.upstream import EngineError, Exchange

TOKENS = [b'data: {"text":"%d"}\n\n' % number for number in range(5)]
SIZE = len(TOKENS[0])
DONE = b"data: [DONE]\n\n"
DEATH = b'data: {"error":{"message":"EngineCore died","code":500}}\n\n'


class Client:
    """Stands for `http.Answer`: notes what it is given."""

    def __init__(self) -> None:
        self.status = 0
        self.got: list[bytes] = []

    def start(self, status: int, headers: list[tuple[str, str]], first: bytes) -> None:
        self.status = status
        self.got.append(first)

    def write(self, data: bytes) -> None:
        self.got.append(data)

    def chunk_writer(self) -> Any:
        return lambda one: self.got.append(one.split(b"\r\n", 1)[1][:-2])

    @property
    def stream(self) -> bytes:
        return b"".join(self.got)


class Engine:
    """Stands for `upstream.Exchange`: hands over pieces of a body, as chunks of HTTP where it may, and ends as told."""

    def __init__(self, pieces: list[bytes], ends: EngineError | None = None) -> None:
        self._pieces, self._ends = pieces, ends
        self.failed: EngineError | None = None
        self.aborted = self.paused = False

    async def relay(self, sink: Relay) -> None:
        forward = sink.chunk_writer()
        for piece in self._pieces:
            if self.failed is None:
                if forward is None:
                    sink.write(piece)
                else:
                    forward(chunk(piece))
        if self.failed or self._ends:
            raise self.failed or self._ends  # type: ignore[misc]

    def fail(self, error: EngineError) -> None:
        self.failed = error

    def abort(self) -> None:
        self.aborted = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


async def relayed(pieces: list[bytes], ends: EngineError | None = None, kept: Kept | None = None) -> Any:
    """What the client got, and what became of the engine. The first piece is that of the first event."""
    client, engine = Client(), Engine(pieces[1:], ends)
    relay = Relay(cast(Answer, client), [], kept)
    failure = await relay.run(cast(Exchange, engine), pieces[0])
    assert engine.aborted
    return client, failure


def keeping() -> Kept:
    return Kept(Allowance(), 10**6)


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    return [stream[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if begin < end]


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), max_size=12))
def test_events_arrive_whole_however_they_were_cut(cuts: list[int]) -> None:
    kept = keeping()
    stream = b"".join([*TOKENS, DONE])
    client, failure = asyncio.run(relayed(pieces_of(stream, cuts), kept=kept))
    assert failure is None
    assert client.stream == kept.read() == stream
    assert all(piece.endswith(b"\n\n") for piece in client.got)


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), max_size=6), st.integers(1, 5 * SIZE))
def test_nothing_of_a_torn_event_is_passed_on(cuts: list[int], end: int) -> None:
    stream = b"".join(TOKENS)[:end]
    lost = EngineError("reset", "gone")
    client, failure = asyncio.run(relayed(pieces_of(stream, cuts), lost, keeping()))
    assert failure is lost
    assert client.stream == b"".join(TOKENS)[: SIZE * (end // SIZE)]


@pytest.mark.parametrize(
    "pieces", [[TOKENS[0], DEATH, DONE], [TOKENS[0] + DEATH + DONE], [TOKENS[0], DEATH[:9], DEATH[9:]]]
)
async def test_an_engines_death_is_not_passed_on_where_another_may_go_on(pieces: list[bytes]) -> None:
    client, failure = await relayed(pieces, kept=keeping())
    assert (failure.cause, failure.status) == ("error_event", 500)
    assert client.stream == TOKENS[0]


async def test_where_nothing_is_kept_the_engines_words_are_passed_on() -> None:
    client, failure = await relayed([TOKENS[0], DEATH, DONE])
    assert failure is None
    assert client.stream == TOKENS[0] + DEATH + DONE


async def test_text_that_speaks_of_errors_is_none() -> None:
    event = rb'data: {"text":"data: {\"error\""}' + b"\n\n"
    client, failure = await relayed([TOKENS[0], event, DONE], kept=keeping())
    assert failure is None
    assert client.stream == TOKENS[0] + event + DONE


async def test_a_stream_that_ends_early_is_a_loss() -> None:
    client, failure = await relayed(TOKENS, kept=keeping())
    assert failure.cause == "reset"
    assert client.stream == b"".join(TOKENS)


async def test_an_event_without_an_end_is_not_waited_for() -> None:
    client, failure = await relayed([TOKENS[0], b"data: " + b"x" * EVENT_BYTES, b"x"], kept=keeping())
    assert failure.cause == "reset"
    assert client.stream == TOKENS[0]


async def test_a_client_that_reads_slowly_holds_the_next_engine_back_too() -> None:
    relay = Relay(cast(Answer, Client()), [], keeping())
    first, second = Engine([], EngineError("reset", "gone")), Engine([DONE])
    await relay.run(cast(Exchange, first), TOKENS[0])
    relay.pause()
    assert await relay.run(cast(Exchange, second), TOKENS[1]) is None
    assert second.paused
    relay.resume()
    assert not second.paused
