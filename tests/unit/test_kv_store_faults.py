"""A store on a disk that is full, read-only, failing, slow, hung, denied or gone: answers, never exceptions, and back
by itself."""

import errno
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from headrace_runtime.contract import KvReason
from headrace_runtime.kv.fake_disk import FakeDisk
from headrace_runtime.kv.health import HUNG_SECONDS
from headrace_runtime.kv.store import Settings, Store

BLOCK = 20 * 1024
SETTINGS = Settings(1024 * 1024, None, BLOCK, verify=True, eviction="LRU", on_model_change="Fence", key=None)
DATA = bytes(range(256)) * (BLOCK // 256)


def key_of(number: int) -> bytes:
    return number.to_bytes(4, "big") * 9


class Engine:
    """One store on a disk that can be broken, and a clock for both."""

    def __init__(self, root: Path, settings: Settings = SETTINGS) -> None:
        self.now = 1e6
        self.settings = settings
        self.root = root
        self.disk = FakeDisk()
        self.store = self.open()

    def open(self) -> Store:
        return Store(self.root / "ns_chat", "0" * 32, self.settings, lambda: self.now, lambda: self.now, self.disk)

    def has_extent(self) -> bool:
        return any(self.root.rglob("[0-9a-f]*.kv"))

    def put(self, number: int) -> bool:
        return self.store.put(key_of(number), DATA, depth=0)

    def get(self, number: int) -> bool:
        into = bytearray(BLOCK)
        return self.store.get(key_of(number), memoryview(into)) and bytes(into) == DATA

    def breaks(self, number: int, *calls: str) -> None:
        self.disk.fault = lambda call: OSError(number, "injected") if call in calls or not calls else None

    def is_mended(self) -> None:
        self.disk.fault = lambda call: None
        self.disk.wait = lambda call: None

    def wait(self, seconds: float = 60.0) -> None:
        self.now += seconds
        self.store.refresh()

    def says(self) -> KvReason:
        state = self.store.state()
        assert state.ready is (state.reason == "")
        assert bool(state.message) is not state.ready
        assert str(self.root) not in state.message
        return state.reason


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    found = Engine(tmp_path / "node")
    yield found
    found.is_mended()
    found.store.close()


def test_a_disk_that_is_well_is_left_to_itself(engine: Engine) -> None:
    assert engine.put(1)
    syncs = engine.disk.calls["sync"]
    for _ in range(20):
        engine.wait(1)
    assert engine.says() == ""
    assert engine.disk.calls["sync"] == syncs, "no probe of a disk that is well"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EROFS, "DiskReadOnly"),
        (errno.EACCES, "DiskDenied"),
        (errno.EPERM, "DiskDenied"),
        (errno.ENOENT, "DiskGone"),
        (errno.ESTALE, "DiskGone"),
        (errno.ENOSPC, "DiskFull"),
        (errno.EDQUOT, "DiskFull"),
    ],
)
def test_a_fault_that_lasts_stops_writing_at_once_reading_goes_on_and_it_comes_back(
    engine: Engine, number: int, reason: KvReason
) -> None:
    assert engine.put(1)
    engine.breaks(number, "write", "sync")
    assert not engine.put(2)
    assert engine.says() == reason
    calls = engine.disk.calls["write"]
    assert not engine.put(3)
    assert engine.disk.calls["write"] == calls, "it is not asked again at once"
    assert engine.get(1)
    engine.wait()
    assert engine.says() == reason
    engine.is_mended()
    engine.wait()
    assert engine.says() == ""
    assert engine.put(3)
    assert engine.get(3)


def test_single_errors_are_misses_and_many_stop_the_reading(engine: Engine) -> None:
    for number in range(20):
        assert engine.put(number)
    engine.breaks(errno.EIO, "read")
    assert not engine.get(0)
    assert engine.says() == ""
    assert not engine.get(1)
    assert not engine.get(2)
    assert engine.says() == "DiskFailing"
    assert key_of(3) not in engine.store, "the scheduler computes it instead"
    engine.wait()
    assert engine.says() == "DiskFailing"
    engine.is_mended()
    engine.wait()
    engine.wait()
    assert engine.says() == ""
    assert engine.get(19)


def test_a_write_that_failed_costs_no_slot(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "node", replace(SETTINGS, size_bytes=SETTINGS.least_bytes))
    engine.disk.fault = lambda call: OSError(errno.EIO, "injected") if call == "write" and engine.has_extent() else None
    assert not engine.put(1)
    engine.is_mended()
    engine.wait()
    assert engine.put(1)
    assert engine.get(1)
    engine.store.close()


def test_a_slow_disk_is_left_alone_until_it_is_quick_again(engine: Engine) -> None:
    for number in range(10):
        assert engine.put(number)

    def takes_two_seconds(call: str) -> None:
        engine.now += 2.0

    engine.disk.wait = takes_two_seconds
    for number in range(3):
        assert engine.get(number), "what comes late is still right"
    assert engine.says() == "DiskSlow"
    assert not engine.get(4)
    assert key_of(4) not in engine.store
    engine.is_mended()
    engine.wait()
    assert engine.says() == ""
    assert engine.get(4)


def test_a_call_that_never_comes_back_keeps_others_from_the_disk(engine: Engine) -> None:
    assert engine.put(1)
    assert engine.put(2)
    entered, goes_on = Event(), Event()

    def hangs(call: str) -> None:
        entered.set()
        goes_on.wait(60)

    engine.disk.wait = hangs
    answers: list[bool] = []
    hanging = Thread(target=lambda: answers.append(engine.get(1)))
    hanging.start()
    assert entered.wait(60)
    engine.now += HUNG_SECONDS + 1
    assert engine.says() == "DiskSlow"
    assert key_of(2) not in engine.store
    assert not engine.get(2), "and nobody waits"
    engine.is_mended()
    goes_on.set()
    hanging.join(60)
    assert answers == [True]
    engine.wait()
    assert engine.says() == ""
    assert engine.get(2)


def test_a_full_disk_is_said_and_what_is_ours_is_used_on(engine: Engine) -> None:
    for number in range(5):
        assert engine.put(number)
    engine.disk.free = 0
    engine.breaks(errno.ENOSPC, "allocate")
    assert all(engine.put(number) for number in range(5, 40)), "others are evicted for them"
    assert engine.says() == "DiskFull"
    assert "kvCache.disk.size" in engine.store.state().message
    assert engine.get(39)
    engine.wait()
    assert engine.says() == "DiskFull"
    engine.disk.free = None
    engine.is_mended()
    engine.wait()
    assert engine.says() == ""
    blocks = engine.store.state().blocks
    assert all(engine.put(number) for number in range(40, 60))
    assert engine.store.state().blocks > blocks


def test_a_folder_that_cannot_be_measured_is_not_added_to(engine: Engine) -> None:
    assert engine.put(0)
    strange = engine.root / "ns_chat" / "strange"
    strange.mkdir()
    engine.disk.unlistable = strange
    held = len(list(engine.root.rglob("*.kv")))
    for number in range(1, 60):
        engine.put(number)
    engine.wait()
    for _ in range(20):
        assert engine.says() == "DiskUnmeasurable"
        engine.wait(2.0)
    assert len(list(engine.root.rglob("*.kv"))) == held
    engine.disk.unlistable = None
    engine.wait()
    engine.wait()
    assert engine.says() == ""
    assert all(engine.put(number) for number in range(60, 90))
    assert len(list(engine.root.rglob("*.kv"))) > held


def test_a_folder_deleted_under_the_store_is_made_again(engine: Engine) -> None:
    assert engine.put(1)
    shutil.rmtree(engine.root / "ns_chat")
    engine.wait()
    engine.wait()
    assert engine.says() == ""
    assert not engine.get(1)
    assert engine.store.events() == ([], []), "it came and went"
    assert engine.put(2)
    assert engine.get(2)
    assert (engine.root / "ns_chat").is_dir()


def test_a_disk_that_was_taken_away_is_not_replaced_by_a_folder_of_the_one_below(engine: Engine) -> None:
    assert engine.put(1)
    shutil.move(engine.root, engine.root.with_name("elsewhere"))
    engine.wait()
    assert engine.says() == "DiskGone"
    assert not engine.put(2)
    assert not engine.root.exists()
    shutil.move(engine.root.with_name("elsewhere"), engine.root)
    engine.wait()
    assert engine.says() == ""
    assert engine.get(1)


def test_one_extent_that_cannot_be_read_does_not_hide_the_others(engine: Engine) -> None:
    for number in range(20):
        assert engine.put(number)
    engine.store.close()
    bad = min(engine.root.rglob("*.kv"))
    engine.disk.unreadable = bad
    engine.store = engine.open()
    engine.wait(1)
    assert engine.says() == ""
    assert 0 < sum(engine.get(number) for number in range(20)) < 20


def test_an_engine_starts_on_a_disk_that_is_gone_and_uses_it_once_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("not a folder")
    engine = Engine(tmp_path / "node")
    assert engine.says() == "DiskGone"
    assert not engine.put(1)
    assert not engine.get(1)
    (tmp_path / "node").unlink()
    engine.wait()
    assert engine.says() == ""
    assert engine.put(1)
    engine.store.close()
