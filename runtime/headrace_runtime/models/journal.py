"""What of a download is on disk already: a text file that grows by a line for each piece.

    {"boot": …, "plan": …}
    p 3 17           piece 17 of file 3 is written
    f 3 9f86d0…      file 3 is whole, and this is its SHA-256
    x 3              nothing of file 3 counts any more

A line is written after what it speaks of, so a process that is killed loses at most the pieces under way. The machine
going down may lose data that a line speaks of: after a new boot, digests are taken anew, and files without a checksum
to take them against are fetched anew. A journal of another plan counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from headrace_runtime.models.listing import Remote


def plan_of(files: Sequence[Remote], piece_bytes: int) -> str:
    """Changes whenever pieces would no longer fit together."""
    known = [[f.path, f.size, f.checksum.value if f.checksum else f.etag, f.ranges] for f in files]
    return hashlib.sha256(json.dumps([known, piece_bytes]).encode()).hexdigest()


class Journal:
    """Of one download. Thread-safe."""

    def __init__(self, path: Path, files: Sequence[Remote], piece_bytes: int, boot: str) -> None:
        """Opens or begins it. Raises OSError."""
        self._pieces: dict[int, set[int]] = {}
        self._whole: dict[int, str] = {}
        self._lock = Lock()
        head = {"boot": boot, "plan": plan_of(files, piece_bytes)}
        # What follows the last line break is a line that was being written.
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
        before = _head(lines)
        if before.get("plan") == head["plan"]:
            for line in lines[1:]:
                self._take(line.split())
            if before.get("boot") != boot or not boot:
                self._whole.clear()
                self._pieces = {n: done for n, done in self._pieces.items() if n < len(files) and files[n].checksum}
        scratch = path.with_suffix(".tmp")
        scratch.write_text("\n".join([json.dumps(head), *self._lines()]) + "\n")
        scratch.replace(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def pieces(self, file: int) -> frozenset[int]:
        with self._lock:
            return frozenset(self._pieces.get(file, ()))

    def whole(self, file: int) -> str | None:
        """SHA-256 in hex of a file that is complete and checked."""
        return self._whole.get(file)

    def note_piece(self, file: int, piece: int) -> None:
        self._write(f"p {file} {piece}")

    def note_whole(self, file: int, sha256: str) -> None:
        self._write(f"f {file} {sha256}")

    def forget(self, file: int) -> None:
        self._write(f"x {file}")

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: str) -> None:
        with self._lock:
            self._take(line.split())
            os.write(self._file, f"{line}\n".encode())

    def _take(self, words: list[str]) -> None:
        match words:
            case ["p", file, piece] if file.isdigit() and piece.isdigit():
                self._pieces.setdefault(int(file), set()).add(int(piece))
            case ["f", file, sha256] if file.isdigit() and len(sha256) == 64:
                self._whole[int(file)] = sha256
            case ["x", file] if file.isdigit():
                self._pieces.pop(int(file), None)
                self._whole.pop(int(file), None)

    def _lines(self) -> list[str]:
        pieces = [f"p {file} {piece}" for file, done in self._pieces.items() for piece in sorted(done)]
        return [*pieces, *(f"f {file} {sha256}" for file, sha256 in self._whole.items())]


def _head(lines: list[str]) -> dict[str, str]:
    try:
        head = json.loads(lines[0])
    except (IndexError, ValueError):
        return {}
    return head if isinstance(head, dict) else {}
