"""An engine over several pods: their agents start its parts together, and end them together.

vLLM does not do it: a rank that waits for a lost one hangs, the rest of an engine that lost one answers with errors
and stays. So each rank above 0 tells rank 0's agent how it is, a few times a second, and is told in the answer which
*life* of the engine its part shall belong to (`contract/gang.py`). Rank 0 begins a life when every rank is there with
nothing left of the one before, and gives it up as soon as one part has ended or one rank is not heard. It alone counts
failures. Who is there is known from what was said lately and from nothing else; `decide.py` judges, `agent.py` acts.
"""

import asyncio
import errno
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from headrace_runtime.contract import GangOrder, NodeContract, Phase, Place, RankReport
from headrace_runtime.engine.arguments import Meeting
from headrace_runtime.node.decide import GangSeen
from headrace_runtime.node.readiness import Load

REPORT_SECONDS = 0.3
ANSWER_SECONDS = 5.0
SILENT_SECONDS = 15.0
"""An agent that was not heard for so long is gone. Machines on which engines start leave little time to others."""
REFUSED_SECONDS = 3.0
"""The same where its machine says that nobody listens there."""
PAUSE_SECONDS = 2.0
"""An agent that looks a few times a second, and did not for so long, was kept from running: it heard nobody then."""
WHY_LENGTH = 500


class StrayRankError(Exception):
    """The place does not fit the contract: which rank of how many this is."""


class Gang(Protocol):
    """The other ranks, as the agent of one pod knows them."""

    @property
    def meeting(self) -> Meeting:
        """Where the workers of the life that is begun now meet."""

    def seen(self, now: float) -> GangSeen: ...

    def begin(self) -> None:
        """The part here is started."""

    def end(self, why: str) -> None:
        """Nothing of the part here is left."""

    def note(self, phase: Phase, *, ready: bool, willing: bool) -> None:
        """How this pod is, after each step. `ready`: its engine gave a token."""

    async def run(self) -> None:
        """Until cancelled: whatever has to be said to others."""


class Waking:
    """A clock that stands still while this agent is kept from running, as on a machine that is suspended."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._looked_at, self._asleep = now, now(), 0.0

    def __call__(self) -> float:
        return self._now() - self._asleep

    def look(self, now: float) -> float:
        """Its time; to be asked in every step."""
        if now - self._looked_at > PAUSE_SECONDS:
            self._asleep += now - self._looked_at
        self._looked_at = now
        return now - self._asleep


@dataclass(frozen=True)
class Heard:
    """The last report of one rank."""

    report: RankReport
    at: float
    """By `Waking`."""


class Leader:
    """Rank 0's view. `answer` is `POST /gang`."""

    def __init__(self, size: int, address: tuple[str, int], now: Callable[[], float]) -> None:
        """`size`: pods of the engine, this one included. `address`: host and port where their workers meet."""
        self._size, self._address, self._now = size, address, Waking(now)
        self._heard: dict[int, Heard] = {}
        self._joined: set[int] = set()
        """Ranks whose part of this life was seen to run."""
        self._leaving_since: float | None = None
        self._life = ""
        self._phase: Phase = "Waiting"
        self._ready = False

    @property
    def meeting(self) -> Meeting:
        return Meeting(*self._address, self._life)

    def answer(self, report: RankReport) -> GangOrder:
        """Raises StrayRankError for a rank that this engine does not have."""
        if report.rank >= self._size:
            raise StrayRankError(f"the engine has {self._size} pods, and none of rank {report.rank}")
        self._heard[report.rank] = Heard(report, self._now())
        if self._life and report.runs == self._life:
            self._joined.add(report.rank)
        address, port = self._address
        return GangOrder(
            phase=self._phase, life=self._life, address=address, port=port, ready=self._ready and bool(self._life)
        )

    def seen(self, now: float) -> GangSeen:
        now = self._now.look(now)
        ranks = range(1, self._size)
        leaving = any(rank in self._heard and self._heard[rank].report.phase == "Draining" for rank in ranks)
        if not leaving:
            self._leaving_since = None
        elif self._leaving_since is None:
            self._leaving_since = now
        return GangSeen(
            leads=True,
            missing=_first(self._missing(rank, now) for rank in ranks),
            lost=_first(self._lost(rank, now) for rank in ranks) if self._life else "",
            leaving_for=now - self._leaving_since if self._leaving_since is not None else None,
        )

    def begin(self) -> None:
        self._life, self._joined, self._ready = uuid.uuid4().hex, set(), False

    def end(self, why: str) -> None:
        self._life, self._ready = "", False

    def note(self, phase: Phase, *, ready: bool, willing: bool) -> None:
        self._phase, self._ready = phase, ready

    async def run(self) -> None:
        return

    def _missing(self, rank: int, now: float) -> str:
        heard = self._heard.get(rank)
        if heard is None or now - heard.at > SILENT_SECONDS:
            return f"waits for rank {rank}, which is not heard"
        return "" if heard.report.willing else f"waits for rank {rank}, which is in phase {heard.report.phase}"

    def _lost(self, rank: int, now: float) -> str:
        heard = self._heard.get(rank)
        if heard is None or now - heard.at > SILENT_SECONDS:
            return f"rank {rank} was not heard for {SILENT_SECONDS:g} s"
        if heard.report.left == self._life:
            return f"rank {rank}: {heard.report.why}"
        if rank in self._joined and heard.report.runs != self._life:
            return f"rank {rank} began anew"
        return ""


class Follower:
    """The view of a rank above 0."""

    def __init__(
        self, rank: int, pod: str, ask: Callable[[RankReport], Awaitable[GangOrder]], now: Callable[[], float]
    ) -> None:
        """`ask` puts a report to rank 0. Raises OSError, TimeoutError, ValueError or aiohttp's errors for none."""
        self._rank, self._pod, self._ask, self._now = rank, pod, ask, Waking(now)
        self._order = GangOrder(phase="Waiting")
        self._heard_at = float("-inf")
        self._refused_since: float | None = None
        self._runs = self._left = self._why = ""
        self._phase: Phase = "Waiting"
        self._willing = False

    @property
    def meeting(self) -> Meeting:
        return Meeting(self._order.address, self._order.port, self._order.life)

    def seen(self, now: float) -> GangSeen:
        now = self._now.look(now)
        silent = now - self._heard_at > SILENT_SECONDS
        refused = self._refused_since is not None and now - self._refused_since > REFUSED_SECONDS
        order = self._order
        if self._runs:
            lost = "rank 0 ended its part" if order.life != self._runs else ""
            return GangSeen(leads=False, lost="rank 0 does not answer" if silent or refused else lost)
        if silent or refused:
            return GangSeen(leads=False, missing="waits for rank 0, which does not answer")
        if order.life in ("", self._left):
            return GangSeen(leads=False, missing=f"waits for rank 0, which is in phase {order.phase}")
        return GangSeen(leads=False)

    def begin(self) -> None:
        self._runs = self._order.life

    def end(self, why: str) -> None:
        self._left, self._runs, self._why = self._runs, "", why[:WHY_LENGTH]

    def note(self, phase: Phase, *, ready: bool, willing: bool) -> None:
        self._phase, self._willing = phase, willing and not self._runs

    async def run(self) -> None:
        while True:
            await self.report()
            await asyncio.sleep(REPORT_SECONDS)

    async def report(self) -> None:
        """Say once how this rank is, and keep what is answered."""
        report = RankReport(
            rank=self._rank,
            pod=self._pod,
            phase=self._phase,
            willing=self._willing,
            runs=self._runs,
            left=self._left,
            why=self._why,
        )
        try:
            order = await self._ask(report)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            refused = isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED
            if not refused:
                self._refused_since = None
            elif self._refused_since is None:
                self._refused_since = self._now()
            return
        self._order, self._heard_at, self._refused_since = order, self._now(), None

    # ---- `readiness.Asked`: this part has no HTTP, and rank 0 knows -------------------------------------------------

    async def healthy(self, seconds: float) -> bool:
        return bool(self._runs) and self._order.life == self._runs and self._order.ready

    async def generate(self, seconds: float) -> str:
        return ""

    async def pass_through(self, seconds: float) -> str:
        return ""

    async def load(self, seconds: float) -> Load | None:
        """Needed for as long as the life lasts: rank 0 ends it when no request is left. It alone counts requests."""
        return Load(requests=0.0, progress=0.0, kv_used=float(bool(self._runs)))


def _first(problems: Iterable[str]) -> str:
    return next((problem for problem in problems if problem), "")


def fit(contract: NodeContract, place: Place) -> bool:
    """Whether this pod is one of several of its engine. Raises StrayRankError."""
    pods = contract.engine.parallelism.pods
    if place.rank >= pods:
        raise StrayRankError(f"--rank {place.rank}: engine.parallelism.pods of the contract is {pods}")
    if place.rank and not place.leader:
        raise StrayRankError(f"--leader: rank {place.rank} needs HOST:PORT of rank 0's agent")
    return pods > 1


def asking(session: aiohttp.ClientSession, leader: str) -> Callable[[RankReport], Awaitable[GangOrder]]:
    """Puts a report to the agent at `leader`, `host:port`. Raises as `Follower` says."""
    limit = aiohttp.ClientTimeout(ANSWER_SECONDS)

    async def ask(report: RankReport) -> GangOrder:
        body = report.model_dump(mode="json", by_alias=True)
        async with session.post(f"http://{leader}/gang", json=body, timeout=limit) as answer:
            if answer.status != 200:
                raise ValueError(f"rank 0 answers with status {answer.status}")
            return GangOrder.model_validate_json(await answer.read())

    return ask
