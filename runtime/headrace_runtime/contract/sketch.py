"""A distribution in a few hundred bytes: how many samples fell into each of fixed, log-spaced buckets.

Sketches of several gateways, roles or minutes are merged by adding their counts, exactly and in any order, and what was
counted between two readings of one counter is their difference. A quantile is off by at most `ERROR` of its value. The
buckets are DDSketch's (Masson et al., VLDB 2019) with a fixed range, which is that of times in seconds and of prompts
in thousands of tokens. Pure. The gateway counts (`gateway/figures.py`); the operator merges and asks.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from headrace_runtime.contract.base import Frozen

ERROR: Final = 0.03
"""Of a quantile, relative to the sample of that rank."""
LEAST: Final = 1e-4
MOST: Final = 3600.0
"""Samples beyond either end count as that end."""

_GAMMA: Final = (1 + ERROR) / (1 - ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
FIRST: Final = math.floor(math.log(LEAST) / _LOG_GAMMA)
LAST: Final = math.ceil(math.log(MOST) / _LOG_GAMMA)

Bucket = Annotated[int, Field(ge=FIRST, le=LAST)]


def bucket(value: float) -> int:
    """Where a sample is counted: bucket i holds what is above g^(i-1) and up to g^i, where g is `_GAMMA`."""
    inside = min(max(value, LEAST), MOST)
    return math.ceil(math.log(inside) / _LOG_GAMMA)


class Sketch(Frozen):
    """Samples, of which the field that holds it says the unit. On the wire `{"counts": {"12": 5}}`."""

    counts: dict[Bucket, Annotated[int, Field(ge=0, le=2**53)]] = Field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(self.counts.values())

    def quantile(self, p: float) -> float | None:
        """The value that a share of `p` (0 to 1) of the samples does not exceed. None where there is no sample."""
        rank, seen = max(1, math.ceil(p * self.samples)), 0
        for place in sorted(self.counts):
            seen += self.counts[place]
            if seen >= rank:
                return _middle(place)
        return None

    def percentiles(self) -> list[float]:
        """The quantiles of 1 % to 99 %, in one go. Empty where there is no sample."""
        found: list[float] = []
        seen, samples = 0, self.samples
        for place in sorted(self.counts):
            seen += self.counts[place]
            reached = min(99, 100 * seen // samples) if samples else 0
            found += [_middle(place)] * (reached - len(found))
        return found

    def plus(self, other: "Sketch") -> "Sketch":
        """The samples of both."""
        return _made({place: self._of(place) + other._of(place) for place in {*self.counts, *other.counts}})

    def minus(self, before: "Sketch") -> "Sketch | None":
        """The samples since `before`, an earlier reading of the same counter. None where it is none: something fell."""
        counts = {place: self._of(place) - before._of(place) for place in {*self.counts, *before.counts}}
        return None if any(count < 0 for count in counts.values()) else _made(counts)

    def _of(self, place: int) -> int:
        return self.counts.get(place, 0)


def _middle(place: int) -> float:
    """The value that is told of all samples in a bucket."""
    return 2 * _GAMMA**place / (_GAMMA + 1)


def _made(counts: Mapping[int, int]) -> Sketch:
    # Sums and differences of what was checked: to check them again takes most of the time of a merge.
    return Sketch.model_construct(counts={place: counts[place] for place in sorted(counts) if counts[place]})
