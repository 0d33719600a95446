"""API keys: a folder with a file for each, as a mounted Secret is. The file's name is the key's name; it holds the key
itself or, so that nothing but its holder has it, `sha256:` and the key's SHA-256 in hex.

Only digests are kept, and a key is looked up by its digest: what a comparison's time could tell is of no use. Neither a
key nor a digest is ever logged. `parse` is pure; `reload.py` reads the folder when it changes, `admission.py` looks up.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

LARGEST_BYTES: Final = 4096
_HASHED: Final = re.compile(rb"sha256:([0-9a-fA-F]{64})")

Keys = Mapping[bytes, str]
"""SHA-256 of a key → the key's name."""


def digest(key: str) -> bytes:
    """Of a key as it came in a header."""
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()


def parse(files: Mapping[str, bytes]) -> tuple[Keys, list[str]]:
    """Keys by digest, and a problem for each file that holds none. The first of two names for one key has it."""
    keys: dict[bytes, str] = {}
    problems: list[str] = []
    for name, content in sorted(files.items()):
        key = content.strip()
        if not key or len(content) > LARGEST_BYTES:
            problems.append(f"{name}: is {'empty' if not key else 'too long for a key'}")
            continue
        hashed = _HASHED.fullmatch(key)
        if hashed is None and key.startswith(b"sha256:"):
            problems.append(f"{name}: sha256: must be followed by 64 hexadecimal digits")
            continue
        known = bytes.fromhex(hashed[1].decode()) if hashed else hashlib.sha256(key).digest()
        if known in keys:
            problems.append(f"{name}: is the same key as {keys[known]}")
            continue
        keys[known] = name
    return keys, problems


def read(folder: Path) -> Keys:
    """The keys in a folder; hidden files are the kubelet's own. Raises OSError."""
    files = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file()]
    keys, problems = parse({file.name: _content(file) for file in files})
    for problem in problems:
        log.warning("API keys: %s", problem)
    return keys


def _content(file: Path) -> bytes:
    with file.open("rb") as source:
        return source.read(LARGEST_BYTES + 1)
