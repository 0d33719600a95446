"""The bytes of an extent: what is packed is unpacked, and nothing else is."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.kv.layout import (
    EMPTY,
    ENTRY_BYTES,
    KEY_BYTES,
    MAX_SLOTS,
    PAGE,
    Entry,
    Geometry,
    Header,
    Use,
    charge,
    largest_geometry,
    pack_entry,
    pack_header,
    pack_use,
    slot_place,
    slot_seed,
    unpack_entry,
    unpack_header,
    unpack_use,
)

geometries = st.builds(Geometry, st.integers(1, 32 * 1024**2), st.integers(1, MAX_SLOTS))
entries = st.builds(
    Entry,
    st.binary(min_size=1, max_size=KEY_BYTES),
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**40),
    st.floats(0, 1e12),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=12, max_size=12),
)
seeds = st.integers(0, 2**64 - 1)
ENTRY = Entry(b"k" * 36, 77, 3, 4096, 100.0, b"c" * 16)


@settings(deadline=None)
@given(entry=entries, seed=seeds)
def test_an_entry_is_what_was_packed(entry: Entry, seed: int) -> None:
    raw = pack_entry(entry, seed)
    assert len(raw) == ENTRY_BYTES
    assert unpack_entry(raw, seed) == entry


@settings(deadline=None)
@given(entry=entries, seed=seeds, bit=st.integers(0, ENTRY_BYTES * 8 - 1))
def test_an_entry_with_any_bit_changed_or_of_another_slot_is_none(entry: Entry, seed: int, bit: int) -> None:
    raw = bytearray(pack_entry(entry, seed))
    assert unpack_entry(bytes(raw), seed ^ 1) is None
    raw[bit // 8] ^= 1 << bit % 8
    assert unpack_entry(bytes(raw), seed) is None


@settings(deadline=None)
@given(length=st.integers(0, ENTRY_BYTES - 1))
def test_half_an_entry_is_none(length: int) -> None:
    raw = pack_entry(ENTRY, 5)
    assert unpack_entry(raw[:length], 5) is None
    assert unpack_entry(raw[:length].ljust(ENTRY_BYTES, b"\0"), 5) is None


def test_an_empty_slot_has_no_entry() -> None:
    assert unpack_entry(EMPTY, 5) is None


def test_an_entry_lies_within_one_sector() -> None:
    """So that the disk writes it whole or not at all."""
    geometry = Geometry(PAGE, MAX_SLOTS)
    assert all(
        geometry.entry_at(slot) // 512 == (geometry.entry_at(slot) + ENTRY_BYTES - 1) // 512 for slot in range(64)
    )


@settings(deadline=None)
@given(geometry=geometries)
def test_nothing_in_an_extent_overlaps_and_slots_begin_on_pages(geometry: Geometry) -> None:
    last = geometry.slots - 1
    assert geometry.entry_at(0) == PAGE
    assert geometry.entry_at(last) + ENTRY_BYTES <= geometry.use_at(0)
    assert geometry.use_at(last) + 16 <= geometry.slot_at(0)
    assert geometry.slot_at(0) % PAGE == geometry.slot_bytes % PAGE == geometry.file_bytes % PAGE == 0
    assert geometry.slot_at(last) + geometry.block_bytes <= geometry.copy_at
    assert geometry.copy_at + PAGE == geometry.file_bytes


@settings(deadline=None)
@given(block=st.integers(1, 8 * 1024**2), room=st.integers(0, 2**33), slots=st.integers(1, MAX_SLOTS))
def test_the_largest_geometry_fits_and_one_slot_more_would_not(block: int, room: int, slots: int) -> None:
    found = largest_geometry(block, room, slots)
    if found is None:
        assert charge(Geometry(block, 1).file_bytes) > room
        return
    assert charge(found.file_bytes) <= room
    assert found.slots == slots or charge(replace(found, slots=found.slots + 1).file_bytes) > room


@settings(deadline=None)
@given(geometry=geometries, extent=st.binary(min_size=16, max_size=16))
def test_a_header_is_what_was_packed_and_nothing_once_a_byte_is_changed(geometry: Geometry, extent: bytes) -> None:
    page = bytearray(pack_header(Header(extent, geometry)))
    assert len(page) == PAGE
    assert unpack_header(bytes(page)) == Header(extent, geometry)
    for offset in range(48):
        page[offset] ^= 0x10
        assert unpack_header(bytes(page)) is None
        page[offset] ^= 0x10
    assert unpack_header(b"") is None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (pack_use(Use(150.0, 4), ENTRY.sequence), Use(150.0, 4)),
        (pack_use(Use(150.0, 4), ENTRY.sequence + 1), Use(100.0, 0)),
        (pack_use(Use(50.0, 4), ENTRY.sequence), Use(100.0, 0)),
        (pack_use(Use(1e9, 4), ENTRY.sequence), Use(100.0, 0)),
        (pack_use(Use(float("nan"), 4), ENTRY.sequence), Use(100.0, 0)),
        (b"", Use(100.0, 0)),
        (bytes(16), Use(100.0, 0)),
    ],
    ids=["its own", "of an earlier block", "before it was written", "in the future", "no number", "none", "zeros"],
)
def test_a_record_of_use_counts_where_it_can_be_true(raw: bytes, expected: Use) -> None:
    assert unpack_use(raw, ENTRY, now=200.0) == expected


def test_every_slot_of_every_extent_and_identity_has_a_name_of_its_own() -> None:
    places = [
        slot_place(scope, extent, slot)
        for scope in ("0" * 32, "0" * 32 + "-12345678")
        for extent in (bytes(16), bytes(15) + b"1")
        for slot in (1, 11, 111)
    ]
    assert len({slot_seed(place) for place in places}) == len(places)
