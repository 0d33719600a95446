"""Which of two revisions a request goes to while one is tried on a share of the traffic. Pure; `flow.py` gives a
request its side once, `selection.py` keeps it to that side's engines.

The side comes before all routing, so that no prefix, load or session moves the share. Requests take turns by the golden
ratio: of any n that follow each other the new revision gets its share to within two, and no pattern of a client's
(long, short, long, short) falls in step with it. A revision that cannot serve gets nothing:

- the new one without a writer, or without a prefill engine where there are any: its requests go to the old one;
- the old one only without any writer, since the new one has the engines that its share needs and no more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace_runtime.contract import CanaryShare
from headrace_runtime.gateway.routing import Engine

GOLDEN: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Side:
    """The engines of `revision` (`new`), or all others."""

    revision: str
    new: bool


def side(share: CanaryShare | None, number: int) -> Side | None:
    """The side of the request with this number. None: any."""
    if share is None:
        return None
    return Side(share.revision, number * GOLDEN % 1.0 < share.percent / 100)


def engines_of(side: Side, engines: Sequence[Engine], tried: frozenset[str]) -> Sequence[Engine]:
    """Those of the request's side, or of the other where that one cannot serve it: by engines that it has not tried."""
    new = [engine for engine in engines if engine.endpoint.revision == side.revision]
    old = [engine for engine in engines if engine.endpoint.revision != side.revision]
    split = any(engine.endpoint.role == "prefill" for engine in engines)
    if side.new and _have(new, tried, prefill=False) and (not split or _have(new, tried, prefill=True)):
        return new
    return old if _have(old, tried, prefill=False) else engines


def _have(engines: Sequence[Engine], tried: frozenset[str], *, prefill: bool) -> bool:
    """Whether one that was not tried may be asked: a prefill engine, or one that writes."""
    return any(
        engine.usable and engine.name not in tried and (engine.endpoint.role == "prefill") == prefill
        for engine in engines
    )
