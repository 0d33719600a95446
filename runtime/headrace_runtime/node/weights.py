"""Reads a model's folder: is it there, is it whole, and is it what was promised?

The digest of a folder is that of its listing, as `sha256sum` would print it, sorted by path in byte order:

    cd MODEL && find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum

written `sha256:HEX`. A symbolic link counts as the file it leads to as long as that is inside the folder; one that
leads out is a problem, never followed. What the files' form alone says (`unsafe.py`), and whether the signature holds
(`signature.py`), is known before a byte is hashed. Called in a thread, by `custody.py` for the model.
"""

__all__ = [
    "Listing",
    "Manner",
    "ModelNotFoundError",
    "Problem",
    "Progress",
    "Reading",
    "compare",
    "examine",
    "folder_digest",
    "read",
    "survey",
]

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headrace_runtime.contract import Integrity, Reason, WeightsState
from headrace_runtime.models.record import Stamp
from headrace_runtime.node import signature, unsafe
from headrace_runtime.node.hashing import Progress, file_digest, folder_digest
from headrace_runtime.node.signature import SignatureError, Signed

THREADS = 8
PROBLEMS_SHOWN = 10
BUNDLE_LIMIT = 64 << 20
"""Bytes of a signature's bundle that are read: some hundred thousand files."""
LOWEST_PRIORITY = 19


class ModelNotFoundError(Exception):
    """The folder is not there, not a folder, or empty. The message is fit for a status: it names no path of a node."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file, or with the folder: its path first."""

    reason: Reason
    message: str
    changes: bool = True
    """Whether bytes that an engine may have loaded are others now. Not so where a file is gone, cannot be read or is
    new: that keeps an engine from starting, and says nothing against one that runs."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder by path relative to it, in byte order, and what is wrong with the folder itself."""

    files: Mapping[str, Stamp]
    problems: tuple[Problem, ...] = ()

    @property
    def bytes_total(self) -> int:
        return sum(stamp.size for stamp in self.files.values())


@dataclass(frozen=True)
class Manner:
    """How a folder is read, and what is known of it before."""

    earlier: Mapping[str, str] | None = None
    """SHA-256 by path of the reading that the engine was started upon: nothing may be otherwise."""
    trusted: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by path of files that need not be read."""
    background: bool = False
    """One thread that yields to all others and leaves the page cache alone."""


@dataclass(frozen=True)
class Reading:
    """What one reading found."""

    state: WeightsState
    listing: Listing
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 in hex by path; empty where nothing was hashed."""
    problems: tuple[Problem, ...] = ()
    code: tuple[str, ...] = ()
    """Paths of Python files, which an engine runs if it was told to trust them."""


def read(folder: Path, source: str, integrity: Integrity, progress: Progress) -> WeightsState:
    """What `examine` finds, as it is told."""
    return examine(folder, source, integrity, progress).state


def examine(
    folder: Path, source: str, integrity: Integrity, progress: Progress, manner: Manner | None = None
) -> Reading:
    """Read `folder` whole and compare it with `integrity`; with policy Off, only see that it is there.

    `source` stands for the folder in messages. Raises ModelNotFoundError and CancelledError; a file that vanishes or
    cannot be read is a problem of the returned state. What is refused for its form alone is not hashed.
    """
    manner = manner or Manner()
    listing = survey(folder, source)
    if integrity.policy == "Off":
        return Reading(WeightsState(), listing)
    findings = unsafe.inspect(folder, listing.files)
    problems, signed = [*listing.problems, *_judge(findings, integrity, manner.earlier)], None
    if integrity.signer_key_file is not None:
        try:
            signed = _signed(folder, listing, Path(integrity.signer_key_file))
        except SignatureError as error:
            problems.append(Problem("SignatureInvalid", f"the signature: {error}", changes=False))
    digests: dict[str, str] = {}
    progress.bytes_total, progress.bytes_read = listing.bytes_total, 0
    if not problems or integrity.policy == "Warn" or manner.earlier is not None:
        digests, unread = _digests(folder, listing, progress, manner)
        problems += unread
        problems += compare(digests, listing.files, integrity, signed, manner.earlier)
    return Reading(_state(listing, digests, problems, progress), listing, digests, tuple(problems), findings.code)


def survey(folder: Path, source: str) -> Listing:
    """What is in `folder`, in byte order of the paths. Raises ModelNotFoundError."""
    if not folder.is_dir():
        raise ModelNotFoundError(f"{source} is not a folder")
    root = folder.resolve()
    unreadable: list[OSError] = []
    files: dict[str, Stamp] = {}
    problems: list[Problem] = []
    for path in _walk(root, unreadable.append):
        name = _shown(path, root)
        try:
            problem = _not_a_file(path, root) if (root / name) == path else "a name that is not UTF-8"
            if problem is None:
                files[name] = Stamp.of(path)
            else:
                problems.append(Problem("UnsafeFiles", f"{name}: {problem}", changes=False))
        except OSError as error:
            problems.append(_unread(name, error))
    problems += [_unread(_shown(Path(error.filename), root), error) for error in unreadable]
    if not files and not problems:
        raise ModelNotFoundError(f"{source} is empty")
    return Listing(
        {name: files[name] for name in sorted(files, key=os.fsencode)},
        tuple(sorted(problems, key=lambda problem: problem.message)),
    )


def _walk(root: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Every entry below `root` that is not a real folder; links to folders are entries, and not entered."""
    for folder, folders, names in os.walk(root, onerror=on_error):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in names + links)


def _not_a_file(path: Path, root: Path) -> str | None:
    """Why an entry is no file of the folder; None if it is one. Raises OSError."""
    if path.is_dir():
        return "a symbolic link to a folder"
    if not path.is_symlink():
        return None if path.is_file() else "neither a file nor a folder"
    # Not `Path.resolve`, which raises RuntimeError for links in a circle.
    if not Path(os.path.realpath(path)).is_relative_to(root):
        return "a symbolic link that leads out of the model's folder"
    return None if path.is_file() else "a symbolic link to no file"


def _shown(path: Path, root: Path) -> str:
    """The path relative to `root`, as a status can tell it: what is not UTF-8 in it is written out."""
    return path.relative_to(root).as_posix().encode(errors="backslashreplace").decode()


def _unread(name: str, error: OSError) -> Problem:
    return Problem("FilesDamaged", f"{name}: cannot be read: {error.strerror}", changes=False)


def _judge(findings: unsafe.Findings, integrity: Integrity, earlier: Mapping[str, str] | None) -> Iterator[Problem]:
    def changes(path: str) -> bool:
        return earlier is None or path in earlier

    if not integrity.allow_pickle:
        for path, problem in findings.unsafe.items():
            yield Problem("UnsafeFiles", f"{path}: {problem}", changes(path))
    for path, problem in findings.damaged.items():
        yield Problem("FilesDamaged", f"{path}: {problem}", changes(path))
    for path, problem in findings.absent.items():
        yield Problem("FilesDamaged", f"{path}: {problem}", changes=False)


def _signed(folder: Path, listing: Listing, key_file: Path) -> Signed:
    if signature.BUNDLE not in listing.files:
        raise SignatureError(f"there is no {signature.BUNDLE} beside the weights")
    if listing.files[signature.BUNDLE].size > BUNDLE_LIMIT:
        raise SignatureError(f"{signature.BUNDLE} is longer than {BUNDLE_LIMIT} bytes")
    try:
        key = key_file.read_bytes()
    except OSError as error:
        raise SignatureError(f"the signer's public key cannot be read: {error.strerror}") from error
    try:
        bundle = (folder / signature.BUNDLE).read_bytes()
    except OSError as error:
        raise SignatureError(f"{signature.BUNDLE} cannot be read: {error.strerror}") from error
    return signature.verify(bundle, key)


def _digests(
    folder: Path, listing: Listing, progress: Progress, manner: Manner
) -> tuple[dict[str, str], list[Problem]]:
    """SHA-256 in hex by path, and the files that could not be read."""
    found = {path: digest for path, digest in manner.trusted.items() if path in listing.files}
    progress.add(sum(listing.files[path].size for path in found))
    # The largest first, so that no thread is left alone with it in the end.
    left = sorted(listing.files.keys() - found.keys(), key=lambda path: (-listing.files[path].size, path))
    problems = []
    with _threads(manner.background) as threads:
        hashing = partial(file_digest, progress=progress, past_cache=manner.background)
        readings = {path: threads.submit(hashing, folder / path) for path in left}
        for path, reading in readings.items():
            try:
                found[path] = reading.result()
            except OSError as error:
                problems.append(_unread(path, error))
    return found, problems


def _threads(background: bool) -> ThreadPoolExecutor:
    if background:
        lowest = partial(os.setpriority, os.PRIO_PROCESS, 0, LOWEST_PRIORITY)  # of the calling thread alone
        return ThreadPoolExecutor(1, thread_name_prefix="weights", initializer=lowest)
    return ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0))), thread_name_prefix="weights")


def compare(
    digests: Mapping[str, str],
    there: Collection[str],
    integrity: Integrity,
    signed: Signed | None = None,
    earlier: Mapping[str, str] | None = None,
) -> list[Problem]:
    """What differs from the manifest, the signed list, the earlier reading and the pinned digest; empty if nothing.

    A file that a list does not name is a difference too: an engine may load weights, or code, from any. Of files that
    are `there` and have no digest, because they could not be read, nothing is said.
    """
    lists: dict[str, Mapping[str, str]] = {}
    if integrity.files is not None:
        lists["the manifest"] = {path: digest.lower() for path, digest in integrity.files.items()}
    if signed is not None:
        # What the signer left out counts as what it is.
        left_out = {path: digest for path, digest in digests.items() if signed.leaves_out(path)}
        lists["the signed list"] = {**left_out, **signed.files}
    if earlier is not None:
        lists["the first reading"] = earlier
    found: dict[str, Problem] = {}
    for by, promised in lists.items():
        for path in sorted({*digests, *promised} - found.keys()):
            if (problem := _difference(path, digests.get(path), promised.get(path), path in there, by)) is not None:
                found[path] = problem
    problems = [*found.values()]
    whole = folder_digest(digests)
    # Where files are named that make it another one, it says nothing new.
    if integrity.digest not in (None, whole) and not problems and len(digests) == len(there):
        differs = f"the folder: digest is {whole}, pinned is {integrity.digest}"
        problems.append(Problem("DigestMismatch", differs))
    return problems


def _difference(path: str, found: str | None, promised: str | None, there: bool, by: str) -> Problem | None:
    if promised is None:
        return Problem("DigestMismatch", f"{path}: not in {by}", changes=False)
    if found is None:
        return None if there else Problem("DigestMismatch", f"{path}: missing", changes=False)
    if found != promised:
        return Problem("DigestMismatch", f"{path}: SHA-256 is {found}, in {by} it is {promised}")
    return None


def _state(
    listing: Listing, digests: Mapping[str, str], problems: Collection[Problem], progress: Progress
) -> WeightsState:
    messages = tuple(dict.fromkeys(problem.message for problem in problems))
    return WeightsState(
        digest=folder_digest(digests) if digests and len(digests) == len(listing.files) else None,
        bytes_total=progress.bytes_total,
        bytes_read=progress.bytes_read,
        verified=not problems,
        reason=next(iter(problems)).reason if problems else "",
        problems=messages[:PROBLEMS_SHOWN],
    )
