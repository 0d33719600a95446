"""Keeps the index true to the disk: extents that other processes made, blocks that they wrote or evicted, damage.

Called about once a second (`upkeep.py`), and before a writer gives up for want of room (`room.py`). Raises OSError as
the disk says it.
"""

import time
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Final

from headrace_runtime.kv.budget import BusyError
from headrace_runtime.kv.common import Common
from headrace_runtime.kv.extent import NAME, Extent, remove
from headrace_runtime.kv.layout import EMPTY

_SETTLED_NS: Final = 2 * 10**9
"""A file whose last change is longer ago than this, when it is looked at, cannot change again with the same time."""


class Survey:
    """Thread-safe."""

    def __init__(self, common: Common) -> None:
        self._c = common
        self._looking = Lock()
        self._settled: dict[str, int] = {}
        """Time of the last change of extents that have been looked at since."""
        self._unreadable: set[str] = set()
        """Extents that are left alone until the disk is found well."""

    def look(self) -> None:
        """Of extents that cannot be read the others know nothing: the first error is raised when all are looked at."""
        with self._looking:
            errors = self._look() if self._c.held is not None else []
        if errors:
            raise errors[0]

    def forget(self) -> None:
        """Close every extent: the folder is not ours any more."""
        with self._looking:
            for extent in self._c.index.extents():
                self._part(extent)
            self._unreadable.clear()

    def try_again(self) -> None:
        """The disk was found well: what could not be read may be readable."""
        self._unreadable.clear()

    # Extents

    def _look(self) -> list[OSError]:
        common = self._c
        errors: list[OSError] = []
        there = {entry.name for entry in common.disk.entries(common.folder) if NAME.fullmatch(entry.name)}
        known = {extent.name: extent for extent in common.index.extents()}
        for name in there - known.keys() - self._unreadable:
            errors += self._tried(name, partial(self._join, name))
        for extent in common.index.extents():
            errors += self._tried(extent.name, partial(self._look_at, extent))
            if extent.name in self._unreadable:
                self._part(extent)
        return errors

    def _tried(self, name: str, work: Callable[[], None]) -> list[OSError]:
        try:
            work()
        except (FileNotFoundError, BusyError):
            return []  # another process removed it, or is about to: the next look will tell
        except OSError as error:
            self._unreadable.add(name)
            return [error]
        return []

    def _join(self, name: str) -> None:
        common = self._c
        extent = Extent.open(common.disk, common.folder / name, common.folder.name)
        if extent is None:
            self._remove(name)
        elif not common.index.join(extent):
            extent.claims.retire()

    def _look_at(self, extent: Extent) -> None:
        index, found = self._c.index, extent.stat()
        if found.st_nlink == 0:
            self._part(extent)
            return
        is_cut = found.st_size < extent.geometry.file_bytes
        if is_cut:
            index.cut(extent)
        if self._settled.get(extent.name) != found.st_mtime_ns or index.doubted(extent):
            is_settled = found.st_mtime_ns < time.time_ns() - _SETTLED_NS
            self._settled[extent.name] = found.st_mtime_ns if is_settled else 0
            index.before_scan(extent)
            self._c.litter.extend(index.scan(extent, *extent.tables(), self._c.clock()))
        if is_cut and not index.places(extent):
            self._part(extent)
            self._remove(extent.name)

    def _part(self, extent: Extent) -> None:
        self._c.index.part(extent)
        self._settled.pop(extent.name, None)
        self._c.full_until = float("-inf")  # what it took may be free
        extent.claims.retire()

    def _remove(self, name: str) -> None:
        """An extent that nothing can be read from."""
        with self._c.budget.lock():
            remove(self._c.disk, self._c.folder / name)
        self._c.full_until = float("-inf")

    # Slots

    def empty_litter(self) -> None:
        """Slots whose bytes are no entry, or a second copy of a block; for as long as somebody uses them, later."""
        for _ in range(len(self._c.litter)):
            extent, slot = self._c.litter.popleft()
            if extent.claims.own(slot):
                try:
                    self._empty(extent, slot)
                finally:
                    extent.claims.disown(slot)
            elif not extent.claims.retired:
                self._c.litter.append((extent, slot))

    def _empty(self, extent: Extent, slot: int) -> None:
        """If it is still of no use, now that it is owned."""
        raw = extent.entry(slot)
        if len(raw) < len(EMPTY):
            return
        entry = extent.parse(raw, slot)
        place = None if entry is None else self._c.index.get(entry.key)
        if entry is None or (place is not None and (place.extent is not extent or place.slot != slot)):
            extent.clear_entry(slot)
        self._c.index.doubt(extent)
