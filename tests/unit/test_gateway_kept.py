"""What a client has of a stream, kept in little memory."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway.kept import BLOCK_BYTES, Allowance, Kept, bodies, chunk

AMPLE = 1024**2


def token(number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": f" word{number * 7919 % 50021}"}, "token_ids": [number * 31 % 50000]}
    event = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1_763_740_000}
    return b"data: %b\n\n" % orjson.dumps({**event, "model": "tiny", "choices": [choice]})


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=40))
def test_gives_back_the_bytes_that_it_took(pieces: list[bytes]) -> None:
    kept = Kept(Allowance(), AMPLE)
    for piece in pieces:
        kept.add(chunk(piece))
    assert kept.read() == b"".join(pieces)
    assert not pieces or kept.ends_with(pieces[-1])


def test_a_stream_of_nothing_is_empty() -> None:
    kept = Kept(Allowance(), 0)
    assert kept.read() == b""
    assert not kept.ends_with(b"")


def test_a_token_costs_a_tenth_of_its_bytes_at_most() -> None:
    allowance = Allowance()
    kept, taken = Kept(allowance, AMPLE), 0
    for number in range(2000):
        kept.add(chunk(token(number)))
        taken += len(token(number))
    assert 0 < allowance.used < taken / 10


def test_a_stream_that_finds_no_memory_left_is_not_kept_and_takes_none() -> None:
    allowance = Allowance()
    first, second = Kept(allowance, 2000), Kept(allowance, 2000)
    for number in range(100):
        first.add(chunk(token(number)))
    assert first.complete
    for number in range(1000):
        second.add(chunk(token(number)))
    assert not second.complete
    with pytest.raises(ValueError, match="no memory"):
        second.read()
    assert second.ends_with(b"whatever it was")
    assert 0 < allowance.used <= 2000
    assert sum(map(len, second._chunks)) <= BLOCK_BYTES
    first.release()
    assert allowance.used == 0


def test_chunks_of_http_are_what_they_hold() -> None:
    assert chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert bodies(b"2\r\n\r\n\r\n1\r\nx\r\n") == b"\r\nx"
