"""When the relay lets tokens gather."""

from collections.abc import Callable

from headrace_runtime.gateway.pacing import ENOUGH, PAUSE_SECONDS, STREAMS, Pacer


class Loop:
    """Turns of an event loop, by hand."""

    def __init__(self, streams: int) -> None:
        self.slept: list[float] = []
        self.due: list[Callable[[], None]] = []
        self.pacer = Pacer(self.due.append, self.slept.append)
        self.pacer.streams = streams

    def turn(self, tokens: int) -> None:
        for _ in range(tokens):
            self.pacer.token()
        due, self.due[:] = list(self.due), []
        for function in due:
            function()


def test_a_turn_without_tokens_waits_for_nothing() -> None:
    loop = Loop(STREAMS)
    loop.turn(0)
    assert loop.slept == []


def test_few_streams_never_wait() -> None:
    loop = Loop(STREAMS - 1)
    loop.turn(STREAMS - 1)
    assert loop.slept == []


def test_several_streams_wait_once_a_turn() -> None:
    loop = Loop(STREAMS)
    for _ in range(3):
        loop.turn(5)
    assert loop.slept == [PAUSE_SECONDS] * 3


def test_many_tokens_at_once_are_a_gathering_already() -> None:
    loop = Loop(STREAMS)
    loop.turn(ENOUGH)
    assert loop.slept == []
    loop.turn(ENOUGH - 1)
    assert loop.slept == [PAUSE_SECONDS]
