"""Storing and loading KV blocks against the disk itself, and what verifying costs.

The ceiling is what `fio` with the psync engine does: one allocated file, as many threads, the same sizes, `pwrite` and
`preadv` and nothing else. Store and ceiling take turns, five times, in this process. Both write past the kernel's
memory over what was written before, the store over blocks that it evicts for it. Both read through that memory: once
from the disk (it was dropped before), once from there. What the store does not do, writing through the kernel's memory
(with a sync at the end) and reading past it, stands beside. 2 MiB are 16 tokens of an 8B model.
"""

import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from statistics import median
from typing import Final

from bench.report import Options, Report, at_least, at_most, spread
from headrace_runtime.kv.checksum import block_checksum
from headrace_runtime.kv.store import Settings, Store

KIB, MIB = 1024, 1024**2
SIZES: Final = (256 * KIB, 2 * MIB, 8 * MIB)
THREADS: Final = 4
CORES: Final = min(THREADS, os.cpu_count() or 1)
REPEATS, QUICK_REPEATS = 5, 2
BYTES, QUICK_BYTES = 512 * MIB, 96 * MIB
"""Written and read by each arm in each repeat."""

Work = Callable[[int, memoryview], None]
"""(number of the block, a thread's own memory for one)."""


@dataclass
class Rates:
    """GB/s of one block size, by arm, a figure for each repeat; and the share of a load that verifying takes:
    of the processors' time, as if it could do nothing else meanwhile."""

    size: int
    by_arm: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    verify_share: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def ratio(self, ours: str, ceiling: str) -> list[float]:
        return [one / other for one, other in zip(self.by_arm[ours], self.by_arm[ceiling], strict=True)]


class Bench:
    """One block size, on one folder."""

    def __init__(self, folder: Path, size: int, total: int) -> None:
        self._folder = folder
        self._size = size
        self._count = total // size
        self._memory = [memoryview(mmap(-1, size)) for _ in range(THREADS)]
        for number, memory in enumerate(self._memory):
            memory[:] = random.Random(number).randbytes(size)
        self.rates = Rates(size)

    def turn(self, *, store_first: bool) -> None:
        """Every arm once. Who begins changes from turn to turn."""
        arms = [self._ceiling, self._store]
        for arm in reversed(arms) if store_first else arms:
            arm()

    def _ceiling(self) -> None:
        path = self._folder / "plain"
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            os.posix_fallocate(file, 0, self._count * self._size)
            self._timed("fill", lambda number, memory: _written(direct, memory, number * self._size), [])
            self._timed("write", lambda number, memory: _written(direct, memory, number * self._size), [])
            _drop([file])
            self._timed("read cold", lambda number, memory: _read(file, memory, number * self._size), [])
            self._timed("read warm", lambda number, memory: _read(file, memory, number * self._size), [])
            _drop([file])
            self._timed("read direct", lambda number, memory: _read(direct, memory, number * self._size), [])
            self._timed("write buffered", lambda number, memory: _written(file, memory, number * self._size), [file])
        finally:
            os.close(direct)
            os.close(file)
            path.unlink()

    def _store(self) -> None:
        settings = Settings(
            size_bytes=self._count * self._size * 9 // 8 + 4 * MIB, node_size_bytes=None, block_bytes=self._size,
            verify=True, eviction="LRU", on_model_change="Wipe", key=None,
        )  # fmt: skip
        # A clock that stands: on a busy machine the store would find the disk slow, and leave it alone.
        store = Store(self._folder / "store", f"{random.getrandbits(128):032x}", settings, ticks=lambda: 0.0)
        try:
            self._use(store)
        finally:
            store.close()

    def _use(self, store: Store) -> None:
        def put(number: int, memory: memoryview) -> None:
            if not store.put(_key(number), memory, depth=abs(number)):
                raise RuntimeError(f"block {number} was refused: {store.state()}")

        def get(number: int, memory: memoryview) -> None:
            if not store.get(_key(number), memory):
                raise RuntimeError(f"block {number} was not served: {store.state()}")

        while not store.state().evicted:
            number = store.state().stored
            put(-number - 1, self._memory[number % THREADS])
        files = self._extents()
        try:
            _drop(files)
            self._timed("store", put, [])
            for arm in ("load cold", "load warm"):
                if arm == "load cold":
                    _drop(files)
                seconds = self._timed(arm, get, [])
                self.rates.verify_share[arm].append(self._verify_seconds() / (seconds * CORES))
        finally:
            for file in files:
                os.close(file)

    def _extents(self) -> list[int]:
        return [os.open(path, os.O_RDWR) for path in (self._folder / "store").rglob("*.kv")]

    def _timed(self, arm: str, work: Work, synced: list[int]) -> float:
        """Seconds for all blocks, by THREADS threads, and for the sync of these files."""

        def share(thread: int) -> None:
            for number in range(thread, self._count, THREADS):
                work(number, self._memory[thread])

        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(share, range(THREADS)))
        for file in synced:
            os.fsync(file)
        seconds = time.perf_counter() - began
        self.rates.by_arm[arm].append(self._count * self._size / seconds / 1e9)
        return seconds

    def _verify_seconds(self) -> float:
        """What the checksums of so many blocks take a processor, each in memory that was just read into."""
        began = time.process_time()
        for number in range(self._count):
            block_checksum(_key(number), self._memory[number % THREADS])
        return time.process_time() - began


def _key(number: int) -> bytes:
    return number.to_bytes(4, "big", signed=True) * 9


def _written(file: int, memory: memoryview, offset: int) -> None:
    if os.pwrite(file, memory, offset) != len(memory):
        raise RuntimeError("the disk is full")


def _read(file: int, memory: memoryview, offset: int) -> None:
    if os.preadv(file, [memory], offset) != len(memory):
        raise RuntimeError("the file is short")


def _drop(files: list[int]) -> None:
    for file in files:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


PAIRS: Final = (("store", "write"), ("load cold", "read cold"), ("load warm", "read warm"))


def run(options: Options) -> Report:
    repeats, total = (QUICK_REPEATS, QUICK_BYTES) if options.quick else (REPEATS, BYTES)
    found: list[Rates] = []
    with tempfile.TemporaryDirectory(prefix="headrace-kv-store-") as name:
        benches = [Bench(Path(name), size, total) for size in SIZES]
        for turn in range(repeats):
            for bench in benches:
                bench.turn(store_first=turn % 2 == 1)
        found = [bench.rates for bench in benches]
    return report(found)


def report(found: list[Rates]) -> Report:
    title = f"KV blocks on disk, {THREADS} threads: median (min..max)"
    result = Report("kv-store", title, ("block", "", "ours, GB/s", "ceiling, GB/s", "ours / ceiling", "verify, %"))
    for rates in found:
        for ours, ceiling in PAIRS:
            shares = [100 * share for share in rates.verify_share.get(ours, [])]
            result.rows.append([
                f"{rates.size // KIB} KiB", ours, spread(rates.by_arm[ours], 2), spread(rates.by_arm[ceiling], 2),
                spread(rates.ratio(ours, ceiling), 2), spread(shares, 1) if shares else "",
            ])  # fmt: skip
        for name in ("write buffered", "read direct"):
            arm = spread(rates.by_arm[name], 2)
            result.rows.append([f"{rates.size // KIB} KiB", f"not used: {name}", "", arm, "", ""])
    for rates in found:
        size = f"{rates.size // KIB} KiB"
        result.checks += [
            at_least(f"{size}: store / ceiling", median(rates.ratio("store", "write")), 0.7),
            at_least(f"{size}: load from the disk / ceiling", median(rates.ratio("load cold", "read cold")), 0.7),
            at_most(f"{size}: share of a load that verifying takes", median(rates.verify_share["load cold"]), 0.05),
        ]
    losing = [
        f"{rates.size // KIB} KiB {ours} at {median(rates.ratio(ours, ceiling)):.2f}"
        for rates in found
        for ours, ceiling in PAIRS
        if median(rates.ratio(ours, ceiling)) < 0.9
    ]
    result.notes = [f"ours is more than a tenth behind the ceiling in: {', '.join(losing) or 'nothing'}"]
    return result
