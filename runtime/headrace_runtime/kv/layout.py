"""The bytes of an extent, the file that KV blocks lie in. Pure: packs and unpacks, opens nothing.

    page 0          header
    table           an entry of 128 bytes for each slot: which block lies there, and the checksum of its bytes
    uses            a record of 16 bytes for each slot: when its block was last used, and how often
    slots           the blocks' bytes, each slot beginning on a page
    last page       the header again, for a file whose first page was hit

All numbers are little-endian. An entry of zeros is an empty slot. Entries and headers carry checks of their own, so
that half of one is never taken for one. `docs/kv-cache.md` draws every byte.
"""

from bisect import bisect_right
from dataclasses import dataclass
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

PAGE: Final = 4096
FORMAT: Final = 1
KEY_BYTES: Final = 56
"""The longest key."""
CHECKSUM_BYTES: Final = 16
NONCE_BYTES: Final = 12
MAX_SLOTS: Final = 4096

_HEADER: Final = Struct("<8sII16sQ")
_MAGIC: Final = b"HEADRACE"
_CHECK: Final = Struct("<Q")
_ENTRY: Final = Struct("<QIHHQd56s16s12s4x")
_USE: Final = Struct("<dII")

ENTRY_BYTES: Final = _ENTRY.size + _CHECK.size
USE_BYTES: Final = _USE.size
EMPTY: Final = bytes(ENTRY_BYTES)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where things lie in an extent of so many slots for blocks of at most so many bytes."""

    block_bytes: int
    slots: int

    @property
    def slot_bytes(self) -> int:
        return _pages(self.block_bytes)

    @property
    def uses_at(self) -> int:
        return PAGE + _pages(self.slots * ENTRY_BYTES)

    @property
    def slots_at(self) -> int:
        return self.uses_at + _pages(self.slots * USE_BYTES)

    @property
    def copy_at(self) -> int:
        """Where the header lies once more."""
        return self.slots_at + self.slots * self.slot_bytes

    @property
    def file_bytes(self) -> int:
        return self.copy_at + PAGE

    def entry_at(self, slot: int) -> int:
        return PAGE + slot * ENTRY_BYTES

    def use_at(self, slot: int) -> int:
        return self.uses_at + slot * USE_BYTES

    def slot_at(self, slot: int) -> int:
        return self.slots_at + slot * self.slot_bytes


def charge(file_bytes: int) -> int:
    """The most that an extent of so many bytes may ever take of the disk, what the file system notes about it included.

    Extents are allocated whole when they are made. What may grow later is the file system's own map of them, as
    allocated pages become written ones: at worst a record of 16 bytes (XFS; ext4's have 12) for each page.
    """
    return _pages(file_bytes + file_bytes // 200) + 4 * PAGE


def largest_geometry(block_bytes: int, room: int, slots: int) -> Geometry | None:
    """The extent of at most so many slots whose charge fits into `room` bytes; None where not even one block does."""
    fitting = bisect_right(
        range(1, min(slots, MAX_SLOTS) + 1), room, key=lambda slots: charge(Geometry(block_bytes, slots).file_bytes)
    )
    return Geometry(block_bytes, fitting) if fitting else None


@dataclass(frozen=True, slots=True)
class Header:
    """Which extent this is. `extent` are 16 random bytes, and the file's name in hex."""

    extent: bytes
    geometry: Geometry


def pack_header(header: Header) -> bytes:
    """One page."""
    geometry = header.geometry
    body = _HEADER.pack(_MAGIC, FORMAT, geometry.slots, header.extent, geometry.block_bytes)
    return (body + _CHECK.pack(xxh3_64_intdigest(body))).ljust(PAGE, b"\0")


def unpack_header(page: bytes) -> Header | None:
    """None: no header of this format, or not a whole one."""
    body, end = page[: _HEADER.size], _HEADER.size + _CHECK.size
    if len(page) < end or _CHECK.pack(xxh3_64_intdigest(body)) != page[_HEADER.size : end]:
        return None
    magic, form, slots, extent, block_bytes = _HEADER.unpack(body)
    if magic != _MAGIC or form != FORMAT or not 0 < slots <= MAX_SLOTS or block_bytes == 0:
        return None
    return Header(extent, Geometry(block_bytes, slots))


@dataclass(frozen=True, slots=True)
class Entry:
    """What the table says of one block."""

    key: bytes
    sequence: int
    """Random and never 0: tells this write of the slot from those before and after it."""
    depth: int
    length: int
    created: float
    checksum: bytes = bytes(CHECKSUM_BYTES)
    """Of place, key and data (`checksum.py`); the tag of AES-GCM where blocks are encrypted (`seal.py`)."""
    nonce: bytes = bytes(NONCE_BYTES)


def slot_place(scope: str, extent: bytes, slot: int) -> bytes:
    """Names one slot of all that there are. `scope` is the name of the identity's folder."""
    return b"%s/%s/%d:" % (scope.encode(), extent.hex().encode(), slot)


def slot_seed(place: bytes) -> int:
    """What the check of a slot's entry begins with: an entry that is found elsewhere than it was written is none."""
    return xxh3_64_intdigest(place)


def pack_entry(entry: Entry, seed: int) -> bytes:
    body = _ENTRY.pack(
        entry.sequence,
        entry.depth,
        len(entry.key),
        0,
        entry.length,
        entry.created,
        entry.key,
        entry.checksum,
        entry.nonce,
    )
    return body + _CHECK.pack(xxh3_64_intdigest(body, seed))


def unpack_entry(raw: bytes, seed: int) -> Entry | None:
    """None: the slot is empty (`raw == EMPTY`), or these bytes are not a whole entry of it."""
    body = raw[: _ENTRY.size]
    if len(raw) != ENTRY_BYTES or raw == EMPTY or _CHECK.pack(xxh3_64_intdigest(body, seed)) != raw[_ENTRY.size :]:
        return None
    sequence, depth, key_length, _, length, created, key, checksum, nonce = _ENTRY.unpack(body)
    return Entry(key[:key_length], sequence, depth, length, created, checksum, nonce)


@dataclass(frozen=True, slots=True)
class Use:
    """When a block was last used, and how often since it was written. Not checked: it decides what goes first, and
    nothing else."""

    used: float
    uses: int


def pack_use(use: Use, sequence: int) -> bytes:
    return _USE.pack(use.used, min(use.uses, 2**32 - 1), sequence & 0xFFFFFFFF)


def unpack_use(raw: bytes, entry: Entry, now: float) -> Use:
    """A record that is of an earlier block of the slot, or of no time that can be, counts as none."""
    if len(raw) == USE_BYTES:
        used, uses, sequence = _USE.unpack(raw)
        if sequence == entry.sequence & 0xFFFFFFFF and entry.created <= used <= now:
            return Use(used, uses)
    return Use(min(entry.created, now), 0)
