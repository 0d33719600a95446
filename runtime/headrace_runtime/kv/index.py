"""Which blocks can be read, where they lie, and which slots are free: what one process knows of a store.

In memory only, and made of the tables on the disk: `scan` is told an extent's tables whenever they may have changed,
and finds what other processes wrote or evicted. Thread-safe, does no I/O; the store acts on what it says and must be
ready to find it out of date.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import Concatenate, ParamSpec, TypeVar

from headrace_runtime.kv.extent import Extent
from headrace_runtime.kv.layout import EMPTY, ENTRY_BYTES, USE_BYTES, Entry, unpack_use

Slot = tuple[Extent, int]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Place:
    """A block that can be read. `used` and `uses` are this process's view of them."""

    extent: Extent
    slot: int
    raw: bytes
    """Its entry as it is on the disk: as long as that has not changed, the block is there."""
    entry: Entry
    used: float
    uses: int


@dataclass(slots=True, eq=False)
class _Table:
    """An extent as it was when its tables were last looked at."""

    extent: Extent
    whole: bool = True
    entries: bytes = b""
    uses: bytes = b""
    places: dict[int, Place] = field(default_factory=dict)
    free: set[int] = field(default_factory=set)
    touched: set[int] = field(default_factory=set)
    """Slots of which this process has learnt something since the tables were last about to be read."""


def _alone(method: Callable[Concatenate["Index", P], R]) -> Callable[Concatenate["Index", P], R]:
    def locked(self: "Index", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._mutex:
            return method(self, *args, **kwargs)

    return locked


class Index:
    """By key, and by extent and slot."""

    def __init__(self) -> None:
        self._mutex = RLock()
        self._tables: dict[str, _Table] = {}
        self._places: dict[bytes, Place] = {}
        self._open: dict[str, _Table] = {}
        """Those with free slots."""
        self._changed: dict[bytes, bool] = {}

    # One dictionary operation each: as they are, and the scheduler waits for no scan.

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: bytes) -> Place | None:
        return self._places.get(key)

    # Extents

    @_alone
    def extents(self) -> list[Extent]:
        return [table.extent for table in self._tables.values()]

    @_alone
    def join(self, extent: Extent) -> bool:
        """An extent, of which nothing is known until it is scanned. False: it is known already, and this second opening
        of it is not wanted: who makes an extent and who finds it may be two threads."""
        if extent.name in self._tables:
            return False
        self._tables[extent.name] = _Table(extent)
        return True

    @_alone
    def part(self, extent: Extent) -> None:
        """Forget an extent and its blocks."""
        table = self._tables.pop(extent.name, None)
        self._open.pop(extent.name, None)
        for place in table.places.values() if table else ():
            self._forget(place)

    @_alone
    def cut(self, extent: Extent) -> None:
        """Its file is not whole any more: nothing is written there again."""
        if table := self._tables.get(extent.name):
            table.whole = False
            table.free.clear()
            self._open.pop(extent.name, None)

    @_alone
    def doubt(self, extent: Extent) -> None:
        """Something was not where it was thought to be: the next scan compares every slot."""
        if table := self._tables.get(extent.name):
            table.entries = b""

    @_alone
    def doubted(self, extent: Extent) -> bool:
        table = self._tables.get(extent.name)
        return table is not None and not table.entries

    @_alone
    def places(self, extent: Extent | None = None) -> list[Place]:
        """Of one extent, or all."""
        if extent is None:
            return list(self._places.values())
        table = self._tables.get(extent.name)
        return list(table.places.values()) if table else []

    @_alone
    def before_scan(self, extent: Extent) -> None:
        """The tables are about to be read: what is learnt of a slot from now on is newer than what they will say."""
        if table := self._tables.get(extent.name):
            table.touched.clear()

    @_alone
    def scan(self, extent: Extent, entries: bytes, uses: bytes, now: float) -> list[Slot]:
        """Take over what the tables say now. Slots that are neither free nor of use: their bytes are no entry, or of a
        block that lies elsewhere too."""
        table = self._tables.get(extent.name)
        if table is None:
            return []
        litter = self._scan_entries(table, entries, uses, now) if entries != table.entries else []
        if uses != table.uses:
            self._scan_uses(table, uses, now)
        table.entries, table.uses = b"" if table.touched else entries, uses
        return litter

    def _scan_entries(self, table: _Table, entries: bytes, uses: bytes, now: float) -> list[Slot]:
        litter: list[Slot] = []
        touched = table.touched.copy()
        for slot in range(table.extent.geometry.slots):
            if slot in touched:
                continue
            raw = entries[slot * ENTRY_BYTES : (slot + 1) * ENTRY_BYTES]
            known = table.places.get(slot)
            if known is not None:
                if known.raw == raw:
                    continue
                self._remove(table, known)
            if raw == EMPTY:
                self._free(table, slot)
                continue
            self._taken(table, slot)
            entry = table.extent.parse(raw, slot)
            if entry is None:
                litter.append((table.extent, slot))
            else:
                use = unpack_use(uses[slot * USE_BYTES : (slot + 1) * USE_BYTES], entry, now)
                litter += self._add(table, Place(table.extent, slot, raw, entry, use.used, use.uses))
        return litter

    def _scan_uses(self, table: _Table, uses: bytes, now: float) -> None:
        for slot, place in table.places.items():
            record = uses[slot * USE_BYTES : (slot + 1) * USE_BYTES]
            if record != table.uses[slot * USE_BYTES : (slot + 1) * USE_BYTES]:
                use = unpack_use(record, place.entry, now)
                place.used, place.uses = max(place.used, use.used), max(place.uses, use.uses)

    # Blocks

    @_alone
    def add(self, place: Place) -> list[Slot]:
        """A block that was written. The slot of the copy that counts less, if it lies elsewhere too: for every process
        alike that is the one with the greater name and slot."""
        table = self._tables.get(place.extent.name)
        if table is None:
            return []
        table.touched.add(place.slot)
        return self._add(table, place)

    def _add(self, table: _Table, place: Place) -> list[Slot]:
        known = self._places.get(place.entry.key)
        self._taken(table, place.slot)
        litter: list[Slot] = []
        if known is not None:
            known_at, placed_at = (known.extent.name, known.slot), (place.extent.name, place.slot)
            if known_at < placed_at:
                return [(place.extent, place.slot)]
            if known_at != placed_at:
                litter.append((known.extent, known.slot))
            del self._tables[known.extent.name].places[known.slot]
        table.places[place.slot] = self._places[place.entry.key] = place
        self._note(place.entry.key, readable=True)
        return litter

    @_alone
    def remove(self, place: Place) -> None:
        """Forget a block; its slot is not free by that."""
        table = self._tables.get(place.extent.name)
        if table is not None and table.places.get(place.slot) is place:
            table.touched.add(place.slot)
            self._remove(table, place)

    def _remove(self, table: _Table, place: Place) -> None:
        del table.places[place.slot]
        self._forget(place)

    def _forget(self, place: Place) -> None:
        del self._places[place.entry.key]
        self._note(place.entry.key, readable=False)

    # Free slots

    @_alone
    def has_free(self) -> bool:
        return bool(self._open)

    @_alone
    def free(self, extent: Extent, slot: int) -> bool:
        """The slot was emptied, or seen empty. False: it cannot be written to for all that."""
        table = self._tables.get(extent.name)
        if table is None:
            return False
        table.touched.add(slot)
        return self._free(table, slot)

    def _free(self, table: _Table, slot: int) -> bool:
        if not table.whole or slot in table.places:
            return False
        table.free.add(slot)
        self._open[table.extent.name] = table
        return True

    @_alone
    def take_free(self, mine: int) -> Slot | None:
        """A slot that seems to be free. `mine` spreads threads and processes over extents, so that they seldom
        meet: the kernel lets only one at a time write an entry to a file, and none a block meanwhile."""
        if not self._open:
            return None
        table = min(self._open.values(), key=lambda table: hash((table.extent.name, mine)))
        slot = next(iter(table.free))
        table.touched.add(slot)
        self._taken(table, slot)
        return table.extent, slot

    def _taken(self, table: _Table, slot: int) -> None:
        table.free.discard(slot)
        if not table.free:
            self._open.pop(table.extent.name, None)

    # What changed

    def _note(self, key: bytes, *, readable: bool) -> None:
        if self._changed.get(key) is (not readable):
            del self._changed[key]
        else:
            self._changed[key] = readable

    @_alone
    def changes(self) -> tuple[list[bytes], list[bytes]]:
        """Keys that became readable, and that became unreadable, since the last call; what did both is in neither."""
        changed, self._changed = self._changed, {}
        return [key for key, readable in changed.items() if readable], [key for key in changed if not changed[key]]

    @_alone
    def check_integrity(self) -> None:
        """For tests: the ways to find a place agree, and no slot is both free and taken. Raises AssertionError."""
        by_slot = {(name, slot): place for name, table in self._tables.items() for slot, place in table.places.items()}
        assert {(place.extent.name, place.slot): place for place in self._places.values()} == by_slot
        assert all(place.entry.key == key for key, place in self._places.items())
        assert all(not table.free & table.places.keys() for table in self._tables.values())
        assert self._open == {name: table for name, table in self._tables.items() if table.free}
