"""A store whose engine dies at any write, in the middle of it, or with the power of its node: what is left is right."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from headrace_runtime.kv.budget import measure
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.fake_disk import Died, FakeDisk
from headrace_runtime.kv.store import Settings, Store

BLOCK = 6000
SIZE = 400 * 1024
IDENTITY = "0" * 32
SETTINGS = Settings(SIZE, None, BLOCK, verify=True, eviction="LRU", on_model_change="Fence", key=None)


def key_of(number: int) -> bytes:
    return (number + 1).to_bytes(4, "big") * 9


def block_of(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK)


class Clock:
    now = 1e6

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now


def opened(root: Path, disk: Disk, clock: Clock) -> Store:
    return Store(root / "ns_chat", IDENTITY, SETTINGS, clock, clock, disk)


def read(store: Store, number: int) -> bytes | None:
    into = bytearray(BLOCK)
    return bytes(into) if store.get(key_of(number), memoryview(into)) else None


def work(store: Store, finished: list[int]) -> None:
    """Stores, evicts, uses and looks: every kind of write there is. `finished` grows by what `put` said True to."""
    for number in range(70):
        if store.put(key_of(number), block_of(number), depth=number % 7):
            finished.append(number)
        if number % 20 == 0:
            store.touch([key_of(number)])
            store.refresh()


def changes_of_work(tmp_path: Path) -> int:
    disk = FakeDisk()
    store = opened(tmp_path, disk, Clock())
    work(store, [])
    store.close()
    return disk.changes


@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_death_at_any_write_loses_no_other_block_and_serves_no_wrong_one(tmp_path: Path, step: int) -> None:
    total = changes_of_work(tmp_path / "whole")
    assert total > 150
    for dies_at in range(1, total + 1, step):
        root, disk, clock = tmp_path / str(dies_at), FakeDisk(dies_at, random.Random(dies_at)), Clock()
        known: set[int] = set()
        finished: list[int] = []
        with suppress(Died):
            store = opened(root, disk, clock)
            work(store, finished)
            store.close()
        with suppress(UnboundLocalError):
            known = {number for number in finished if store._c.index.get(key_of(number)) is not None}
        disk.die()
        after = opened(root, Disk(), clock)
        try:
            left = {number for number in finished if (found := read(after, number)) and found == block_of(number)}
            assert len(known - left) <= 1, f"dead at {dies_at}: more was lost than the block being evicted"
            assert all(read(after, number) in (None, block_of(number)) for number in range(70))
            assert measure(Disk(), root / "ns_chat").physical <= SIZE
            for number in range(100, 170):
                assert after.put(key_of(number), block_of(number), depth=0), "no slot is lost to the dead"
            assert after.state().damaged == 0
        finally:
            after.close()


@pytest.mark.timeout(900)
def test_after_a_power_cut_what_was_not_synced_is_missing_and_never_wrong(tmp_path: Path) -> None:
    kept = []
    for seed in range(8):
        disk, clock = FakeDisk(chance=random.Random(seed)), Clock()
        store = opened(tmp_path / str(seed), disk, clock)
        work(store, [])
        before = store.state().blocks
        disk.lose_power()
        after = opened(tmp_path / str(seed), Disk(), clock)
        found = [read(after, number) for number in range(70)]
        after.close()
        assert all(data in (None, block_of(number)) for number, data in enumerate(found))
        kept.append(sum(data is not None for data in found) / before)
    assert 0.05 < sum(kept) / len(kept) < 0.9, "some of the writes were undone, and only what they were of is missing"


class SharedStore(RuleBasedStateMachine):
    """Two engines on one folder, against a dictionary: whatever happens to engines and files, a block that is served is
    the one that was put, and the budget is kept."""

    numbers = st.integers(0, 60)
    engines = st.integers(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.damaged = False
        self.evicted = False

    @initialize(seed=st.integers(0, 2**16))
    def start(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.disks: list[FakeDisk] = []
        self.stores: list[Store] = []
        for engine in range(2):
            self.disks.append(FakeDisk())
            self.stores.append(opened(self.root, self.disks[engine], self.clock))
        self.put_by: dict[int, int] = {}

    @rule(engine=engines, first=numbers, count=st.integers(1, 20))
    def put(self, engine: int, first: int, count: int) -> None:
        for number in range(first, first + count):
            assert self.stores[engine].put(key_of(number), block_of(number), depth=0)
            self.put_by[number] = engine

    @rule(engine=engines, number=numbers)
    def get(self, engine: int, number: int) -> None:
        found = read(self.stores[engine], number)
        assert found is None or (found == block_of(number) and number in self.put_by)

    @rule(engine=engines, number=numbers)
    def touch(self, engine: int, number: int) -> None:
        self.stores[engine].touch([key_of(number)])

    @rule(engine=engines, seconds=st.sampled_from([0.0, 1.0, 60.0]))
    def refresh(self, engine: int, seconds: float) -> None:
        self.clock.now += seconds
        self.stores[engine].refresh()

    @rule()
    def everything_that_is_known_is_readable_while_nothing_was_evicted(self) -> None:
        for store in self.stores:
            store.refresh()
        if not self.damaged and not any(store.state().evicted for store in self.stores) and not self.evicted:
            for store in self.stores:
                assert {n for n in self.put_by if read(store, n) == block_of(n)} == set(self.put_by)

    @rule(engine=engines, after=st.integers(1, 12), first=numbers)
    def die_while_writing(self, engine: int, after: int, first: int) -> None:
        disk, store = self.disks[engine], self.stores[engine]
        disk.dies_at = disk.changes + after
        with suppress(Died):
            for number in range(first, first + 12):
                self.put_by.setdefault(number, engine)
                store.put(key_of(number), block_of(number), depth=0)
            store.refresh()
        self.evicted = True  # its last eviction may be one that it did not live to count
        self._replace(engine)

    @rule()
    def power_is_cut(self) -> None:
        self.damaged = True
        for disk in self.disks:
            disk.lose_power()
        for engine in range(2):
            self._replace(engine)

    @rule(engine=engines)
    def restart(self, engine: int) -> None:
        self.evicted |= self.stores[engine].state().evicted > 0
        self.stores[engine].close()
        self._replace(engine)

    @rule(bits=st.integers(1, 50))
    def flip_bits(self, bits: int) -> None:
        self.damaged = True
        for _ in range(bits):
            if (file := self._any_file()) is not None and (size := file.stat().st_size) > 0:
                with file.open("r+b") as opened_file:
                    opened_file.seek(offset := self.chance.randrange(size))
                    byte = opened_file.read(1)[0]
                    opened_file.seek(offset)
                    opened_file.write(bytes([byte ^ 1 << self.chance.randrange(8)]))

    @rule()
    def cut_a_file(self) -> None:
        self.damaged = True
        if (file := self._any_file()) is not None:
            with file.open("r+b") as opened_file:
                opened_file.truncate(self.chance.randrange(file.stat().st_size + 1))

    @rule()
    def delete_a_file(self) -> None:
        self.damaged = True
        if (file := self._any_file()) is not None:
            file.unlink()

    @invariant()
    def what_an_engine_knows_agrees_with_itself(self) -> None:
        for store in self.stores:
            store._c.index.check_integrity()

    @invariant()
    def the_budget_is_kept(self) -> None:
        assert measure(Disk(), self.root / "ns_chat").physical <= SIZE

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    def _replace(self, engine: int) -> None:
        self.disks[engine].die()
        self.disks[engine] = FakeDisk(chance=self.chance)
        self.stores[engine] = opened(self.root, self.disks[engine], self.clock)

    def _any_file(self) -> Path | None:
        files = sorted(self.root.rglob("*.kv"))
        return self.chance.choice(files) if files else None


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> type[SharedStore]:
    class InFolder(SharedStore):
        def __init__(self) -> None:
            super().__init__()
            self.root = tmp_path_factory.mktemp("node")

    return InFolder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("examples", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_two_engines_behave_as_a_dictionary_that_forgets(shared: type[SharedStore], examples: int) -> None:
    given = settings(
        deadline=None, max_examples=examples, stateful_step_count=30, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(shared, settings=given)
