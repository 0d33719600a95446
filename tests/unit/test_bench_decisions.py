"""What `bench routing` times: both ways have to choose alike."""

import pytest

from bench.decisions import Scene, memory_per_block


@pytest.mark.parametrize(("engines", "depth"), [(1, 3), (8, 24), (100, 128)])
def test_both_ways_choose_the_same_engine(engines: int, depth: int) -> None:
    scene = Scene(engines, depth)
    assert scene.ours() == scene.naive() == scene.ours()


def test_a_block_takes_hundreds_of_bytes_and_not_more() -> None:
    assert 50 < memory_per_block(blocks=3000) < 1000
