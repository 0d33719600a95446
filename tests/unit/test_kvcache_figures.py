"""Figures of KV tiers: never far from the truth, and not written for every block."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.v1alpha1 import CacheNode, CachePlacement, KVCacheStatus
from headrace_operator.kvcache import MOVED, calm


def status(used: int, rate: float | None = 0.5, *, node: str = "n1") -> KVCacheStatus:
    return KVCacheStatus(
        nodes=(CacheNode(node=node, bytes=used, limit=10**9, hit_rate=rate),),
        placement=(CachePlacement(slot="serve-0", node=node),),
    )


def test_nothing_new_is_nothing_to_write() -> None:
    assert calm(status(1000), status(1000)) == status(1000)
    assert calm(None, None) is None


def test_what_is_there_or_not_there_any_more_is_told() -> None:
    assert calm(None, status(1000)) == status(1000)
    assert calm(status(1000), None) is None
    assert calm(status(1000), status(1000, node="n2")) == status(1000, node="n2")
    assert calm(status(1000, None), status(1000, 0.0)) == status(1000, 0.0)
    assert calm(status(0), status(1)) == status(1)


def test_a_place_that_changes_is_told_with_figures_that_have_not_moved() -> None:
    after = status(1001).model_copy(update={"placement": ()})
    assert calm(status(1000), after) == status(1000).model_copy(update={"placement": ()})


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=40))
def test_what_is_told_is_never_far_from_what_is(measured: list[int]) -> None:
    told = status(0)
    for used in measured:
        found = calm(told, status(used))
        assert found is not None
        told = found
        assert abs(told.nodes[0].bytes - used) <= max(1, MOVED * told.nodes[0].bytes)


def test_a_disk_that_fills_up_block_by_block_is_told_a_few_times_only() -> None:
    told, writes = status(0), 0
    for used in range(0, 10**9, 10**5):
        found = calm(told, status(used))
        assert found is not None
        writes += found != told
        told = found
    assert writes <= 2 + math.log(10**9 / 10**5, 1 + MOVED)
