"""The folders of a node beside one's own: blocks of other identities of the deployment, and of other deployments.

    ROOT / <deployment> / <identity> / extents

An identity's folder is held, by a shared lock on a file in it, while an engine has it open. Whose folder nobody holds
gives way first. Who is alive is entitled to an equal share of what both live in, identities of the deployment's budget
and deployments of the node's: who has less may take extents from who has more. Only the holder of the node's lock
(`budget.py`) calls anything here that changes something.
"""

import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from headrace_runtime.kv.budget import measure
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.extent import NAME, UNFINISHED, remove
from headrace_runtime.kv.layout import charge

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
    found = [
        (entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path))
        for folder in folders
        for entry in disk.entries(folder)
        if NAME.fullmatch(entry.name)
    ]
    return [path for _, path in sorted(found)]


def sweep(disk: Disk, folder: Path) -> None:
    """Remove what is left of extents whose maker died."""
    for entry in list(disk.entries(folder)):
        if entry.name.startswith(UNFINISHED):
            disk.unlink(Path(entry.path))


def remove_one(disk: Disk, folders: Iterable[Path]) -> bool:
    """Give back one extent; False: there is none that can be, now."""
    return any(remove(disk, path) for path in extents(disk, folders))


def wipe(disk: Disk, folder: Path) -> None:
    """Delete a folder that nobody holds."""
    for path in extents(disk, [folder]):
        remove(disk, path)
    for entry in list(disk.entries(folder)):
        disk.unlink(Path(entry.path))
    disk.remove_folder(folder)


def wipe_others(disk: Disk, deployment: Path, own: Path) -> None:
    """Delete every other identity of the deployment that nobody holds."""
    for folder in identities(disk, deployment):
        if folder != own and not is_held(disk, folder):
            wipe(disk, folder)


def identity_gives_way(disk: Disk, deployment: Path, own: Path, limit: int) -> bool:
    """Another identity of the deployment gives back an extent; False: none has to."""
    others = [folder for folder in identities(disk, deployment) if folder != own]
    live = [folder for folder in others if is_held(disk, folder)]
    if remove_one(disk, [folder for folder in others if folder not in live]):
        return True
    return _share_out(disk, own, live, limit)


def deployment_gives_way(disk: Disk, own: Path, limit: int) -> bool:
    """Another deployment of the node gives back an extent; False: none has to. One whose engines are all gone keeps
    its blocks, for they may come back, until a live one has less than its share."""
    others = [Path(entry.path) for entry in disk.entries(own.parent) if entry.is_dir(follow_symlinks=False)]
    others = [folder for folder in others if folder != own and identities(disk, folder)]
    live = [folder for folder in others if any(is_held(disk, each) for each in identities(disk, folder))]
    if measure(disk, own).charged < limit // (len(live) + 1):
        gone = [each for folder in others if folder not in live for each in identities(disk, folder)]
        if remove_one(disk, gone):
            return True
    return _share_out(disk, own, live, limit)


def _share_out(disk: Disk, own: Path, live: list[Path], limit: int) -> bool:
    """Who has most gives, if it has more than its share, and `own` has less. Afterwards `own` must not have more than
    who gave: else both would take the same bytes from each other for ever."""
    share, own_bytes = limit // (len(live) + 1), measure(disk, own).charged
    used = sorted(((measure(disk, folder).charged, folder) for folder in live), reverse=True)
    for size, folder in used:
        if own_bytes >= share or size <= share:
            return False
        for path in extents(disk, _folders(disk, folder)):
            moved = charge(path.lstat().st_size)
            if size - moved >= own_bytes + moved and remove(disk, path):
                return True
    return False


def _folders(disk: Disk, folder: Path) -> list[Path]:
    """Where extents lie: the folder of an identity, or those in a deployment's."""
    return [folder] if IDENTITY.fullmatch(folder.name) else identities(disk, folder)
