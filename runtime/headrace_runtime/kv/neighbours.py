"""The folders of a node beside one's own: blocks of other identities of the deployment, and of other deployments.

    ROOT / <deployment> / <identity> / extents

An identity's folder is held, by a shared lock on a file in it, while an engine has it open: a folder that nobody holds
can be deleted, one that is held never is. Only the holder of the node's lock (`budget.py`) calls anything here that
changes something.
"""

import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.extent import NAME, UNFINISHED, remove

HELD: Final = "held"
IDENTITY: Final = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{8})?")


def hold(disk: Disk, folder: Path) -> int:
    """An open file: while it is open, nobody deletes the folder."""
    file = disk.open(folder / HELD, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        disk.close(file)
        raise
    return file


def is_held(disk: Disk, folder: Path) -> bool:
    try:
        file = disk.open(folder / HELD, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        disk.close(file)
    return False


def identities(disk: Disk, deployment: Path) -> list[Path]:
    """Folders that are named as one of ours would be: nothing else is ever touched."""
    found = (entry for entry in disk.entries(deployment) if IDENTITY.fullmatch(entry.name))
    return sorted(Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False))


def extents(disk: Disk, folders: Iterable[Path]) -> list[Path]:
    """Longest unchanged first. An extent changes when a block is written to it, evicted or used."""
    found = [(entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path))
             for folder in folders for entry in disk.entries(folder) if NAME.fullmatch(entry.name)]  # fmt: skip
    return [path for _, path in sorted(found)]


def sweep(disk: Disk, folder: Path) -> None:
    """Remove what is left of extents whose maker died."""
    for entry in list(disk.entries(folder)):
        if entry.name.startswith(UNFINISHED):
            disk.unlink(Path(entry.path))


def fenced(disk: Disk, deployment: Path, own: Path) -> list[Path]:
    """Folders of other identities that no engine holds."""
    return [folder for folder in identities(disk, deployment) if folder != own and not is_held(disk, folder)]


def wipe(disk: Disk, folder: Path) -> None:
    """Delete a folder that nobody holds."""
    for path in extents(disk, [folder]):
        remove(disk, path)
    for entry in list(disk.entries(folder)):
        disk.unlink(Path(entry.path))
    disk.remove_folder(folder)


def give_room(disk: Disk, deployment: Path, own: Path) -> bool:
    """Remove one extent of an identity that nobody reads any more; False: there is none."""
    unread = fenced(disk, deployment, own)
    for path in extents(disk, unread):
        if remove(disk, path):
            return True
    for folder in unread:
        wipe(disk, folder)
    return False
