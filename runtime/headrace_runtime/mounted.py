"""Files that are replaced while a process runs: a contract or keys, as the kubelet mounts them. Have they changed?

To look costs a few system calls, since the kubelet changes all files of a ConfigMap or Secret at once, by the link
`..data`. Called by the gateway (`gateway/reload.py`) and the agent (`node/adapters.py`) about once a second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

ContractT = TypeVar("ContractT")


@dataclass(frozen=True, slots=True)
class ContractFile(Generic[ContractT]):
    """Where a contract is written. `read` raises OSError, ValueError, or RecursionError for nested nonsense."""

    path: Path
    read: Callable[[Path], ContractT]


UNREADABLE = (OSError, ValueError, RecursionError)
"""What reading a contract or keys raises where they cannot be used."""


def mark(place: Path) -> object:
    """Changes when the file does, or any file of the folder. None while it cannot be read."""
    folder = place if place.is_dir() else place.parent
    link = folder / "..data"
    try:
        if link.is_symlink():
            return link.readlink()
        files = sorted(folder.iterdir()) if folder is place else [place]
        return [(file.name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for file in files for stat in [file.stat()]]
    except OSError:
        return None


def brief(error: Exception) -> str:
    """Where a contract is wrong, without its values."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))
    return f"{error}" or type(error).__name__
