"""What a running gateway looks at again: its contract and its API keys, as the kubelet replaces them.

`Live` holds what holds now. Each request takes the contract of its beginning and keeps it. A file that cannot be used
is said in log and metric, and what held before goes on. Looks once a second (`mounted.py`).
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from headrace_runtime.contract import GatewayContract, live_update, without_live
from headrace_runtime.gateway import keys
from headrace_runtime.gateway.keys import Keys
from headrace_runtime.mounted import UNREADABLE, ContractFile, brief, mark

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

What = Literal["contract", "keys"]
Result = Literal["changed", "refused"]
Changed = Callable[[What, Result], None]
"""Told after each look that found something else."""


class Live:
    """The contract and the keys that hold now."""

    def __init__(self, contract: GatewayContract) -> None:
        self.contract = contract
        self.keys: Keys = {}


class Reloader:
    """Looks, reads, and tells `changed`. `file` None: the contract is in no file."""

    def __init__(self, live: Live, file: ContractFile[GatewayContract] | None, changed: Changed) -> None:
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
        if self._file is not None and (now := mark(self._file.path)) != self._contract_mark:
            self._contract_mark = now
            self._try("contract", self._read_contract)
        if self._folder is not None and (now := mark(self._folder)) != self._keys_mark:
            self._keys_mark = now
            self._try("keys", self._read_keys)

    def _try(self, what: What, read: Callable[[], bool]) -> None:
        try:
            if read():
                self._changed(what, "changed")
        except UNREADABLE as error:
            log.error("the %s cannot be used, what held before goes on: %s", what, brief(error))
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
