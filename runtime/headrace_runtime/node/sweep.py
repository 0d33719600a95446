"""Removes what a killed engine leaves behind: shared memory that nobody maps, and the files of its run directory.

Called by `agent.py` before it starts anything and after each engine's end. Removes nothing that is in use or not its
own.
"""

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a temporary file of ours: where the engine puts its own
LEFTOVERS = ("vllm_offload_*.mmap", "psm_*", "nccl-*")
"""vLLM's host memory for offloaded KV blocks, Python's `SharedMemory`, NCCL's transport segments."""
MARK = ".headrace-run-directory"


class NotOursError(Exception):
    """A run directory with files in it that no agent put there."""


def prepare(run_dir: Path) -> None:
    """Make `run_dir`, or empty it if an agent made it. Raises NotOursError rather than delete somebody's files."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = run_dir / MARK
    if any(run_dir.iterdir()) and not mark.exists():
        raise NotOursError(f"{run_dir} holds files that no agent made; choose another --run-dir, or empty it")
    mark.touch()
    for entry in run_dir.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != mark:
            entry.unlink()


def sweep(shared_memory: Path = SHARED_MEMORY) -> list[str]:
    """Remove leftovers that no process maps; returns their names. Another engine on this machine keeps its own."""
    leftovers = [
        path for pattern in LEFTOVERS for path in shared_memory.glob(pattern) if path.stat().st_uid == os.geteuid()
    ]
    if not leftovers:
        return []
    mapped = set(_mapped(shared_memory))
    removed = [path for path in leftovers if str(path) not in mapped]
    for path in removed:
        path.unlink(missing_ok=True)
    if removed:
        log.info("removed shared memory of ended engines: %s", ", ".join(path.name for path in removed))
    return [path.name for path in removed]


def _mapped(folder: Path) -> Iterable[str]:
    """Paths below `folder` that some process maps, as far as this user may see."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            continue  # ended, or another user's, whose files are not ours to remove
        for line in lines:
            path = line.partition(f" {folder}/")[2]
            if path:
                yield f"{folder}/{path}"
