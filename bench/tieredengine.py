"""A *simulated* engine with a disk and a link below it: `enginemodel.py`, whose prompts may first be loaded or fetched.

Disk and link each serve one prompt after another, at so many seconds a block, beside what is computed, as vLLM's
asynchronous connectors do. What was loaded is in the engine's cache from then on. `storage_path.py` runs several.
"""

import heapq
import itertools
from collections.abc import Collection

from bench.enginemodel import Running, SimulatedEngine


class TieredEngine(SimulatedEngine):
    """`on_disk`: blocks. Times in seconds for one block."""

    def __init__(self, disk_seconds: float, link_seconds: float, on_disk: Collection[int] = ()) -> None:
        super().__init__()
        self.on_disk = set(on_disk)
        self._disk_seconds, self._link_seconds = disk_seconds, link_seconds
        self._disk_free = self._link_free = 0.0
        self._coming: list[tuple[float, int, Running, tuple[int, ...]]] = []
        self._order = itertools.count()

    def submit(self, one: Running, at: float, fetched: bool) -> None:
        """A request is here. `fetched`: its blocks come from another engine, else from the disk as far as they are
        there; the rest is computed."""
        blocks = one.request.blocks
        near = sum(1 for _ in itertools.takewhile(self._holds, blocks))
        if fetched:
            wanted = blocks[near:]
            self._link_free = ready = max(at, self._link_free) + self._link_seconds * len(wanted)
        else:
            wanted = tuple(itertools.takewhile(self.on_disk.__contains__, blocks[near:]))
            self._disk_free = ready = max(at, self._disk_free) + self._disk_seconds * len(wanted)
        heapq.heappush(self._coming, (ready if wanted else at, next(self._order), one, wanted))

    def advance(self, until: float) -> None:
        while self._coming and self._coming[0][0] <= until:
            ready, _, one, blocks = heapq.heappop(self._coming)
            super().advance(ready)
            self.now = max(self.now, ready)
            self._put(one, blocks)
            self.waiting.append(one)
        super().advance(until)

    def _holds(self, block: int) -> bool:
        return block in self._used or block in self._free

    def _put(self, one: Running, blocks: tuple[int, ...]) -> None:
        """Into the cache, as blocks that nobody uses yet."""
        new = tuple(block for block in blocks if not self._holds(block))
        if new and self._allocate(len(new)):
            self._taken -= len(new)
            self._free.update(dict.fromkeys(reversed(new)))
            self.happened.append((self.now, "stored", one, one.request.blocks[: one.request.blocks.index(new[-1]) + 1]))
