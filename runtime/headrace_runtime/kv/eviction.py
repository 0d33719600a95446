"""Which KV blocks go first when the disk is full: pure functions of what the store's entry table remembers of each.

An order never reads a clock, draws by chance or touches a disk. `kv/store.py` asks for one when it needs room, takes
blocks from its front until there is enough, and leaves out beforehand what is under a lease or being read. A prompt's
block is of use only with all blocks before it, so every order drops tails before heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Block:
    """What an entry of the store's table says of its block. Times in seconds of one clock, of any origin."""

    key: bytes
    depth: int
    """Place in its prompt, counted in blocks from 0."""
    created: float
    used: float
    """When it was last written, read or touched."""
    uses: int
    """How often it was read or touched since it was written."""
    size: int
    """Bytes."""


Order = Callable[[Sequence[Block], float], list[Block]]
"""(blocks, now) -> the same blocks, first to go first. The same whatever the order they come in."""


def least_recently_used(blocks: Sequence[Block], now: float) -> list[Block]:
    """Longest unused first; of those used in the same moment, which are those of one prompt, the tail first."""
    return sorted(blocks, key=lambda block: (block.used, -block.depth, block.key))


ORDERS: Final[dict[str, Order]] = {"Default": least_recently_used, "LRU": least_recently_used}
"""By the name in the spec, `kvCache.disk.eviction`."""
