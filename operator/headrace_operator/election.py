"""Which of several operators works: one Lease, as in Kubernetes' own leader election.

The rules are pure (`see`, `patience`, `claim`). `Election` lives by them: `win` returns once this process leads, and
gives a `Term` that renews the Lease until it is resigned or lost. Nobody's clock is believed but the own one: what
counts is how long ago, here, the Lease was first seen as it is. Called by `operation.py`; knows no kopf and no workers.

Why there is never a second writer. Let a leader's last renewal be sent at s and kept by the API server at k >= s. The
leader writes until s + DEADLINE by its own clock. Any other has seen that renewal at k or later, and claims the Lease
no sooner than LEASE after that by its own clock, with an apply that the API server refuses if the Lease changed
meanwhile. LEASE is DEADLINE and two seconds more: 40 % of drift between the two clocks. Who resigns ends its writes
first. `docs/operator.md` says what is left: a write that hangs in the API server itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from headrace_operator.cluster import LEASE, Cluster
from headrace_operator.cluster.fence import Fence, awake_or_not
from headrace_operator.errors import ClusterError, Conflict
from headrace_operator.metrics import LEADER
from headrace_operator.state import Object

logger = logging.getLogger(__name__)

LEASE_SECONDS = 7
"""A Lease that nobody renewed for so long may be taken."""
DEADLINE_SECONDS = 5.0
"""A leader that could not renew for so long writes nothing any more."""
RENEW_SECONDS = 2.0
TRY_SECONDS = 2.0
"""A renewal is given up after so long, and tried again: by a connection that is not dead, perhaps."""
LOOK_SECONDS = 0.5
"""How often those who stand by look at the Lease, and a leader tries again that could not renew it."""
QUIET_SECONDS = 1.0
"""How long one that resigns waits for its last writes. If they take longer, the Lease runs out by itself."""


@dataclass(frozen=True)
class Claim:
    """What a Lease says, as far as it matters here."""

    version: str
    holder: str = ""
    """Empty: it was released."""
    seconds: float = LEASE_SECONDS
    acquired: str = ""
    transitions: int = 0


@dataclass(frozen=True)
class Sight:
    """The newest claim that was seen, and when it was first seen so, by the own clock. None: there is no Lease."""

    claim: Claim | None
    since: float


def read(lease: Object | None) -> Claim | None:
    """The claim in a Lease. One that somebody left without a duration has ours."""
    if lease is None:
        return None
    spec = lease.get("spec") or {}
    return Claim(
        version=lease["metadata"]["resourceVersion"],
        holder=spec.get("holderIdentity") or "",
        seconds=spec.get("leaseDurationSeconds") or LEASE_SECONDS,
        acquired=spec.get("acquireTime") or "",
        transitions=spec.get("leaseTransitions") or 0,
    )


def see(before: Sight | None, claim: Claim | None, now: float) -> Sight:
    """What is known after a look: a claim that did not change was first seen when it was."""
    return before if before is not None and before.claim == claim else Sight(claim, now)


def patience(sight: Sight, identity: str, now: float) -> float:
    """Seconds until `identity` may claim the Lease; 0 or less: now."""
    held = sight.claim is not None and sight.claim.holder not in ("", identity)
    return sight.since + sight.claim.seconds - now if held and sight.claim is not None else 0.0


def claim(before: Claim | None, identity: str, now: datetime) -> Object:
    """The spec of a Lease that `identity` holds from now on, or goes on holding. Its times are for readers only."""
    moment = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    mine = before is not None and before.holder == identity
    transitions = before.transitions + (not mine) if before is not None else 0
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": before.acquired if mine and before is not None and before.acquired else moment,
        "renewTime": moment,
        "leaseTransitions": transitions,
    }


def released(before: Claim, now: datetime) -> Object:
    """The spec of a Lease that anybody may take at once."""
    return claim(before, before.holder, now) | {"holderIdentity": "", "leaseDurationSeconds": 1}


@dataclass(frozen=True)
class Lease:
    """One Lease object and the one who would hold it. `identity` is no other process's, before or after."""

    cluster: Cluster
    """A client of its own: a renewal must not wait for a connection behind the lists of a thousand objects."""
    namespace: str
    name: str
    identity: str

    async def look(self) -> Claim | None:
        return read(await self.cluster.get(LEASE, self.namespace, self.name))

    async def put(self, before: Claim | None, spec: Object) -> Claim | None:
        """Write it over that claim and no other (Conflict). None: it was made, and has yet to be looked at."""
        meta: Object = {"namespace": self.namespace, "name": self.name}
        lease = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": meta, "spec": spec}
        if before is None:
            await self.cluster.create_once(lease)
            return None
        return read(await self.cluster.apply(lease | {"metadata": meta | {"resourceVersion": before.version}}))


@dataclass
class Election:
    """One process that stands for a Lease. What it saw outlives its terms: it may lead again at once."""

    lease: Lease
    clock: Callable[[], float] = awake_or_not
    """Seconds; need not agree with anybody's."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _sight: Sight | None = None

    async def win(self) -> "Term":
        """Returns once this process leads. Errors are logged and tried again."""
        LEADER.set(0)
        silent = False
        while True:
            pause = LOOK_SECONDS
            try:
                async with asyncio.timeout(2 * TRY_SECONDS):
                    self._sight = see(self._sight, await self.lease.look(), self.clock())
                    pause = patience(self._sight, self.lease.identity, self.clock())
                    term = await self._claim(self._sight.claim) if pause <= 0 else None
            except Conflict:
                continue
            except (ClusterError, TimeoutError) as error:
                logger.log(logging.DEBUG if silent else logging.WARNING, "the Lease cannot be had: %s", _words(error))
                silent = True
            else:
                silent = False
                if term is not None:
                    return term
            await self.sleep(min(max(pause, 0.01), LOOK_SECONDS))

    async def _claim(self, before: Claim | None) -> "Term | None":
        sent = self.clock()
        mine = await self.lease.put(before, claim(before, self.lease.identity, datetime.now(UTC)))
        if mine is None:
            return None
        logger.info("%s leads", self.lease.identity)
        term = Term(self, mine)
        term.fence.open(sent + DEADLINE_SECONDS)
        return term


@dataclass
class Term:
    """The time that this process leads. Use as an async context manager: within, the Lease is renewed."""

    election: Election
    claim: Claim
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is over without having been resigned."""
    fence: Fence = field(init=False)
    _renewing: "asyncio.Task[None] | None" = None

    def __post_init__(self) -> None:
        self.fence = Fence(self.election.clock)

    async def __aenter__(self) -> Self:
        LEADER.set(1)
        self._renewing = asyncio.create_task(self._renew(), name="election")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.resign()

    async def resign(self) -> None:
        """End all writes, then give the Lease back, so that another may lead at once. Once is enough."""
        left = self.fence.seconds
        self.fence.close()
        LEADER.set(0)
        if self._renewing is None:
            return
        self._renewing.cancel()
        await asyncio.wait({self._renewing})
        self._renewing = None
        if left <= 0 or not await self.fence.quiet(min(left, QUIET_SECONDS)):
            return
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await self._release()
        except (ClusterError, TimeoutError) as error:
            logger.warning("the Lease runs out by itself: %s", _words(error))

    async def _release(self) -> None:
        lease = self.election.lease
        try:
            await lease.put(self.claim, released(self.claim, datetime.now(UTC)))
        except Conflict:
            # By a renewal that was broken off, as a rule.
            kept = await lease.look()
            if kept is not None and kept.holder == lease.identity:
                await lease.put(kept, released(kept, datetime.now(UTC)))

    async def _renew(self) -> None:
        """Until the Lease is lost."""
        try:
            await self._hold()
        except Exception:
            # A surprise ends the term and not the process; it is lost below.
            logger.exception("the Lease can no longer be renewed")
        self.fence.close()
        LEADER.set(0)
        logger.error("%s leads no more: nothing is written until it leads again", self.election.lease.identity)
        self.lost.set()

    async def _hold(self) -> None:
        """Renew in time, until there is none left or somebody else holds the Lease."""
        pause = RENEW_SECONDS
        while (left := self.fence.seconds) > 0:
            await self.election.sleep(min(pause, left))
            pause = LOOK_SECONDS
            try:
                async with asyncio.timeout(min(self.fence.seconds, TRY_SECONDS)):
                    if not await self._renewed():
                        return
            except (ClusterError, TimeoutError) as error:
                left = self.fence.seconds
                logger.warning("the Lease could not be renewed, %.1f s are left: %s", left, _words(error))
            else:
                pause = RENEW_SECONDS

    async def _renewed(self) -> bool:
        """One try. False: somebody else holds the Lease. Raises as `Lease.put`."""
        lease, sent = self.election.lease, self.election.clock()
        try:
            kept = await lease.put(self.claim, claim(self.claim, lease.identity, datetime.now(UTC)))
        except Conflict:
            kept = await lease.look()
            if kept is None or kept.holder != lease.identity:
                return False
            # A renewal of ours whose answer was lost, or somebody's note on the Lease: not renewed, and not lost.
            self.claim = kept
            raise
        assert kept is not None
        self.claim = kept
        self.fence.open(sent + DEADLINE_SECONDS)
        return True


def _words(error: Exception) -> str:
    return str(error) or "no answer in time"
