"""What a running gateway looks at again: its contract and its API keys, as the kubelet replaces them.

`Live` holds what holds now. Each request takes the contract of its beginning and keeps it. A file that cannot be used
is said in log and metric, and what held before goes on. Looks once a second: a mounted ConfigMap or Secret costs a
few system calls, since the kubelet changes all its files at once, by the link `..data`.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from headrace_runtime.contract import GatewayContract, live_update, without_live
from headrace_runtime.gateway import keys
from headrace_runtime.gateway.keys import Keys

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

What = Literal["contract", "keys"]
Result = Literal["changed", "refused"]
Changed = Callable[[What, Result], None]
"""Told after each look that found something else."""


@dataclass(frozen=True, slots=True)
class ContractFile:
    """Where the contract is written. `read` raises OSError, ValueError, or RecursionError for nested nonsense."""

    path: Path
    read: Callable[[Path], GatewayContract]


class Live:
    """The contract and the keys that hold now."""

    def __init__(self, contract: GatewayContract) -> None:
        self.contract = contract
        self.keys: Keys = {}


class Reloader:
    """Looks, reads, and tells `changed`. `file` None: the contract is in no file."""

    def __init__(self, live: Live, file: ContractFile | None, changed: Changed) -> None:
        self._live = live
        self._file = file
        self._changed = changed
        folder = live.contract.keys_folder
        self._folder = Path(folder) if folder is not None else None
        # Not what they are now: they may have changed since the process read its contract.
        self._contract_mark: object = self
        self._keys_mark: object = self

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Read what has changed since the last look."""
        if self._file is not None and (mark := _mark(self._file.path)) != self._contract_mark:
            self._contract_mark = mark
            self._try("contract", self._read_contract)
        if self._folder is not None and (mark := _mark(self._folder)) != self._keys_mark:
            self._keys_mark = mark
            self._try("keys", self._read_keys)

    def _try(self, what: What, read: Callable[[], bool]) -> None:
        try:
            if read():
                self._changed(what, "changed")
        except (OSError, ValueError, RecursionError) as error:
            log.error("the %s cannot be used, what held before goes on: %s", what, _short(error))
            self._changed(what, "refused")

    def _read_contract(self) -> bool:
        assert self._file is not None
        written, running = self._file.read(self._file.path), self._live.contract
        if without_live(written) != without_live(running):
            log.warning("the contract was changed in fields that only a new process takes up")
        self._live.contract = live_update(running, written)
        if self._live.contract == running:
            return False
        log.info("the contract was changed: its live fields hold from now on")
        return True

    def _read_keys(self) -> bool:
        assert self._folder is not None
        before, self._live.keys = self._live.keys, keys.read(self._folder)
        if not self._live.keys:
            log.warning("%s holds no API key: every request is refused", self._folder)
        else:
            log.info("%d API keys are known", len(self._live.keys))
        return self._live.keys != before


def _mark(place: Path) -> object:
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


def _short(error: Exception) -> str:
    """Where a contract is wrong, without its values."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))
    return f"{error}" or type(error).__name__
