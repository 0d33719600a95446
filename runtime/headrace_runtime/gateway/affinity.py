"""What PrefixAware routing knows, as one value: what engines hold (`prefix.py`), what was learnt of text (`prompts.py`)
and the tokens that are under way. No I/O.

One per gateway. `kvevents.py` writes the index; a journey asks (`read`, `prompt`), says where its request went
(`placed`), and hands over the ids of a prompt's tokens when an engine names them (`learn`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from headrace_runtime.gateway.prefix import Path, PrefixIndex
from headrace_runtime.gateway.prompts import Prompts
from headrace_runtime.gateway.request import Facts
from headrace_runtime.gateway.routing import Prompt


@dataclass(frozen=True, slots=True)
class Reading:
    """A request's prompt, read once."""

    path: Path
    exact: bool
    tokens: int


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
    """`short`: tokens that a decode engine computes itself (`min_prompt_tokens` of the contract)."""

    def __init__(self, short: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.index = PrefixIndex()
        self.waiting: dict[str, float] = {}
        self.writing: dict[str, float] = {}
        self._prompts = Prompts()
        self._short = short
        self._clock = clock

    def read(self, facts: Facts) -> Reading:
        path, exact = self._prompts.path(facts.document, self.index.block_size)
        return Reading(path, exact, max(facts.prompt_tokens, path[-1][1] if path else 0))

    def prompt(self, reading: Reading) -> Prompt:
        """For `routing.rank`, as things are now."""
        held = self.index.held(reading.path, self._clock()) if reading.path else {}
        return Prompt(reading.tokens, held, self.waiting, self.writing, self._short)

    @contextmanager
    def placed(self, reading: Reading, engine: str) -> Iterator[Placed]:
        """The request is with the engine while the block runs."""
        now = self._clock()
        held = self.index.held(reading.path, now).get(engine, 0.0) if reading.path else 0.0
        self.index.hope(engine, reading.path, now, reading.exact)
        placed = Placed(self, engine, max(0.0, reading.tokens - held), reading.tokens)
        try:
            yield placed
        finally:
            placed.ended()

    def learn(self, facts: Facts, ids: Sequence[int]) -> None:
        """An engine says that the request's prompt has these token ids."""
        self._prompts.learn(facts.document, ids, self.index.block_size)


def _take(of: dict[str, float], engine: str, tokens: float) -> None:
    left = of.get(engine, 0.0) - tokens
    if left > 1e-6:
        of[engine] = left
    else:
        of.pop(engine, None)
