"""Reads the model's folder once, before any engine may: is it there, and is it what was promised?

The digest of a folder is that of its listing, as `sha256sum` would print it, sorted by path in byte order:

    cd MODEL && find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum

written `sha256:HEX`. A symbolic link counts as the file it leads to as long as that is inside the folder; one that
leads out is a problem, never followed. Called by `agent.py` in a thread; `Progress` may be read from any other.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

from headrace_runtime.contract import Integrity, WeightsState

CHUNK_BYTES = 1 << 20
THREADS = 4
PROBLEMS_SHOWN = 10


class ModelNotFoundError(Exception):
    """The folder is not there, not a folder, or empty. The message is fit for a status: it names no path of a node."""


class CancelledError(Exception):
    """The agent was told to leave while it read."""


@dataclass
class Progress:
    """How far a reading has come, in bytes."""

    bytes_total: int = 0
    bytes_read: int = 0
    cancelled: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes_read += count
        if self.cancelled.is_set():
            raise CancelledError


@dataclass(frozen=True)
class Listing:
    """The files of a folder, by path relative to it, and what is wrong with the folder itself."""

    files: tuple[str, ...]
    bytes_total: int
    problems: tuple[str, ...]


def read(folder: Path, source: str, integrity: Integrity, progress: Progress) -> WeightsState:
    """Read `folder` whole and compare it with `integrity`; with policy Off, only see that it is there.

    `source` stands for the folder in messages. Raises ModelNotFoundError and CancelledError; a file that vanishes or
    cannot be read is a problem of the returned state.
    """
    listing = survey(folder, source)
    if integrity.policy == "Off":
        return WeightsState()
    progress.bytes_total, progress.bytes_read = listing.bytes_total, 0
    digests: dict[str, str] = {}
    problems = list(listing.problems)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="weights") as threads:
        readings = {path: threads.submit(file_digest, folder / path, progress) for path in listing.files}
        for path, reading in readings.items():
            try:
                digests[path] = reading.result()
            except OSError as error:
                problems.append(f"{path}: cannot be read: {error.strerror}")
    digest = folder_digest(digests)
    problems += compare(digests, digest, integrity)
    return WeightsState(
        digest=digest,
        bytes_total=progress.bytes_total,
        bytes_read=progress.bytes_read,
        verified=not problems,
        problems=tuple(problems[:PROBLEMS_SHOWN]),
    )


def survey(folder: Path, source: str) -> Listing:
    """What is in `folder`, in byte order of the paths. Raises ModelNotFoundError."""
    if not folder.is_dir():
        raise ModelNotFoundError(f"{source} is not a folder")
    root = folder.resolve()
    unreadable: list[OSError] = []
    files, problems, total = [], [], 0
    for path in _walk(root, unreadable.append):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            problems.append(f"{name}: a symbolic link to a folder")
        elif not path.is_symlink() and not path.is_file():
            problems.append(f"{name}: neither a file nor a folder")
        elif not path.resolve().is_relative_to(root):
            problems.append(f"{name}: a symbolic link that leads out of the model's folder")
        elif not path.is_file():
            problems.append(f"{name}: a symbolic link to no file")
        else:
            files.append(name)
            total += path.stat().st_size
    problems += [f"{Path(error.filename).relative_to(root)}: cannot be read: {error.strerror}" for error in unreadable]
    if not files and not problems:
        raise ModelNotFoundError(f"{source} is empty")
    return Listing(tuple(sorted(files, key=os.fsencode)), total, tuple(sorted(problems)))


def _walk(root: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Every entry below `root` that is not a real folder; links to folders are entries, and not entered."""
    for folder, folders, names in os.walk(root, onerror=on_error):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in names + links)


def file_digest(path: Path, progress: Progress) -> str:
    """SHA-256 in hex of one file, counted into `progress` as it is read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            progress.add(count)
    return digest.hexdigest()


def folder_digest(digests: Mapping[str, str]) -> str:
    """Digest of a folder from the digests of its files, by relative path."""
    whole = hashlib.sha256()
    for path in sorted(digests, key=os.fsencode):
        whole.update(f"{digests[path]}  ".encode() + os.fsencode(path) + b"\n")
    return f"sha256:{whole.hexdigest()}"


def compare(digests: Mapping[str, str], digest: str, integrity: Integrity) -> list[str]:
    """What differs from the manifest and from the pinned digest, a sentence each; empty if nothing does.

    A file that the manifest does not list is a difference too: an engine may load weights, or code, from any.
    """
    problems = []
    if integrity.files is not None:
        for path in sorted({*digests, *integrity.files}):
            expected, found = integrity.files.get(path), digests.get(path)
            if found is None:
                problems.append(f"{path}: missing")
            elif expected is None:
                problems.append(f"{path}: not in the manifest")
            elif expected.lower() != found:
                problems.append(f"{path}: SHA-256 is {found}, the manifest says {expected}")
    if integrity.digest is not None and integrity.digest != digest:
        problems.append(f"the folder: digest is {digest}, pinned is {integrity.digest}")
    return problems
