"""Requests for a *simulated* fleet: from the public traces, or made up by a seed."""

import csv
import json
import lzma
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from simulator.request import Request

APART_SECONDS: Final = 7.0
"""Between copies of a trace that are laid over each other: the same minutes, other seconds."""


def read(file: Path) -> list[Request]:
    """A trace, by the end of its name: `.jsonl.xz` is Mooncake's format, `.csv.xz` Azure's, which names no blocks."""
    return read_mooncake(file) if file.name.endswith(".jsonl.xz") else read_azure(file)


def read_mooncake(file: Path, speed: float = 1.0) -> list[Request]:
    """A trace in Mooncake's format, compressed; arrivals `speed` times as dense."""
    requests = []
    with lzma.open(file, "rt") as lines:
        for line in lines:
            said = json.loads(line)
            at, ids = said["timestamp"] / 1e3 / speed, tuple(said["hash_ids"])
            requests.append(Request(at, said["input_length"], said["output_length"], ids))
    return requests


def read_azure(file: Path) -> list[Request]:
    """Lines of TIMESTAMP, ContextTokens and GeneratedTokens."""
    with lzma.open(file, "rt") as lines:
        rows = [
            (_seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(lines)
        ]
    start = rows[0][0] if rows else 0.0
    return [Request(at - start, max(1, prompt), max(1, output), ()) for at, prompt, output in rows]


def _seconds(stamp: str) -> float:
    # Seven digits of a second: one more than Python reads.
    return datetime.fromisoformat(stamp[:26]).timestamp()


def denser(requests: Sequence[Request], copies: int) -> list[Request]:
    """So many copies of the same load at once, each `APART_SECONDS` later; their prompts have nothing in common."""
    most = 1 + max((max(request.ids, default=0) for request in requests), default=0)
    laid = [
        replace(request, at=request.at + APART_SECONDS * copy, ids=tuple(one + most * copy for one in request.ids))
        for copy in range(copies)
        for request in requests
    ]
    return sorted(laid, key=lambda request: request.at)


def joined(first: Sequence[Request], second: Sequence[Request]) -> list[Request]:
    """One trace after the other."""
    start = first[-1].at if first else 0.0
    return [*first, *(replace(request, at=request.at + start) for request in second)]


@dataclass(frozen=True)
class Wave:
    """A load that rises and falls as a sine: requests a second, seconds, mean tokens."""

    low: float
    high: float
    period: float = 1200.0
    seconds: float = 3600.0
    prompt: int = 3000
    output: int = 150
    spread: float = 0.5
    """Of the logarithm of lengths; 0: all alike."""
    prompt_after: int | None = None
    """Mean prompt in the second half, where the mix changes."""
    output_after: int | None = None

    def requests(self, seed: int = 1) -> list[Request]:
        """Poisson arrivals, thinned from those of the highest rate."""
        return list(self._requests(random.Random(seed)))

    def _requests(self, chance: random.Random) -> Iterator[Request]:
        at = 0.0
        while (at := at + chance.expovariate(self.high)) < self.seconds:
            turn = (1 - math.cos(2 * math.pi * at / self.period)) / 2
            if chance.random() * self.high > self.low + (self.high - self.low) * turn:
                continue
            late = at > self.seconds / 2
            prompt = self.prompt_after if late and self.prompt_after else self.prompt
            output = self.output_after if late and self.output_after else self.output
            yield Request(at, self._length(chance, prompt), self._length(chance, output), ())

    def _length(self, chance: random.Random, mean: int) -> int:
        return max(1, round(mean * chance.lognormvariate(-(self.spread**2) / 2, self.spread)))
