"""Moves KV blocks between an engine's host memory and the store on disk, without anybody waiting for the disk.

The engine's scheduler submits jobs and polls for their ends; threads do the rest. A thread never touches host memory
while it waits for the disk: blocks pass through a buffer of the thread's own, and a read block is copied into its place
only once it is verified and somebody still wants it. So a job can be given up at any time, and the engine may use its
place for something else, while a thread still hangs in the kernel.

Nothing here grows with a disk that is too slow. Stores beyond a limit are dropped, and so are those that wait too long;
loads have a deadline; and while one call to the store does not come back, everything is given up at once. What calls
that do come back say of the disk is judged by the store itself (`breaker.py`).

Called by `engine/kvtier.py`. Knows neither vLLM nor the format of the store.
"""

import ctypes
import logging
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

log = logging.getLogger(__name__)


class Blocks(Protocol):
    """What is needed of `kv/store.py`. `get` and `put` block, and are called by several threads."""

    def __contains__(self, key: bytes) -> bool: ...
    def get(self, key: bytes, into: memoryview) -> bool: ...
    def put(self, key: bytes, block: memoryview, depth: int, at: float | None = None) -> bool: ...


@dataclass(frozen=True)
class Limits:
    """Seconds are of wall time: generous, since an engine may keep every processor busy for a while."""

    readers: int = 4
    writers: int = 2
    call_seconds: float = 2.0
    """One block read. No disk in order takes a tenth of it."""
    write_seconds: float = 10.0
    """One block written: many may be on their way through the kernel's cache."""
    load_seconds: float = 10.0
    """All blocks of one request. Those that came in time are used."""
    store_seconds: float = 10.0
    """How long a block waits for a writer, its place in host memory taken."""
    waiting_stores: int = 64
    """Blocks that wait for a writer."""


@dataclass(frozen=True)
class Finished:
    """A job that holds no place in host memory any more. For a load, `good` are the keys whose blocks are there."""

    job: int
    good: tuple[bytes, ...]
    asked: int
    seconds: float


@dataclass
class Counts:
    """Since the start, in blocks."""

    dropped: int = 0
    """Not stored, since the disk could not follow or was not well."""
    given_up: int = 0
    """Not loaded in time."""


@dataclass
class _Job:
    id: int
    keys: Sequence[bytes]
    places: Sequence[int]
    """Offsets into host memory, in bytes."""
    depths: Sequence[int] | None
    """None: it is a load."""
    began: float
    left: int
    """Blocks that nothing has become of yet."""
    good: set[bytes] = field(default_factory=set)
    copying: int = 0
    """Blocks that a thread is copying at the moment."""
    over: bool = False
    """Given up: what is not being copied is not touched any more."""
    at: float | None = None


_Task = tuple[_Job, int]


class Transfers:
    """See the module. `load`, `store`, `poll`, `busy` are for one thread, and quick."""

    def __init__(
        self,
        memory: memoryview,
        block_bytes: int,
        store: Callable[[], Blocks | None],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory`: writable, one dimension of bytes. `store` gives None while there is none to use."""
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._memory = memory
        self._bytes = block_bytes
        self._store = store
        self._limits = limits
        self._clock = clock
        self.counts = Counts()
        self._changed = threading.Condition()
        self._loads: deque[_Task] = deque()
        self._stores: deque[_Task] = deque()
        self._jobs: dict[int, _Job] = {}
        self._calls: dict[int, tuple[float, float]] = {}
        """By thread: when its call to the store began, and how long it may take."""
        self._finished: deque[Finished] = deque()
        self._closing = False
        plan = [(self._load_one, self._loads, "kv-read")] * limits.readers
        plan += [(self._store_one, self._stores, "kv-write")] * limits.writers
        self._threads = [
            threading.Thread(target=self._work, args=(do, queue), name=name, daemon=True) for do, queue, name in plan
        ]
        for thread in self._threads:
            thread.start()

    # ---- the engine's side --------------------------------------------------------------------------------------

    def load(self, job: int, keys: Sequence[bytes], places: Sequence[int]) -> None:
        """Read these blocks into their places. While a call hangs all of them fail at once."""
        new = _Job(job, keys, places, None, self._clock(), len(keys))
        with self._changed:
            self._jobs[job] = new
            if not keys or self.hanging:
                self._give_up(new)
                return
            self._loads.extend((new, index) for index in range(len(keys)))
            self._changed.notify_all()

    def store(
        self, job: int, keys: Sequence[bytes], places: Sequence[int], depths: Sequence[int], at: float | None = None
    ) -> None:
        """Write these blocks, as far as there is room to wait. `depths`: how many blocks of its prompt precede each.
        `at`: when their request came."""
        new = _Job(job, keys, places, depths, self._clock(), len(keys), at=at)
        store = self._store()
        with self._changed:
            self._jobs[job] = new
            room = 0 if store is None or self.hanging else self._limits.waiting_stores - len(self._stores)
            if not keys:
                self._end(new)
            for index, key in enumerate(keys):
                if store is not None and key in store:
                    self._done(new)
                elif room > 0:
                    room -= 1
                    self._stores.append((new, index))
                else:
                    self.counts.dropped += 1
                    self._done(new)
            self._changed.notify_all()

    def poll(self) -> list[Finished]:
        """Jobs that ended since the last call. Also gives up what is too late."""
        with self._changed:
            self._expire(self._clock())
            ended = list(self._finished)
            self._finished.clear()
        return ended

    @property
    def busy(self) -> bool:
        """Whether a job has not been polled yet."""
        return bool(self._jobs or self._finished)

    @property
    def hanging(self) -> bool:
        """Whether a call to the store takes far too long, and has not come back yet."""
        now, calls = self._clock(), list(self._calls.values())  # a list at once: threads come and go without the lock
        return any(now - began > allowed for began, allowed in calls)

    def settle(self) -> None:
        """Return once no thread will touch host memory for any job submitted so far. Their ends are left to `poll`."""
        with self._changed:
            while self._jobs:
                self._expire(self._clock())
                self._changed.wait(0.05)

    def close(self, seconds: float = 5.0) -> None:
        """End the threads. Blocks that wait for a writer are lost; those being written have some seconds left."""
        with self._changed:
            self._closing = True
            for job in list(self._jobs.values()):
                self._give_up(job)
            self._changed.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._memory.release()

    # ---- deadlines; all with the lock held ----------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        limits, hanging = self._limits, self.hanging
        for job in list(self._jobs.values()):
            late = now - job.began > (limits.load_seconds if job.depths is None else limits.store_seconds)
            if late or hanging:
                self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        """Nothing more is done for the job. A copy under way ends it a moment later."""
        if not job.over:
            job.over = True
            if job.depths is None:
                self.counts.given_up += job.left
            else:
                self.counts.dropped += job.left
        if not job.copying:
            self._end(job)

    def _done(self, job: _Job) -> None:
        job.left -= 1
        if not job.left:
            self._end(job)

    def _end(self, job: _Job) -> None:
        if self._jobs.pop(job.id, None) is not None:
            good = tuple(key for key in job.keys if key in job.good)
            self._finished.append(Finished(job.id, good, len(job.keys), self._clock() - job.began))
            self._changed.notify_all()

    # ---- the threads --------------------------------------------------------------------------------------------

    def _work(self, do: Callable[[_Job, int, memoryview], None], queue: deque[_Task]) -> None:
        buffer = memoryview(mmap.mmap(-1, self._bytes))  # begins at a page, as direct I/O wants it
        while True:
            with self._changed:
                while not queue and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                job, index = queue.popleft()
            if not job.over:
                do(job, index, buffer)

    def _load_one(self, job: _Job, index: int, buffer: memoryview) -> None:
        key = job.keys[index]
        good = self._call(self._limits.call_seconds, lambda store: store.get(key, buffer))
        with self._changed:
            if job.over:
                return
            job.copying += good
        if good:
            ctypes.memmove(self._base + job.places[index], _address(buffer), self._bytes)
        with self._changed:
            if good:
                job.copying -= 1
                job.good.add(key)
            if job.over:
                self._give_up(job)
            else:
                self._done(job)

    def _store_one(self, job: _Job, index: int, buffer: memoryview) -> None:
        with self._changed:
            if job.over:
                return
            job.copying += 1
        ctypes.memmove(_address(buffer), self._base + job.places[index], self._bytes)
        with self._changed:
            job.copying -= 1
            if job.over:
                self._give_up(job)
                return
            self._done(job)
        assert job.depths is not None
        key, depth = job.keys[index], job.depths[index]
        if not self._call(self._limits.write_seconds, lambda store: store.put(key, buffer, depth, job.at)):
            with self._changed:
                self.counts.dropped += 1

    def _call(self, allowed: float, ask: Callable[[Blocks], bool]) -> bool:
        """Ask the store, with a note of when that began. A store that raises has no such block."""
        me, store = threading.get_ident(), self._store()
        if store is None:
            return False
        self._calls[me] = (self._clock(), allowed)
        try:
            return ask(store)
        except Exception:
            log.exception("the store of KV blocks failed")
            return False
        finally:
            del self._calls[me]


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
