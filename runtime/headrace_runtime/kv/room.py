"""Finds an empty slot to write a block to: a free one, one of a new extent, or one whose block is evicted for it.

Called by `Store.put` on worker threads; raises OSError as the disk says it, but what hinders a new extent is noted and
answered by eviction: a disk that is full can still be used as far as it is ours.
"""

import errno
import os
import secrets
from random import Random
from threading import Lock, get_ident
from typing import Final

from headrace_runtime.kv import neighbours
from headrace_runtime.kv.common import FEWEST_EXTENTS, HELD_BYTES, MEASURE_SECONDS, Common
from headrace_runtime.kv.eviction import ORDERS, Block, Ghosts, whole_prompts
from headrace_runtime.kv.extent import Extent
from headrace_runtime.kv.index import Place, Slot
from headrace_runtime.kv.layout import EMPTY, Geometry, charge, largest_geometry
from headrace_runtime.kv.survey import Survey

SAMPLE: Final = 8192
"""An order is asked about so many blocks at most, more or less, of prompts drawn by chance: sorting all of a large
store would hold the interpreter, and with it the engine's scheduler, for a second."""
BATCH: Final = 64
"""Blocks that are evicted at a time, at most; at most a fiftieth of those there are."""


class Room:
    """Thread-safe."""

    def __init__(self, common: Common, survey: Survey) -> None:
        self._c = common
        self._survey = survey
        self._order = ORDERS[common.settings.eviction]
        self.ghosts = Ghosts()
        self._chance = Random(secrets.randbits(64))  # noqa: S311 - which prompts are looked at is no secret
        self._mine = secrets.randbits(32)
        self._making = Lock()

    def claim(self) -> Slot | None:
        """A slot that is empty, and owned by the caller now; None: there is none to be had."""
        while True:
            found = self._c.index.take_free(self._mine ^ get_ident())
            if found is None:
                if not self._make():
                    return None
            elif self._own_if_empty(*found):
                return found

    def give_back(self, slot: Slot) -> None:
        """One that was claimed, and is still empty."""
        extent, number = slot
        extent.claims.disown(number)
        self._c.index.free(extent, number)

    def drop(self, place: Place, *, evicts: bool = False) -> bool:
        """Empty a slot that nobody uses. True: it can be written to now. `evicts`: its block is good."""
        extent, slot = place.extent, place.slot
        if not extent.claims.own(slot):
            return False
        try:
            raw = extent.entry(slot)
            if raw == place.raw:
                extent.clear_entry(slot)
                self._c.count.evicted += evicts
        finally:
            extent.claims.disown(slot)
        self._c.index.remove(place)
        if raw in (EMPTY, place.raw):
            return self._c.index.free(extent, slot)
        self._c.index.doubt(extent)
        return False

    def _own_if_empty(self, extent: Extent, slot: int) -> bool:
        """What another process wrote there since the last look is left alone."""
        if not extent.claims.own(slot):
            self._c.index.doubt(extent)  # who has it may die before it writes an entry: then it is free after all
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
            return self._c.index.has_free() or self._grow() or self._evict() or self._find()

    def _find(self) -> bool:
        """All that is known of is in use, or gone: what other processes did meanwhile may help."""
        self._survey.look()
        return self._c.index.has_free() or self._grow() or self._evict()

    def _grow(self) -> bool:
        """Another extent, if budget and disk allow it."""
        if self._c.held is None or self._c.ticks() < self._c.full_until:
            return False
        return self._c.attempt("grow", self._add_extent) and self._c.index.has_free()

    def _add_extent(self) -> None:
        common = self._c
        with common.budget.lock():
            geometry = self._next_geometry()
            if geometry is None:
                self._c.full_until = common.ticks() + MEASURE_SECONDS
                return
            extent = Extent.create(common.disk, common.folder, geometry, common.folder.name)
            common.bytes_used = common.budget.used()
        if not common.index.join(extent):
            extent.claims.retire()
            return
        for slot in range(geometry.slots):
            common.index.free(extent, slot)

    def _next_geometry(self) -> Geometry | None:
        """None: the budget is used up, and nobody has to give way. Where there is room for a small piece of an extent
        only, that counts as none, unless there is nothing else.

        Raises:
            OSError: ENOSPC, where it is not the budget that is used up but the disk.
        """
        common, settings = self._c, self._c.settings
        least = max(1, settings.slots // FEWEST_EXTENTS) if common.index.extents() else 1
        while True:
            free = common.disk.free_bytes(common.folder)
            own, node = common.budget.room() - HELD_BYTES, common.budget.node_room() - HELD_BYTES
            found = largest_geometry(settings.block_bytes, min(own, node, free), settings.slots)
            if found is not None and found.slots >= least:
                return found
            needed = charge(Geometry(settings.block_bytes, least).file_bytes)
            if not self._gives_way(own_is_enough=own >= needed):
                if min(own, node) >= needed:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return None

    def _gives_way(self, *, own_is_enough: bool) -> bool:
        common = self._c
        if own_is_enough and common.settings.node_size_bytes is not None:
            return neighbours.deployment_gives_way(common.disk, common.root, common.settings.node_size_bytes)
        return neighbours.identity_gives_way(common.disk, common.root, common.folder, common.settings.size_bytes)

    def _evict(self) -> bool:
        """Empty some slots, of the blocks that are the least worth keeping."""
        index = self._c.index
        busy = {extent.name: extent.claims.busy() for extent in index.extents()}
        places = index.places()
        if len(places) > SAMPLE:
            drawn = whole_prompts([place.used for place in places], SAMPLE, self._chance.random)
            places = [place for place in places if place.used in drawn]
        places = [place for place in places if place.slot not in busy.get(place.extent.name, ())]
        by_key = {place.entry.key: place for place in places}
        wanted = max(1, min(BATCH, len(places) // 50))
        freed = 0
        for block in self._order([_block(place) for place in places], self._c.clock()):
            if freed == wanted:
                break
            if self.drop(by_key[block.key], evicts=True):
                self.ghosts.remember(block)
                freed += 1
        return freed > 0


def _block(place: Place) -> Block:
    entry = place.entry
    return Block(entry.key, entry.depth, entry.created, place.used, place.uses, entry.length)
