"""What is wrong with a model's files by their form alone: seen in milliseconds, before a byte of them is hashed.

Files that run code when they are loaded (pickles, whatever their name) and weights that cannot be whole: a safetensors
file shorter than its header says, a shard that the index names and nobody brought, a pointer that Git LFS left in a
file's place. Reads heads and directories only, parses nothing that could run, follows no name out of the folder. What
is found is judged in `weights.py`.
"""

import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

PICKLE_NAMES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""What vLLM and PyTorch load as pickles, by the end of a name."""
HEADER_LIMIT = 100_000_000
"""Of a safetensors header, in bytes: the format's own. No index of weights is longer."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
INDEX = ".safetensors.index.json"
CODE = ".py"
_PICKLE_PROTOCOLS = range(2, 6)
_PICKLE_BEGINS = b"(]}cX\x8a\x8c\x95"
"""What can follow the protocol: a mark, an empty list or dict, a global, a string, a long, a frame."""


@dataclass(frozen=True)
class Findings:
    """What is wrong with a file, by its path."""

    unsafe: Mapping[str, str] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    """Files that cannot be read, and indexes that name files which are not there."""
    code: tuple[str, ...] = ()
    """Paths of Python files, which run only where the engine was told to trust them."""


def inspect(folder: Path, files: Collection[str]) -> Findings:
    """What the form of `files`, by path relative to `folder`, says. One that cannot be read is damaged."""
    unsafe, damaged, absent = {}, {}, {}
    for path in files:
        try:
            with (folder / path).open("rb") as file:
                if (problem := _pickle(path, file)) is not None:
                    unsafe[path] = problem
                if (problem := _damage(path, file)) is not None:
                    damaged[path] = problem
                elif path.endswith(INDEX) and (missing := _missing(path, file, files)):
                    absent[path] = f"names {missing}, which is not in the folder"
        except OSError as error:
            absent[path] = f"cannot be read: {error.strerror}"
    return Findings(unsafe, damaged, absent, tuple(path for path in files if path.endswith(CODE)))


def _pickle(path: str, file: BinaryIO) -> str | None:
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in PICKLE_NAMES:
        return f"{suffix} files are pickles, which run code when they are loaded"
    head = file.read(4)
    if head.startswith(b"PK\x03\x04") and _holds_pickle(file):
        return "an archive with a pickle in it, which runs code when it is loaded"
    # A safetensors file whose header is 640 to 1,407 bytes long begins like a pickle, but for its third byte.
    if len(head) > 2 and head[0] == 0x80 and head[1] in _PICKLE_PROTOCOLS and head[2] in _PICKLE_BEGINS:
        return "a pickle, which runs code when it is loaded"
    return None


def _holds_pickle(file: BinaryIO) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(PurePosixPath(name).suffix.lower() in PICKLE_NAMES for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False  # nothing that loads such archives could open it either


def _damage(path: str, file: BinaryIO) -> str | None:
    file.seek(0)
    if file.read(len(LFS_POINTER)) == LFS_POINTER:
        return "a pointer of Git LFS in place of the file: fetch it with git lfs pull"
    file.seek(0)
    if path.endswith(".safetensors"):
        return _safetensors(file)
    if path.endswith(INDEX) and _shards(file) is None:
        return "no index of weights: it cannot be read"
    return None


def _safetensors(file: BinaryIO) -> str | None:
    """Eight bytes of length, a JSON header, then the tensors without gaps: github.com/huggingface/safetensors."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > HEADER_LIMIT:
        return "no safetensors file: it does not begin with the length of a header"
    if 8 + length > size:
        return f"truncated: its header alone is {8 + length} bytes, the file holds {size}"
    try:
        ends = list(_ends(json.loads(file.read(length))))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "no safetensors file: its header cannot be read"
    promised = 8 + length + max(ends, default=0)
    if promised > size:
        return f"truncated: its header promises {promised} bytes, the file holds {size}"
    if promised < size:
        return f"damaged: its header promises {promised} bytes, the file holds {size}"
    return None


def _ends(header: Mapping[str, Any]) -> Iterator[int]:
    for name, tensor in header.items():
        if name != "__metadata__":
            _, end = tensor["data_offsets"]
            if type(end) is not int or end < 0:
                raise ValueError("an offset is no number")
            yield end


def _shards(file: BinaryIO) -> frozenset[str] | None:
    """The files that an index of weights names; None if it is none."""
    file.seek(0)
    try:
        return frozenset(str(shard) for shard in json.loads(file.read(HEADER_LIMIT))["weight_map"].values())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _missing(path: str, file: BinaryIO, files: Collection[str]) -> str:
    """Shards that an index names and that are not there, in words; empty if all are."""
    beside = PurePosixPath(path).parent
    missing = sorted(shard for shard in _shards(file) or () if str(beside / shard) not in files)
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{missing[0]}{more}" if missing else ""
