"""The node's cache of fetched models: one folder that all agents of the node share, without talking to each other.

    KEY/                  a model, complete and read-only; KEY is made of the source's digest
    KEY.record.json       what its files came to (`record.py`)
    KEY.partial/          a download under way, or what a killed one left; `plan.json` says how much it will be
    KEY.lock              flock: shared by who runs on the model, exclusive for who downloads or removes it
    room.lock             flock: who counts bytes, and makes room

A model appears by one rename when all of it is there and right. flock ends with its process, so whatever is killed
leaves no lock, and what it left on disk is either taken up by the next who wants the model, or swept. Nothing is ever
touched whose name is not of these forms.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from headrace_runtime.models import record
from headrace_runtime.models.errors import CacheTooSmallError
from headrace_runtime.models.record import File, Record, Stamp
from headrace_runtime.models.room import Entry, leaving
from headrace_runtime.models.transfer import disk_error
from headrace_runtime.models.trees import is_folder, physical, remove_tree, sync, writable

KEY = re.compile(r"[0-9a-f]{32}")
OURS = re.compile(r"([0-9a-f]{32})(|\.partial|\.gone|\.lock|\.record\.json(?:\.\d+\.tmp)?)")
ABANDONED_SECONDS = 7 * 86_400.0
"""A download that nobody has gone on with for so long is swept."""
STEP_BYTES = 256 << 20
"""What is reserved at a time for bytes that were not foreseen."""


class Cache:
    """One process' view of the cache. Thread-safe. Holds what it gave out until `release`, or its process' end."""

    def __init__(self, path: Path, size_bytes: int | None, clock: Callable[[], float] = time.time) -> None:
        """Makes the folder if there is none, and sweeps it. Raises FetchError where it cannot be written."""
        self.path, self.size_bytes, self._clock = path, size_bytes, clock
        self._held: dict[str, list[int]] = {}
        self._lock = Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            with self._counting():
                self._sweep()
        except OSError as error:
            raise disk_error(error) from None

    # ---- for who wants a model ----------------------------------------------------------------------------------

    def hold(self, key: str) -> Path | None:
        """The folder of a complete model, which is not removed before `release`. None where there is none, or
        somebody is just making or removing it."""
        try:
            descriptor = self._flock(key, fcntl.LOCK_SH)
        except OSError as error:
            raise disk_error(error) from None
        if descriptor is None:
            return None
        if not self._whole(key):
            os.close(descriptor)
            return None
        self._touch(key)
        with self._lock:
            self._held.setdefault(key, []).append(descriptor)
        return self.path / key

    def release(self, folder: Path) -> None:
        """Give back what `hold` gave once. Does nothing for a folder that is not held."""
        with self._lock:
            descriptors = self._held.get(folder.name, [])
            if descriptors:
                self._touch(folder.name)
                os.close(descriptors.pop())

    def discard(self, folder: Path) -> None:
        """Remove a model that is held and was found damaged. Who else runs on it has it open, and loses its name only.
        Does nothing where somebody has removed it before: there may be a better copy by now. Raises FetchError."""
        with self._lock:
            descriptors = self._held.get(folder.name, [])
            descriptor = descriptors.pop() if descriptors else None
        if descriptor is None:
            return
        try:
            with self._counting():
                lock = self.path / f"{folder.name}.lock"
                if lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino:
                    self._erase(folder.name)
        except OSError as error:
            raise disk_error(error) from None
        finally:
            os.close(descriptor)

    def records(self) -> Iterator[tuple[str, Record]]:
        """Of the complete models, by key."""
        for entry in sorted(self.path.iterdir()):
            if KEY.fullmatch(entry.name) and (known := record.read(entry)):
                yield entry.name, known

    def under_way(self, key: str) -> tuple[int, int]:
        """Bytes fetched, and in all, of a download that another process is at."""
        partial = self.path / f"{key}.partial"
        return physical(partial), _planned(partial)

    @contextmanager
    def making(self, key: str) -> Iterator[Making | None]:
        """The right to make the model `key`, alone on this node. None: another has it, or the model is there."""
        try:
            descriptor = self._flock(key, fcntl.LOCK_EX)
        except OSError as error:
            raise disk_error(error) from None
        try:
            yield Making(self, key) if descriptor is not None and not self._whole(key) else None
        except OSError as error:
            raise disk_error(error) from None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    # ---- room ---------------------------------------------------------------------------------------------------

    def make_room(self, key: str, need: int) -> None:
        """Reserve `need` bytes in all for the download of `key`. Raises CacheTooSmallError."""
        with self._counting():
            entries = [entry for entry in self._entries() if entry.name.removesuffix(".partial") != key]
            taken = sum(entry.bytes for entry in entries)
            disk = os.statvfs(self.path)
            free = disk.f_bavail * disk.f_frsize + taken + physical(self.path / f"{key}.partial")
            limit = free if self.size_bytes is None else min(free, self.size_bytes)
            going = leaving(entries, need, limit)
            if going is None:
                raise CacheTooSmallError(_too_small(need, limit, self.size_bytes, entries))
            for entry in going:
                self._remove(entry.name.removesuffix(".partial"))
            partial = self.path / f"{key}.partial"
            if not is_folder(partial):
                remove_tree(partial)
                partial.mkdir()
            scratch = partial / "plan.tmp"
            scratch.write_text(json.dumps({"total": need}))
            scratch.replace(partial / "plan.json")

    def _entries(self) -> list[Entry]:
        entries = []
        for path in self.path.iterdir():
            match = OURS.fullmatch(path.name)
            if not match or match[2] not in ("", ".partial"):
                continue
            busy = self._busy(match[1])
            bytes_ = physical(path)
            if busy and match[2]:
                bytes_ = max(bytes_, _planned(path))
            entries.append(Entry(path.name, bytes_, self._used(match[1]), busy, whole=not match[2]))
        return entries

    def _busy(self, key: str) -> bool:
        descriptor = self._flock(key, fcntl.LOCK_EX)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    def _remove(self, key: str) -> None:
        """What is left of `key`, unless somebody has taken it meanwhile."""
        descriptor = self._flock(key, fcntl.LOCK_EX)
        if descriptor is None:
            raise CacheTooSmallError("the cache is full: what was to go is in use again; asked again, it may fit")
        try:
            self._erase(key)
        finally:
            os.close(descriptor)

    def _erase(self, key: str) -> None:
        """Under its exclusive lock. The model is gone at once, whatever happens to us before its bytes are."""
        gone = self.path / f"{key}.gone"
        remove_tree(gone)
        if is_folder(folder := self.path / key):
            writable(folder).rename(gone)
        remove_tree(folder)  # what is no folder
        record.path_of(self.path / key).unlink(missing_ok=True)
        remove_tree(gone)
        remove_tree(self.path / f"{key}.partial")
        (self.path / f"{key}.lock").unlink(missing_ok=True)

    def _sweep(self) -> None:
        """What crashes left: halves of models, records without a model, downloads that nobody goes on with."""
        keys = {match[1] for path in self.path.iterdir() if (match := OURS.fullmatch(path.name))}
        for key in sorted(keys):
            descriptor = self._flock(key, fcntl.LOCK_EX)
            if descriptor is None:
                continue
            try:
                partial = self.path / f"{key}.partial"
                fresh = is_folder(partial) and self._clock() - self._used(key) < ABANDONED_SECONDS
                for scratch in self.path.glob(f"{key}.record.json.*.tmp"):
                    scratch.unlink(missing_ok=True)
                remove_tree(self.path / f"{key}.gone")
                if not self._whole(key) and not fresh:
                    self._erase(key)
                elif self._whole(key):
                    remove_tree(partial)
            finally:
                os.close(descriptor)

    # ---- locks --------------------------------------------------------------------------------------------------

    def _flock(self, key: str, kind: int) -> int | None:
        """The lock of `key` as an open file, or None where another has it. Raises OSError."""
        file = self.path / f"{key}.lock"
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                mine = os.fstat(descriptor).st_ino == file.stat().st_ino
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                mine = False
            if mine:
                return descriptor
            os.close(descriptor)  # it was removed together with its model: the name is another file now, or none

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with (self.path / "room.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _whole(self, key: str) -> bool:
        folder = self.path / key
        return is_folder(folder) and record.path_of(folder).is_file()

    def _touch(self, key: str) -> None:
        with suppress(OSError):
            os.utime(self.path / f"{key}.lock", (self._clock(), self._clock()))

    def _used(self, key: str) -> float:
        try:
            return (self.path / f"{key}.lock").stat().st_mtime
        except OSError:
            return 0.0


class Making:
    """A model on its way into the cache, under its lock."""

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache, self.key = cache, key
        self.folder = cache.path / f"{key}.partial"
        self.tree = self.folder / "tree"
        self._reserved = self._spare = 0
        self._lock = Lock()
        cache._touch(key)

    def reserve(self, total: int, spare: int) -> None:
        """Room for `total` bytes that are known, and `spare` for `grow`. Raises CacheTooSmallError."""
        self._cache.make_room(self.key, total + spare)
        self._reserved, self._spare = total + spare, spare

    def grow(self, count: int) -> None:
        """Bytes that nobody knew of are about to be written. Raises CacheTooSmallError."""
        with self._lock:
            self._spare -= count
            if self._spare < 0:
                more = max(STEP_BYTES, -self._spare)
                self._cache.make_room(self.key, self._reserved + more)
                self._reserved, self._spare = self._reserved + more, self._spare + more

    def empty_tree(self) -> Path:
        remove_tree(self.tree)
        self.tree.mkdir()
        return self.tree

    def commit(self, source: str, digests: Mapping[str, str], read_at: float) -> None:
        """All of the model is in `tree`: show it. Raises OSError."""
        folder = self._cache.path / self.key
        for path, _, names in os.walk(self.tree, topdown=False):
            for name in names:
                if not (file := Path(path, name)).is_symlink():
                    file.chmod(0o444)
            if Path(path) != self.tree:
                Path(path).chmod(0o555)
        files = {path: File(digest, Stamp.of(self.tree / path)) for path, digest in sorted(digests.items())}
        record.write(folder, Record(source, record.boot_id(), files, read_at))
        self.tree.rename(folder)
        folder.chmod(0o555)
        sync(self._cache.path)
        remove_tree(self.folder)


def _planned(partial: Path) -> int:
    try:
        return int(json.loads((partial / "plan.json").read_bytes())["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _too_small(need: int, limit: int, size: int | None, entries: list[Entry]) -> str:
    busy = sum(entry.bytes for entry in entries if entry.busy)
    bound = f"the model cache may hold {_gb(limit)}" if limit == size else f"its disk has room for {_gb(limit)}"
    return f"the model takes {_gb(need)}, {bound}, and {_gb(busy)} of that is in use: make the cache larger"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 100_000_000 else f"{count / 1e6:.1f} MB"
