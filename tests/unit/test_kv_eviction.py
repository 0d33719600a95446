"""Which KV blocks go first."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.kv.eviction import ORDERS, Block, Ghosts, expected_return, whole_prompts

blocks = st.builds(
    Block,
    key=st.binary(min_size=4, max_size=4),
    depth=st.integers(0, 300),
    created=st.floats(9050, 1e4),
    used=st.floats(9050, 1e4),
    uses=st.integers(0, 50),
    size=st.just(4096),
)
stores = st.lists(blocks, max_size=40, unique_by=lambda block: block.key)
every_order = pytest.mark.parametrize("name", sorted(ORDERS))


@every_order
def test_an_empty_store_has_nothing_to_evict(name: str) -> None:
    assert ORDERS[name]([], 0.0) == []


@every_order
@settings(deadline=None)
@given(store=stores)
def test_every_block_is_in_the_order_once(name: str, store: list[Block]) -> None:
    order = ORDERS[name](store, 1e4)
    assert sorted(order, key=lambda block: block.key) == sorted(store, key=lambda block: block.key)


@every_order
@settings(deadline=None)
@given(store=stores, seed=st.integers())
def test_the_order_does_not_depend_on_how_blocks_come(name: str, store: list[Block], seed: int) -> None:
    shuffled = list(store)
    random.Random(seed).shuffle(shuffled)
    assert ORDERS[name](shuffled, 1e4) == ORDERS[name](store, 1e4)


@every_order
def test_the_tail_of_a_prompt_goes_before_its_head(name: str) -> None:
    prompt = [Block(bytes([depth]), depth, 5.0, 5.0, 0, 4096) for depth in range(20)]
    assert [block.depth for block in ORDERS[name](prompt, 10.0)] == list(range(19, -1, -1))


def test_where_prompts_are_kept_for_a_quarter_of_an_hour_the_longest_unused_goes_first() -> None:
    talk = prompt(1, 8, 880.0, before=[(2, 600.0), (4, 700.0), (6, 800.0)])
    once = prompt(2, 400, 890.0)
    assert expected_return([*talk, *once], 899.0)[0] in once
    ancient = prompt(3, 1, 0.0)
    assert expected_return([*talk, *once, *ancient], 901.0) == [*ancient, *talk[::-1], *once[::-1]]


def prompt(name: int, length: int, at: float, *, before: Sequence[tuple[int, float]] = ()) -> list[Block]:
    """The blocks of a conversation whose last turn was at that moment. `before`: of each earlier turn, its blocks and
    its moment."""
    made: list[Block] = []
    for turn, (blocks, moment) in enumerate(before):
        uses, depths = len(before) - turn, range(len(made), blocks)
        made += [Block(b"%d:%d" % (name, depth), depth, moment, at, uses, 4096) for depth in depths]
    return made + [Block(b"%d:%d" % (name, depth), depth, at, at, 0, 4096) for depth in range(len(made), length)]


def names(order: Sequence[Block]) -> list[bytes]:
    """Of the prompts, in the order in which their first block goes."""
    return list(dict.fromkeys(block.key.split(b":")[0] for block in order))


@settings(deadline=None)
@given(store=stores)
def test_of_what_was_used_together_no_tail_outlives_its_head(store: list[Block]) -> None:
    """Every order, so that no block is kept that nothing leads to."""
    together = [replace(block, used=1e4, created=min(block.created, 1e4)) for block in store]
    for order in ORDERS.values():
        depths = [block.depth for block in order(together, 1e4 + 60)]
        assert depths == sorted(depths, reverse=True)


def test_lru_lets_the_longest_unused_prompt_go_first_and_its_tail_before_its_head() -> None:
    store = prompt(1, 3, 20.0) + prompt(2, 3, 10.0)
    assert [block.key for block in ORDERS["LRU"](store, 30.0)] == [b"2:2", b"2:1", b"2:0", b"1:2", b"1:1", b"1:0"]


def test_a_conversation_of_many_turns_outlives_a_prompt_that_came_once() -> None:
    long_running = prompt(1, 14, 100.0, before=[(8, 10.0), (10, 40.0), (12, 70.0)])
    order = expected_return(long_running + prompt(2, 14, 101.0), 160.0)
    assert names(order[::-1])[0] == b"1"


def test_what_waited_a_minute_outlives_what_came_this_moment() -> None:
    assert names(expected_return(prompt(1, 14, 100.0) + prompt(2, 14, 160.0), 160.0)) == [b"2", b"1"]


def test_what_nobody_came_back_to_for_an_hour_goes_first() -> None:
    store = prompt(1, 14, 100.0, before=[(8, 10.0), (12, 50.0)]) + prompt(2, 14, 3700.0)
    assert names(expected_return(store, 3700.0)) == [b"1", b"2"]


def test_a_beginning_that_many_conversations_share_goes_last() -> None:
    shared = [Block(b"0:%d" % depth, depth, 0.0, 500.0, 400, 4096) for depth in range(3)]
    mine = [Block(b"1:%d" % depth, depth, 500.0, 500.0, 0, 4096) for depth in range(3, 12)]
    others = [block for name in range(2, 9) for block in prompt(name, 12, 440.0 + name)]
    assert names(expected_return(shared + mine + others, 501.0))[-1] == b"0"


def test_what_was_shared_once_and_is_no_more_does_not_stay() -> None:
    once = [Block(b"0:%d" % depth, depth, 0.0, 60.0, 50, 4096) for depth in range(3)]
    assert names(expected_return(once + prompt(1, 12, 1900.0), 2000.0)) == [b"0", b"1"]


def test_the_unfinished_end_of_a_prompt_goes_before_everything_that_is_full() -> None:
    store = prompt(1, 5, 100.0) + prompt(2, 5, 150.0)
    store[4] = replace(store[4], size=1000)
    assert expected_return(store, 160.0)[0] == store[4]


def test_a_ghost_gives_a_block_its_past_back_once() -> None:
    ghosts = Ghosts()
    ghosts.remember(Block(b"a", 3, 10.0, 20.0, 2, 4096))
    assert ghosts.recall(b"a", 50.0) == (10.0, 3)
    assert ghosts.recall(b"a", 50.0) == (50.0, 0)


def test_no_more_ghosts_are_kept_than_there_may_be() -> None:
    ghosts = Ghosts(2)
    for number in range(3):
        ghosts.remember(Block(b"%d" % number, 0, 1.0, 1.0, 0, 4096))
    assert [ghosts.recall(b"%d" % number, 9.0)[0] for number in range(3)] == [9.0, 1.0, 1.0]


@settings(deadline=None)
@given(moments=st.lists(st.integers(0, 50).map(float), min_size=1), most=st.integers(1, 30), seed=st.integers())
def test_of_a_prompt_all_blocks_are_drawn_or_none(moments: list[float], most: int, seed: int) -> None:
    drawn = whole_prompts(moments, most, random.Random(seed).random)
    assert drawn
    assert drawn <= set(moments)
    if most >= len(moments):
        assert drawn == set(moments)
