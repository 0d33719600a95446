"""KV blocks as engines speak of them, and prompts as places between them. Pure.

Values only: `kvevents.py` makes them of events, `prompts.py` of prompts, `prefix.py` brings the two together.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Tier = Literal["device", "host", "disk"]
Name = int | bytes
"""What an engine calls a block: the hash that vLLM gives it."""
Path = Sequence[tuple[int, int]]
"""`(key, tokens)` of places in a prompt, in order. Equal keys: equal prompts up to there."""

ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """An engine's device has these blocks now, one after the other, the first after block `parent`."""

    names: Sequence[Name]
    parent: Name | None
    tokens: Sequence[int]
    block_size: int
    extra: Sequence[object] = ()
    """What else tells a block from another of the same tokens (adapter, image, salt), one entry per block or none."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Who holds how much of a prompt: tokens by engine's name, one that is missing holds none there."""

    device: Mapping[str, float] = field(default_factory=dict)
    """From the beginning."""
    host: Mapping[str, float] = field(default_factory=dict)
    """What follows on that in host memory, and not on the device."""
    disk: Mapping[str, float] = field(default_factory=dict)
    """What follows on these, some of it on disk alone."""


def keys_of(tokens: Sequence[int], block_size: int, parent: int = ROOT, extra: Sequence[object] = ()) -> list[int]:
    """The key of each full block of `tokens`, which follow on `parent`.

    Raises OverflowError for what is no token id. Keys hold within one process only: Python's hash is salted, so that
    nobody can make two prompts meet on purpose. Where two do, a request goes to an engine that has to compute its
    prompt after all.
    """
    data, width = array("I", tokens).tobytes(), 4 * block_size
    keys: list[int] = []
    if not extra or not any(extra):
        for start in range(0, len(data) - width + 1, width):
            parent = hash((parent, data[start : start + width]))
            keys.append(parent)
        return keys
    for index, start in enumerate(range(0, len(data) - width + 1, width)):
        parent = hash((parent, data[start : start + width], repr(extra[index]) if extra[index] else ""))
        keys.append(parent)
    return keys
