"""What a store is made from, and what its parts share: settings, the world it stands in, what it counts.

`store.py` has the blocks, `room.py` the slots to write them to, `upkeep.py` what has to be looked after.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from headrace_runtime.contract import KvReason
from headrace_runtime.kv.budget import Budget
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.health import Health, Part
from headrace_runtime.kv.index import Index, Slot
from headrace_runtime.kv.layout import PAGE, Geometry, charge

MEASURE_SECONDS: Final = 5.0
"""How often the folder is measured, and how long a budget that is used up is taken to remain so."""
FOLDERS_BYTES: Final = 4 * PAGE
"""What the folders of a deployment and an identity may take, by `budget.measure`."""
HELD_BYTES: Final = 2 * PAGE
"""What the file that holds a folder may take once the disk was probed with it."""
EXTENT_BYTES: Final = 256 * 1024**2
EXTENTS: Final = 128
"""Large stores have about so many, of more than EXTENT_BYTES each: every extent is two open files."""
FEWEST_EXTENTS: Final = 8
"""Small stores have at least so many, so that room can be given back in pieces."""


T = TypeVar("T")


class StoreError(Exception):
    """The settings cannot work: nothing was opened, and trying again is of no use."""

    def __init__(self, reason: KvReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Settings:
    size_bytes: int
    """Physical bytes of the deployment's folder: never passed, whoever writes."""
    node_size_bytes: int | None
    """The same of the node's folder. None: no such limit."""
    block_bytes: int
    """The largest block."""
    verify: bool
    eviction: str
    """A name of `eviction.ORDERS`."""
    on_model_change: str
    """Fence: blocks of other identities stay, unread, until their room is needed. Wipe: they are deleted as soon as no
    engine holds them."""
    key: bytes | None
    """Of AES-256. None: blocks are not encrypted."""

    @property
    def least_bytes(self) -> int:
        """The smallest budget that holds a block."""
        return charge(Geometry(self.block_bytes, 1).file_bytes) + FOLDERS_BYTES + HELD_BYTES

    @property
    def slots(self) -> int:
        """Of an extent, as long as there is room for a whole one."""
        target = max(min(EXTENT_BYTES, self.size_bytes // FEWEST_EXTENTS), self.size_bytes // EXTENTS)
        return max(1, target // Geometry(self.block_bytes, 1).slot_bytes)


@dataclass
class Counters:
    """As in `KvState`."""

    looked_up: int = 0
    found: int = 0
    stored: int = 0
    loaded: int = 0
    damaged: int = 0
    evicted: int = 0


@dataclass
class Common:
    """Of one `Store`."""

    settings: Settings
    root: Path
    """The deployment's folder; the one above is the node's."""
    folder: Path
    """The identity's."""
    clock: Callable[[], float]
    """The wall clock: dates blocks."""
    ticks: Callable[[], float]
    """Never goes back: leases, pauses."""
    disk: Disk
    budget: Budget
    health: Health
    index: Index = field(default_factory=Index)
    count: Counters = field(default_factory=Counters)
    litter: deque[Slot] = field(default_factory=deque)
    """Slots that hold nothing of use, and are to be emptied once nobody uses them."""
    held: int | None = None
    """The open file that keeps others from deleting `folder`; None: the folder is not there."""
    bytes_used: int = 0
    full_until: float = float("-inf")
    """The budget was found used up: no new extent is tried before this time of `ticks`."""

    def attempt(self, part: Part, work: Callable[[], None]) -> bool:
        """False: the disk is to be left alone, or `work` failed by it, which is noted."""
        number = self.health.begin(part)
        if number is None:
            return False
        try:
            work()
        except OSError as error:
            self.health.failed(number, error, lasting=True)
            return False
        self.health.end(number)
        return True

    def see_to(self, part: Part, work: Callable[[], T]) -> T | None:
        """For work that memory may answer for a disk that is not well: it is done whatever is known of the disk, its
        failure counts, its success and its time do not. None: it failed."""
        number = self.health.begin(part, always=True)
        if number is None:
            return None
        try:
            done = work()
        except OSError as error:
            self.health.failed(number, error)
            return None
        self.health.proved_nothing(number)
        return done
