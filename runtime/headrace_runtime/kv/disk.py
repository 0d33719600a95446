"""The system calls of the store, and nothing else: the one door to the disk.

Tests put a disk in its place that dies at the n-th write, forgets what was not synced, is full, read-only or slow.
Every method raises OSError as the kernel says it.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Disk:
    """Files are 0600 and folders 0700: KV blocks are prompts in another form."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | _FLAGS, 0o600)

    def open_direct(self, file: int) -> int | None:
        """The same file once more, for writes that go past the kernel's memory; None: its file system has none."""
        try:
            return os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def close(self, file: int) -> None:
        os.close(file)

    def read(self, file: int, into: memoryview, offset: int) -> int:
        """Bytes read: fewer than `into` holds only at the file's end."""
        done = 0
        while done < len(into):
            count = os.preadv(file, [into[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def write(self, file: int, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(file, data[done:], offset + done)

    def allocate(self, file: int, size: int) -> None:
        os.posix_fallocate(file, 0, size)

    def truncate(self, file: int) -> None:
        os.ftruncate(file, 0)

    def sync(self, file: int) -> None:
        os.fsync(file)

    def forget(self, file: int) -> None:
        """Drop what the kernel's memory holds of a file that is synced: the next read comes from the disk."""
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def make_folder(self, path: Path) -> None:
        """It may be there already; what is above it must be."""
        path.mkdir(mode=0o700, exist_ok=True)

    def remove_folder(self, path: Path) -> None:
        path.rmdir()

    def stat(self, file: int) -> os.stat_result:
        return os.fstat(file)

    def free_bytes(self, folder: Path) -> int:
        """What the file system has left for anyone."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        with os.scandir(folder) as found:
            yield from found
