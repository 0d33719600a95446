"""A disk for tests: real files, with what may happen to them on purpose.

It dies at the n-th change, in the middle of it if asked to; it loses what was not synced, as a power cut does; it
raises the errors it is told to; it takes its time by a clock of the test's. What dies closes its files, so that its
locks are gone, as those of a process that was killed.
"""

import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from headrace_runtime.kv.disk import Disk


class Died(BaseException):
    """The process was killed here. Not an Exception: nothing in the store may catch it."""


class FakeDisk(Disk):
    """Changes are counted from 1 in `changes`."""

    def __init__(self, dies_at: int | None = None, chance: random.Random | None = None) -> None:
        self.dies_at = dies_at
        """The change that is not finished: of a write, a part at the most is done."""
        self.changes = 0
        self.calls: Counter[str] = Counter()
        self.fault: Callable[[str], OSError | None] = lambda call: None
        """Asked with the name of every call that goes to the disk; what it answers is raised."""
        self.wait: Callable[[str], None] = lambda call: None
        """Called before every such call."""
        self.free: int | None = None
        """Bytes that the disk says it has left."""
        self.unlistable: Path | None = None
        self.unreadable: Path | None = None
        self._chance = chance or random.Random(0)  # noqa: S311 - a test's dice
        self._files: set[int] = set()
        self._dead = False
        self._undo: list[tuple[Path, int, bytes]] = []

    def die(self) -> None:
        """Close every file without a word."""
        self._dead = True
        for file in list(self._files):
            os.close(file)
        self._files.clear()

    def lose_power(self) -> None:
        """Undo some of the writes since the start, in any combination: there was no sync. Then die."""
        for path, offset, before in reversed(self._undo):
            if self._chance.random() < 0.5 and path.exists():
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(before)
        self.die()

    def _call(self, name: str) -> None:
        if self._dead:
            raise Died
        self.calls[name] += 1
        self.wait(name)
        error = self.fault(name)
        if error is not None:
            raise error

    def _change(self, name: str) -> bool:
        """False: this is the change that kills."""
        self._call(name)
        self.changes += 1
        return self.changes != self.dies_at

    def open(self, path: Path, flags: int) -> int:
        self._call("open")
        file = super().open(path, flags)
        self._files.add(file)
        return file

    def open_direct(self, file: int) -> int | None:
        """Half of a write has any length here, and past the kernel's memory only whole pages go."""

    def close(self, file: int) -> None:
        if not self._dead:
            self._files.discard(file)
            super().close(file)

    def read(self, file: int, into: memoryview, offset: int) -> int:
        self._call("read")
        if self.unreadable is not None and self.unreadable.samefile(f"/proc/self/fd/{file}"):
            raise OSError(errno.EIO, "injected")
        return super().read(file, into, offset)

    def write(self, file: int, data: memoryview, offset: int) -> None:
        alive = self._change("write")
        written = data if alive else data[: self._chance.randrange(len(data) + 1)]
        path = Path(f"/proc/self/fd/{file}").readlink()
        self._undo.append((path, offset, os.pread(file, len(written), offset)))
        super().write(file, written, offset)
        if not alive:
            raise Died

    def allocate(self, file: int, size: int) -> None:
        self._mutate("allocate", super().allocate, file, size)

    def truncate(self, file: int) -> None:
        self._mutate("truncate", super().truncate, file)

    def sync(self, file: int) -> None:
        self._call("sync")
        path = Path(f"/proc/self/fd/{file}").readlink()
        self._undo = [change for change in self._undo if change[0] != path]

    def rename(self, old: Path, new: Path) -> None:
        self._mutate("rename", super().rename, old, new)
        self._undo = [(new if path == old else path, offset, before) for path, offset, before in self._undo]

    def unlink(self, path: Path) -> None:
        self._mutate("unlink", super().unlink, path)

    def make_folder(self, path: Path) -> None:
        self._mutate("make_folder", super().make_folder, path)

    def entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        self._call("entries")
        if folder == self.unlistable:
            raise OSError(errno.EACCES, "injected")
        return super().entries(folder)

    def free_bytes(self, folder: Path) -> int:
        self._call("free_bytes")
        return super().free_bytes(folder) if self.free is None else self.free

    def _mutate(self, name: str, work: Callable[..., None], *args: Any) -> None:
        if not self._change(name) and self._chance.random() < 0.5:
            raise Died
        work(*args)
        if self.changes == self.dies_at:
            raise Died
