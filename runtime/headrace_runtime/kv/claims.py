"""Who may do what with the slots of one extent: among the threads of a process, and among the processes of a node.

A slot is shared (readers, and leases of blocks that will be read soon) or owned (one writer or evictor), never both,
and nobody waits: what is taken is refused. Between processes a claim is the kernel's lock on one byte of the file (an
open-file-description lock): it is there at once, costs a microsecond and no access to the disk, and is gone with its
process however that ends. So there is nothing to recover: a slot that a dead writer had begun is simply free.

The kernel counts one claim per open file, not per thread, so the threads' part is kept here; and since a claim may be
held while the extent is dropped, it is here that its file is closed, when the last one ends.
"""

import fcntl
import os
from collections.abc import Callable
from errno import EACCES, EAGAIN
from struct import Struct
from threading import Lock
from typing import Final

_FLOCK: Final = Struct("hhqqi0q")
"""struct flock of 64-bit Linux: type, whence, start, length (0: to the end of all files), pid."""


def _lock(file: int, kind: int, start: int, length: int) -> bool:
    """False: another open file has it. Other errors of the kernel are raised."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (EAGAIN, EACCES):
            return False
        raise
    return True


def own_whole(file: int) -> bool:
    """Take all slots of an extent for good, to remove it: until the file is closed. False: one of them is in use."""
    return _lock(file, fcntl.F_WRLCK, 0, 0)


class Claims:
    """Claims on the slots of the extent that `file` is open on. Thread-safe; no method waits for another process."""

    def __init__(self, file: int, close: Callable[[int], None]) -> None:
        self._file = file
        self._close = close
        self._mutex = Lock()
        self._readers: dict[int, int] = {}
        self._leases: dict[int, float] = {}
        self._owned: set[int] = set()
        self._retired = False

    def share(self, slot: int) -> bool:
        """Nobody writes or evicts the slot until `unshare`. False: somebody does, or the extent is retired."""
        with self._mutex:
            if not self._held(slot):
                return False
            self._readers[slot] = self._readers.get(slot, 0) + 1
            return True

    def unshare(self, slot: int) -> None:
        with self._mutex:
            self._readers[slot] -= 1
            if self._readers[slot] == 0:
                del self._readers[slot]
                self._let_go(slot)

    def lease(self, slot: int, until: float) -> bool:
        """As `share`, until `expire` is called with a later time."""
        with self._mutex:
            if slot not in self._leases and not self._held(slot):
                return False
            self._leases[slot] = until
            return True

    def expire(self, now: float) -> None:
        with self._mutex:
            for slot in [slot for slot, until in self._leases.items() if until <= now]:
                del self._leases[slot]
                self._let_go(slot)

    def end_lease(self, slot: int) -> None:
        with self._mutex:
            if self._leases.pop(slot, None) is not None:
                self._let_go(slot)

    def busy(self) -> set[int]:
        """Slots that this process may not evict: leased, read, or owned by another of its threads."""
        with self._mutex:
            return {*self._leases, *self._readers, *self._owned}

    def own(self, slot: int) -> bool:
        """Nobody else reads, writes or evicts the slot until `disown`. False: somebody does."""
        with self._mutex:
            if self._retired or slot in self._owned or slot in self._readers or slot in self._leases:
                return False
            if not _lock(self._file, fcntl.F_WRLCK, slot, 1):
                return False
            self._owned.add(slot)
            return True

    def disown(self, slot: int) -> None:
        with self._mutex:
            self._owned.discard(slot)
            self._let_go(slot)

    @property
    def retired(self) -> bool:
        return self._retired

    def retire(self) -> None:
        """No new claim; leases end; the file is closed once the last reader or writer is done."""
        with self._mutex:
            if not self._retired:
                self._retired = True
                self._leases.clear()
                self._close_if_idle()

    def _held(self, slot: int) -> bool:
        """Whether the kernel's shared lock on the slot is ours, now or already."""
        if self._retired or slot in self._owned:
            return False
        return slot in self._readers or slot in self._leases or _lock(self._file, fcntl.F_RDLCK, slot, 1)

    def _let_go(self, slot: int) -> None:
        if slot not in self._readers and slot not in self._leases:
            if self._retired:
                self._close_if_idle()
            else:
                _lock(self._file, fcntl.F_UNLCK, slot, 1)

    def _close_if_idle(self) -> None:
        if not self._readers and not self._owned:
            self._close(self._file)
