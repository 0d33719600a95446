"""Downloads the files of a listing: in pieces, several at a time, hashed as they come, going on wherever it was left.

Threads fetch pieces over `http.py` and write them where they belong; others follow behind and hash each file from its
beginning, out of the page cache, so a model is read from disk at most when a download is resumed. A broken connection
costs the bytes that were not yet received: the piece goes on from there. Memory is one buffer per thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Event

from urllib3 import BaseHTTPResponse

from headrace_runtime.models.errors import BrokenError, CacheTooSmallError, CancelledError, FetchError
from headrace_runtime.models.http import Http, mark, persist
from headrace_runtime.models.journal import Journal
from headrace_runtime.models.listing import Remote
from headrace_runtime.models.progress import Progress

PIECE_BYTES = 16 << 20
BUFFER_BYTES = 1 << 20
CONNECTIONS = 8
HASHERS = min(4, os.cpu_count() or 1)
LOOK_SECONDS = 0.2


class DamagedError(FetchError):
    """A file is not what its source says."""

    def __init__(self, message: str, *, resumed: bool) -> None:
        super().__init__(message)
        self.resumed = resumed
        """Part of it was here from an earlier run, and may be what is wrong."""


@dataclass(frozen=True)
class Piece:
    number: int
    start: int
    stop: int | None
    """None: to the end, wherever that is."""


def pieces(remote: Remote, piece_bytes: int) -> list[Piece]:
    """How a file is cut: not at all where its size is unknown or its server gives no parts. Pure."""
    if remote.size is None or not remote.ranges:
        return [Piece(0, 0, remote.size)]
    starts = range(0, max(remote.size, 1), piece_bytes)
    return [Piece(n, start, min(start + piece_bytes, remote.size)) for n, start in enumerate(starts)]


@dataclass
class Target:
    """One file on its way: which of its pieces are written."""

    number: int
    remote: Remote
    path: Path
    pieces: list[Piece]
    written: set[int]
    end: int | None
    """Its size, once that is known."""
    turn: Condition = field(default_factory=Condition)

    def note(self, piece: Piece) -> None:
        with self.turn:
            self.written.add(piece.number)
            self.turn.notify_all()


class Transfer:
    """Downloads into one place. `grow(bytes)` is told of files whose size shows only as they come, and may raise."""

    def __init__(
        self, http: Http, progress: Progress, grow: Callable[[int], None], piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._http, self._progress, self._grow, self._piece_bytes = http, progress, grow, piece_bytes
        self._stop = Event()

    def run(self, files: Sequence[Remote], paths: Sequence[Path], journal: Journal) -> list[str]:
        """Fetch each of `files` to its path; SHA-256 of each in hex.

        Raises FetchError (DamagedError, CacheTooSmallError), CancelledError. What was fetched stays, for another run.
        """
        self._stop.clear()
        targets = [self._target(*entry, journal) for entry in zip(range(len(files)), files, paths, strict=True)]
        missing = [target for target in targets if journal.whole(target.number) is None]
        self._show(targets, missing)
        with (
            ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as fetchers,
            ThreadPoolExecutor(HASHERS, thread_name_prefix="hash") as hashers,
        ):
            work: list[Future[None]] = []
            for target in missing:
                rest = [piece for piece in target.pieces if piece.number not in target.written]
                work += [fetchers.submit(self._fetch, target, piece, journal) for piece in rest]
                work.append(hashers.submit(self._check, target, journal, resumed=len(rest) < len(target.pieces)))
            try:
                wait(work, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
                fetchers.shutdown(cancel_futures=True)
                hashers.shutdown(cancel_futures=True)
        _raise_first(work)
        return [journal.whole(target.number) or "" for target in targets]

    def _target(self, number: int, remote: Remote, path: Path, journal: Journal) -> Target:
        plan = pieces(remote, self._piece_bytes)
        if not path.exists():
            journal.forget(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:  # the whole of it, as a hole; what is written already stays
            if remote.size is not None:
                file.truncate(remote.size)
        return Target(number, remote, path, plan, set(journal.pieces(number)), remote.size)

    def _show(self, targets: Sequence[Target], missing: Sequence[Target]) -> None:
        total = sum(target.remote.size or 0 for target in targets)
        rest = [p for target in missing for p in target.pieces if p.number not in target.written and p.stop is not None]
        self._progress.show(total - sum((piece.stop or 0) - piece.start for piece in rest), total)

    # ---- one piece ----------------------------------------------------------------------------------------------

    def _fetch(self, target: Target, piece: Piece, journal: Journal) -> None:
        descriptor = os.open(target.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        at = piece.start

        def move(chunk: memoryview) -> None:
            nonlocal at
            self._write(descriptor, chunk, at)
            at += len(chunk)
            self._progress.add(len(chunk))
            if target.remote.size is None:
                self._grow(len(chunk))

        try:
            if piece.stop is None or at < piece.stop:
                persist(lambda: self._stream(target, piece, at, move), self._progress, lambda: at)
            if piece.stop is None:
                os.ftruncate(descriptor, at)
                target.end = at
            journal.note_piece(target.number, piece.number)
            target.note(piece)
        finally:
            os.close(descriptor)

    def _stream(self, target: Target, piece: Piece, at: int, move: Callable[[memoryview], None]) -> None:
        """One request for what is missing of `piece`, from `at` on."""
        if at == piece.stop:
            return
        remote, address = target.remote, target.remote.address()
        whole = at == 0 and (piece.stop is None or piece.stop == remote.size)
        last = "" if piece.stop is None else piece.stop - 1
        headers = {} if whole else {"Range": f"bytes={at}-{last}"}
        with self._http.open(address, remote.path, headers) as answer:
            skip = _begins(answer, remote, at)
            left = None if piece.stop is None else piece.stop - at
            self._relay(answer, skip, left, move)

    def _relay(self, answer: BaseHTTPResponse, skip: int, left: int | None, move: Callable[[memoryview], None]) -> None:
        """The body of `answer`, without its first `skip` bytes and up to `left` bytes, in large chunks to `move`.

        Raises BrokenError where the body ends too early.
        """
        buffer, filled = memoryview(bytearray(BUFFER_BYTES)), 0
        try:
            while left is None or left > 0:
                data = answer.read1(BUFFER_BYTES - filled)
                if not data:
                    break
                self._progress.check()
                if self._stop.is_set():
                    raise CancelledError
                if skip:
                    skip, data = max(0, skip - len(data)), data[skip:]
                data = data if left is None else data[:left]
                buffer[filled : filled + len(data)] = data
                filled += len(data)
                left = None if left is None else left - len(data)
                if filled == BUFFER_BYTES:
                    filled = 0
                    move(buffer)
        finally:
            if filled:
                move(buffer[:filled])
        if left:
            raise BrokenError("the answer ended early")
        answer.read(1)  # no byte is left: this is how the connection learns that it may be used again

    def _write(self, descriptor: int, chunk: memoryview, at: int) -> None:
        try:
            while chunk:
                count = os.pwrite(descriptor, chunk, at)
                chunk, at = chunk[count:], at + count
        except OSError as error:
            raise disk_error(error) from None

    # ---- one file -----------------------------------------------------------------------------------------------

    def _check(self, target: Target, journal: Journal, *, resumed: bool) -> None:
        """Hash a file behind its writers, and compare. Raises DamagedError."""
        sha256, other = hashlib.sha256(), _git_hash(target.remote)
        buffer = memoryview(bytearray(BUFFER_BYTES))
        descriptor = os.open(target.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for piece in target.pieces:
                at, stop = piece.start, self._written(target, piece)
                while at < stop:
                    self._progress.check()
                    count = os.preadv(descriptor, [buffer[: min(BUFFER_BYTES, stop - at)]], at)
                    if not count:
                        raise FetchError(f"{target.remote.path}: someone shortened it while it was fetched")
                    sha256.update(buffer[:count])
                    if other:
                        other.update(buffer[:count])
                    at += count
            os.fdatasync(descriptor)
        except OSError as error:
            raise disk_error(error) from None
        finally:
            os.close(descriptor)
        expected, found = target.remote.checksum, (other or sha256).hexdigest()
        if expected and found != expected.value:
            journal.forget(target.number)
            raise DamagedError(
                f"{target.remote.path}: its {expected.kind} digest is {found}, its source says {expected.value}",
                resumed=resumed,
            )
        journal.note_whole(target.number, sha256.hexdigest())

    def _written(self, target: Target, piece: Piece) -> int:
        """Wait until a piece is written; where it ends."""
        with target.turn:
            while piece.number not in target.written:
                if self._stop.is_set():
                    raise CancelledError
                target.turn.wait(LOOK_SECONDS)
        return piece.stop if piece.stop is not None else target.end or target.path.stat().st_size


def _begins(answer: BaseHTTPResponse, remote: Remote, at: int) -> int:
    """How many bytes of the answer come before `at`. Raises FetchError for another file than was listed."""
    now = mark(answer.headers)
    if remote.checksum is None and remote.etag and now and _bare(now) != _bare(remote.etag):
        raise FetchError(f"{remote.path} changed while it was fetched")
    if remote.size is None and remote.checksum is None and not _delimited(answer):
        raise FetchError(f"{remote.path}: the server does not say how long it is, and there is no digest: give one")
    if answer.status == 206:
        span = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if span != str(at):
            raise BrokenError(f"{remote.path}: asked from byte {at} on, the answer is from {span[:20] or 'nowhere'}")
        return 0
    return at


def _delimited(answer: BaseHTTPResponse) -> bool:
    return "Content-Length" in answer.headers or "chunked" in answer.headers.get("Transfer-Encoding", "")


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _git_hash(remote: Remote) -> hashlib._Hash | None:
    """What git names a file by: SHA-1 of its size and bytes."""
    if remote.checksum is None or remote.checksum.kind != "git":
        return None
    return hashlib.sha1(f"blob {remote.size}\0".encode(), usedforsecurity=False)


def disk_error(error: OSError) -> FetchError:
    """An error of the cache's disk, in words for a status."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheTooSmallError("the disk of the model cache is full")
    return FetchError(f"the model cache cannot be used: {error.strerror or 'input/output error'}")


def _raise_first(work: Sequence[Future[None]]) -> None:
    """The error that ended the others, if any."""
    errors = [error for job in work if job.done() and not job.cancelled() and (error := job.exception())]
    stopped = [error for error in errors if isinstance(error, CancelledError)]
    for error in [error for error in errors if not isinstance(error, CancelledError)] + stopped:
        raise error
