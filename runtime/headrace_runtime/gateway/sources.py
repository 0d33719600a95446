"""What a prompt's tokens cost by where their KV blocks come from, in tokens that are computed. Pure.

A token is computed, or its blocks come from the engine's host memory, from its disk, or from a prefill engine. What the
last three cost is learnt for each engine from the times they took: the error of what was foretold is laid on the
sources in proportion to their share of it. So a disk that is slow, or that holds less than was said, comes to cost as
much as computing, and is not preferred any more. `routing.py` weighs with it, `affinity.py` keeps it.
"""

import math
from dataclasses import dataclass
from typing import Final

LEARNT_TOKENS: Final = 256
"""Shorter work says little: most of its time is not that of its tokens."""
MOSTLY: Final = 0.9
"""Of work, and of what went before it, that must be computed, to say how long computing takes."""
STEP: Final = 0.3
"""How much of one error is believed."""
LARGEST_ERROR: Final = 4.0
"""Times as long or as short as foretold: what lies beyond was something else."""
LEAST: Final = 0.002
MOST: Final = 4.0


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine has to do for one prompt: tokens by where their blocks come from. Those that lie on its device are
    no work."""

    computed: float = 0.0
    host: float = 0.0
    disk: float = 0.0
    fetched: float = 0.0
    """From a prefill engine."""

    @property
    def tokens(self) -> float:
        return self.computed + self.host + self.disk + self.fetched


@dataclass(frozen=True, slots=True)
class Rates:
    """What one token costs an engine, against one that is computed. The defaults hold until something is learnt."""

    host: float = 0.2
    disk: float = 0.5
    fetched: float = 0.1

    def cost(self, work: Work) -> float:
        """In computed tokens."""
        return work.computed + self.host * work.host + self.disk * work.disk + self.fetched * work.fetched


USUAL: Final = Rates()


def paced(pace: float, work: Work, seconds: float, ahead: float = 0.0) -> float:
    """Seconds of a computed token, once some work took `seconds`; `pace`: as known before, 0 for not at all. Where much
    went before it, that is not known."""
    if work.tokens < LEARNT_TOKENS or work.computed < MOSTLY * (work.tokens + ahead):
        return pace
    found = seconds / work.computed
    return found if not pace else pace * math.pow(_error(found / pace), STEP)


def learned(rates: Rates, work: Work, took: float, ahead: float = 0.0) -> Rates:
    """The work took as long as computing `took` tokens does, with a cost of `ahead` before it, which may be as much to
    blame."""
    foretold = ahead + rates.cost(work)
    if work.tokens < LEARNT_TOKENS or foretold <= 0:
        return rates
    error = _error(took / foretold)

    def moved(rate: float, tokens: float) -> float:
        return min(max(rate * math.pow(error, STEP * rate * tokens / foretold), LEAST), MOST)

    return Rates(moved(rates.host, work.host), moved(rates.disk, work.disk), moved(rates.fetched, work.fetched))


def faded(rates: Rates) -> Rates:
    """Half forgotten: what came to cost much is not asked for, and could never show that it costs less by now."""

    def half(now: float, usual: float) -> float:
        return math.sqrt(now * usual)

    return Rates(half(rates.host, USUAL.host), half(rates.disk, USUAL.disk), half(rates.fetched, USUAL.fetched))


def _error(times: float) -> float:
    return min(max(times, 1 / LARGEST_ERROR), LARGEST_ERROR)
