"""From which share of a prompt on disk on it pays to read it: the arithmetic of `bench kv-reload`."""

import pytest

from bench.kv_reload import BLOCK, REST, Ask, Plan, Told, break_even

BLOCKS = 10


def plan(ratios: dict[int, float]) -> Plan:
    """`ratios`: ours ÷ computed, by blocks on disk of a prompt of ten."""

    def told(stored: int, ratio: float) -> Told:
        return Told(Ask([0] * (BLOCKS * BLOCK + REST), stored), seconds={"off": 2.0, "ours": 2.0 * ratio})

    return Plan({}, {stored: [told(stored, ratio)] for stored, ratio in ratios.items()}, [])


def share(blocks: float) -> float:
    return 100 * blocks * BLOCK / (BLOCKS * BLOCK + REST)


@pytest.mark.parametrize(
    ("ratios", "blocks"),
    [
        ({0: 0.99, 5: 0.5, 10: 0.1}, 0.0),  # never slower
        ({0: 1.2, 2: 0.8, 10: 0.1}, 1.0),  # half way between the first two
        ({0: 1.1, 2: 1.1, 4: 0.9, 10: 0.1}, 3.0),
        ({0: 0.9, 2: 1.1, 4: 0.9, 10: 0.1}, 3.0),  # the last time that it is slower counts
    ],
)
def test_break_even_is_where_ours_was_last_slower(ratios: dict[int, float], blocks: float) -> None:
    assert break_even(plan(ratios)) == pytest.approx(share(blocks))


def test_where_reading_all_of_it_is_slower_it_never_pays() -> None:
    assert break_even(plan({0: 1.1, 5: 0.9, 10: 1.01})) == 100.0
