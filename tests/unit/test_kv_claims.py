"""Claims on slots: shared or owned, never both, nobody waits, and nothing is left of who is gone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_runtime.kv.claims import Claims, own_whole


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "extent"
    path.touch()
    return path


@pytest.fixture
def two(file: Path) -> Iterator[tuple[Claims, Claims]]:
    """Of two processes, as the kernel sees it: each has the file open for itself."""
    pair = tuple(Claims(os.open(file, os.O_RDWR), os.close) for _ in range(2))
    yield pair[0], pair[1]
    for claims in pair:
        claims.retire()


def test_many_share_a_slot_and_none_owns_it_meanwhile(two: tuple[Claims, Claims]) -> None:
    one, other = two
    assert one.share(3)
    assert one.share(3)
    assert other.share(3)
    assert not one.own(3)
    assert not other.own(3)
    one.unshare(3)
    other.unshare(3)
    assert not other.own(3), "the other thread still reads"
    one.unshare(3)
    assert other.own(3)


def test_one_owns_a_slot_and_none_shares_it_meanwhile(two: tuple[Claims, Claims]) -> None:
    one, other = two
    assert one.own(3)
    assert not one.own(3)
    assert not one.share(3)
    assert not other.own(3)
    assert not other.share(3)
    assert not other.lease(3, 10.0)
    assert other.own(4)
    one.disown(3)
    assert other.share(3)


def test_a_lease_holds_until_it_expires_or_is_ended(two: tuple[Claims, Claims]) -> None:
    one, other = two
    assert one.lease(3, 10.0)
    assert one.lease(4, 20.0)
    one.expire(5.0)
    assert one.lease(3, 15.0), "and can be prolonged"
    one.expire(10.0)
    assert not other.own(3)
    assert not one.own(3)
    one.expire(15.0)
    assert other.own(3)
    assert not other.own(4)
    one.end_lease(4)
    assert other.own(4)


def test_a_reader_under_a_lease_takes_none_of_it_away(two: tuple[Claims, Claims]) -> None:
    one, other = two
    assert one.lease(3, 10.0)
    assert one.share(3)
    one.unshare(3)
    assert not other.own(3)
    assert one.share(3)
    one.expire(10.0)
    assert not other.own(3)
    one.unshare(3)
    assert other.own(3)


def test_what_a_process_held_is_free_when_it_is_gone(file: Path) -> None:
    dead = os.open(file, os.O_RDWR)
    claims = Claims(dead, os.close)
    assert claims.own(1)
    assert claims.lease(2, 1e9)
    after = Claims(os.open(file, os.O_RDWR), os.close)
    assert not after.own(1)
    os.close(dead)
    assert after.own(1)
    assert after.own(2)
    after.disown(1)
    after.disown(2)
    after.retire()


def test_a_file_is_owned_whole_only_while_nobody_claims_any_of_it(two: tuple[Claims, Claims], file: Path) -> None:
    one, other = two
    assert one.share(3)
    with file.open("r+b") as opened:
        assert not own_whole(opened.fileno())
        one.unshare(3)
        assert own_whole(opened.fileno())
        assert not other.share(5)
        assert not other.own(4000)
    assert other.share(5)


def test_a_retired_file_is_closed_when_the_last_claim_ends(file: Path) -> None:
    closed: list[int] = []
    opened = os.open(file, os.O_RDWR)
    claims = Claims(opened, closed.append)
    assert claims.share(1)
    assert claims.own(2)
    claims.retire()
    assert not claims.share(1)
    assert not claims.own(3)
    assert closed == []
    claims.unshare(1)
    assert closed == []
    claims.disown(2)
    assert closed == [opened]
    claims.retire()
    assert closed == [opened]
    os.close(opened)


def test_a_retired_file_without_claims_is_closed_at_once(file: Path) -> None:
    closed: list[int] = []
    opened = os.open(file, os.O_RDWR)
    Claims(opened, closed.append).retire()
    assert closed == [opened]
    os.close(opened)
