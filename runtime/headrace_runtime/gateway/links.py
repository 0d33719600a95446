"""Whether KV blocks pass from one engine to another: a breaker per pair, and how long transfers take.

A cut link between two sound engines gives no error: the transfer hangs until the gateway gives it up, which costs its
client seconds. After one that did, prompts are computed where they are answered; one request in a while tries again. A
transfer that is late while others of its pair pass waits in the engine's queue: it gets more time, and the link no
blame. Called by `journey.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway import patience, quarantine
from headrace_runtime.gateway.patience import Longest
from headrace_runtime.gateway.quarantine import Breaker, Rules

RULES = Rules(failures=1, backoff=2.0, longest_backoff=30.0)
LEASE_SECONDS = 25.0
"""Blocks that nobody fetched are given up by the prefill engine after 30 s."""

NOTEWORTHY = 0.1
"""Of a deadline: what it must gain to be moved, as many wait when many pass."""

Pair = tuple[str, str]
"""Names of the prefill and of the decode engine."""


@dataclass(eq=False, slots=True)
class Wait:
    """For one transfer. `latest` is a time of the event loop."""

    limit: asyncio.Timeout
    seconds: float
    latest: float
    others_passed: bool = False

    def another_passed(self) -> None:
        self.others_passed = True
        until, now = self.limit.when(), asyncio.get_running_loop().time()
        later = min(now + self.seconds, self.latest)
        if until is not None and later > until + NOTEWORTHY * self.seconds and not self.limit.expired():
            self.limit.reschedule(later)


class Links:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breakers: dict[Pair, Breaker] = {}
        self._usual: dict[Pair, Longest] = {}
        self._waiting: dict[Pair, set[Wait]] = {}

    def deadline(self, prefill: Endpoint, decode: Endpoint, prompt_tokens: int, limit: float) -> float:
        """Seconds until the first token at the most; never above `limit`."""
        usual = self._usual.get((prefill.name, decode.name))
        return min(patience.transfer_deadline(usual.value if usual else None, prompt_tokens), limit)

    @asynccontextmanager
    async def waiting(
        self, prefill: Endpoint, decode: Endpoint, seconds: float, latest: float = LEASE_SECONDS
    ) -> AsyncIterator[None]:
        """The block may take so long, anew with every transfer of the pair that passes meanwhile. Raises TimeoutError;
        the link is then to blame, unless others passed. `latest`: seconds that it may take whatever passes."""
        pair = (prefill.name, decode.name)
        waits = self._waiting.setdefault(pair, set())
        try:
            async with asyncio.timeout(seconds) as limit:
                wait = Wait(limit, seconds, asyncio.get_running_loop().time() + latest)
                waits.add(wait)
                try:
                    yield
                finally:
                    waits.discard(wait)
        except TimeoutError:
            if not wait.others_passed:
                self._failed(pair)
            raise

    def open(self, prefill: Endpoint, decode: Endpoint) -> bool:
        """Whether a transfer may be asked for. Where one failed, a yes makes the caller's the one that tries: it
        reports its end."""
        pair = (prefill.name, decode.name)
        breaker = self._breakers.get(pair)
        if breaker is None or breaker.state == "closed":
            return True
        due = quarantine.probe_due(breaker, self._clock())
        if due:
            self._breakers[pair] = quarantine.probing(breaker)
        return due

    def passed(self, prefill: Endpoint, decode: Endpoint, seconds: float) -> None:
        """The first token came, after `seconds`."""
        now, pair = self._clock(), (prefill.name, decode.name)
        self._usual[pair] = self._usual.get(pair, Longest()).noted(seconds, now)
        if breaker := self._breakers.get(pair):
            self._breakers[pair] = quarantine.succeeded(breaker, now)
        for wait in self._waiting.get(pair, ()):
            wait.another_passed()

    def ended(self, prefill: Endpoint, decode: Endpoint) -> None:
        """The request showed neither: another engine's fault, or its client left."""
        pair = (prefill.name, decode.name)
        if breaker := self._breakers.get(pair):
            self._breakers[pair] = quarantine.probe_ended(breaker, self._clock())

    def forget(self, engines: Collection[str]) -> None:
        """These are gone, or begin anew elsewhere."""
        pairs = self._breakers.keys() | self._usual.keys() | self._waiting.keys()
        for pair in [pair for pair in pairs if not set(pair).isdisjoint(engines)]:
            for held in (self._breakers, self._usual, self._waiting):
                held.pop(pair, None)

    def quarantined(self) -> list[Pair]:
        return [pair for pair, breaker in self._breakers.items() if breaker.state != "closed"]

    def _failed(self, pair: Pair) -> None:
        """No token came in time. Which of the two is at fault, or what lies between, cannot be told."""
        now = self._clock()
        breaker = self._breakers.get(pair, Breaker())
        if breaker.state == "half_open":
            self._breakers[pair] = quarantine.probe_failed(breaker, now, RULES)
        else:
            self._breakers[pair] = quarantine.failed(breaker, "timeout", now, RULES)
