"""What was known of a model's files when they were last read whole: their SHA-256, beside what the file system said.

Written by who downloads a model (`fetching.py`, which hashes as it writes) into `NAME.record.json`, beside the folder
`NAME`, never inside: the folder holds the model alone. Who verifies the weights may take a file's digest from here in
place of reading it, as long as the machine has not been started anew and the file has not been touched: `unchanged`
says which. Size, inode, mtime and ctime are compared; the kernel sets ctime at every write and no program can set it
back. That says nothing of a disk that decays: only reading does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
VERSION = 1


@dataclass(frozen=True)
class Stamp:
    """What the file system says of one file."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Of the file that `path` leads to. Raises OSError."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)


@dataclass(frozen=True)
class File:
    """One file as it was read: its SHA-256 in hex, and its stamp from just before."""

    sha256: str
    stamp: Stamp


@dataclass(frozen=True)
class Record:
    """A folder as it was read."""

    source: str
    """Where it came from, resolved: the commit, or the manifest's digest. Holds no credentials."""
    boot: str
    """Of which start of the machine the stamps are."""
    files: Mapping[str, File]
    """By path relative to the folder, POSIX."""
    read_at: float
    """Seconds since the epoch: when the oldest of its files was read."""
    version: int = VERSION


RECORD = pydantic.TypeAdapter(Record)


def path_of(folder: Path) -> Path:
    """Where the record of `folder` is."""
    return folder.with_name(folder.name + ".record.json")


def read(folder: Path) -> Record | None:
    """The record of `folder`, or None: there is none, it cannot be read, or another version wrote it."""
    try:
        record = RECORD.validate_json(path_of(folder).read_bytes())
    except (OSError, ValueError):
        return None
    return record if record.version == VERSION else None


def write(folder: Path, record: Record) -> None:
    """Replace the record of `folder`, atomically. Raises OSError."""
    file = path_of(folder)
    scratch = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with scratch.open("wb") as out:
        out.write(RECORD.dump_json(record))
        out.flush()
        os.fsync(out.fileno())
    scratch.replace(file)


def boot_id() -> str:
    """Of this start of the machine; empty where the kernel does not say, and then nothing is trusted."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def unchanged(folder: Path, record: Record, boot: str) -> dict[str, str]:
    """SHA-256 by path of those files of `folder` that are as they were when `record` was made, in this boot."""
    if not boot or record.boot != boot:
        return {}
    same = {}
    for path, file in record.files.items():
        try:
            stamp = Stamp.of(folder / path)
        except OSError:
            continue
        if stamp == file.stamp:
            same[path] = file.sha256
    return same
