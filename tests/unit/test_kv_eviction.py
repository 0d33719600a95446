"""Which KV blocks go first."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.kv.eviction import ORDERS, Block

blocks = st.builds(
    Block,
    key=st.binary(min_size=4, max_size=4),
    depth=st.integers(0, 300),
    created=st.floats(0, 1e4),
    used=st.floats(0, 1e4),
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
