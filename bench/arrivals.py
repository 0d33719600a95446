"""An open-loop load: each request at its moment, whatever became of those before it, and what its client saw.

Arrivals, lengths and common beginnings are given (`simulator/request.py`), so that a simulator can be given the very
same. Times are the client's, in seconds since the load began.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson
import uvloop

from bench.load import says_error
from simulator.profile import BLOCK
from simulator.request import Request

PATIENCE_SECONDS = 300.0
VOCABULARY = range(10, 4000)
"""Token ids that any model has."""


@dataclass
class Answer:
    """What became of a request."""

    request: Request
    sent: float = 0.0
    events: list[float] = field(default_factory=list)
    """When each came: a token, or several where an engine's server was behind."""
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.events[0] - self.request.at

    @property
    def e2e(self) -> float:
        return self.events[-1] - self.request.at

    @property
    def gap(self) -> float:
        """Mean time between tokens."""
        return (self.events[-1] - self.events[0]) / max(1, self.request.output - 1)


def play(url: str, model: str, requests: Sequence[Request], seed: int) -> list[Answer]:
    """Blocks until all are answered, or given up. `seed`: of what prompts do not have in common; another for each load,
    as engines keep what they have computed."""
    bodies = [_body(model, request, random.Random(f"{seed} {index}")) for index, request in enumerate(requests)]
    answers: list[Answer] = uvloop.run(_play(url, requests, bodies))
    return answers


async def _play(url: str, requests: Sequence[Request], bodies: Sequence[bytes]) -> list[Answer]:
    answers = [Answer(request) for request in requests]
    patience = aiohttp.ClientTimeout(PATIENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=patience, connector=aiohttp.TCPConnector(limit=0)) as client:
        began = time.perf_counter()
        asks = []
        for answer, body in zip(answers, bodies, strict=True):
            await asyncio.sleep(max(0.0, began + answer.request.at - time.perf_counter()))
            asks.append(asyncio.create_task(_ask(client, f"{url}/v1/completions", answer, body, began)))
        await asyncio.gather(*asks)
    return answers


async def _ask(client: aiohttp.ClientSession, url: str, answer: Answer, body: bytes, began: float) -> None:
    answer.sent = time.perf_counter() - began
    rest, last, status = b"", b"", 0
    try:
        async with client.post(url, data=body, headers={"content-type": "application/json"}) as said:
            status = said.status
            async for part in said.content.iter_any():
                *events, rest = (rest + part).split(b"\n\n")
                new = [event for event in events if event.startswith(b"data: {")]
                answer.events += [time.perf_counter() - began] * len(new)
                last = new[-1] if new else last
    except (aiohttp.ClientError, TimeoutError) as error:
        answer.error = repr(error)
        return
    if status != 200 or says_error(last) or b'"finish_reason":"length"' not in last:
        answer.error = f"HTTP {status}: {(last or rest)[-200:]!r}"


def _body(model: str, request: Request, chance: random.Random) -> bytes:
    """Blocks of the same id are the same tokens; all else is by chance."""
    prompt = [
        token for block in request.blocks for token in random.Random(f"block {block}").choices(VOCABULARY, k=BLOCK)
    ]
    prompt += chance.choices(VOCABULARY, k=request.prompt - len(prompt))
    fields = {"model": model, "prompt": prompt, "max_tokens": request.output, "temperature": 0, "ignore_eos": True}
    return orjson.dumps({**fields, "stream": True})
