"""What a store of KV blocks answers, alone and shared by several engines of a node, on a disk that is well."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace_runtime.kv.budget import measure
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.store import LEASE_SECONDS, Settings, Store, StoreError

KIB = 1024
BLOCK = 20 * KIB
IDENTITY, OTHER = "0" * 32, "1" * 32
SETTINGS = Settings(
    size_bytes=1024 * KIB,
    node_size_bytes=None,
    block_bytes=BLOCK,
    verify=True,
    eviction="LRU",
    on_model_change="Fence",
    key=None,
)


def key_of(number: int) -> bytes:
    return (number + 1).to_bytes(4, "big") * 9


def block_of(number: int, size: int = BLOCK) -> bytes:
    return random.Random(number).randbytes(size)


class Node:
    """The disk of one node, and engines on it: stores that are closed when the test ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1_000_000.0
        self._stores: list[Store] = []

    def engine(self, identity: str = IDENTITY, settings: Settings = SETTINGS, deployment: str = "ns_chat") -> Store:
        store = Store(self.root / deployment, identity, settings, self._wall_clock, lambda: self.now)
        self._stores.append(store)
        return store

    def _wall_clock(self) -> float:
        """No two blocks are of the same moment."""
        self.now += 1e-4
        return self.now

    def physical(self, deployment: str = "ns_chat") -> int:
        return measure(Disk(), self.root / deployment).physical

    def close(self) -> None:
        for store in self._stores:
            store.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path)
    yield found
    found.close()


def read(store: Store, number: int, size: int = BLOCK) -> bytes | None:
    into = bytearray(size)
    return bytes(into) if store.get(key_of(number), memoryview(into)) else None


def fill(store: Store, numbers: range) -> list[int]:
    """Those that the store took."""
    return [number for number in numbers if store.put(key_of(number), block_of(number), depth=number)]


def overfill(store: Store, first: int) -> int:
    """Put blocks until some had to go; the number of the last."""
    while store.state().evicted < 5:
        assert store.put(key_of(first), block_of(first), depth=0)
        first += 1
    return first - 1


def test_says_nothing_and_takes_nothing_where_there_is_nothing_to_do(node: Node) -> None:
    store = node.engine()
    for _ in range(3):
        store.refresh()
    assert store.events() == ([], [])
    assert key_of(1) not in store
    assert read(store, 1) is None
    state = store.state()
    assert (state.ready, state.blocks, state.stored, state.evicted) == (True, 0, 0, 0)


def test_gives_back_what_was_put(node: Node) -> None:
    store = node.engine()
    assert store.put(key_of(1), block_of(1), depth=0)
    assert key_of(1) in store
    assert read(store, 1) == block_of(1)
    assert read(store, 2) is None


def test_takes_blocks_shorter_than_the_longest(node: Node) -> None:
    store = node.engine()
    assert store.put(key_of(1), block_of(1, 100), depth=0)
    assert read(store, 1, 100) == block_of(1, 100)
    with pytest.raises(ValueError, match="100 bytes"):
        store.get(key_of(1), memoryview(bytearray(BLOCK)))
    with pytest.raises(ValueError, match="a block of"):
        store.put(key_of(2), bytes(BLOCK + 1), depth=0)


def test_a_block_that_is_there_is_not_written_again(node: Node) -> None:
    store = node.engine()
    assert store.put(key_of(1), block_of(1), depth=0)
    assert store.put(key_of(1), block_of(1), depth=0)
    assert store.state().stored == 1


def test_blocks_are_there_after_a_restart(node: Node) -> None:
    before = node.engine()
    kept = fill(before, range(10))
    before.close()
    after = node.engine()
    assert [number for number in range(10) if read(after, number) == block_of(number)] == kept == list(range(10))
    assert set(after.events()[0]) == {key_of(number) for number in kept}


def test_engines_read_each_others_blocks(node: Node) -> None:
    one, other = node.engine(), node.engine()
    fill(one, range(5))
    assert read(other, 3) is None
    other.refresh()
    assert [read(other, number) == block_of(number) for number in range(5)] == [True] * 5
    fill(other, range(5, 8))
    one.refresh()
    assert read(one, 7) == block_of(7)


def test_events_tell_what_came_and_went_once(node: Node) -> None:
    one, other = node.engine(), node.engine()
    fill(one, range(3))
    other.refresh()
    assert set(one.events()[0]) == set(other.events()[0]) == {key_of(number) for number in range(3)}
    assert one.events() == other.events() == ([], [])
    kept = fill(one, range(3, 200))
    assert kept == list(range(3, 200))
    came, went = one.events()
    assert {key_of(0), key_of(1), key_of(2)} <= set(went)
    assert all(key in one for key in came)
    assert not any(key in one for key in went)
    one.refresh()
    assert one.events() == ([], []), "a look at the tables finds only what was known"


def test_the_least_recently_used_goes_when_the_budget_is_used_up(node: Node) -> None:
    store = node.engine()
    fill(store, range(10))
    node.now += 100
    store.touch([key_of(0)])
    node.now += LEASE_SECONDS + 1
    store.refresh()
    last = overfill(store, 10)
    assert read(store, 0) == block_of(0)
    assert read(store, 1) is None
    assert read(store, last) == block_of(last)


@pytest.mark.parametrize("by", ["another", "a new one"])
def test_what_one_engine_used_is_kept_by_the_others_and_the_next(node: Node, by: str) -> None:
    one, third = node.engine(), node.engine()
    fill(one, range(10))
    node.now += 100
    one.touch([key_of(0)])
    one.refresh()
    one.close()
    node.now += 100
    third.refresh()
    evicting = third if by == "another" else node.engine()
    overfill(evicting, 10)
    assert read(evicting, 0) == block_of(0)
    assert read(evicting, 1) is None


def test_a_leased_block_is_evicted_by_no_engine_until_the_lease_ends(node: Node) -> None:
    one, other = node.engine(), node.engine()
    fill(one, range(10))
    node.now += 100
    one.touch([key_of(0)])
    other.refresh()
    fill(other, range(100, 300))
    assert read(one, 0) == block_of(0)
    assert read(one, 1) is None
    node.now += LEASE_SECONDS + 1
    one.refresh()
    other.refresh()
    fill(other, range(300, 500))
    assert read(one, 0) is None


def test_refuses_blocks_where_every_other_is_leased(node: Node) -> None:
    store = node.engine()
    kept = fill(store, range(40))
    while (evicted := store.state().evicted) == 0:
        kept += fill(store, range(len(kept), len(kept) + 1))
    store.touch(key_of(number) for number in kept)
    assert not store.put(key_of(1000), block_of(1000), depth=0)
    assert store.state().evicted == evicted
    assert store.state().ready


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["checksum", "encrypted"])
def test_a_changed_bit_is_never_served(node: Node, key: bytes | None) -> None:
    settings = replace(SETTINGS, key=key)
    store = node.engine(settings=settings)
    fill(store, range(30))
    chance = random.Random(7)
    files = sorted(node.root.rglob("*.kv"))
    for _ in range(600):
        file = chance.choice(files)
        with file.open("r+b") as opened:
            opened.seek(offset := chance.randrange(file.stat().st_size))
            byte = opened.read(1)[0]
            opened.seek(offset)
            opened.write(bytes([byte ^ 1 << chance.randrange(8)]))
    fresh = node.engine(settings=settings)
    for engine in (store, fresh):
        assert {read(engine, number) for number in range(30)} <= {None, *map(block_of, range(30))}
        assert all(read(engine, number) in (None, block_of(number)) for number in range(30))
    assert store.state().damaged > 0


def test_a_damaged_block_is_dropped_counted_and_can_be_stored_again(node: Node) -> None:
    store = node.engine()
    fill(store, range(1))
    [file] = node.root.rglob("*.kv")
    with file.open("r+b") as opened:
        opened.seek(file.read_bytes().index(block_of(0)) + 77)
        opened.write(b"\x00\x01\x02")
    store.events()
    assert read(store, 0) is None
    assert store.state().damaged == 1
    assert key_of(0) not in store
    assert store.events() == ([], [key_of(0)])
    assert fill(store, range(1)) == [0]
    assert read(store, 0) == block_of(0)


def test_a_damaged_block_under_another_engines_lease_is_dropped_by_who_found_it(node: Node) -> None:
    one, other = node.engine(), node.engine()
    fill(one, range(1))
    other.refresh()
    other.touch([key_of(0)])
    [file] = node.root.rglob("*.kv")
    with file.open("r+b") as opened:
        opened.seek(file.read_bytes().index(block_of(0)))
        opened.write(b"\x00\x01\x02")
    assert read(one, 0) is None
    assert key_of(0) not in one
    assert fill(one, range(1)) == [0]
    assert read(one, 0) == block_of(0)


def test_without_verification_data_is_served_as_it_is_but_entries_are_still_checked(node: Node) -> None:
    store = node.engine(settings=replace(SETTINGS, verify=False))
    fill(store, range(2))
    [file] = node.root.rglob("*.kv")
    with file.open("r+b") as opened:
        opened.seek(file.read_bytes().index(block_of(0)))
        opened.write(bytes(8))
        opened.seek(file.read_bytes().index(key_of(1)))
        opened.write(bytes(8))
    assert read(store, 0) == bytes(8) + block_of(0)[8:]
    assert read(store, 1) is None


def test_encrypted_blocks_are_unreadable_on_the_disk_and_with_another_key(node: Node) -> None:
    sealed = replace(SETTINGS, key=bytes(32))
    store = node.engine(settings=sealed)
    fill(store, range(3))
    [file] = node.root.rglob("*.kv")
    assert block_of(1)[:64] not in file.read_bytes()
    assert read(store, 1) == block_of(1)
    assert read(node.engine(settings=sealed), 1) == block_of(1)
    assert read(node.engine(settings=replace(SETTINGS, key=bytes(31) + b"x")), 1) is None
    assert read(node.engine(), 1) is None


def test_a_block_moved_to_another_slot_extent_or_identity_is_no_block(node: Node) -> None:
    fill(node.engine(), range(2))
    [file] = node.root.rglob("*.kv")
    other = node.root / "ns_chat" / OTHER
    other.mkdir()
    (other / file.name).write_bytes(file.read_bytes())
    store = node.engine(OTHER)
    assert store.state().blocks == 0
    assert read(store, 0) is None


@pytest.mark.parametrize("size", [300 * KIB, 1024 * KIB, 3000 * KIB])
def test_the_folder_never_takes_more_than_its_budget_whoever_writes(node: Node, size: int) -> None:
    engines = [node.engine(settings=replace(SETTINGS, size_bytes=size)) for _ in range(4)]
    for number in range(400):
        engines[number % 4].put(key_of(number), block_of(number), depth=0)
        if number % 50 == 0:
            engines[number // 50 % 4].refresh()
        assert node.physical() <= size
    assert node.physical() > size * 0.45
    assert sum(engine.state().evicted for engine in engines) > 0


def test_a_budget_for_one_block_holds_one_block(node: Node) -> None:
    small = replace(SETTINGS, size_bytes=SETTINGS.least_bytes)
    store = node.engine(settings=small)
    assert fill(store, range(3)) == [0, 1, 2]
    assert [read(store, number) is not None for number in range(3)] == [False, False, True]
    assert node.physical() <= small.size_bytes


def test_a_budget_smaller_than_a_block_is_refused_by_name(node: Node) -> None:
    with pytest.raises(StoreError, match=r"kvCache\.disk\.size") as caught:
        node.engine(settings=replace(SETTINGS, size_bytes=SETTINGS.least_bytes - 1))
    assert caught.value.reason == "BudgetTooSmall"


def test_a_key_of_another_length_is_refused(node: Node) -> None:
    with pytest.raises(StoreError) as caught:
        node.engine(settings=replace(SETTINGS, key=b"short"))
    assert caught.value.reason == "KeyMissing"


def test_a_budget_that_became_smaller_is_kept_from_the_start(node: Node) -> None:
    before = node.engine()
    fill(before, range(45))
    before.close()
    small = replace(SETTINGS, size_bytes=500 * KIB)
    after = node.engine(settings=small)
    assert node.physical() <= small.size_bytes
    after.refresh()
    assert 0 < after.state().blocks < 45
    assert all(read(after, number) in (None, block_of(number)) for number in range(45))


def test_fenced_blocks_are_not_read_and_go_before_any_block_that_is(node: Node) -> None:
    old = node.engine(OTHER)
    fill(old, range(45))
    old.close()
    new = node.engine()
    assert new.state().blocks == 0
    assert read(new, 1) is None
    kept = fill(new, range(100, 130))
    assert all(read(new, number) == block_of(number) for number in kept)
    assert new.state().evicted == 0
    assert node.physical() <= SETTINGS.size_bytes


def test_wiped_blocks_are_gone_at_once_unless_an_engine_has_them_open(node: Node) -> None:
    wiping = replace(SETTINGS, on_model_change="Wipe")
    old = node.engine(OTHER, wiping)
    fill(old, range(10))
    new = node.engine(settings=wiping)
    assert read(old, 3) == block_of(3)
    old.close()
    node.now += 60
    new.refresh()
    assert [folder.name for folder in (node.root / "ns_chat").iterdir()] == [IDENTITY]


def test_an_identity_that_is_alive_gives_up_what_is_more_than_its_share(node: Node) -> None:
    old = node.engine(OTHER)
    fill(old, range(45))
    new = node.engine()
    node.now += 100
    kept = [number for number in fill(new, range(100, 120)) if read(new, number) == block_of(number)]
    assert len(kept) > 10
    old.refresh()
    assert old.state().blocks > 10
    assert all(read(old, number) in (None, block_of(number)) for number in range(45))
    assert node.physical() <= SETTINGS.size_bytes


def test_deployments_of_a_node_share_its_budget(node: Node) -> None:
    shared = replace(SETTINGS, node_size_bytes=1200 * KIB)
    first = node.engine(settings=shared, deployment="ns_first")
    fill(first, range(60))
    second = node.engine(settings=shared, deployment="ns_second")
    fill(second, range(60))
    for store in (first, second):
        store.refresh()
        assert store.state().blocks > 10
    assert measure(Disk(), node.root).physical <= 1200 * KIB


def test_deployments_with_their_shares_leave_each_other_alone(node: Node) -> None:
    shared = replace(SETTINGS, node_size_bytes=1200 * KIB)
    stores = [node.engine(settings=shared, deployment=name) for name in ("ns_first", "ns_second", "ns_third")]
    for turn in range(6):
        for store in stores:
            fill(store, range(turn * 30, turn * 30 + 30))
            store.refresh()
    before = {path.name for path in node.root.rglob("*.kv")}
    for turn in range(6, 12):
        for store in stores:
            node.now += 10
            fill(store, range(turn * 30, turn * 30 + 30))
            store.refresh()
    assert {path.name for path in node.root.rglob("*.kv")} == before
    assert all(store.state().blocks > 5 for store in stores)


def test_other_files_in_the_folder_count_and_are_left_alone(node: Node) -> None:
    store = node.engine()
    (node.root / "ns_chat" / "notes").write_bytes(os.urandom(600 * KIB))
    node.now += 60
    fill(store, range(60))
    assert node.physical() <= SETTINGS.size_bytes
    assert (node.root / "ns_chat" / "notes").stat().st_size == 600 * KIB


def test_files_and_folders_are_for_their_owner_alone(node: Node) -> None:
    fill(node.engine(), range(3))
    deployment = node.root / "ns_chat"
    assert {path.stat().st_mode & 0o777 for path in [deployment, *deployment.rglob("*")] if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in deployment.rglob("*") if path.is_file()} == {0o600}


def test_a_closed_store_answers_no(node: Node) -> None:
    store = node.engine()
    fill(store, range(3))
    store.close()
    store.refresh()
    assert key_of(1) not in store
    assert read(store, 1) is None
    assert not store.put(key_of(9), block_of(9), depth=0)


def test_two_engines_that_store_the_same_block_keep_one_of_it(node: Node) -> None:
    one, other = node.engine(), node.engine()
    fill(one, range(5))
    fill(other, range(5))
    for _ in range(3):
        one.refresh()
        other.refresh()
    assert [read(one, number) == read(other, number) == block_of(number) for number in range(5)] == [True] * 5
    tables = b"".join(file.read_bytes() for file in node.root.rglob("*.kv"))
    assert [tables.count(key_of(number)) for number in range(5)] == [1] * 5


def test_blocks_of_one_request_are_known_by_when_it_came_and_count_it_once(node: Node) -> None:
    node.now = 1000.0
    store = node.engine()
    for number in range(3):
        assert store.put(key_of(number), block_of(number), depth=number, at=990.0)
    for _ in range(5):
        store.touch([key_of(0), key_of(1)], 995.0)
    store.touch([key_of(0)], 992.0)
    places = [store._index.get(key_of(number)) for number in range(3)]
    assert [(place.entry.created, place.used, place.uses) for place in places if place] == [
        (990.0, 995.0, 1),
        (990.0, 995.0, 1),
        (990.0, 990.0, 0),
    ]
