"""Looks after the model's folder for as long as its agent lives: fetched, read before an engine may, read again later.

With policy Enforce no engine starts on files that were not read whole and found right; what is refused is looked at
again once it was touched, so that a repair needs no new pod, and a damaged copy in the node's cache is thrown away and
fetched again, once. A reading beside a running engine takes it out where bytes differ that it may have loaded. Files
that are gone, new or cannot be read say nothing against a running engine (a volume that is away for a minute must not
take every engine with it), but the next one starts after a whole reading. Owned by `agent.py`, which asks for the
verdict and says when an engine starts and ends; `decide.py` judges it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from headrace_runtime.contract import NodeContract, WeightsState
from headrace_runtime.models.errors import CancelledError, FetchError
from headrace_runtime.models.progress import Progress as Fetching
from headrace_runtime.node import weights
from headrace_runtime.node.copies import Copies, intact, is_fetched, untouched
from headrace_runtime.node.decide import Verdict
from headrace_runtime.node.link import point
from headrace_runtime.node.weights import Listing, Manner, ModelNotFoundError, Progress, Reading

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 10.0
"""Between two looks for a model's folder that was not there, or at one that was refused."""
LONGEST_WAIT_SECONDS = 300.0
"""Between two fetches, however many have failed: a source that is away is asked ever more seldom."""
LOOK_SECONDS = 0.5
RESCAN_BYTES_PER_SECOND = float(64 << 20)
"""Of a reading beside a running engine: a twentieth of a core, and of a slow SSD's bandwidth an eighth."""


class Custody:
    """The weights of one engine. `run` in a task; everything else from the agent's loop."""

    def __init__(
        self, contract: NodeContract, wake: Callable[[], None], look_again_seconds: float = LOOK_AGAIN_SECONDS
    ) -> None:
        """A model that is fetched goes into the node's cache, and `model.path` is made a link to its copy."""
        model = contract.model
        self._copies = Copies(model) if is_fetched(model) else None
        self.verdict: Literal["Fetching", "Reading", "Usable"] | Verdict = "Fetching" if self._copies else "Reading"
        self.refused_at = 0.0
        """When the verdict turned against a running engine, on the clock of `time.monotonic`."""
        self._model, self._wake, self._look_again = model, wake, look_again_seconds
        self._runs_code = any(
            option.replace("_", "-") == "trust-remote-code" and value is True
            for option, value in contract.engine.extra_args.items()
        )
        self._copy = Path(model.path)
        self._refetched = False
        self._failures = 0
        """Fetches in a row that came to nothing."""
        self._progress, self._fetching = Progress(), Fetching()
        self._fetching.cancelled = self._progress.cancelled
        self._state: WeightsState | None = None
        self._notes: tuple[str, ...] = ()
        self._unread_since: float | None = None
        """When files were read that the last reading trusted, in seconds since the epoch."""
        self._first: Mapping[str, str] | None = None
        """SHA-256 by path of the files that the first engine was started upon: pinned while the agent lives."""
        self._idle = asyncio.Event()
        """No engine runs."""
        self._idle.set()
        self._doubted = False
        self._reread = asyncio.Event()

    def state(self) -> WeightsState:
        """As far as the first reading has come, or what the last one found."""
        progress, fetching = self._progress, self._fetching
        state = self._state or WeightsState(bytes_total=progress.bytes_total, bytes_read=progress.bytes_read)
        return state.model_copy(update={"fetched": fetching.fetched, "fetch_total": fetching.total})

    def cancel(self) -> None:
        """End whatever is being read. Safe to repeat."""
        self._progress.cancelled.set()

    def engine_started(self) -> None:
        self._idle.clear()

    def engine_ended(self) -> None:
        """All of it is gone. Where the files are in doubt, there is no next one before they were read."""
        self._idle.set()
        if self._doubted and self.verdict == "Usable":
            self.verdict = "Reading"
            self._reread.set()

    async def run(self) -> None:
        """Read, and read again, until cancelled; returns early where nothing is left to look after."""
        with suppress(CancelledError):
            while True:
                await self._admit()
                if self._model.integrity.rescan_seconds is None or self._model.integrity.policy == "Off":
                    return
                await self._keep(self._model.integrity.rescan_seconds)

    async def _admit(self) -> None:
        """Return once an engine may start."""
        while True:
            try:
                await self._fetch()
                reading = await self._read(self._manner(), self._progress)
            except FetchError as error:
                self._decide(Verdict(error.reason, str(error)))
                self._failures += 1
                await asyncio.sleep(min(LONGEST_WAIT_SECONDS, self._look_again * 2.0 ** min(self._failures - 1, 16)))
                continue
            except ModelNotFoundError as error:
                self._decide(Verdict("ModelNotFound", str(error)))
                await asyncio.sleep(self._look_again)
                continue
            self._state = self._told(reading)
            if reading.state.verified is not False or self._model.integrity.policy == "Warn":
                self._first = self._first or reading.digests or None
                self._doubted = self._refetched = False
                self._reread.clear()
                self._decide("Usable")
                return
            self._decide(Verdict(reading.state.reason, _brief(reading.state.problems)))
            if not await self._thrown_away(reading):
                await self._touched(reading)

    async def _fetch(self) -> None:
        """See to it that the copy is there, where the model is one. Raises FetchError, CancelledError."""
        if self._copies is None:
            return
        before, model = self._fetching.fetched, self._model
        work = asyncio.create_task(asyncio.to_thread(self._copies.fetch, model.source, model.integrity, self._fetching))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody waits any more
        while not (await asyncio.wait([work], timeout=LOOK_SECONDS))[0]:
            # What failed is told until something comes again, for an attempt alone says nothing.
            if self._failures and self._fetching.fetched > before:
                self._failures, self.verdict = 0, "Fetching"
                self._wake()
        self._copy = work.result()
        self._failures = 0
        await asyncio.to_thread(point, Path(self._model.path), self._copy)
        if self.verdict == "Fetching":
            self.verdict = "Reading"
            self._wake()

    def _manner(self) -> Manner:
        self._unread_since = None
        if self._copies is None or self._model.integrity.trust_unchanged == "Never":
            return Manner(earlier=self._first)
        trusted, read_at = untouched(self._copy)
        self._unread_since = read_at if trusted else None
        return Manner(earlier=self._first, trusted=trusted)

    async def _thrown_away(self, reading: Reading) -> bool:
        """Whether a refused copy was removed, to be fetched again. Not where its source would give the same."""
        wrong = reading.state.reason in ("DigestMismatch", "FilesDamaged")
        if self._copies is None or self._refetched or not wrong or intact(self._copy, reading.digests):
            return False
        self._refetched = True
        try:
            await asyncio.to_thread(self._copies.discard, self._copy)
        except FetchError as error:
            log.warning("the damaged copy of %s in the node's cache cannot be removed: %s", self._model.source, error)
            return False
        log.warning("the copy of %s in the node's cache is damaged: it is fetched again", self._model.source)
        return True

    async def _keep(self, every: float) -> None:
        """Read again now and then. Returns when only a whole reading may let another engine start."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._reread.wait()
                    return
            self._unread_since = None
            progress = Progress(rate=RESCAN_BYTES_PER_SECOND, cancelled=self._progress.cancelled)
            try:
                again = await self._read(Manner(earlier=self._first, background=True), progress)
            except ModelNotFoundError as missing:
                again = Reading(WeightsState(problems=(str(missing),), verified=False), Listing({}))
            changes = [problem for problem in again.problems if problem.changes]
            if not again.state.problems or self._model.integrity.policy == "Warn":
                self._doubted = False
                self._state = self._told(again)
            elif changes:
                self._state = self._told(again)
                self.refused_at = time.monotonic()
                self._decide(Verdict(changes[0].reason, _brief(tuple(problem.message for problem in changes))))
                await self._idle.wait()
                return
            else:
                self._doubt(again.state.problems)
                if self._idle.is_set():
                    self.engine_ended()

    async def _read(self, manner: Manner, progress: Progress) -> Reading:
        model = self._model
        return await asyncio.to_thread(
            weights.examine, Path(model.path), model.source, model.integrity, progress, manner
        )

    async def _touched(self, refused: Reading) -> None:
        """Return once something is otherwise than when it was refused: a file, or the signer's key."""
        key = self._signer_key()
        while True:
            await asyncio.sleep(self._look_again)
            try:
                listing = await asyncio.to_thread(weights.survey, Path(self._model.path), self._model.source)
            except ModelNotFoundError:
                return
            if listing != refused.listing or self._signer_key() != key:
                return

    def _signer_key(self) -> bytes | None:
        file = self._model.integrity.signer_key_file
        try:
            return Path(file).read_bytes() if file else None
        except OSError:
            return None

    def _doubt(self, problems: tuple[str, ...]) -> None:
        self._doubted = True
        note = f"the files are not as they were when the engine started: {_brief(problems)}"
        self._state = self.state().model_copy(update={"notes": (*self._notes, note)})

    def _told(self, reading: Reading) -> WeightsState:
        """What a reading found, with when it was and what else should be known."""
        runs = self._runs_code and reading.code
        self._notes = (f"the engine runs code from the model's folder: {_brief(reading.code)}",) if runs else ()
        before = self._state.verified_at if self._state else None
        at = (self._unread_since or time.time()) if reading.state.verified else before
        return reading.state.model_copy(update={"notes": self._notes, "verified_at": at})

    def _decide(self, verdict: Literal["Usable"] | Verdict) -> None:
        if isinstance(verdict, Verdict) and verdict != self.verdict:
            log.warning("%s: %s", verdict.reason, verdict.message)
        self.verdict = verdict
        self._wake()


def _brief(problems: tuple[str, ...]) -> str:
    """The first of them: the message is repeated in several conditions, and the whole list stands in the state."""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""
