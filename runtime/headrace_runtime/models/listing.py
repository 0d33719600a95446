"""What a source holds: the files to fetch, where each is, and what is known of it beforehand. Pure.

A source is asked for a `Listing` once (`hub.py`, `registry.py`, `s3.py`, `web.py`); from there on every source is the
same, and `transfer.py` fetches it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from headrace_runtime.models.errors import FetchError, UnsafePathError

MAX_FILES = 100_000
MAX_PATH = 1024
SAFETENSORS = ".safetensors"
OTHER_FRAMEWORKS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".gguf")
"""Weights that say again what a repository's safetensors say."""


@dataclass(frozen=True)
class Address:
    """One HTTP request. The headers are for the URL's host alone."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Checksum:
    """What a file's bytes must come to: their SHA-256, or the SHA-1 that git names them by."""

    kind: Literal["sha256", "git"]
    value: str


@dataclass(frozen=True)
class Remote:
    """One file of a source."""

    path: str
    """In the model's folder; of an archive, a name for messages."""
    size: int | None
    """None: only the server knows."""
    address: Callable[[], Address] = field(repr=False, compare=False)
    """Asked before each request: tokens and signatures run out."""
    checksum: Checksum | None = None
    etag: str | None = None
    """Of a file without a checksum: tells whether it is still the same."""
    unpack: Literal["tar", "tar+gzip"] | None = None
    ranges: bool = True
    """Whether the server gives parts of it."""


@dataclass(frozen=True)
class Listing:
    """All files of a source at one moment."""

    resolved: str
    """The source with its commit or digest: for records and messages."""
    identity: str
    """Changes whenever the bytes do; the same for the same bytes of the same source."""
    files: tuple[Remote, ...]

    @property
    def key(self) -> str:
        return key_of(self.identity)


def key_of(identity: str) -> str:
    """The name of a model in the cache."""
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def identity_of(source: str, files: Iterable[Remote]) -> str:
    """Of a source that has no digest of its own: that of what it lists."""
    known = [[file.path, file.size, file.checksum.value if file.checksum else file.etag] for file in files]
    return json.dumps([source, sorted(known, key=lambda entry: str(entry[0]))])


def listing(resolved: str, identity: str, files: Iterable[Remote]) -> Listing:
    """Raises FetchError for a listing with nothing in it, with too much, or with paths that are none."""
    found = tuple(files)
    if not found:
        raise FetchError(f"{resolved} holds no files")
    if len(found) > MAX_FILES:
        raise FetchError(f"{resolved} holds more than {MAX_FILES} files")
    paths = [safe_path(file.path, resolved) for file in found if not file.unpack]
    if len(set(paths)) < len(paths):
        raise FetchError(f"{resolved} lists a file twice")
    return Listing(resolved, identity, found)


def safe_path(path: str, whence: str) -> PurePosixPath:
    """`path` as one that stays within its folder. Raises UnsafePathError."""
    pure = PurePosixPath(path)
    bad = pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path or "\\" in path
    if bad or len(path.encode(errors="surrogateescape")) > MAX_PATH or any(len(part) > 255 for part in pure.parts):
        raise UnsafePathError(f"{whence} holds {path[:200]!r}, which is no path within the model's folder")
    return pure


def wanted(paths: Iterable[str]) -> set[str]:
    """Which files of a model hub's repository a server needs: not git's own, and where there are safetensors, not the
    same weights once more for other frameworks."""
    kept = {path for path in paths if not PurePosixPath(path).name.startswith(".git")}
    if any(path.endswith(SAFETENSORS) for path in kept):
        return {path for path in kept if not path.endswith(OTHER_FRAMEWORKS)}
    return kept
