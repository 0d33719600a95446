"""Whether KV blocks pass from one engine to another: a breaker per pair, and how long transfers take.

A cut link between two sound engines gives no error: the transfer hangs until the gateway gives it up, which costs its
client seconds. After one that did, prompts are computed where they are answered; one request in a while tries again.
Called by `journey.py`.
"""

import time
from collections.abc import Callable, Collection

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway import patience, quarantine
from headrace_runtime.gateway.patience import Longest
from headrace_runtime.gateway.quarantine import Breaker, Rules

RULES = Rules(failures=1, backoff=2.0)

Pair = tuple[str, str]
"""Names of the prefill and of the decode engine."""


class Links:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breakers: dict[Pair, Breaker] = {}
        self._usual: dict[Pair, Longest] = {}

    def deadline(self, prefill: Endpoint, decode: Endpoint, prompt_tokens: int, limit: float) -> float:
        """Seconds until the first token at the most; never above `limit`."""
        usual = self._usual.get((prefill.name, decode.name))
        return min(patience.transfer_deadline(usual.value if usual else None, prompt_tokens), limit)

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

    def failed(self, prefill: Endpoint, decode: Endpoint) -> None:
        """No token came in time. Which of the two is at fault, or what lies between, cannot be told."""
        now, pair = self._clock(), (prefill.name, decode.name)
        breaker = self._breakers.get(pair, Breaker())
        if breaker.state == "half_open":
            self._breakers[pair] = quarantine.probe_failed(breaker, now, RULES)
        else:
            self._breakers[pair] = quarantine.failed(breaker, "timeout", now, RULES)

    def ended(self, prefill: Endpoint, decode: Endpoint) -> None:
        """The request showed neither: another engine's fault, or its client left."""
        pair = (prefill.name, decode.name)
        if breaker := self._breakers.get(pair):
            self._breakers[pair] = quarantine.probe_ended(breaker, self._clock())

    def forget(self, engines: Collection[str]) -> None:
        """These are gone, or begin anew elsewhere."""
        for held in (self._breakers, self._usual):
            for pair in [pair for pair in held if not set(pair).isdisjoint(engines)]:
                del held[pair]

    def quarantined(self) -> list[Pair]:
        return [pair for pair, breaker in self._breakers.items() if breaker.state != "closed"]
