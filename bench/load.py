"""A closed-loop load over raw sockets: so many streams, each asking anew when its answer is complete.

The same code asks the engine and the gateway, so that what it costs itself is in both arms. Times are the client's:
TTFT from the request's last byte to the first event, the gap from one read that holds events to the next. Closed-loop
figures say what a fixed number of patient clients see; they hide queueing, and every table made from them says so.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

Body = Callable[[random.Random], bytes]


def says_error(stream: bytes) -> bool:
    """Whether an event of the stream says that its engine failed: vLLM does so inside of HTTP 200. A model may well
    write the word, so the word alone proves nothing."""
    return b'data: {"error"' in stream


@dataclass
class Result:
    """Of one run. Times in seconds."""

    seconds: float = 0.0
    answers: int = 0
    errors: list[str] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    events: int = 0

    @property
    def rate(self) -> float:
        """Complete answers per second."""
        return self.answers / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Load:
    """`streams` connections that send `requests` in all, each with a new body."""

    url: str
    streams: int
    requests: int
    body: Body
    path: str = "/v1/completions"
    seed: int = 0
    deadline: float = 120.0
    ramp: float = 0.0
    """Seconds over which the streams begin: all at once is a burst that no later part of a closed loop has."""


def completion(model: str, prompt_tokens: int, tokens: int, vocabulary: int = 4000, spread: int = 0) -> Body:
    """Bodies of streamed completions with random prompts, so that no cached prefix helps; of `tokens` ± `spread`
    tokens, so that the streams do not all end together."""

    def body(chance: random.Random) -> bytes:
        prompt = [chance.randrange(10, vocabulary) for _ in range(prompt_tokens)]
        fields = {
            "model": model,
            "prompt": prompt,
            "max_tokens": chance.randint(tokens - spread, tokens + spread),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        return orjson.dumps(fields)

    return body


def run(load: Load) -> Result:
    """Blocks until all answers are there or the deadline has passed; what is missing then is an error."""
    result: Result = uvloop.run(_run(load))
    return result


async def _run(load: Load) -> Result:
    result = Result()
    parts = urlsplit(load.url)
    loop = asyncio.get_running_loop()
    chance = random.Random(load.seed)
    remaining = iter(range(load.requests))
    streams: list[_Stream] = []
    for _ in range(min(load.streams, load.requests)):
        _, stream = await loop.create_connection(
            lambda: _Stream(load, result, chance, remaining), parts.hostname or "", parts.port or 80
        )
        streams.append(stream)
    began = time.perf_counter()
    for index, stream in enumerate(streams):
        loop.call_later(load.ramp * index / len(streams), stream.ask)
    _, late = await asyncio.wait([stream.done for stream in streams], timeout=load.deadline)
    result.seconds = time.perf_counter() - began
    result.errors += ["no answer by the deadline"] * len(late)
    for stream in streams:
        stream.close()
    return result


class _Stream(asyncio.Protocol):
    """One client: a connection with one request at a time."""

    def __init__(self, load: Load, result: Result, chance: random.Random, remaining: Iterator[int]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._result = result
        self._chance = chance
        self._remaining = remaining
        self._parser = httptools.HttpResponseParser(self)
        self._asked = self._last = 0.0
        self._events = 0
        self._complete = False
        self._body = b""

    def ask(self) -> None:
        if next(self._remaining, None) is None:
            self._finish()
            return
        body = self._load.body(self._chance)
        head = f"POST {self._load.path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        self._body, self._events, self._last, self._complete = b"", 0, 0.0, False
        self._transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self._asked = time.perf_counter()

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment] # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._body = b""
        self._parser.feed_data(data)
        events = self._body.count(b"data: ") - self._body.count(b"data: [DONE]")
        if events and self._parser.get_status_code() == 200:
            if self._last:
                self._result.gaps.append(now - self._last)
            else:
                self._result.ttft.append(now - self._asked)
            self._last = now
            self._events += events
        if self._complete:
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._result.errors.append(f"connection lost: {error}")
            self._finish()

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self._complete = True

    def _answered(self) -> None:
        status = self._parser.get_status_code()
        if status != 200 or not self._events or says_error(self._body):
            self._result.errors.append(f"HTTP {status}: {self._body[:200]!r}")
        else:
            self._result.answers += 1
            self._result.events += self._events
        self.ask()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
