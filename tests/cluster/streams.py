"""Streamed answers of a deployment under test, one by one or as an open load; what came whole and what was lost."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.cluster.deployments import Infd, Json, prompt_of

ANSWER_SECONDS = 120.0
"""With engines starting beside it on the same cores, one takes long."""


class Shape(NamedTuple):
    """Tokens of one request."""

    prompt: int
    answer: int


class Stream:
    """One streamed answer, read as it comes."""

    def __init__(self, url: str, model: str, prompt: list[int], tokens: int) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()[:500]

    def until_first_token(self) -> None:
        while not next(self._events())["choices"][0]["text"]:
            pass

    def rest(self) -> int:
        """Tokens of the whole answer, as its last event says. AssertionError: it has no end."""
        told = 0
        for event in self._events():
            assert "error" not in event, event
            told = (event.get("usage") or {}).get("completion_tokens", told)
        self._connection.close()
        return told

    def _events(self) -> Iterator[Json]:
        for line in self._answer:
            if line.strip() == b"data: [DONE]":
                return
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))
        raise AssertionError("the stream broke off")


@dataclass
class Load:
    """Requests that come at their times, whether or not those before them have ended: streams of fresh prompts."""

    infd: Infd
    every: float = 1.0
    """Seconds from one to the next."""
    shapes: tuple[Shape, ...] = (Shape(300, 6), Shape(20, 6))
    """In turn."""
    answered: int = 0
    longest: float = 0.0
    lost: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Load while the block runs, the first request answered before it begins; all have ended when it is left."""
        with self.infd.gateway() as url:
            asking: list[threading.Thread] = []
            clock = threading.Thread(target=self._come, args=(url, asking), daemon=True)
            clock.start()
            try:
                self.infd.until("a first request has ended", lambda: self.answered or self.lost, 90)
                yield
            finally:
                self._stop.set()
                for thread in [clock, *asking]:
                    thread.join()

    def _come(self, url: str, asking: list[threading.Thread]) -> None:
        seed = int(monotonic() * 1000)
        while not self._stop.wait(self.every):
            seed += 1
            asking.append(threading.Thread(target=self._ask, args=(url, seed), daemon=True))
            asking[-1].start()

    def _ask(self, url: str, seed: int) -> None:
        began, shape = monotonic(), self.shapes[seed % len(self.shapes)]
        try:
            told = Stream(url, self.infd.model, prompt_of(seed, shape.prompt), shape.answer).rest()
            if told != shape.answer:
                self.lost.append(f"{told} tokens of {shape.answer}")
                return
        except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
            self.lost.append(repr(error)[:500])
            return
        self.answered += 1
        self.longest = max(self.longest, monotonic() - began)

    def __str__(self) -> str:
        return f"{self.answered} answered, lost: {self.lost[:3]} ({len(self.lost)}), longest {self.longest:.1f} s"


@dataclass
class Crowd(Load):
    """So many clients, each of which asks again as soon as it has its answer: as much load as the engines bear, on any
    machine, and no more."""

    clients: int = 8

    def _come(self, url: str, asking: list[threading.Thread]) -> None:
        seed = int(monotonic() * 1000)
        asking += [
            threading.Thread(target=self._again, args=(url, seed + 1_000_000 * number), daemon=True)
            for number in range(self.clients)
        ]
        for thread in asking:
            thread.start()

    def _again(self, url: str, seed: int) -> None:
        while not self._stop.wait(0.01):
            seed += 1
            self._ask(url, seed)
