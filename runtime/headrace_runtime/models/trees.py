"""Folders of the cache on disk: how much they take, and how they go. No link is ever followed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def physical(path: Path) -> int:
    """Bytes on disk of everything below `path`, and of itself; 0 where there is none."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in (".", *names):
            with suppress(OSError):  # going while we count
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH118 - Path drops the dot
    return total


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours, read-only folders in it too, and no link's target. Raises OSError."""
    if not is_folder(folder):
        folder.unlink(missing_ok=True)
        return
    for path, _, _ in os.walk(folder):
        writable(Path(path))
    shutil.rmtree(folder)


def is_folder(path: Path) -> bool:
    """Not so of a link to one: what it leads to is not ours."""
    return path.is_dir() and not path.is_symlink()


def writable(folder: Path) -> Path:
    """Whoever is not root needs that to rename or empty it."""
    folder.chmod(0o755)
    return folder


def sync(folder: Path) -> None:
    """The names in a folder are on disk when this returns. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
