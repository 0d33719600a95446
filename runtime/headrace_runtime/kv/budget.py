"""How many bytes the store may take of the disk, and that nobody takes more at the same time.

What counts is what `du` would say: allocated bytes (`st_blocks`) of every file and folder, whoever made it. All
extents of a node are made, and removed, under one lock in the node's folder, so that what was measured still holds
when it is acted upon. Where something cannot be measured the answer is an error, never a guess: `UnmeasurableError`.
"""

import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.extent import NAME
from headrace_runtime.kv.layout import PAGE, charge

LOCK: Final = ".lock"
PATIENCE_SECONDS: Final = 5.0
"""How long to wait for the node's lock: who holds it allocates one file, or removes some."""
_BLOCK: Final = 512
"""Unit of st_blocks, whatever the file system's own."""


class UnmeasurableError(OSError):
    """A part of a folder could not be looked at: what it takes of the disk is unknown."""


class BusyError(OSError):
    """Another process of the node has held the lock for too long."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """What a folder takes of the disk: now, and once its file system has noted all that it may."""

    physical: int = 0
    charged: int = 0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.physical + other.physical, self.charged + other.charged)


def measure(disk: Disk, folder: Path) -> Bytes:
    """Of the folder and all below it. Symbolic links are not followed; a file that vanishes meanwhile counts nothing.

    Raises:
        UnmeasurableError: a folder or file in it could not be read.
    """
    try:
        own = os.lstat(folder).st_blocks * _BLOCK
        # A folder grows by a page now and then as names are added to it.
        total = Bytes(own, own + PAGE)
        for entry in disk.entries(folder):
            total += _measure_entry(disk, entry)
    except UnmeasurableError:
        raise
    except OSError as error:
        raise UnmeasurableError(error.errno, f"{type(error).__name__}: {os.strerror(error.errno or 0)}") from error
    return total


def _measure_entry(disk: Disk, entry: os.DirEntry[str]) -> Bytes:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return Bytes()
    if stat.S_ISDIR(found.st_mode):
        try:
            return measure(disk, Path(entry.path))
        except UnmeasurableError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return Bytes()
            raise
    physical = found.st_blocks * _BLOCK
    return Bytes(physical, max(physical, charge(found.st_size)) if NAME.fullmatch(entry.name) else physical)


class Budget:
    """Of one deployment on one node. `folder` is the deployment's, its parent is the node's."""

    def __init__(self, disk: Disk, folder: Path, limit: int, node_limit: int | None) -> None:
        self._disk = disk
        self._folder = folder
        self.limit = limit
        self.node_limit = node_limit

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process of the node is here at a time.

        Raises:
            BusyError: the lock could not be had in time.
        """
        file = self._disk.open(self._folder.parent / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            _wait_for(file)
            yield
        finally:
            self._disk.close(file)

    def used(self) -> int:
        """Physical bytes of the deployment. Raises UnmeasurableError."""
        return measure(self._disk, self._folder).physical

    def room(self) -> int:
        """Bytes that the deployment may still take; negative: so many must be given back. Raises UnmeasurableError."""
        return self.limit - measure(self._disk, self._folder).charged

    def node_room(self) -> int:
        """The same of the node; without limit where it has none."""
        if self.node_limit is None:
            return sys.maxsize
        return self.node_limit - measure(self._disk, self._folder.parent).charged


def _wait_for(file: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise BusyError(error.errno, "another process holds the node's lock") from error
            time.sleep(0.005)
        else:
            return
