"""Where an engine's blocks lie in the larger pieces that vLLM keeps in host memory. Pure.

vLLM's offloading moves *chunks* of one or several blocks. A request's first and last chunk of a transfer may be moved
in part, and in a hybrid model each group of layers has blocks of its own (`GPULoadStoreSpec` in
vllm/v1/kv_offload/base.py). Called by `engine/kvspec.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """A block of the engine, and its place in host memory."""

    block: int
    chunk: int
    slot: int
    """Which of the chunk's blocks."""


def pairs(
    groups: Sequence[int], firsts: Sequence[int], blocks: Sequence[int], chunks: Sequence[int], blocks_per_chunk: int
) -> list[list[Pair]]:
    """For each group its blocks with their places.

    `groups`: how many of `blocks` each group has, one group after the other. `firsts`: which block of its request the
    first of each group is. `chunks`: those that these blocks lie in, by group as well. Raises ValueError where the
    three do not fit together.
    """
    found: list[list[Pair]] = []
    block = chunk = 0
    for count, first in zip(groups, firsts, strict=True):
        skipped = first % blocks_per_chunk
        used = -(-(skipped + count) // blocks_per_chunk) if count else 0
        if block + count > len(blocks) or chunk + used > len(chunks):
            raise ValueError(f"{len(blocks)} blocks and {len(chunks)} chunks are too few for groups {list(groups)}")
        places = range(skipped, skipped + count)
        found.append([
            Pair(int(blocks[block + index]), int(chunks[chunk + place // blocks_per_chunk]), place % blocks_per_chunk)
            for index, place in enumerate(places)
        ])  # fmt: skip
        block += count
        chunk += used
    if (block, chunk) != (len(blocks), len(chunks)):
        raise ValueError(f"{len(blocks)} blocks and {len(chunks)} chunks are too many for groups {list(groups)}")
    return found
