"""LoRA adapters under a running engine: found, verified, loaded and unloaded, until it serves what the contract names.

Level-triggered: reads the contract again when its file has changed, asks the engine what it serves, and does what is
missing. Nothing here ends or delays an engine: an adapter that cannot be served is named in the agent's state, with the
reason, and tried again now and then. Its folder is read whole before an engine gets it, so that a restarted one gets no
other bytes than the first.

An adapter is loaded by a link that is named after its content, `~/adapters/DIGEST`. vLLM keys KV blocks by an adapter's
name and by its path as it was given, `~` and all: the same bytes have the same key in every engine, wherever they lie,
and other bytes have another. Run by `agent.py`, which asks for `states` and `pending`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace_runtime.contract import Adapter, AdapterState, Integrity, NodeContract, WeightsState
from headrace_runtime.models.errors import CancelledError
from headrace_runtime.mounted import UNREADABLE, ContractFile, brief, mark
from headrace_runtime.node import weights
from headrace_runtime.node.link import point
from headrace_runtime.node.lora import Change, Routes, changes

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
RETRY_SECONDS = 30.0
"""After which what failed is tried again."""
SETTLED_SECONDS = 15.0
"""Between two questions to an engine that serves what it should."""
FOLDER = "adapters"
READ_AT_ONCE = 2

Locate = Callable[[Adapter, weights.Progress], Path]
"""The adapter's folder, once it is there. Blocks; raises `LocateError`, and `CancelledError` as the progress
says."""


class LocateError(Exception):
    """The adapter's files cannot be had. The message is fit for a status."""


def fault(state: WeightsState, integrity: Integrity) -> str:
    """What is wrong with files that were read; empty if nothing is, or nothing is asked."""
    if integrity.policy == "Off":
        return ""
    if state.problems:
        return state.problems[0]
    if integrity.digest not in (None, state.digest):
        return f"the folder: digest is {state.digest}, pinned is {integrity.digest}"
    return ""


def refused(state: WeightsState, integrity: Integrity) -> bool:
    return integrity.policy == "Enforce" and bool(fault(state, integrity))


@dataclass
class Search:
    """The way to one adapter's files."""

    task: "asyncio.Task[None] | None" = None
    progress: weights.Progress = field(default_factory=weights.Progress)
    ended_at: float | None = None
    found: WeightsState | None = None
    problem: str = ""
    """Why they could not be had, last time."""

    def end(self) -> None:
        self.progress.cancelled.set()
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True)
class Refusal:
    """An engine's answer to a load."""

    path: str
    problem: str
    at: float


@dataclass(frozen=True)
class Files:
    """Where adapters lie, and where an engine finds them."""

    home: Path
    """What `~` is to the engine."""
    locate: Locate

    def read(self, adapter: Adapter, progress: weights.Progress) -> WeightsState:
        """Blocks. Once it returns, a link stands at `path_of` what it found. Raises as `locate` and `weights.read`."""
        folder = self.locate(adapter, progress)
        state = weights.read(folder, adapter.source, adapter.integrity, progress)
        link = self.home / path_of(state).removeprefix("~/")
        try:
            link.parent.mkdir(mode=0o700, exist_ok=True)
            point(link, folder)  # adapters of equal content have one link
        except OSError as error:
            raise LocateError(f"{adapter.source}: the engine cannot be given a link to it: {error.strerror}") from error
        return state


class Adapters:
    """What this agent's engine shall serve beside its model, and does."""

    def __init__(
        self,
        wanted: tuple[Adapter, ...],
        file: ContractFile[NodeContract] | None,
        routes: Routes,
        files: Files,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`file` None: the contract does not change."""
        self._wanted, self._file, self._routes, self._files, self._now = wanted, file, routes, files, now
        self._mark: object = self  # not what it is now: it may have changed since it was read
        self._searches: dict[Adapter, Search] = {}
        """By what `files_of` leaves of an adapter."""
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._refusals: dict[str, Refusal] = {}
        self._served: Mapping[str, str] = {}
        self._engine = 0
        """Counts the engines: what was asked of one says nothing of the next."""
        self._ask_at = 0.0
        self.pending = True
        """The engine that runs now has yet to be given what it should have from its start. A pod is not ready
        meanwhile."""

    def states(self) -> tuple[AdapterState, ...]:
        return tuple(self._state(adapter) for adapter in self._wanted)

    @property
    def searching(self) -> bool:
        """Files of some adapter are being read."""
        return any(search.task is not None for search in self._searches.values())

    def engine_started(self) -> None:
        """A new engine has no adapters. All are read again before it gets them."""
        self._engine += 1
        self.pending, self._served, self._ask_at = True, {}, 0.0
        self._refusals.clear()
        self.close()

    def close(self) -> None:
        """End what is being read."""
        for search in self._searches.values():
            search.end()
        self._searches.clear()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self.look()
                await self.step()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self.close()

    def look(self) -> None:
        """Take up the contract's adapters, where its file has changed."""
        if self._file is None or (now := mark(self._file.path)) == self._mark:
            return
        self._mark = now
        try:
            written = self._file.read(self._file.path).model.adapters
        except UNREADABLE as error:
            log.error("the contract cannot be used, what held before goes on: %s", brief(error))
            return
        if written != self._wanted:
            log.info("adapters are now: %s", ", ".join(adapter.name for adapter in written) or "none")
            self._wanted, self._ask_at = written, 0.0

    async def step(self) -> None:
        """Start the readings that are due, and bring the engine as near to the contract as they allow."""
        self._search()
        if self._now() < self._ask_at:
            return
        engine, served = self._engine, await self._routes.served()
        if served is None or engine != self._engine:
            return
        applied = False
        for change in changes(self._paths(), served):
            if engine == self._engine and self._is_due(change):
                await self._apply(change)
                applied = True
        if applied:
            served = await self._routes.served()
            if served is None or engine != self._engine:
                return
        self._served = served
        states = self.states()
        self.pending = self.pending and not all(state.served or state.problem for state in states)
        settled = all(state.served for state in states) and len(served) == len(states)
        self._ask_at = self._now() + (SETTLED_SECONDS if settled else 0.0)

    async def _apply(self, change: Change) -> None:
        problem = (await self._routes.apply(change)).replace(str(self._files.home), "~")
        done = "loaded" if change.path else "unloaded"
        if problem:
            log.warning("adapter %s is not %s: %s", change.name, done, problem)
        else:
            log.info("adapter %s is %s", change.name, done)
        self._refusals.pop(change.name, None)
        if problem and change.path:
            self._refusals[change.name] = Refusal(change.path, problem, self._now())

    def _is_due(self, change: Change) -> bool:
        refusal = self._refusals.get(change.name)
        return refusal is None or refusal.path != change.path or self._now() - refusal.at >= RETRY_SECONDS

    def _paths(self) -> dict[str, str | None]:
        """What the engine should serve. None: its files are not there yet."""
        paths: dict[str, str | None] = {}
        for adapter in self._wanted:
            found = self._found(adapter)
            if found is None or not refused(found, adapter.integrity):
                paths[adapter.name] = path_of(found) if found else None
        return paths

    def _state(self, adapter: Adapter) -> AdapterState:
        search, refusal = self._searches.get(files_of(adapter)) or Search(), self._refusals.get(adapter.name)
        found = search.found
        if found is None:
            return AdapterState(name=adapter.name, problem=search.problem)
        path = path_of(found)
        return AdapterState(
            name=adapter.name,
            digest=found.digest,
            served=self._served.get(adapter.name) == path,
            problem=fault(found, adapter.integrity) or (refusal.problem if refusal and refusal.path == path else ""),
        )

    # ---- files --------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        """End the searches that nobody wants, start those that are due. Raises what broke one: a bug of ours."""
        askers: dict[Adapter, list[Adapter]] = {}
        for adapter in self._wanted:
            askers.setdefault(files_of(adapter), []).append(adapter)
        for files in [files for files in self._searches if files not in askers]:
            self._searches.pop(files).end()
        for files, asking in askers.items():
            search = self._searches.setdefault(files, Search())
            if search.task is not None and search.task.done():
                search.task.result()
                search.task = None
            if search.task is None and self._is_wrong(search, asking):
                search.task = asyncio.create_task(self._find(files, search))

    def _is_wrong(self, search: Search, asking: Iterable[Adapter]) -> bool:
        """Whether files must be read, for the first time or again."""
        found, ended_at = search.found, search.ended_at
        if ended_at is None:
            return True
        wrong = found is None or any(refused(found, adapter.integrity) for adapter in asking)
        return wrong and self._now() - ended_at >= RETRY_SECONDS

    async def _find(self, files: Adapter, search: Search) -> None:
        try:
            async with self._reading:
                search.found = await asyncio.to_thread(self._files.read, files, search.progress)
            search.problem, self._ask_at = "", 0.0
        except (LocateError, weights.ModelNotFoundError) as error:
            search.found, search.problem = None, str(error)
        except CancelledError:
            return
        search.ended_at = self._now()

    def _found(self, adapter: Adapter) -> WeightsState | None:
        search = self._searches.get(files_of(adapter))
        return search.found if search else None


def files_of(adapter: Adapter) -> Adapter:
    """The part of an adapter that says which files it is: two may be the same, under two names. The digest is needed
    whatever is asked of the files, so that they are read all the same, and judged after."""
    reading = Integrity(policy="Warn", allow_pickle=adapter.integrity.allow_pickle)
    return Adapter(name="", source=adapter.source, path=adapter.path, integrity=reading)


def path_of(state: WeightsState) -> str:
    """Where an engine finds the files that were read."""
    assert state.digest is not None
    return f"~/{FOLDER}/{state.digest.removeprefix('sha256:')}"
