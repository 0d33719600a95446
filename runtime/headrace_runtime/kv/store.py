"""The KV blocks of one identity on a disk of the node: `put`, `get`, and never a byte that was not verified.

Several engine processes of a node share one store, each through a `Store` of its own; they talk through the disk's
files and the kernel's locks alone, and any of them may die at any instruction. A block is written once, data before
entry, into a slot that its writer owns; readers wait for nobody. A fault of the disk is an answer, never an exception:
`put` and `get` say False, `state` says why, and the store tries again by itself. `docs/kv-cache.md` has the protocol
and what is proved of it.

`engine/kvtier.py` is the caller: `in`, `touch` and `events` from the scheduler's thread, without I/O; `put` and `get`
from worker threads; `refresh` once a second from a thread of its own.
"""

import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Final

from headrace_runtime.contract import KvState
from headrace_runtime.kv.budget import Budget
from headrace_runtime.kv.common import Common, Settings, StoreError
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.health import Health
from headrace_runtime.kv.index import Place, Slot
from headrace_runtime.kv.layout import KEY_BYTES, Entry
from headrace_runtime.kv.room import Room
from headrace_runtime.kv.seal import SECRET_BYTES, Checksum, Encryption, Seal, context, secret_name
from headrace_runtime.kv.survey import Survey
from headrace_runtime.kv.upkeep import Upkeep

__all__ = ["LEASE_SECONDS", "Settings", "Store", "StoreError"]

LEASE_SECONDS: Final = 10.0
"""How long a block that was touched is not evicted, by any process of the node."""

Buffer = bytes | bytearray | memoryview


class Store:
    """Thread-safe. `root` is the deployment's folder, made if need be; the folder above it is the node's, which the
    deployments share. `clock` is the wall clock (it dates blocks), `ticks` one that never goes back.

    Raises:
        StoreError: BudgetTooSmall, KeyMissing. A disk that cannot be used is no such error: see `state`.
    """

    def __init__(
        self,
        root: Path,
        identity_folder: str,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        disk: Disk | None = None,
    ) -> None:
        _check(settings)
        disk = disk or Disk()
        name = identity_folder if settings.key is None else f"{identity_folder}-{secret_name(settings.key)}"
        budget = Budget(disk, root, settings.size_bytes, settings.node_size_bytes)
        self._c = Common(settings, root, root / name, clock, ticks, disk, budget, Health(ticks))
        self._index, self._health, self._count = self._c.index, self._c.health, self._c.count
        self._seal: Seal = Checksum(verify=settings.verify) if settings.key is None else Encryption(settings.key)
        survey = Survey(self._c)
        self._room = Room(self._c, survey)
        self._upkeep = Upkeep(self._c, survey)
        self._turn = Lock()
        self._closed = False
        self.refresh()

    # The scheduler's thread: memory only

    def __contains__(self, key: bytes) -> bool:
        self._count.looked_up += 1
        if key not in self._index or not self._health.lets_through("read"):
            return False
        self._count.found += 1
        return True

    def touch(self, keys: Iterable[bytes], at: float | None = None) -> None:
        """These blocks are wanted: no process of the node evicts them for LEASE_SECONDS. They count as used when the
        request came that wants them, `at` by the clock, however often it is touched for; None: now."""
        now, until = self._c.clock(), self._c.ticks() + LEASE_SECONDS
        used = now if at is None else min(at, now)
        for key in keys:
            place = self._index.get(key)
            if place is not None and place.extent.claims.lease(place.slot, until) and (used > place.used or at is None):
                place.used, place.uses = used, place.uses + 1
                self._upkeep.note_use(place)

    def events(self) -> tuple[list[bytes], list[bytes]]:
        """Keys that became readable, and that became unreadable, since the last call."""
        return self._index.changes()

    def state(self) -> KvState:
        reason, message = self._health.verdict()
        return KvState(
            ready=not reason,
            reason=reason,
            message=message,
            bytes_used=self._c.bytes_used,
            bytes_limit=self._c.settings.size_bytes,
            blocks=len(self._index),
            **vars(self._count),
        )

    # Worker threads

    def get(self, key: bytes, into: memoryview) -> bool:
        """Read a block into the caller's memory, which has to be as long as the block. True only if it was verified;
        else anything may be in `into`."""
        place = self._index.get(key)
        if place is None:
            return False
        view = into.cast("B")
        if len(view) != place.entry.length:
            raise ValueError(f"the block has {place.entry.length} bytes, the memory for it {len(view)}")
        number = self._health.begin("read")
        if number is None:
            return False
        try:
            loaded = self._read(place, view)
        except OSError as error:
            self._health.failed(number, error)
            self._give_up(place)
            return False
        self._health.end(number, len(view))
        self._count.loaded += loaded
        return loaded

    def put(self, key: bytes, block: Buffer, depth: int, at: float | None = None) -> bool:
        """Write a block; `depth` is its place in its prompt, counted in blocks, and `at` when the request came that it
        is of, by the clock; None: now. True: it can be read from now on, or could already. False: there is no room for
        it, or the disk is not well."""
        view = memoryview(block).cast("B")
        if not 0 < len(key) <= KEY_BYTES or not 0 < len(view) <= self._c.settings.block_bytes:
            raise ValueError(f"a key of {len(key)} bytes, a block of {len(view)}")
        if key in self._index:
            return True
        if not self._health.lets_through("write"):
            return False
        slot = self._c.see_to("write", self._room.claim)
        if slot is None:
            return False
        number = self._health.begin("write")
        if number is None:
            self._room.give_back(slot)
            return False
        try:
            self._write(slot, key, view, depth, at)
        except OSError as error:
            self._health.failed(number, error)
            self._index.doubt(slot[0])  # the slot may be as free as it was
            return False
        self._health.end(number, len(view))
        self._count.stored += 1
        return True

    def refresh(self) -> None:
        """See what other engines wrote or evicted, tell them what was used here, and look after the disk."""
        with self._turn:
            if not self._closed:
                self._upkeep.turn()

    def close(self) -> None:
        """The blocks stay. From now on every answer is False."""
        with self._turn:
            if not self._closed:
                self._closed = True
                self._upkeep.close()

    def _read(self, place: Place, into: memoryview) -> bool:
        extent, slot, entry = place.extent, place.slot, place.entry
        if not extent.claims.share(slot):
            self._doubt(place)
            return False
        try:
            if extent.entry(slot) != place.raw:
                self._doubt(place)
                return False
            landed = self._seal.landing(into)
            about = context(extent.place(slot), entry.sequence, entry.key, entry.length)
            good = extent.read(slot, landed) and self._seal.opens(about, landed, into, entry.checksum, entry.nonce)
        finally:
            extent.claims.unshare(slot)
        if not good:
            self._count.damaged += 1
            self._drop(place)
        return good

    def _write(self, where: Slot, key: bytes, block: memoryview, depth: int, at: float | None) -> None:
        """The slot is owned and empty. Data first: an entry says that all of it is there."""
        extent, slot = where
        try:
            now, sequence = self._c.clock(), secrets.randbits(64) | 1
            used = now if at is None else min(at, now)
            created, uses = self._room.ghosts.recall(key, used)
            data, checksum, nonce = self._seal.close(context(extent.place(slot), sequence, key, len(block)), block)
            extent.write(slot, data)
            entry = Entry(key, sequence, depth, len(block), created, checksum, nonce)
            raw = extent.write_entry(slot, entry)
        finally:
            extent.claims.disown(slot)
        place = Place(extent, slot, raw, entry, used, uses)
        if uses:
            self._upkeep.note_use(place)
        self._c.litter.extend(self._index.add(place))

    def _drop(self, place: Place) -> None:
        """At least for ourselves, where another process has a lease of it."""
        place.extent.claims.end_lease(place.slot)
        if not self._room.drop(place):
            self._doubt(place)

    def _give_up(self, place: Place) -> None:
        """The block could not be read. On a disk that is otherwise well its slot is emptied: written anew, it may be
        good again. Else it is asked for again when the disk is well."""
        if self._health.lets_through("read"):
            self._c.see_to("write", lambda: self._drop(place))
        else:
            self._doubt(place)

    def _doubt(self, place: Place) -> None:
        """The block is not, or cannot be, read where it was: forget it until the next look."""
        self._index.remove(place)
        self._index.doubt(place.extent)


def _check(settings: Settings) -> None:
    most = min(settings.size_bytes, settings.node_size_bytes or settings.size_bytes)
    if most < settings.least_bytes:
        message = f"kvCache.disk.size: {most} bytes hold no block, it has to be {settings.least_bytes} at least"
        raise StoreError("BudgetTooSmall", message)
    if settings.key is not None and len(settings.key) != SECRET_BYTES:
        raise StoreError("KeyMissing", f"kvCache.disk.encryption: the key has to be {SECRET_BYTES} bytes long")
