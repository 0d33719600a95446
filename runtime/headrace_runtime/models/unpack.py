"""Unpacks a tar into a folder, and nothing anywhere else.

Files, folders, and links within the folder are made; everything else is refused: absolute paths, `..`, devices, pipes,
links that lead out, entries below a link, entries that come twice. Every file is made anew, without following any
link, with none of the archive's owners, modes and times, and hashed as it is written.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from headrace_runtime.models.errors import FetchError, UnsafePathError
from headrace_runtime.models.listing import MAX_FILES, safe_path
from headrace_runtime.models.progress import Progress
from headrace_runtime.models.transfer import BUFFER_BYTES, disk_error


class Unpacking:
    """Archives that are unpacked into one folder, which is theirs alone."""

    def __init__(self, folder: Path, grow: Callable[[int], None], progress: Progress) -> None:
        self.folder, self._grow, self._progress = folder, grow, progress
        self._made: dict[PurePosixPath, Literal["file", "folder", "link"]] = {}
        self.digests: dict[str, str] = {}
        """SHA-256 in hex of each file that was made."""

    def adopt(self, file: Path, path: str, digest: str, whence: str) -> None:
        """Move a file that is in no archive to its place. Raises FetchError (UnsafePathError), OSError."""
        pure = safe_path(path, whence)
        self._enter(pure, "file", whence)
        file.rename(self.folder / pure)
        self.digests[pure.as_posix()] = digest

    def unpack(self, archive: Path, kind: Literal["tar", "tar+gzip"], whence: str) -> None:
        """Raises FetchError (UnsafePathError, CacheTooSmallError), CancelledError."""
        try:
            with archive.open("rb") as file:
                stream = gzip.GzipFile(fileobj=file) if kind == "tar+gzip" else file
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    for entry in tar:
                        self._progress.check()
                        self._take(tar, entry, whence)
                # tarfile takes an end that came too early for the end. A tar closes with zeros, gzip with a checksum.
                if kind == "tar" and not _closed(file):
                    raise tarfile.ReadError("its end is missing")
                while kind == "tar+gzip" and stream.read(BUFFER_BYTES):
                    self._progress.check()
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FetchError(f"{whence} is no whole {kind} archive: {error}") from None
        except OSError as error:
            raise disk_error(error) from None

    def finish(self, whence: str) -> None:
        """Every link must have come to a file of the folder. Raises UnsafePathError."""
        root = self.folder.resolve()
        for path in [path for path, kind in self._made.items() if kind == "link"]:
            try:
                end = (root / path).resolve(strict=True)
            except (OSError, RuntimeError):
                end = root
            digest = self.digests.get(end.relative_to(root).as_posix()) if end.is_relative_to(root) else None
            if digest is None:
                raise UnsafePathError(f"{whence} holds {str(path)[:200]!r}, a link to no file of it")
            self.digests[path.as_posix()] = digest

    def _take(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, whence: str) -> None:
        if entry.isdir() and PurePosixPath(entry.name) == PurePosixPath("."):
            return
        path = safe_path(entry.name, whence)
        if path.name.startswith(".wh."):
            raise FetchError(f"{whence} deletes files of the layers below it: a container image is no model")
        if entry.isdir():
            self._enter(path, "folder", whence)
        elif entry.isreg():
            self._enter(path, "file", whence)
            body = tar.extractfile(entry)
            assert body
            self._write(path, body, entry.size)
        elif entry.issym():
            self._enter(path, "link", whence)
            check_link(path, entry.linkname, whence)
            (self.folder / path).symlink_to(entry.linkname)
        elif entry.islnk():
            first = safe_path(entry.linkname, whence)
            if self._made.get(first) != "file":
                raise UnsafePathError(f"{whence} holds {entry.name!r}, a link to no file of it")
            self._enter(path, "file", whence)
            (self.folder / path).hardlink_to(self.folder / first)
            self.digests[path.as_posix()] = self.digests[first.as_posix()]
        else:
            raise UnsafePathError(f"{whence} holds {entry.name[:200]!r}, which is neither file, folder nor link")

    def _enter(self, path: PurePosixPath, kind: Literal["file", "folder", "link"], whence: str) -> None:
        """Make room for an entry: its folders, none of which may be a link. Raises UnsafePathError, FetchError."""
        if len(self._made) > MAX_FILES:
            raise FetchError(f"{whence} holds more than {MAX_FILES} entries")
        for folder in [*reversed(path.parents[:-1]), *([path] if kind == "folder" else [])]:
            if self._made.setdefault(folder, "folder") != "folder":
                raise UnsafePathError(
                    f"{whence} holds {str(path)[:200]!r} below {str(folder)[:200]!r}, which is no folder"
                )
            (self.folder / folder).mkdir(exist_ok=True)
        if kind != "folder":
            if path in self._made:
                raise FetchError(f"{whence} holds {str(path)[:200]!r}, which is there already")
            self._made[path] = kind

    def _write(self, path: PurePosixPath, body: IO[bytes], size: int) -> None:
        digest = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self.folder / path, flags, 0o644), "wb", buffering=0) as file:
            while data := body.read(BUFFER_BYTES):
                self._progress.check()
                self._grow(len(data))
                digest.update(data)
                _write_all(file, data)
            if file.tell() != size:
                raise tarfile.ReadError(f"{path} ends early")
            os.fdatasync(file.fileno())
        self.digests[path.as_posix()] = digest.hexdigest()


def _closed(file: IO[bytes]) -> bool:
    """Whether a tar ends as one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - tarfile.BLOCKSIZE))
    return file.read() == bytes(tarfile.BLOCKSIZE)


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def check_link(path: PurePosixPath, target: str, whence: str) -> None:
    """Raises UnsafePathError for a symbolic link at `path` that leads out of the model's folder. Pure."""
    depth = len(path.parts) - 1
    inside = bool(target) and not PurePosixPath(target).is_absolute() and "\0" not in target
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        inside = inside and depth >= 0
    if not inside:
        raise UnsafePathError(f"{whence} holds {str(path)[:200]!r}, a link that leads out of the model's folder")
