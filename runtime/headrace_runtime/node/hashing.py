"""SHA-256 of files: as fast as one core allows, or slowly and past the page cache.

OpenSSL does the work outside Python's lock: 1.4 to 1.6 GB/s for each core with SHA instructions, read included, so that
four files are hashed by four threads in the time of one. A reading before the engine's start goes through the page
cache, and so warms it for the engine. A reading while others are served goes past it where the file system lets it: it
sees what is on the disk and not what was in memory, and pushes nothing out. Called by `weights.py`.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

from headrace_runtime.models.errors import CancelledError

CHUNK_BYTES = 1 << 20
"""The fastest of 64 KiB to 16 MiB, by a tenth, where it was measured; a multiple of every disk's block."""


@dataclass
class Progress:
    """How far a reading has come, in bytes; `rate` bytes a second at most. Read and cancelled from any thread."""

    bytes_total: int = 0
    bytes_read: int = 0
    rate: float | None = None
    cancelled: Event = field(default_factory=Event)
    clock: Callable[[], float] = time.monotonic
    _lock: Lock = field(default_factory=Lock)
    _began: float | None = None

    def add(self, count: int) -> None:
        """Count what was read; with a rate, return when that much may have been read. Raises CancelledError."""
        with self._lock:
            self._began = self.clock() if self._began is None else self._began
            self.bytes_read += count
            early = self._began + self.bytes_read / self.rate - self.clock() if self.rate else 0.0
        if self.cancelled.wait(early) if early > 0 else self.cancelled.is_set():
            raise CancelledError


def file_digest(path: Path, progress: Progress, *, past_cache: bool = False) -> str:
    """SHA-256 in hex of one file, counted into `progress` as it is read. Raises OSError, CancelledError."""
    digest = hashlib.sha256()
    file = _open(path, past_cache)
    try:
        # Anonymous memory begins at a page, as reads past the cache ask for.
        with mmap.mmap(-1, CHUNK_BYTES) as memory, memoryview(memory) as buffer:
            offset = 0
            while count := _read(file, buffer, offset):
                with buffer[:count] as chunk:
                    digest.update(chunk)
                offset += count
                progress.add(count)
    finally:
        os.close(file)
    return digest.hexdigest()


def folder_digest(digests: Mapping[str, str]) -> str:
    """Digest of a folder from the digests of its files, by relative path."""
    whole = hashlib.sha256()
    for path in sorted(digests, key=os.fsencode):
        whole.update(f"{digests[path]}  ".encode() + os.fsencode(path) + b"\n")
    return f"sha256:{whole.hexdigest()}"


def bytes_per_second(path: Path) -> float:
    """How fast one core hashes a file that is in the page cache, read included: by processor time, which others who
    compute do not stretch. ValueError: the file is empty."""
    file_digest(path, Progress())
    progress, began = Progress(), time.thread_time()
    file_digest(path, progress)
    if not progress.bytes_read:
        raise ValueError(f"{path} is empty")
    return progress.bytes_read / (time.thread_time() - began)


def _open(path: Path, past_cache: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    if past_cache:
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    file = os.open(path, flags)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return file


def _read(file: int, buffer: memoryview, offset: int) -> int:
    """Bytes read at `offset`; 0 at the end."""
    try:
        count = os.preadv(file, [buffer], offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        count = -1
    if count < len(buffer):
        # The end of the file, mostly; from a place that is no block's beginning only the cache can go on.
        fcntl.fcntl(file, fcntl.F_SETFL, 0)
    return count if count >= 0 else os.preadv(file, [buffer], offset)
