"""What PrefixAware routing knows, as one value: what engines hold (`prefix.py`), what was learnt of text (`prompts.py`)
and the tokens that are under way. No I/O.

One per gateway. `kvevents.py` writes the index; a journey asks (`read`, `prompt`), says where its request went
(`placed`), and hands over engines' answers that name the ids of a prompt's tokens (`learn`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from headrace_runtime.gateway.prefix import Path, PrefixIndex
from headrace_runtime.gateway.prompts import Prompts, ids_named_in
from headrace_runtime.gateway.request import CHAT, COMPLETIONS, Facts
from headrace_runtime.gateway.routing import Prompt

HALF_LIFE_SECONDS: Final = 300.0
"""Of what counts as lately computed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A request's prompt, read once. No path: nothing is known of it, as of an embedding's."""

    path: Path
    exact: bool
    tokens: int
    known: bool = True
    """There is nothing to learn of it."""


class Placed:
    """A request that an engine has: its tokens wait there until `computed`, and are context from then on."""

    def __init__(self, affinity: "Affinity", engine: str, lacking: float, tokens: int) -> None:
        self._affinity, self._engine = affinity, engine
        self._lacking, self._tokens = lacking, tokens
        self._computed = False
        affinity.waiting[engine] = affinity.waiting.get(engine, 0.0) + lacking

    def computed(self) -> None:
        """Its first token is there. May be called again."""
        if not self._computed:
            self._computed = True
            _take(self._affinity.waiting, self._engine, self._lacking)
            self._affinity.writing[self._engine] = self._affinity.writing.get(self._engine, 0.0) + self._tokens

    def ended(self) -> None:
        if self._computed:
            _take(self._affinity.writing, self._engine, self._tokens)
        else:
            _take(self._affinity.waiting, self._engine, self._lacking)


class Affinity:
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.index = PrefixIndex()
        self.waiting: dict[str, float] = {}
        self.writing: dict[str, float] = {}
        self.fresh: dict[str, float] = {}
        self._halved = float("-inf")
        self._prompts = Prompts()
        self._clock = clock

    def read(self, facts: Facts) -> Reading:
        block_size = self.index.block_size if facts.path in (CHAT, COMPLETIONS) else 0
        path, exact = self._prompts.path(facts.document, block_size)
        known = exact or not block_size or self._prompts.knows(facts.document)
        return Reading(path, exact, max(facts.prompt_tokens, path[-1][1] if path else 0), known)

    def prompt(self, reading: Reading, short: int = 0) -> Prompt:
        """For `routing.rank`, as things are now. `short`: tokens that a decode engine may well compute itself."""
        now = self._clock()
        if now - self._halved >= HALF_LIFE_SECONDS:
            self._halved = now
            self.fresh = {engine: tokens / 2 for engine, tokens in self.fresh.items() if tokens >= 1}
        held = self.index.held(reading.path, now) if reading.path else {}
        return Prompt(reading.tokens, held, self.waiting, self.writing, self.fresh, short)

    @contextmanager
    def placed(self, reading: Reading, engine: str, to_do: float = 1.0) -> Iterator[Placed]:
        """The request is with the engine while the block runs. `to_do`: cost of a token that the engine lacks."""
        now = self._clock()
        held = self.index.held(reading.path, now).get(engine, 0.0) if reading.path else 0.0
        self.index.hope(engine, reading.path, now, reading.exact)
        lacking = max(0.0, reading.tokens - held)
        self.fresh[engine] = self.fresh.get(engine, 0.0) + lacking
        placed = Placed(self, engine, to_do * lacking, reading.tokens)
        try:
            yield placed
        finally:
            placed.ended()

    def learn(self, facts: Facts, payload: bytes) -> None:
        """Take the ids of the prompt's tokens from an engine's answer, where it names them."""
        ids = ids_named_in(payload)
        if ids and facts.path in (CHAT, COMPLETIONS):
            self._prompts.learn(facts.document, ids, self.index.block_size)


def _take(of: dict[str, float], engine: str, tokens: float) -> None:
    left = of.get(engine, 0.0) - tokens
    if left > 1e-6:
        of[engine] = left
    else:
        of.pop(engine, None)
