"""What is asked of the deployment through this gateway, for whoever decides about sizes: how much came and how long it
was, who still waits for a first token, how many answers are under way.

Touched when a request comes, when its first token does and when it goes; never for a token. `contract/figures.py` says
what each number means, `admission.py` which requests count. Told by `figures.py`.
"""

from collections import Counter
from collections.abc import Callable

from headrace_runtime.contract import DemandFigures, Sketch
from headrace_runtime.contract.sketch import bucket

_TOKENS = 1000
"""Lengths are told in thousands of tokens."""


class Visit:
    """One request that is here."""

    __slots__ = ("came", "writing")

    def __init__(self, came: float) -> None:
        self.came = came
        self.writing = False


class Demand:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._requests = self._prompt_tokens = 0
        self._prompts: Counter[int] = Counter()
        self._unanswered: dict[Visit, None] = {}
        """In the order they came."""
        self._here = 0
        self._empty_since = clock()
        self._written = 0.0
        """Of all answers, what was under way until `_counted`."""
        self._under_way = 0
        self._counted = self._empty_since

    def came(self, tokens: int) -> Visit:
        """A request with so long a prompt. Call `left` once it has gone."""
        visit = Visit(self._clock())
        self._requests += 1
        self._prompt_tokens += tokens
        self._prompts[bucket(tokens / _TOKENS)] += 1
        self._unanswered[visit] = None
        self._here += 1
        return visit

    def handed(self, visit: Visit) -> None:
        """An engine has it and answers in one piece: nobody will know of a first token."""
        self._unanswered.pop(visit, None)

    def began(self, visit: Visit) -> None:
        """Its first token is there."""
        self._unanswered.pop(visit, None)
        self._count(1)
        visit.writing = True

    def left(self, visit: Visit) -> None:
        self._unanswered.pop(visit, None)
        if visit.writing:
            self._count(-1)
        self._here -= 1
        if not self._here:
            self._empty_since = self._clock()

    def told(self) -> DemandFigures:
        now = self._clock()
        self._count(0)
        oldest = next(iter(self._unanswered), None)
        return DemandFigures(
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            prompts=Sketch(counts=dict(self._prompts)),
            unanswered=now - oldest.came if oldest is not None else 0.0,
            writing=self._written,
            idle=0.0 if self._here else now - self._empty_since,
        )

    def _count(self, more: int) -> None:
        now = self._clock()
        self._written += self._under_way * (now - self._counted)
        self._counted = now
        self._under_way += more
