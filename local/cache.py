"""What is built or downloaded once per user: folders named by what made them, complete or absent.

A folder is made beside its final place and renamed, under a lock of its own, so that a reader never sees half of it
and two commands never build the same thing twice. Nothing here is ever deleted: `rm -rf` on the folder is always
safe.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path:
    """The user's cache: $HEADRACE_CACHE, else `headrace` in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("HEADRACE_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "headrace"


def key(*parts: str | bytes) -> str:
    """Twelve hexadecimal digits that change when any of the parts, or their order, does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def kept(name: str, build_key: str, make: Callable[[Path], None]) -> Path:
    """The folder `name-build_key` of the cache, made by `make(folder)` if it is not there yet.

    `make` gets an empty folder and either fills it or raises; then nothing is kept.
    """
    folder = root() / f"{name}-{build_key}"
    if folder.is_dir():
        return folder
    with locked(name):
        if not folder.is_dir():
            half = root() / f".{folder.name}.making"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            try:
                make(half)
                half.rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock called `name` of this cache; waits for whoever has it. It is free again when the holder dies."""
    root().mkdir(parents=True, exist_ok=True)
    with (root() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
