"""Finds an empty slot to write a block to: a free one, one of a new extent, or one whose block is evicted for it.

Called by `Store.put` on worker threads; raises OSError as the disk says it, but what hinders a new extent is noted and
answered by eviction: a disk that is full can still be used as far as it is ours.
"""

import random
import secrets
from threading import Lock
from typing import Final

from headrace_runtime.kv import neighbours
from headrace_runtime.kv.common import FEWEST_EXTENTS, FOLDERS_BYTES, MEASURE_SECONDS, Common
from headrace_runtime.kv.eviction import ORDERS, Block
from headrace_runtime.kv.extent import Extent
from headrace_runtime.kv.index import Place, Slot
from headrace_runtime.kv.layout import EMPTY, Geometry, largest_geometry

SAMPLE: Final = 8192
"""An order is asked about no more blocks than these, drawn by chance: sorting all of a large store would hold the
interpreter, and with it the engine's scheduler, for a second."""
BATCH: Final = 64
"""Blocks that are evicted at a time, at most; at most a fiftieth of those there are."""


class Room:
    """Thread-safe."""

    def __init__(self, common: Common) -> None:
        self._c = common
        self._order = ORDERS[common.settings.eviction]
        self._mine = secrets.randbits(32)
        self._making = Lock()
        self._full_until = float("-inf")

    def claim(self) -> Slot | None:
        """A slot that is empty, and owned by the caller now; None: there is none to be had."""
        while True:
            found = self._c.index.take_free(self._mine)
            if found is None:
                if not self._make():
                    return None
            elif self._own_if_empty(*found):
                return found

    def drop(self, place: Place) -> bool:
        """Empty a block's slot, unless somebody uses it. True: it is free now."""
        extent, slot = place.extent, place.slot
        if not extent.claims.own(slot):
            return False
        try:
            raw = extent.entry(slot)
            if raw == place.raw:
                extent.clear_entry(slot)
        finally:
            extent.claims.disown(slot)
        self._c.index.remove(place)
        if raw in (EMPTY, place.raw):
            self._c.index.free(extent, slot)
            return True
        self._c.index.doubt(extent)
        return False

    def forget_full(self) -> None:
        """Room was given back: a new extent is worth a try."""
        self._full_until = float("-inf")

    def _own_if_empty(self, extent: Extent, slot: int) -> bool:
        """What another process wrote there since the last look is left alone."""
        if not extent.claims.own(slot):
            return False
        mine = False
        try:
            if extent.whole():
                mine = extent.entry(slot) == EMPTY
            else:
                self._c.index.cut(extent)
        finally:
            if not mine:
                extent.claims.disown(slot)
        return mine

    def _make(self) -> bool:
        """One thread at a time: the others find what it made."""
        with self._making:
            return self._c.index.has_free() or self._grow() or self._evict()

    def _grow(self) -> bool:
        """Another extent, if budget and disk allow it."""
        if self._c.held is None or self._c.ticks() < self._full_until:
            return False
        return self._c.attempt("grow", self._add_extent) and self._c.index.has_free()

    def _add_extent(self) -> None:
        common = self._c
        with common.budget.lock():
            geometry = self._next_geometry()
            while geometry is None and neighbours.give_room(common.disk, common.root, common.folder):
                geometry = self._next_geometry()
            if geometry is None:
                self._full_until = common.ticks() + MEASURE_SECONDS
                return
            extent = Extent.create(common.disk, common.folder, geometry, common.folder.name)
            common.bytes_used = common.budget.used()
        common.index.join(extent)
        for slot in range(geometry.slots):
            common.index.free(extent, slot)

    def _next_geometry(self) -> Geometry | None:
        """None where there is room for less than a piece of an extent, and other extents to use instead."""
        settings = self._c.settings
        found = largest_geometry(settings.block_bytes, self._c.budget.room() - FOLDERS_BYTES, settings.slots)
        if found is not None and found.slots < settings.slots // FEWEST_EXTENTS and self._c.index.extents():
            return None
        return found

    def _evict(self) -> bool:
        """Empty some slots, of the blocks that are the least worth keeping."""
        index = self._c.index
        busy = {extent.name: extent.claims.busy() for extent in index.extents()}
        places = [place for place in index.places() if place.slot not in busy.get(place.extent.name, ())]
        if len(places) > SAMPLE:
            places = random.sample(places, SAMPLE)
        by_key = {place.entry.key: place for place in places}
        wanted = max(1, min(BATCH, len(places) // 50))
        freed = 0
        for block in self._order([_block(place) for place in places], self._c.clock()):
            if freed == wanted:
                break
            freed += self.drop(by_key[block.key])
        self._c.count.evicted += freed
        return freed > 0


def _block(place: Place) -> Block:
    entry = place.entry
    return Block(entry.key, entry.depth, entry.created, place.used, place.uses, entry.length)
