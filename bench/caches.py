"""Caches of KV blocks for `bench eviction`: the known policies, and the product's own orders, asked as the store asks.

A cache is told one request after the other. What it holds of the prompt from its beginning without a gap is a hit; all
of the prompt goes in, its tail older than its head. None knows the future but Belady's, which is told.
"""

import heapq
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from headrace_runtime.kv.eviction import GHOSTS, Block, Ghosts, Order, whole_prompts

SAMPLE: Final = 8192
BATCH: Final = 64
"""As `kv/room.py`: blocks that an order is asked about, and that are evicted at a time."""


class Cache(Protocol):
    def __contains__(self, key: int) -> bool: ...
    def admit(self, keys: Sequence[int], whole: int, now: float) -> None:
        """A prompt of these blocks, of which so many are full, came at that moment."""


def hits(cache: Cache, keys: Sequence[int]) -> int:
    """Blocks up to the first that is missing."""
    for place, key in enumerate(keys):
        if key not in cache:
            return place
    return len(keys)


class Each:
    """What the known policies have in common: they see one block after the other, the tail first."""

    def admit(self, keys: Sequence[int], whole: int, now: float) -> None:
        for key in reversed(keys):
            self.use(key)

    def use(self, key: int) -> None:
        raise NotImplementedError


class Lru(Each):
    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._held

    def use(self, key: int) -> None:
        self._held[key] = None
        self._held.move_to_end(key)
        if len(self._held) > self._size:
            self._held.popitem(last=False)


class TwoQueues(Each):
    """2Q (Johnson, Shasha, VLDB '94): new blocks on probation, first in first out; what comes again is proven.

    Better here than in the paper: promotion while still on probation, and as many remembered as there are blocks.
    """

    def __init__(self, size: int, probation: float) -> None:
        self._size, self._most = size, max(1, int(size * probation))
        self._new: OrderedDict[int, None] = OrderedDict()
        self._gone: OrderedDict[int, None] = OrderedDict()
        self._proven: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._new or key in self._proven

    def use(self, key: int) -> None:
        if key in self._proven:
            self._proven.move_to_end(key)
        elif key in self._gone or key in self._new:
            self._gone.pop(key, None)
            self._new.pop(key, None)
            self._proven[key] = None
        else:
            self._new[key] = None
        while len(self._new) + len(self._proven) > self._size:
            if len(self._new) > self._most or not self._proven:
                self._gone[self._new.popitem(last=False)[0]] = None
            else:
                self._proven.popitem(last=False)
            if len(self._gone) > self._size:
                self._gone.popitem(last=False)


class S3Fifo(Each):
    """S3-FIFO (Yang et al., SOSP '23): a small queue of a tenth, a main one, as many remembered as that holds."""

    def __init__(self, size: int) -> None:
        self._size, self._most = size, max(1, size // 10)
        self._small: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()
        self._gone: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._small or key in self._main

    def use(self, key: int) -> None:
        queue = self._small if key in self._small else self._main
        if key in queue:
            queue[key] = min(3, queue[key] + 1)
        elif key in self._gone:
            del self._gone[key]
            self._main[key] = 0
        else:
            self._small[key] = 0
        while len(self._small) + len(self._main) > self._size:
            self._evict()

    def _evict(self) -> None:
        if len(self._small) > self._most or not self._main:
            key, used = self._small.popitem(last=False)
            if used:
                self._main[key] = 0
                return
            self._gone[key] = None
            if len(self._gone) > self._size - self._most:
                self._gone.popitem(last=False)
            return
        key, used = self._main.popitem(last=False)
        if used:
            self._main[key] = used - 1


class Arc(Each):
    """ARC (Megiddo, Modha, FAST '03)."""

    def __init__(self, size: int) -> None:
        self._size, self._target = size, 0.0
        self._once, self._often, self._once_gone, self._often_gone = (OrderedDict[int, None]() for _ in range(4))

    def __contains__(self, key: int) -> bool:
        return key in self._once or key in self._often

    def use(self, key: int) -> None:
        once_gone, often_gone = self._once_gone, self._often_gone
        if key in self:
            self._once.pop(key, None)
        elif key in once_gone:
            self._target = min(self._size, self._target + max(1.0, len(often_gone) / len(once_gone)))
            self._replace(seen_often=False)
            del once_gone[key]
        elif key in often_gone:
            self._target = max(0.0, self._target - max(1.0, len(once_gone) / len(often_gone)))
            self._replace(seen_often=True)
            del often_gone[key]
        else:
            self._make_room()
            self._once[key] = None
            return
        self._often[key] = None
        self._often.move_to_end(key)

    def _make_room(self) -> None:
        """For a block that is not remembered."""
        if len(self._once) + len(self._once_gone) >= self._size:
            if not self._once_gone:
                self._once.popitem(last=False)
                return
            self._once_gone.popitem(last=False)
        elif sum(map(len, (self._once, self._often, self._once_gone, self._often_gone))) >= 2 * self._size:
            self._often_gone.popitem(last=False)
        self._replace(seen_often=False)

    def _replace(self, *, seen_often: bool) -> None:
        if len(self._once) + len(self._often) < self._size:
            return
        beyond = len(self._once) > self._target or (seen_often and len(self._once) == int(self._target))
        if self._once and (beyond or not self._often):
            self._once_gone[self._once.popitem(last=False)[0]] = None
        else:
            self._often_gone[self._often.popitem(last=False)[0]] = None


class Belady:
    """Drops what is used next last, the tail of a prompt before its head: no policy without a future is better."""

    def __init__(self, size: int, prompts: Iterable[Sequence[int]]) -> None:
        self._size, self._turn = size, 0
        self._held: dict[int, tuple[int, int]] = {}
        self._queue: list[tuple[int, int, int]] = []
        following: dict[int, int] = {}
        self._next: list[list[int]] = []
        numbered = list(enumerate(prompts))
        for turn, keys in reversed(numbered):
            self._next.append([following.get(key, len(numbered)) for key in keys])
            following |= dict.fromkeys(keys, turn)
        self._next.reverse()

    def __contains__(self, key: int) -> bool:
        return key in self._held

    def admit(self, keys: Sequence[int], whole: int, now: float) -> None:
        for depth, (key, following) in enumerate(zip(keys, self._next[self._turn], strict=True)):
            self._held[key] = (-following, -depth)
            heapq.heappush(self._queue, (-following, -depth, key))
        self._turn += 1
        while len(self._held) > self._size:
            following, depth, key = heapq.heappop(self._queue)
            if self._held.get(key) == (following, depth):
                del self._held[key]


class Unlimited:
    def __init__(self) -> None:
        self._held: set[int] = set()

    def __contains__(self, key: int) -> bool:
        return key in self._held

    def admit(self, keys: Sequence[int], whole: int, now: float) -> None:
        self._held.update(keys)


class Ordered:
    """An order of the product, asked as `kv/room.py` asks it: about a sample of whole prompts, for a batch."""

    def __init__(self, size: int, order: Order, ghosts: int = GHOSTS, *, knows_whole: bool = True) -> None:
        """`knows_whole`: whether the last block of a prompt is told to be shorter when it is."""
        self._size, self._order, self._knows = size, order, knows_whole
        self._held: dict[int, Block] = {}
        self._ghosts = Ghosts(ghosts)
        self._chance = random.Random(1)

    def __contains__(self, key: int) -> bool:
        return key in self._held

    def admit(self, keys: Sequence[int], whole: int, now: float) -> None:
        for depth, key in enumerate(keys):
            known = self._held.get(key)
            size = 2 if depth < whole or not self._knows else 1
            if known is not None:
                self._held[key] = Block(known.key, depth, known.created, now, known.uses + 1, size)
            else:
                name = key.to_bytes(8, "big")
                created, uses = self._ghosts.recall(name, now)
                self._held[key] = Block(name, depth, created, now, uses, size)
        while len(self._held) > self._size:
            self._evict(now)

    def _evict(self, now: float) -> None:
        blocks = list(self._held.values())
        if len(blocks) > SAMPLE:
            drawn = whole_prompts([block.used for block in blocks], SAMPLE, self._chance.random)
            blocks = [block for block in blocks if block.used in drawn]
        for block in self._order(blocks, now)[: max(1, min(BATCH, len(blocks) // 50))]:
            del self._held[int.from_bytes(block.key, "big")]
            self._ghosts.remember(block)
