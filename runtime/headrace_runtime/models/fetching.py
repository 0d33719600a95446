"""A model from its source into the node's cache, whoever asks and however often: `fetch`.

What is pinned (a commit, a digest) is looked for in the cache first and needs no network. Everything else is asked for
at its source; where that does not answer, the copy that was last made of it is used. Two who ask for the same bytes
share one copy, and one download: the second waits and sees how the first gets on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace_runtime.models import hub, record, registry, sources, web
from headrace_runtime.models.cache import Cache, Making
from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.errors import BrokenError
from headrace_runtime.models.http import Http, persist
from headrace_runtime.models.journal import Journal
from headrace_runtime.models.listing import Listing, key_of
from headrace_runtime.models.progress import Progress
from headrace_runtime.models.record import Record
from headrace_runtime.models.room import BLOCK, on_disk
from headrace_runtime.models.sources import HubSource, OciSource, S3Source, Source, WebSource
from headrace_runtime.models.transfer import PIECE_BYTES, DamagedError, Transfer
from headrace_runtime.models.unpack import Unpacking

log = logging.getLogger(__name__)

FOLDERS_BYTES = 16 * BLOCK
"""What a model's folders, and the journal of its download, take."""

WAIT_SECONDS = 0.5
"""Between two looks at what another process downloads."""


def fetch(
    source: str,
    cache: Cache,
    credentials: Credentials,
    progress: Progress,
    agrees: Callable[[Mapping[str, str]], bool] | None = None,
) -> Path:
    """The folder of the model, complete, read-only and held for this process until `cache.release`.

    `agrees` says whether a folder, by SHA-256 of its files, is the one that is wanted: a copy in the cache that is
    goes before whatever the source has become since. Blocks; call it in a thread. Raises FetchError, also
    CacheTooSmallError, with a message fit for a status, and CancelledError.
    """
    where = sources.parse(source)
    if folder := _known(where, cache, agrees):
        return folder
    http = Http()
    try:
        listing = _look(where, http, cache, credentials, progress)
        if isinstance(listing, Path):
            return listing
        while not (folder := cache.hold(listing.key)):
            with cache.making(listing.key) as making:
                if making:
                    _make(listing, making, http, progress)
            if not making:
                progress.show(*cache.under_way(listing.key))
                progress.pause(WAIT_SECONDS)
        return folder
    finally:
        http.close()


def look(where: Source, http: Http, credentials: Credentials) -> Listing:
    """What the source holds now. Raises FetchError, BrokenError."""
    match where:
        case HubSource():
            return hub.look(where, http, credentials)
        case OciSource():
            return registry.look(where, http, credentials)
        case S3Source():
            from headrace_runtime.models import s3  # noqa: PLC0415 - a library of 16 MB, for buckets only

            return s3.look(where, credentials)
        case WebSource():
            return web.look(where, http, credentials)


def identity(where: Source) -> str | None:
    """Of a pinned source: what `look` would say, without asking."""
    match where:
        case HubSource():
            return hub.identity(where)
        case OciSource():
            return where.digest
        case S3Source():
            return None
        case WebSource():
            return sources.name_of(where) if where.sha256 else None


def _known(where: Source, cache: Cache, agrees: Callable[[Mapping[str, str]], bool] | None) -> Path | None:
    """A copy that needs no look at the source."""
    pinned = identity(where)
    if pinned is not None:
        return cache.hold(key_of(pinned))
    if agrees is None:
        return None
    for key, known in _copies(where, cache):
        if agrees({path: file.sha256 for path, file in known.files.items()}):
            return cache.hold(key)
    return None


def _look(where: Source, http: Http, cache: Cache, credentials: Credentials, progress: Progress) -> Listing | Path:
    """What the source holds, or else the newest copy of it. Raises FetchError."""
    try:
        return persist(lambda: look(where, http, credentials), progress)
    except BrokenError as error:
        for key, known in sorted(_copies(where, cache), key=lambda copy: copy[1].read_at, reverse=True):
            if folder := cache.hold(key):
                log.warning("%s: using what was fetched of %s before", error, known.source)
                return folder
        raise


def _copies(where: Source, cache: Cache) -> list[tuple[str, Record]]:
    name = sources.name_of(where)
    return [(key, known) for key, known in cache.records() if known.source.partition("@sha256:")[0] == name]


def _make(listing: Listing, making: Making, http: Http, progress: Progress) -> None:
    """Download a listing and show it in the cache. Raises FetchError, OSError."""
    files = listing.files
    packed = sum(on_disk(file.size or 0) for file in files if file.unpack)
    making.reserve(sum(on_disk(file.size or 0) for file in files) + FOLDERS_BYTES, packed)
    log.info("fetching %s: %d files, %d bytes", listing.resolved, len(files), sum(file.size or 0 for file in files))
    began, read_at = time.monotonic(), time.time()
    blobs = making.folder / "files"
    paths = [blobs / str(number) for number in range(len(files))]
    journal = Journal(making.folder / "journal", files, PIECE_BYTES, record.boot_id())
    try:
        transfer = Transfer(http, progress, making.grow, PIECE_BYTES)
        try:
            digests = transfer.run(files, paths, journal)
        except DamagedError as error:
            if not error.resumed:
                raise
            log.warning("%s: what an earlier download left of it is fetched anew", error)
            digests = transfer.run(files, paths, journal)
    finally:
        journal.close()
    unpacking = Unpacking(making.empty_tree(), making.grow, progress)
    for file, path in zip(files, paths, strict=True):
        if file.unpack:
            unpacking.unpack(path, file.unpack, f"{listing.resolved}, {file.path}")
    for file, path, digest in zip(files, paths, digests, strict=True):
        if not file.unpack:
            unpacking.adopt(path, file.path, digest, listing.resolved)
    unpacking.finish(listing.resolved)
    making.commit(listing.resolved, unpacking.digests, read_at)
    log.info("fetched %s in %.1f s", listing.resolved, time.monotonic() - began)
