"""The common way to keep KV blocks on a disk, to measure ours against: a file for each block, written beside its place
and renamed into it, and read without a checksum. What vLLM's own file-system tier does, in a few lines."""

import os
from pathlib import Path


class RenameStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, key: bytes) -> bool:
        return self._path(key).exists()

    def put(self, key: bytes, block: bytes | memoryview, depth: int) -> bool:
        unfinished = self._folder / f"{key.hex()}.{os.getpid()}"
        try:
            with unfinished.open("wb") as file:
                file.write(block)
            unfinished.replace(self._path(key))
        except OSError:
            return False
        return True

    def get(self, key: bytes, into: memoryview) -> bool:
        """A file that is too short is no block, as there."""
        try:
            with self._path(key).open("rb", buffering=0) as file:
                return file.readinto(into) == len(into)
        except FileNotFoundError:
            return False

    def refresh(self) -> None:
        """There is nothing in memory."""

    def close(self) -> None:
        """Nothing is open."""

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.kv"
