"""What PrefixAware routing knows, as one value: what engines hold (`prefix.py`), what was learnt of text (`prompts.py`)
and of times (`sources.py`), and the tokens that are under way. No I/O.

One per gateway. `kvevents.py` writes the index; a journey asks (`read`, `prompt`), says where its request went
(`placed`) and how long it took there, and hands over engines' answers that name the ids of a prompt's tokens (`learn`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from headrace_runtime.gateway.blocks import Holdings, Path
from headrace_runtime.gateway.prefix import PrefixIndex
from headrace_runtime.gateway.prompts import Apart, Prompts, ids_named_in
from headrace_runtime.gateway.request import CHAT, COMPLETIONS, Facts
from headrace_runtime.gateway.routing import Prompt
from headrace_runtime.gateway.sources import USUAL, Rates, Work, faded, learned, paced

HALF_LIFE_SECONDS: Final = 300.0
"""Of what counts as lately computed, and of what was learnt of times."""
NOTHING: Final = Holdings()


@dataclass(frozen=True, slots=True)
class Reading:
    """A request's prompt, read once. No path: nothing is known of it, as of an embedding's."""

    path: Path
    exact: bool
    tokens: int
    known: bool = True
    """There is nothing to learn of it."""


class Placed:
    """A request that an engine has: its work waits there until `computed`, and is context from then on."""

    def __init__(self, affinity: "Affinity", engine: str, work: Work, tokens: int) -> None:
        self.work = work
        self._affinity, self._engine = affinity, engine
        self._cost, self._tokens = affinity.rates.get(engine, USUAL).cost(work), tokens
        self._computed = False
        self._ahead = affinity.waiting.get(engine, 0.0)
        affinity.waiting[engine] = self._ahead + self._cost

    @property
    def cached(self) -> float | None:
        """Share of the prompt's tokens that the engine was known to hold."""
        lacking = self.work.computed + self.work.fetched
        return max(0.0, 1 - lacking / self._tokens) if self._tokens else None

    def took(self, seconds: float) -> None:
        """From when the engine was asked to its first token."""
        self._affinity.learn_time(self._engine, self.work, seconds, self._ahead)

    def computed(self) -> None:
        """Its first token is there. May be called again."""
        if not self._computed:
            self._computed = True
            _take(self._affinity.waiting, self._engine, self._cost)
            self._affinity.writing[self._engine] = self._affinity.writing.get(self._engine, 0.0) + self._tokens

    def ended(self) -> None:
        if self._computed:
            _take(self._affinity.writing, self._engine, self._tokens)
        else:
            _take(self._affinity.waiting, self._engine, self._cost)


class Unplaced:
    """In place of `Placed` where nothing is known of the prompt."""

    cached: float | None = None

    def took(self, seconds: float) -> None: ...
    def computed(self) -> None: ...


UNPLACED: Final = Unplaced()


class Affinity:
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.index = PrefixIndex()
        self.waiting: dict[str, float] = {}
        self.writing: dict[str, float] = {}
        self.fresh: dict[str, float] = {}
        self.rates: dict[str, Rates] = {}
        self.pace = 0.0
        """Seconds of a computed token; 0 while it is not known."""
        self._halved = float("-inf")
        self._prompts = Prompts()
        self._clock = clock

    def read(self, facts: Facts) -> Reading:
        block_size = self.index.block_size if facts.path in (CHAT, COMPLETIONS) else 0
        apart = _apart(facts)
        path, exact = self._prompts.path(facts.document, block_size, apart)
        known = exact or not block_size or self._prompts.knows(facts.document, apart)
        return Reading(path, exact, max(facts.prompt_tokens, path[-1][1] if path else 0), known)

    def prompt(self, reading: Reading, short: int = 0) -> Prompt:
        """For `routing.rank`, as things are now. `short`: tokens that a decode engine may well compute itself."""
        now = self._clock()
        if now - self._halved >= HALF_LIFE_SECONDS:
            self._halved = now
            self.fresh = {engine: tokens / 2 for engine, tokens in self.fresh.items() if tokens >= 1}
            self.rates = {engine: faded(rates) for engine, rates in self.rates.items() if engine in self.fresh}
        held = self.index.held(reading.path, now) if reading.path else NOTHING
        return Prompt(
            reading.tokens,
            held=held.device,
            host=held.host,
            disk=held.disk,
            rates=self.rates,
            waiting=self.waiting,
            writing=self.writing,
            fresh=self.fresh,
            short=short,
        )

    @contextmanager
    def placed(self, reading: Reading, engine: str, fetched: bool = False) -> Iterator[Placed]:
        """The request is with the engine while the block runs. `fetched`: its blocks come from a prefill engine."""
        work = self.prompt(reading).work(engine, fetched)
        self.index.hope(engine, reading.path, self._clock(), reading.exact)
        self.fresh[engine] = self.fresh.get(engine, 0.0) + work.tokens
        placed = Placed(self, engine, work, reading.tokens)
        try:
            yield placed
        finally:
            placed.ended()

    def learn_time(self, engine: str, work: Work, seconds: float, ahead: float = 0.0) -> None:
        """The engine did the work in `seconds`, when a cost of `ahead` waited there before it."""
        self.pace = paced(self.pace, work, seconds, ahead)
        if self.pace:
            self.rates[engine] = learned(self.rates.get(engine, USUAL), work, seconds / self.pace, ahead)

    def learn(self, facts: Facts, payload: bytes) -> None:
        """Take the ids of the prompt's tokens from an engine's answer, where it names them."""
        ids = ids_named_in(payload)
        if ids and facts.path in (CHAT, COMPLETIONS):
            self._prompts.learn(facts.document, ids, self.index.block_size, _apart(facts))


def _apart(facts: Facts) -> Apart:
    salt = facts.document.get("cache_salt")
    return Apart(facts.adapter, salt if isinstance(salt, str) else "")


def _take(of: dict[str, float], engine: str, tokens: float) -> None:
    left = of.get(engine, 0.0) - tokens
    if left > 1e-6:
        of[engine] = left
    else:
        of.pop(engine, None)
