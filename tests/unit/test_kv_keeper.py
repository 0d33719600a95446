"""The store beside an engine's scheduler: opened again and again, looked after, told of."""

import base64
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace_runtime.contract import KvDisk, KvState
from headrace_runtime.kv.keeper import EVENT_KEYS, TOUCHES, Change, Keeper, Refused
from headrace_runtime.kv.opening import open_store, read_key

READY = KvState(ready=True, blocks=2)


class Shelf:
    """A store that notes what is asked of it."""

    def __init__(self) -> None:
        self.touched: list[bytes] = []
        self.came: list[bytes] = [b"found"]
        self.went: list[bytes] = []
        self.refreshed = 0
        self.closed = False

    def __contains__(self, key: bytes) -> bool:
        return key != b"unknown"

    def get(self, key: bytes, into: memoryview) -> bool:
        return False

    def put(self, key: bytes, block: memoryview, depth: int, at: float | None = None) -> bool:
        return False

    def touch(self, keys: Iterable[bytes], at: float | None = None) -> None:
        self.touched += keys

    def refresh(self) -> None:
        self.refreshed += 1

    def events(self) -> tuple[list[bytes], list[bytes]]:
        came, went, self.came, self.went = self.came, self.went, [], []
        return came, went

    def state(self) -> KvState:
        return READY

    def close(self) -> None:
        self.closed = True


@contextmanager
def keeping(
    open_shelf: Callable[[], Shelf], told: list[KvState] | None = None, events: bool = True
) -> Iterator[Keeper]:
    keeper = Keeper(open_shelf, (told if told is not None else []).append, lambda state: state, events)
    keeper.start(30)
    try:
        yield keeper
    finally:
        keeper.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not come true within 30 s"
        time.sleep(0.005)


def test_a_store_that_opens_is_there_when_start_returns_and_closed_at_the_end() -> None:
    shelf = Shelf()
    with keeping(lambda: shelf) as keeper:
        assert keeper.store is shelf
        until(lambda: shelf.refreshed > 0)
    assert shelf.closed


def test_a_disk_that_cannot_be_used_holds_no_start_up_and_is_tried_again() -> None:
    mended, told = threading.Event(), list[KvState]()

    def open_shelf() -> Shelf:
        if not mended.is_set():
            raise Refused("DiskGone", "the cache's folder is gone")
        return Shelf()

    with keeping(open_shelf, told) as keeper:
        assert keeper.store is None
        assert (keeper.state().ready, keeper.state().reason) == (False, "DiskGone")
        until(lambda: bool(told) and told[-1].reason == "DiskGone")
        mended.set()
        until(lambda: keeper.store is not None)
        assert keeper.state() == READY
        until(lambda: told[-1] == READY)


def test_a_disk_that_hangs_while_it_is_opened_holds_start_up_only_so_long() -> None:
    mended = threading.Event()

    def open_shelf() -> Shelf:
        assert mended.wait(30)
        return Shelf()

    keeper = Keeper(open_shelf, lambda state: None, lambda state: state, events=False)
    keeper.start(0.05)
    assert keeper.store is None
    assert not keeper.state().ready
    mended.set()
    until(lambda: keeper.store is not None)
    keeper.close()


def test_blocks_that_requests_wait_for_are_leased_and_unknown_ones_are_not() -> None:
    shelf = Shelf()
    with keeping(lambda: shelf) as keeper:
        keeper.touch([b"a", b"unknown", b"b"], 1.0)
        until(lambda: shelf.touched == [b"a", b"b"])


def test_more_blocks_than_can_wait_are_not_leased() -> None:
    shelf = Shelf()
    with keeping(lambda: shelf) as keeper:
        keeper.touch([b"%d" % number for number in range(TOUCHES + 1)], 1.0)
        keeper.touch([b"a"], 1.0)
        until(lambda: shelf.touched == [b"a"])


def test_what_a_disk_held_at_the_start_is_told_like_what_came_later() -> None:
    shelf = Shelf()
    with keeping(lambda: shelf) as keeper:
        until(lambda: keeper.has_events)
        assert keeper.take_event() == Change(removed=False, keys=[b"found"])
        assert not keeper.has_events
        shelf.went = [b"found"]
        until(lambda: keeper.has_events)
        shelf.came = [b"found"]
        assert keeper.take_event() == Change(removed=True, keys=[b"found"])
        until(lambda: keeper.has_events)
        assert keeper.take_event() == Change(removed=False, keys=[b"found"])
        assert keeper.take_event() is None


def test_all_that_a_large_disk_holds_is_told_in_parts() -> None:
    shelf = Shelf()
    shelf.came = [b"%d" % number for number in range(EVENT_KEYS + 1)]
    with keeping(lambda: shelf) as keeper:
        sizes: list[int] = []
        until(lambda: sizes.extend(len(one.keys) for one in iter(keeper.take_event, None)) or len(sizes) == 2)
        assert sizes == [EVENT_KEYS, 1]


def test_nobody_collects_events_that_nobody_takes() -> None:
    shelf = Shelf()
    with keeping(lambda: shelf, events=False) as keeper:
        until(lambda: shelf.refreshed > 0)
        assert not keeper.has_events


def test_a_state_is_told_once(tmp_path: Path) -> None:
    told: list[KvState] = []
    with keeping(Shelf, told):
        until(lambda: bool(told))
    assert told == [READY]


def test_a_contract_opens_its_own_folder_on_the_node(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(base64.b64encode(bytes(32)).decode() + "\n")
    disk = KvDisk(path=str(tmp_path / "node"), size_bytes=64 * 1024**2, key_file=str(key))
    store = open_store(disk, "team-a_chat", "0" * 32, 8192)
    try:
        assert store.put(b"k" * 36, bytes(8192), 0)
        assert store.state().bytes_limit == disk.size_bytes
        assert [path.name for path in (tmp_path / "node" / "team-a_chat").iterdir() if path.is_dir()]
    finally:
        store.close()


def test_a_limit_that_holds_no_block_is_refused_by_its_field(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"kvCache\.disk\.size") as refused:
        open_store(KvDisk(path=str(tmp_path), size_bytes=4096), "d", "0" * 32, 1 << 20)
    assert refused.value.reason == "BudgetTooSmall"


@pytest.mark.parametrize("content", [None, b"not base64!", b"\xff\xfe"])
def test_a_key_that_is_none_is_refused_and_not_quoted(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused, match=r"kvCache\.disk\.encryption") as refused:
        read_key(file)
    assert refused.value.reason == "KeyMissing"
    assert "base64!" not in refused.value.message
