"""Keeps a store of KV blocks open, and does beside the engine's scheduler what may wait for a disk.

Opening is tried again for as long as it fails, so that an engine starts, and serves, on a node whose disk is gone.
Leases, what other engines of the node wrote, and the blocks that came and went are looked after by one thread; another
tells the agent how the tier is, and never waits for the disk. Called by `engine/kvtier.py`.
"""

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from headrace_runtime.contract import KvReason, KvState
from headrace_runtime.kv.transfers import Blocks

log = logging.getLogger(__name__)

STEP_SECONDS = 0.1
"""Between two looks for blocks to lease, and for blocks that came and went."""
REFRESH_SECONDS = 1.0
REPORT_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0
TOUCHES = 100_000
"""Blocks that wait to be leased, at most."""
EVENT_KEYS = 1000
"""Blocks that are told of at a time: to tell of all that a large disk holds in one step would hold up the engine."""


class Store(Blocks, Protocol):
    """What is needed of `kv/store.py` beyond its blocks. All of it may wait for the disk but `state`."""

    def touch(self, keys: Iterable[bytes], at: float | None = None) -> None: ...
    def refresh(self) -> None: ...
    def events(self) -> tuple[list[bytes], list[bytes]]: ...
    def state(self) -> KvState: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Change:
    """Blocks that became readable on the disk, or that did and are not any more."""

    removed: bool
    keys: list[bytes]


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """There is no store to be opened now. The message names no path of a node."""

    def __init__(self, reason: KvReason, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class Keeper:
    """`start` it once; `store` is None while there is none. `touch`, `take_event` and `store` are quick."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        tell: Callable[[KvState], None],
        counted: Callable[[KvState], KvState],
        events: bool,
    ) -> None:
        """`open_store` raises Refused. `tell` gets every state that is new; `counted` adds to one what the store does
        not know. `events`: whether somebody takes them."""
        self._open, self._tell, self._counted, self._wants_events = open_store, tell, counted, events
        self.store: Store | None = None
        self._state = KvState(ready=False, message="the store is being opened")
        self._mutex = threading.Lock()
        self._touched: dict[bytes, float] = {}
        self._events: deque[Change] = deque()
        self._tried = threading.Event()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="kv-keep", daemon=True),
            threading.Thread(target=self._report, name="kv-report", daemon=True),
        ]

    def start(self, wait_seconds: float) -> None:
        """Wait so long at most for the first attempt to open the store."""
        for thread in self._threads:
            thread.start()
        self._tried.wait(wait_seconds)

    def touch(self, keys: Collection[bytes], at: float) -> None:
        """A request that came at that time needs these blocks: they are not to be evicted meanwhile."""
        with self._mutex:
            if len(self._touched) + len(keys) <= TOUCHES:
                self._touched.update(dict.fromkeys(keys, at))

    def take_event(self) -> Change | None:
        """Of blocks that came or went, the next that nobody has been told of."""
        return self._events.popleft() if self._events else None

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def state(self) -> KvState:
        store = self.store
        return self._counted(store.state() if store is not None else self._state)

    def close(self, seconds: float = 2.0) -> None:
        self._closing.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self.store is not None and not self._threads[0].is_alive():
            self.store.close()  # else it hangs in the kernel: the end of the process closes it

    # ---- the threads --------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        retry, refresh_at = REFRESH_SECONDS, 0.0
        while not self._closing.is_set():
            wait = STEP_SECONDS
            try:
                if self.store is None:
                    self.store = self._open()
                    retry = REFRESH_SECONDS
                elif time.monotonic() >= refresh_at:
                    self.store.refresh()
                    refresh_at = time.monotonic() + REFRESH_SECONDS
                self._look_after(self.store)
            except Refused as refused:
                if (refused.reason, refused.message) != (self._state.reason, self._state.message):
                    log.warning("KV blocks are not kept on disk: %s: %s", refused.reason, refused.message)
                self._state = KvState(ready=False, reason=refused.reason, message=refused.message)
                wait, retry = retry, min(2 * retry, LAST_RETRY_SECONDS)
            except Exception:
                log.exception("looking after the store of KV blocks failed")
                wait = REFRESH_SECONDS
            self._tried.set()
            self._closing.wait(wait)

    def _look_after(self, store: Store) -> None:
        if self._touched:
            with self._mutex:
                wanted, self._touched = self._touched, {}
            moments: defaultdict[float, list[bytes]] = defaultdict(list)
            for key, at in wanted.items():
                if key in store:
                    moments[at].append(key)
            for at, keys in moments.items():
                store.touch(keys, at)
        came, went = store.events()
        if self._wants_events:
            for removed, keys in ((True, went), (False, came)):
                for start in range(0, len(keys), EVENT_KEYS):
                    self._events.append(Change(removed, keys[start : start + EVENT_KEYS]))

    def _report(self) -> None:
        told: KvState | None = None
        while True:
            last = self._closing.is_set()
            try:
                if (state := self.state()) != told:
                    self._tell(state)
                    told = state
            except OSError as error:
                log.warning("the agent cannot be told of the KV tier: %s", error)
            if last:
                return
            self._closing.wait(REPORT_SECONDS)
