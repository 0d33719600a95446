"""A profile of the real engines here, as their clients see it: lone prompts, even batches, hand-overs, and two engines
busy at once. Short, and nothing of it is a load: `fidelity.py` compares what the simulator makes of it with loads.
"""

import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from prometheus_client.parser import text_string_to_metric_families

from bench.arrivals import Answer, play
from bench.engines import Worker
from simulator.fit import HandOver, Measured, Prompt, Step
from simulator.request import Request

WARM_UP = (16, 200, 1000)
PROMPTS = (16, 64, 128, 256, 512, 1024, 1800)
BATCHES = ((1, 32), (2, 32), (4, 32), (8, 32), (12, 32), (1, 640), (2, 640), (4, 640), (8, 640))
"""Answers, and the tokens of each one's prompt."""
FEW_BATCHES = ((1, 32), (6, 32), (1, 640), (6, 640))
HANDED = (128, 512, 1400)
ANSWER = 32
BATCH_TOKENS, BATCH_REQUESTS = 2048, 128
"""vLLM's own, of a server on CPU."""
BUSY = Request(0.0, 200, 60, ())


@dataclass
class Bench:
    """`alone`: the address of a gateway before the first engine. `split`: before both, which prefill and decode.
    `repeats`: of each lone prompt; where it is 1, batches are fewer too."""

    model: str
    alone: str
    split: str
    second: Worker
    repeats: int
    _seed: int = 1_000_000

    def measure(self) -> Measured:
        """Raises RuntimeError where an answer is missing."""
        for tokens in WARM_UP:
            for url in (self.alone, self.split):
                self._ask(url, [Request(0.0, tokens, 4, ())])
        prompts = [self._prompt(tokens) for tokens in PROMPTS for _ in range(self.repeats)]
        steps = [self._step(*batch) for batch in (FEW_BATCHES if self.repeats == 1 else 2 * BATCHES)]
        hand_overs = [self._hand_over(tokens) for tokens in HANDED]
        with self._other_busy():
            crowded: list[Prompt | Step] = [self._prompt(tokens) for tokens in (128, 512) for _ in range(self.repeats)]
            crowded += [self._step(count, 256) for count in (2, 8)]
        return Measured(prompts, steps, hand_overs, crowded, room(self.second), BATCH_TOKENS, BATCH_REQUESTS)

    def _prompt(self, tokens: int) -> Prompt:
        (answer,) = self._ask(self.alone, [Request(0.0, tokens, 1, ())])
        return Prompt(tokens, answer.ttft)

    def _step(self, count: int, length: int) -> Step:
        """While all of them are written: from the last one's first token to the first one's last."""
        answers = self._ask(self.alone, [Request(0.0, length, ANSWER, ())] * count)
        since, until = max(a.events[0] for a in answers), min(a.events[-1] for a in answers)
        taken = max(sum(since < at <= until for at in a.events) for a in answers)
        if not taken:
            raise RuntimeError(f"{count} answers of {ANSWER} tokens were never written all at once")
        written = sum(sum(at <= since for at in a.events) for a in answers)
        return Step(count, count * length + written + count * taken / 2, (until - since) / taken)

    def _hand_over(self, tokens: int) -> HandOver:
        request = Request(0.0, tokens, 2, ())
        pairs = [
            [self._ask(url, [request])[0].ttft for url in (self.alone, self.split)] for _ in range(self.repeats + 1)
        ]
        return HandOver(tokens, median(split - alone for alone, split in pairs[1:]))

    def _ask(self, url: str, requests: Sequence[Request]) -> list[Answer]:
        self._seed += 1
        answers = play(url, self.model, requests, self._seed)
        if lost := [answer.error for answer in answers if answer.error]:
            raise RuntimeError(f"no profile without every answer: {lost[:3]}")
        return answers

    @contextmanager
    def _other_busy(self) -> Iterator[None]:
        """The second engine computes and writes all the while."""
        stop, failed = threading.Event(), list[str]()

        def keep() -> None:
            seed = 2_000_000
            while not stop.is_set():
                seed += 1
                failed.extend(a.error for a in play(self.second.url, self.model, [BUSY] * 4, seed) if a.error)

        busy = threading.Thread(target=keep)
        busy.start()
        try:
            yield
        finally:
            stop.set()
            busy.join()
        if failed:
            raise RuntimeError(f"the other engine was not busy all the while: {failed[:3]}")


def room(engine: Worker) -> int:
    """Tokens that its KV cache holds."""
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    labels = next(s.labels for family in families for s in family.samples if s.name == "vllm:cache_config_info")
    return int(labels["num_gpu_blocks"]) * int(labels["block_size"])
