"""What a store looks after about once a second: what others wrote, what was used, what it takes, whether it is well.

`Store.refresh` calls it, from one thread at a time. Nothing here is needed for a right answer: an index that is out of
date costs a miss.
"""

import os
import time
from mmap import mmap
from typing import Final

from headrace_runtime.kv import neighbours
from headrace_runtime.kv.common import MEASURE_SECONDS, Common
from headrace_runtime.kv.extent import NAME, Extent, remove
from headrace_runtime.kv.index import Place, Slot
from headrace_runtime.kv.layout import EMPTY, PAGE, Use
from headrace_runtime.kv.room import Room

_SETTLED_NS: Final = 2 * 10**9
"""A file whose last change is longer ago than this, when it is looked at, cannot change again with the same time."""


class Upkeep:
    def __init__(self, common: Common, room: Room) -> None:
        self._c = common
        self._room = room
        self._used: dict[Slot, Place] = {}
        self._settled: dict[str, int] = {}
        """Time of the last change of extents that have been looked at since."""
        self._identity: tuple[int, int] | None = None
        """Device and inode of the folder that was opened."""
        self._measure_at = float("-inf")

    def note_use(self, place: Place) -> None:
        """To be written down at the next turn. Memory only."""
        self._used[place.extent, place.slot] = place

    def turn(self) -> None:
        common = self._c
        if not self._is_there():
            self._leave()
            if not common.attempt("write", self._enter):
                return
        common.see_to("read", self._look)
        common.see_to("write", self._write_uses)
        common.see_to("write", self._empty_litter)
        if common.ticks() >= self._measure_at:
            self._measure_at = common.ticks() + MEASURE_SECONDS
            common.see_to("grow", self._measure)
        for extent in common.index.extents():
            extent.claims.expire(common.ticks())
        for part in common.health.unwell():
            common.attempt(part, self._probe)

    def close(self) -> None:
        """What was used is written down, and every file closed."""
        self._c.see_to("write", self._write_uses)
        self._leave()

    # The folder

    def _is_there(self) -> bool:
        """Whether the folder that was opened still is: it may be deleted under us, or the disk be taken away."""
        try:
            now = self._c.folder.stat()
        except OSError:
            return False
        return self._c.held is not None and self._identity == (now.st_dev, now.st_ino)

    def _enter(self) -> None:
        common = self._c
        common.disk.make_folder(common.root)
        with common.budget.lock():
            common.disk.make_folder(common.folder)
            common.held = neighbours.hold(common.disk, common.folder)
            neighbours.sweep(common.disk, common.folder)
        found = common.folder.stat()
        self._identity = (found.st_dev, found.st_ino)
        self._room.forget_full()
        self._measure_at = float("-inf")

    def _leave(self) -> None:
        common = self._c
        for extent in common.index.extents():
            self._part(extent)
        if common.held is not None:
            common.disk.close(common.held)
            common.held = None

    def _part(self, extent: Extent) -> None:
        self._c.index.part(extent)
        self._settled.pop(extent.name, None)
        extent.claims.retire()

    # Extents, and what lies in them

    def _look(self) -> None:
        common = self._c
        known = {extent.name: extent for extent in common.index.extents()}
        there = {entry.name for entry in common.disk.entries(common.folder) if NAME.fullmatch(entry.name)}
        for name in there - known.keys():
            extent = Extent.open(common.disk, common.folder / name, common.folder.name)
            if extent is None:
                self._remove(name)
            else:
                common.index.join(extent)
        for extent in common.index.extents():
            self._look_at(extent)

    def _look_at(self, extent: Extent) -> None:
        common, found = self._c, extent.stat()
        if found.st_nlink == 0:
            self._part(extent)
            return
        if found.st_size < extent.geometry.file_bytes:
            common.index.cut(extent)
        if self._settled.get(extent.name) != found.st_mtime_ns or common.index.doubted(extent):
            settled = found.st_mtime_ns < time.time_ns() - _SETTLED_NS
            self._settled[extent.name] = found.st_mtime_ns if settled else 0
            common.litter += common.index.scan(extent, *extent.tables(), common.clock())
        if found.st_size < extent.geometry.file_bytes and not common.index.places(extent):
            self._part(extent)
            self._remove(extent.name)

    def _remove(self, name: str) -> None:
        """An extent that nothing can be read from."""
        with self._c.budget.lock():
            remove(self._c.disk, self._c.folder / name)
        self._room.forget_full()

    def _empty_litter(self) -> None:
        """Slots whose bytes are no entry, or a second copy of a block: for as long as somebody uses them, later."""
        litter, self._c.litter = self._c.litter, []
        self._c.litter += [slot for slot in litter if not self._emptied(*slot)]

    def _emptied(self, extent: Extent, slot: int) -> bool:
        """False: to be tried again."""
        if not extent.claims.own(slot):
            return extent.claims.retired
        try:
            entry = extent.parse(raw := extent.entry(slot), slot)
            place = self._c.index.get(entry.key) if entry is not None else None
            of_use = entry is not None and (place is None or (place.extent is extent and place.slot == slot))
            if raw != EMPTY and len(raw) == len(EMPTY) and not of_use:
                extent.clear_entry(slot)
        finally:
            extent.claims.disown(slot)
        self._c.index.doubt(extent)
        return True

    def _write_uses(self) -> None:
        """Shared with the other processes, and kept for the next. The blocks are under a lease: their extents cannot be
        taken away meanwhile."""
        while self._used:
            _, place = self._used.popitem()
            if place.extent.claims.share(place.slot):
                try:
                    place.extent.write_use(place.slot, Use(place.used, place.uses), place.entry.sequence)
                finally:
                    place.extent.claims.unshare(place.slot)

    # What it takes, and whether it is well

    def _measure(self) -> None:
        """Also gives back what is too much: the budget may be smaller than it was."""
        common = self._c
        common.bytes_used = common.budget.used()
        over = common.budget.room() < 0
        if not over and common.settings.on_model_change != "Wipe":
            return
        with common.budget.lock():
            if common.settings.on_model_change == "Wipe":
                for folder in neighbours.fenced(common.disk, common.root, common.folder):
                    neighbours.wipe(common.disk, folder)
            while common.budget.room() < 0 and self._give_back():
                pass
        common.bytes_used = common.budget.used()

    def _give_back(self) -> bool:
        common = self._c
        if neighbours.give_room(common.disk, common.root, common.folder):
            return True
        return any(remove(common.disk, path) for path in neighbours.extents(common.disk, [common.folder]))

    def _probe(self) -> None:
        """What only a disk that is well can do: past the page cache, a page there and back."""
        common = self._c
        page = mmap(-1, PAGE)
        file = common.disk.open(common.folder / neighbours.HELD, os.O_RDWR | os.O_DIRECT)
        try:
            common.disk.write(file, memoryview(page), 0)
            common.disk.sync(file)
            common.disk.read(file, memoryview(page), 0)
        finally:
            common.disk.close(file)
