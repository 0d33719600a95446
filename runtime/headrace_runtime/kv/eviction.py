"""Which KV blocks go first when the disk is full: pure functions of what the store's entry table remembers of each.

An order never reads a clock, draws by chance or touches a disk. `kv/store.py` asks for one when it needs room, takes
blocks from its front until there is enough, and leaves out beforehand what is under a lease or being read. A prompt's
block is of use only with all blocks before it, so every order drops tails before heads.

`Default` keeps what is likely to be asked for again soon for the room it takes until then (docs/decisions says how it
was chosen, `python -m bench eviction` how well it does).
"""

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import exp, log2
from statistics import median_low
from typing import Final


@dataclass(frozen=True, slots=True)
class Block:
    """What an entry of the store's table says of its block. Times in seconds of one clock, of any origin.

    Blocks that one request had in its prompt are known by the same `used`, and those that it wrote by the same
    `created`, so both are to be the moment of the request, and not that of each write.
    """

    key: bytes
    depth: int
    """Place in its prompt, counted in blocks from 0."""
    created: float
    used: float
    """When a request last had it in its prompt."""
    uses: int
    """How many requests had it in their prompts after the one that wrote it."""
    size: int
    """Bytes."""


Order = Callable[[Sequence[Block], float], list[Block]]
"""(blocks, now) -> the same blocks, first to go first. The same whatever the order they come in."""


def least_recently_used(blocks: Sequence[Block], now: float) -> list[Block]:
    """Longest unused first; of those used in the same moment, which are those of one prompt, the tail first."""
    return sorted(blocks, key=lambda block: (block.used, -block.depth, block.key))


# The return of a prompt: constants fitted on the first half of an hour of chat

PACE_SECONDS: Final = 75.0
"""After about so long prompts come back most: nobody reads an answer and writes the next message in a few seconds."""
PEAK: Final = 0.315
"""The chance to come back, for each PACE_SECONDS, of a new prompt of usual length: half of this at the pace, and less
before and after."""
RISE: Final = 1.3
FALL: Final = 2.6
"""Exponents of the chance over idle time, before and after the pace. It falls as those who have not come back yet are
more and more those who never will."""
USUAL_GAP_SECONDS: Final = 120.0
OWN_PACE: Final = 0.3
"""How far a conversation's last gap, against the usual one, sets its own pace: an exponent."""

PER_TURN: Final = 0.5
"""Weights are of the logarithm of the chance. This for every doubling of the turns that a conversation has had."""
PER_DOUBLING: Final = -0.23
"""Of the prompt's length against the usual one of the store."""
VERY_SHORT: Final = -0.95
"""For every halving below a quarter of the usual length."""
FRESH: Final = -0.9
"""For what the last turn of a conversation added: if that is edited or asked again, it is of no use."""
LATE_SECONDS: Final = 900.0
"""Of who comes back later than this too little was seen to tell them apart: where there is room to keep prompts for so
long, the longest unused goes first."""
ADDED_MUCH: Final = -0.24
"""For every doubling of what the last turn added, from a seventh of the usual length: other business than before."""


def expected_return(blocks: Sequence[Block], now: float) -> list[Block]:
    """First those whose expected uses for the time they would be kept are fewest.

    What one request used together comes back, or does not, together. How likely and how soon is told by the turns the
    conversation has had, its length, what the last turn added, and how long it has been idle. A fresh block is not the
    most precious: the next message takes its time, and where room is short what has waited a minute is nearer to use.
    """
    if any(now - block.used > LATE_SECONDS for block in blocks):
        return least_recently_used(blocks, now)
    prompts: defaultdict[float, list[Block]] = defaultdict(list)
    for block in blocks:
        prompts[block.used].append(block)
    if not prompts:
        return []
    usual = median_low(max(block.depth for block in prompt) + 1 for prompt in prompts.values())
    whole = max(block.size for block in blocks)
    ranked: list[tuple[float, float, int, bytes, Block]] = []
    for used, prompt in prompts.items():
        prompt.sort(key=lambda block: (-block.depth, block.key))
        ranked += _ranked(prompt, _signs(prompt, usual), used, now, whole)
    ranked.sort()
    return [block for *_, block in ranked]


@dataclass(frozen=True, slots=True)
class _Signs:
    """What the blocks of one prompt say of its return. Weights are of `_row`."""

    kept: float
    """Of what the conversation had before its last turn."""
    fresh: float
    """Of what the last turn added."""
    pace: float
    shared: frozenset[float]
    """When blocks were written that other conversations use too."""


def _ranked(
    prompt: Sequence[Block], signs: _Signs, used: float, now: float, whole: int
) -> Iterator[tuple[float, float, int, bytes, Block]]:
    """Each block, from the tail to the head, after the uses that are to be expected for a second of keeping it: a block
    is worth what those behind it are, or more."""
    idle = max(0.0, now - used) / signs.pace
    kept, fresh = _index(signs.kept, idle) / signs.pace, _index(signs.fresh, idle) / signs.pace
    worth = 0.0
    for block in prompt:
        if block.size == whole:  # else the unfinished end of a prompt: the next turn fills it, and it is another block
            worth = max(worth, fresh if block.created >= used else kept)
            if block.created in signs.shared:
                worth = max(worth, _shared_rate(block, now))
        yield worth, used, -block.depth, block.key, block


def _shared_rate(block: Block, now: float) -> float:
    """Uses for a second of what comes by chance, as often as it has, and less surely so the longer it has not."""
    often = block.uses / max(1.0, block.used - block.created)
    return block.uses / max(1.0, now - block.created) * exp(-often * max(0.0, now - block.used))


def _signs(prompt: Sequence[Block], usual: int) -> _Signs:
    """`prompt` from the tail. Turns are told by the moments in which its blocks were written, one for each turn."""
    length, used, known = prompt[0].depth + 1, prompt[0].used, 0
    uses: dict[float, int] = {}
    for block in prompt:
        if block.created < used:
            uses[block.created] = max(uses.get(block.created, 0), block.uses)
            known = known or block.depth + 1
    moments = sorted(uses)
    shared = frozenset(moment for place, moment in enumerate(moments) if uses[moment] > 2 * (len(moments) - place))
    own = [moment for moment in moments if moment not in shared]
    long = log2(length / usual)
    weight = PER_TURN * log2(1 + len(own)) + PER_DOUBLING * long + VERY_SHORT * max(0.0, -2.0 - long)
    if not own:
        return _Signs(weight, weight, PACE_SECONDS, shared)
    pace = PACE_SECONDS * (max(1.0, used - own[-1]) / USUAL_GAP_SECONDS) ** OWN_PACE
    weight += ADDED_MUCH * max(0.0, log2(max(1, length - known) / usual * 7))
    return _Signs(weight, weight + FRESH, pace, shared)


# Index of an age: the best rate of uses for time kept that can be had by keeping on for some time (Gittins)

_STEP: Final = 0.25
_AGES: Final = [0.0, *(2.0 ** (exponent / 4) for exponent in range(-12, 25))]
"""In paces, up to where next to nobody comes back."""
_HEAVIEST: Final = 4.0


def _index(weight: float, idle: float) -> float:
    """Uses per pace to be expected of a block of that weight which has been idle for so many paces."""
    level = round(min(max(weight, -_HEAVIEST), _HEAVIEST) / _STEP)
    return _row(level)[bisect_right(_AGES, idle) - 1]


@cache
def _row(level: int) -> list[float]:
    """The index at each of `_AGES`."""
    scale = PEAK * exp(level * _STEP)
    left = [1.0]
    for age, following in pairwise(_AGES):
        middle = (age + following) / 2
        left.append(left[-1] * exp(-scale * middle**RISE / (1 + middle**FALL) * (following - age)))
    return [max(_rates(left, place), default=0.0) for place in range(len(_AGES))]


def _rates(left: Sequence[float], place: int) -> Iterator[float]:
    """Uses for time kept, if a block of that age is kept until each later age and no longer. `left`: the share that has
    not come back at each age."""
    kept = 0.0
    for later in range(place, len(_AGES) - 1):
        kept += (left[later] + left[later + 1]) / 2 * (_AGES[later + 1] - _AGES[later])
        yield (left[place] - left[later + 1]) / kept


# Beside the order


GHOSTS: Final = 100_000
"""Evicted blocks that are remembered, at about 150 bytes each."""


class Ghosts:
    """What is remembered of blocks that were evicted: a conversation that comes back too late has had its turns all the
    same. Thread-safe, as single dictionary operations are. Lost with the process: choices are worse for a while."""

    def __init__(self, most: int = GHOSTS) -> None:
        self._most = most
        self._gone: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def remember(self, block: Block) -> None:
        self._gone.pop(block.key, None)
        self._gone[block.key] = (block.created, block.uses)
        if len(self._gone) > self._most:
            self._gone.popitem(last=False)

    def recall(self, key: bytes, now: float) -> tuple[float, int]:
        """`created` and `uses` of a block that is written now: what it had, with one use more, or a new one's."""
        created, uses = self._gone.pop(key, (now, -1))
        return min(created, now), uses + 1


def whole_prompts(moments: Sequence[float], most: int, chance: Callable[[], float]) -> set[float]:
    """Some of the moments at which blocks were used last, of about `most` blocks. An order is asked about all blocks of
    these moments and no others: half of a prompt would be taken for another prompt. `chance` draws from [0, 1)."""
    share = most / max(most, len(moments))
    drawn = {moment for moment in sorted(set(moments)) if chance() < share}
    return drawn or set(moments[:1])


ORDERS: Final[dict[str, Order]] = {"Default": expected_return, "LRU": least_recently_used}
"""By the name in the spec, `kvCache.disk.eviction`."""
