"""What has to go so that a model fits into the cache. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BLOCK = 4096


@dataclass(frozen=True)
class Entry:
    """A model in the cache, or the rest of a download."""

    name: str
    bytes: int
    """Physical; of a download under way, what it has reserved."""
    used: float
    """When it was last wanted, in seconds since the epoch."""
    busy: bool
    """Something runs on it, or downloads it."""
    whole: bool = True


def on_disk(size: int) -> int:
    """Bytes that a file of `size` bytes takes."""
    return -(-size // BLOCK) * BLOCK


def leaving(entries: Iterable[Entry], need: int, limit: int) -> list[Entry] | None:
    """Who goes so that `need` bytes more stay within `limit`: rests of downloads first, then the least recently used.
    None where it would not be enough if all that may go went."""
    entries = list(entries)
    over = sum(entry.bytes for entry in entries) + need - limit
    gone = []
    for entry in sorted((e for e in entries if not e.busy), key=lambda e: (e.whole, e.used, e.name)):
        if over <= 0:
            break
        gone.append(entry)
        over -= entry.bytes
    return gone if over <= 0 else None
