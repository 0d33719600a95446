"""The torture of the KV store, small: its checks hold, and each of them can fail."""

import random
from pathlib import Path

import pytest

from bench.damage import KINDS, Damage
from bench.kv_torture import Counts, Outcome, Scale, report, torture


def outcome(name: str, **counts: int) -> Outcome:
    found = Counts(1)
    for count, number in counts.items():
        found.add(0, count, number)
    return Outcome(name, found, kills=9, damages=900, finished=100, readable=100, limit=1)


GOOD = [
    outcome("killed"),
    outcome("damaged", damaged=100, evicted=1000),
    outcome("common", wrong=5),
    outcome("hit"),
]
SCALE = Scale(kills=9, damages=900, keys=1)


def test_a_run_in_which_nothing_went_wrong_holds() -> None:
    assert report(SCALE, GOOD).ok


@pytest.mark.parametrize(
    ("part", "bad"),
    [
        (0, outcome("killed", wrong=1)),
        (0, outcome("killed", evicted=1)),
        (0, outcome("killed", damaged=1)),
        (0, outcome("killed", over=1)),
        (0, Outcome("killed", Counts(1), 9, 0, finished=100, readable=98, limit=1)),
        (1, outcome("damaged", damaged=100, evicted=1000, wrong=1)),
        (1, outcome("damaged", damaged=100, evicted=1000, over=1)),
        (1, outcome("damaged", damaged=0, evicted=1000)),
        (2, outcome("common", wrong=0)),
        (3, outcome("hit", wrong=1)),
        (3, Outcome("hit", Counts(1), 0, 0, finished=100, readable=98)),
    ],
)
def test_each_check_can_fail(part: int, bad: Outcome) -> None:
    assert not report(SCALE, [*GOOD[:part], bad, *GOOD[part + 1 :]]).ok


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_done_where_it_is_said_to_be(tmp_path: Path, kind: str) -> None:
    file, before = tmp_path / "a.kv", bytes(range(256)) * 64
    file.write_bytes(before)
    damage = Damage(tmp_path, random.Random(5))
    struck = damage.strike(kind)
    assert struck is not None
    path, begin, end = struck
    assert path == file
    after = file.read_bytes() if file.exists() else b""
    assert after != before
    assert after[:begin] == before[:begin]
    assert len(after) < len(before) or after[end:] == before[end:]
    assert damage.done == {kind: 1}


def test_without_files_nothing_is_damaged(tmp_path: Path) -> None:
    damage = Damage(tmp_path, random.Random(5))
    assert damage.strike() is None
    assert not damage.done


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_store_survives_a_little_of_the_torture(tmp_path: Path) -> None:
    found = torture(tmp_path, Scale(kills=5, damages=150, keys=150))
    assert found.ok, [check for check in found.checks if not check.ok]
