"""KV blocks on their way between host memory and a store that is quick, slow, hangs or fails."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.kv.transfers import Finished, Limits, Transfers

BYTES = 4096
ROOM = 8
QUICK = Limits(readers=2, writers=1, waiting_stores=4)


class Memory:
    """A store in a dict, whose calls can be held up."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.depths: dict[bytes, int] = {}
        self.open = threading.Event()
        self.open.set()
        self.fails: Exception | None = None

    def __contains__(self, key: bytes) -> bool:
        return key in self.blocks

    def _wait(self) -> None:
        assert self.open.wait(30)
        if self.fails:
            raise self.fails

    def get(self, key: bytes, into: memoryview) -> bool:
        self._wait()
        if (block := self.blocks.get(key)) is None:
            return False
        into[:] = block
        return True

    def put(self, key: bytes, block: memoryview, depth: int, at: float | None = None) -> bool:
        copy = bytes(block)
        self._wait()
        self.blocks[key], self.depths[key] = copy, depth
        return True


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Transfers over `ROOM` places, a store, and a clock that the test moves."""

    def __init__(self, limits: Limits = QUICK) -> None:
        self.store, self.time = Memory(), Time()
        self.host = bytearray(ROOM * BYTES)
        self.transfers = Transfers(memoryview(self.host), BYTES, lambda: self.store, limits, self.time)

    def place(self, index: int) -> bytes:
        return bytes(self.host[index * BYTES : (index + 1) * BYTES])

    def fill(self, index: int, byte: int) -> None:
        self.host[index * BYTES : (index + 1) * BYTES] = bytes([byte]) * BYTES

    def ended(self, count: int = 1) -> list[Finished]:
        found: list[Finished] = []
        until(lambda: found.extend(self.transfers.poll()) or len(found) >= count)
        return found

    def hold(self) -> None:
        self.store.open.clear()

    def reading(self) -> bool:
        return bool(self.transfers._calls)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not come true within 30 s"
        time.sleep(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.store.open.set()
    bench.transfers.close()


def test_nothing_submitted_is_nothing_to_poll(bench: Bench) -> None:
    assert not bench.transfers.busy
    assert bench.transfers.poll() == []


def test_a_job_without_blocks_is_over_at_once(bench: Bench) -> None:
    bench.transfers.load(1, [], [])
    bench.transfers.store(2, [], [], [])
    assert {job.job for job in bench.ended(2)} == {1, 2}


def test_blocks_are_stored_with_their_depth_and_come_back_into_other_places(bench: Bench) -> None:
    bench.fill(0, 7)
    bench.fill(1, 9)
    bench.transfers.store(1, [b"a", b"b"], [0, BYTES], [0, 1])
    bench.ended()
    until(lambda: len(bench.store.blocks) == 2)
    assert bench.store.depths == {b"a": 0, b"b": 1}
    bench.transfers.load(2, [b"b", b"a", b"c"], [2 * BYTES, 3 * BYTES, 4 * BYTES])
    assert bench.ended()[0].good == (b"b", b"a")
    assert (bench.place(2)[0], bench.place(3)[0], bench.place(4)) == (9, 7, bytes(BYTES))


def test_a_stored_block_holds_its_place_only_until_it_is_copied(bench: Bench) -> None:
    bench.hold()
    bench.fill(0, 7)
    bench.transfers.store(1, [b"a"], [0], [0])
    bench.ended()
    bench.fill(0, 8)  # the engine uses the place for something else, while the disk takes its time
    bench.store.open.set()
    until(lambda: b"a" in bench.store)
    assert bench.store.blocks[b"a"] == bytes([7]) * BYTES


def test_what_the_disk_cannot_follow_is_dropped_and_counted(bench: Bench) -> None:
    bench.hold()
    bench.transfers.store(1, [b"first"], [0], [0])
    until(bench.reading)
    keys = [bytes([index]) for index in range(6)]
    bench.transfers.store(2, keys, [0] * 6, [0] * 6)
    assert bench.transfers.counts.dropped == 2
    bench.store.open.set()
    until(lambda: len(bench.store.blocks) == 5)


def test_a_load_that_is_late_is_given_up_and_its_place_never_written_again(bench: Bench) -> None:
    bench.store.blocks[b"a"] = bytes([7]) * BYTES
    bench.hold()
    bench.transfers.load(1, [b"a"], [0])
    until(bench.reading)
    bench.time.now += 3
    assert bench.ended()[0].good == ()
    bench.fill(0, 9)
    bench.store.open.set()
    until(lambda: not bench.reading())
    assert bench.place(0) == bytes([9]) * BYTES


def test_what_came_in_time_of_a_late_load_is_used() -> None:
    bench = Bench(Limits(readers=1, writers=1, call_seconds=1000.0))
    try:
        bench.store.blocks = {b"a": bytes([1]) * BYTES, b"b": bytes([2]) * BYTES}
        gate = bench.store.get

        def only_first(key: bytes, into: memoryview) -> bool:
            if key == b"b":
                bench.hold()
            return gate(key, into)

        bench.store.get = only_first  # type: ignore[method-assign]
        bench.transfers.load(1, [b"a", b"b"], [0, BYTES])
        until(lambda: not bench.store.open.is_set())
        bench.time.now += 20
        assert bench.ended()[0].good == (b"a",)
        assert not bench.transfers.hanging
        assert bench.transfers.counts.given_up == 1
    finally:
        bench.store.open.set()
        bench.transfers.close()


def test_while_a_call_hangs_everything_else_fails_at_once_and_then_no_more(bench: Bench) -> None:
    bench.store.blocks[b"b"] = bytes([7]) * BYTES
    bench.hold()
    bench.transfers.load(1, [b"a"], [0])
    until(bench.reading)
    bench.time.now += 3
    bench.ended()
    assert bench.transfers.hanging
    bench.transfers.load(2, [b"b"], [0])
    bench.transfers.store(3, [b"c"], [0], [0])
    assert {job.job: job.good for job in bench.transfers.poll()} == {2: (), 3: ()}
    bench.store.open.set()
    until(lambda: not bench.reading())
    bench.transfers.load(4, [b"b"], [0])
    assert bench.ended()[0].good == (b"b",)


def test_a_store_that_raises_has_no_such_block(bench: Bench) -> None:
    bench.store.blocks[b"a"] = bytes(BYTES)
    bench.store.fails = OSError(5, "Input/output error")
    bench.transfers.load(1, [b"a"], [0])
    assert bench.ended()[0].good == ()
    bench.store.fails = None
    bench.transfers.load(2, [b"a"], [0])
    assert bench.ended()[0].good == (b"a",)


def test_a_block_that_the_store_refuses_counts_as_dropped(bench: Bench) -> None:
    bench.store.fails = OSError(28, "No space left on device")
    bench.transfers.store(1, [b"a"], [0], [0])
    bench.ended()
    until(lambda: bench.transfers.counts.dropped == 1)


def test_to_settle_is_to_have_no_job_left(bench: Bench) -> None:
    bench.transfers.store(1, [b"a"], [0], [0])
    bench.transfers.load(2, [b"x"], [0])
    bench.transfers.settle()
    assert {job.job for job in bench.transfers.poll()} == {1, 2}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 5), max_size=4, unique=True)), max_size=12))
def test_every_job_ends_once_and_no_block_has_the_bytes_of_another(jobs: list[tuple[bool, list[int]]]) -> None:
    bench = Bench(Limits(readers=3, writers=2, waiting_stores=100))
    try:
        seen: list[int] = []
        for number, (is_load, blocks) in enumerate(jobs):
            keys = [bytes([block]) for block in blocks]
            if is_load:
                bench.transfers.load(number, keys, [index * BYTES for index in range(len(keys))])
                for job in bench.ended():
                    seen.append(job.job)
                    for index, key in enumerate(keys):
                        if key in job.good:
                            assert bench.place(index) == key * BYTES
            else:
                for index, block in enumerate(blocks):
                    bench.fill(index, block)
                bench.transfers.store(number, keys, [index * BYTES for index in range(len(keys))], [0] * len(keys))
                seen += [job.job for job in bench.ended()]
        assert seen == list(range(len(jobs)))
    finally:
        bench.transfers.close()
