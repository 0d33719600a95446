"""Which block lies where in host memory: transfers that begin and end amid a chunk, models with several groups."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.kv.chunks import Pair, pairs


def test_no_blocks_have_no_places() -> None:
    assert pairs([0, 0], [0, 7], [], [], 4) == [[], []]


def test_a_transfer_may_begin_and_end_amid_a_chunk() -> None:
    assert pairs([4], [3], [10, 11, 12, 13], [5, 6], 4) == [
        [Pair(10, 5, 3), Pair(11, 6, 0), Pair(12, 6, 1), Pair(13, 6, 2)]
    ]


def test_groups_follow_each_other_in_blocks_and_in_chunks() -> None:
    assert pairs([2, 0, 1], [0, 9, 1], [10, 11, 30], [5, 7], 2) == [
        [Pair(10, 5, 0), Pair(11, 5, 1)],
        [],
        [Pair(30, 7, 1)],
    ]


@pytest.mark.parametrize(("blocks", "chunks"), [([1], [5]), ([1, 2], []), ([1, 2], [5, 6]), ([1, 2, 3], [5])])
def test_what_does_not_fit_together_is_refused(blocks: list[int], chunks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"too (few|many)"):
        pairs([2], [0], blocks, chunks, 2)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_every_block_has_one_place_in_the_order_of_its_request(groups: list[tuple[int, int]], per_chunk: int) -> None:
    counts, firsts = [count for count, _ in groups], [first for _, first in groups]
    used = [len({(first + index) // per_chunk for index in range(count)}) for count, first in groups]
    blocks, chunks = list(range(100, 100 + sum(counts))), list(range(sum(used)))
    found = pairs(counts, firsts, blocks, chunks, per_chunk)
    assert [pair.block for group in found for pair in group] == blocks
    assert sorted({pair.chunk for group in found for pair in group}) == chunks
    for group, first, skipped in zip(found, firsts, (sum(used[:index]) for index in range(len(used))), strict=True):
        for index, pair in enumerate(group):
            place = first + index
            assert pair.slot == place % per_chunk
            assert pair.chunk - skipped == place // per_chunk - first // per_chunk
