"""Models that this agent holds in the node's cache: the one it serves, and its adapters.

A narrow door to `headrace_runtime.models`, which knows sources and the cache and nothing of an engine. Everything
blocks: called in threads, by `custody.py` and for adapters by `serve.py`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from headrace_runtime.contract import Integrity, Model, ModelCache
from headrace_runtime.models import fetching, record, sources
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.progress import Progress
from headrace_runtime.node import weights


class Copies:
    """One agent's copies."""

    def __init__(self, model: Model, environment: Mapping[str, str] = os.environ) -> None:
        self._settings, self._environment = model.cache or ModelCache(), environment
        self._credentials_folder = Path(model.credentials_folder) if model.credentials_folder else None
        self._cache: Cache | None = None
        self._lock = Lock()

    def fetch(self, source: str, integrity: Integrity, progress: Progress) -> Path:
        """The folder of a copy, complete and held for as long as this process lives. Raises FetchError
        and CancelledError."""
        credentials = Credentials.of(self._credentials_folder, self._environment)
        return fetching.fetch(source, self._opened(), credentials, progress, agrees=_agrees(integrity))

    def discard(self, folder: Path) -> None:
        """Remove a copy that is held and was found damaged, so that the next `fetch` brings another."""
        self._opened().discard(folder)

    def _opened(self) -> Cache:
        with self._lock:  # opening sweeps what others left
            if self._cache is None:
                self._cache = Cache(Path(self._settings.path), self._settings.size_bytes)
            return self._cache


def is_fetched(model: Model) -> bool:
    """Whether the model itself is; where it is not, its adapters may be."""
    return model.cache is not None and sources.fetched(model.source)


def intact(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether a copy is what its source gave: then another would be no better."""
    known = record.read(folder)
    return known is not None and {path: file.sha256 for path, file in known.files.items()} == dict(digests)


def untouched(folder: Path) -> tuple[Mapping[str, str], float]:
    """SHA-256 by path of the copy's files that nobody wrote to since they came, in this boot; and when that was, in
    seconds since the epoch."""
    known = record.read(folder)
    return (record.unchanged(folder, known, record.boot_id()), known.read_at) if known else ({}, 0.0)


def _agrees(integrity: Integrity) -> Callable[[Mapping[str, str]], bool] | None:
    """Whether a copy is the one that was promised; None where nothing was, and any will do."""
    if integrity.files is None and integrity.digest is None:
        return None
    return lambda digests: not weights.compare(digests, digests, integrity)
