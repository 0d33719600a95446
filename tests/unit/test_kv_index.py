"""What one process knows of a store: that it agrees with itself and with the tables, whoever wrote last."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.extent import Extent
from headrace_runtime.kv.index import Index, Place
from headrace_runtime.kv.layout import Entry, Geometry

SCOPE = "0" * 32


@pytest.fixture
def extent(tmp_path: Path) -> Iterator[Extent]:
    found = Extent.create(Disk(), tmp_path, Geometry(4096, 4), SCOPE)
    yield found
    found.claims.retire()


def written(extent: Extent, slot: int, key: bytes, sequence: int = 1) -> Place:
    entry = Entry(key, sequence, 0, 10, 5.0)
    return Place(extent, slot, extent.write_entry(slot, entry), entry, 5.0, 0)


def scan(index: Index, extent: Extent) -> list[int]:
    index.before_scan(extent)
    litter = index.scan(extent, *extent.tables(), 100.0)
    index.check_integrity()
    return [slot for _, slot in litter]


def test_an_empty_extent_is_all_room(extent: Extent) -> None:
    index = Index()
    assert index.join(extent)
    assert scan(index, extent) == []
    assert sorted(index.take_free(1) or () for _ in range(4)) == [(extent, slot) for slot in range(4)]
    assert index.take_free(1) is None
    assert index.changes() == ([], [])


def test_an_extent_that_is_known_is_not_taken_a_second_time(extent: Extent) -> None:
    index = Index()
    assert index.join(extent)
    index.add(written(extent, 0, b"a"))
    assert not index.join(extent)
    assert b"a" in index
    index.check_integrity()


def test_finds_what_others_wrote_and_evicted(extent: Extent) -> None:
    index = Index()
    index.join(extent)
    written(extent, 0, b"a")
    written(extent, 2, b"c")
    assert scan(index, extent) == []
    assert sorted(index.changes()[0]) == [b"a", b"c"]
    extent.clear_entry(0)
    written(extent, 2, b"d")
    scan(index, extent)
    came, went = index.changes()
    assert (came, sorted(went)) == ([b"d"], [b"a", b"c"])


def test_what_is_learnt_while_the_tables_are_read_is_newer_than_they_are(extent: Extent) -> None:
    index = Index()
    index.join(extent)
    gone = written(extent, 1, b"old")
    scan(index, extent)
    index.before_scan(extent)
    tables = extent.tables()
    index.add(written(extent, 0, b"new"))
    known = index.get(b"old")
    assert known is not None
    assert known.raw == gone.raw
    extent.clear_entry(1)
    index.remove(known)
    index.free(extent, 1)
    assert index.scan(extent, *tables, 100.0) == []
    index.check_integrity()
    assert b"new" in index
    assert b"old" not in index
    assert scan(index, extent) == []
    assert b"new" in index


def test_of_two_copies_the_first_slot_counts_whichever_is_found_first(extent: Extent) -> None:
    early, late = Index(), Index()
    early.join(extent)
    late.join(extent)
    assert early.add(written(extent, 1, b"a", 1)) == []
    assert early.add(written(extent, 3, b"a", 2)) == [(extent, 3)]
    second = Place(extent, 3, extent.entry(3), Entry(b"a", 2, 0, 10, 5.0), 5.0, 0)
    first = Place(extent, 1, extent.entry(1), Entry(b"a", 1, 0, 10, 5.0), 5.0, 0)
    assert late.add(second) == []
    assert late.add(first) == [(extent, 3)]
    for index in (early, late):
        place = index.get(b"a")
        assert place is not None
        assert place.slot == 1
        index.check_integrity()


def test_a_block_that_is_found_by_two_threads_is_no_copy_of_itself(extent: Extent) -> None:
    index = Index()
    index.join(extent)
    place = written(extent, 1, b"a")
    scan(index, extent)
    assert index.add(place) == []
    index.check_integrity()


def test_bytes_that_are_no_entry_are_litter(extent: Extent) -> None:
    index = Index()
    index.join(extent)
    written(extent, 1, b"a")
    raw = bytearray(extent.entry(1))
    raw[20] ^= 1
    extent._disk.write(extent._file, memoryview(raw), extent.geometry.entry_at(1))
    assert scan(index, extent) == [1]
    assert b"a" not in index


def test_nothing_is_written_to_an_extent_that_was_cut(extent: Extent) -> None:
    index = Index()
    index.join(extent)
    index.add(written(extent, 0, b"a"))
    scan(index, extent)
    index.cut(extent)
    index.check_integrity()
    assert not index.has_free()
    assert not index.free(extent, 2)
    assert index.take_free(1) is None
    assert b"a" in index
    index.part(extent)
    index.check_integrity()
    assert b"a" not in index
    assert not index.free(extent, 2)
