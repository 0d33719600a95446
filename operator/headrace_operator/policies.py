"""Who answers an ask for sizes: the built-in policy, or one of the user's own, and the built-in one where that fails.

The rim around `plan/scaling`; called by the pass where `scaling.mode` is SLO. It gives an answer within all bounds
whatever an own policy does: loops, raises, eats memory, ends its process, answers nonsense, or does not exist. One that
had to be ended is started again after a pause, each twice as long as the one before.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Self

from headrace_operator import metrics
from headrace_operator.ownpolicy.loading import BUILTIN
from headrace_operator.ownpolicy.process import Child, Failure, Limits
from headrace_operator.plan.scaling import Answer, Ask, decide
from headrace_operator.plan.scaling.own import NonsenseError, instead, taken

logger = logging.getLogger(__name__)

FIRST_PAUSE: Final = 20.0
LONGEST_PAUSE: Final = 600.0
TURN_SECONDS: Final = 10.0
"""A policy answers one deployment after the other. One that waits longer is answered by the built-in policy."""
LATELY_SECONDS: Final = 600.0
"""So long after its last answer, a policy's failure makes no role smaller."""
TOLD_SECONDS: Final = 3600.0
"""The same failure is logged once in this time."""
NOT_ALLOWED: Final = "is not one that this operator may load (its setting HEADRACE_POLICIES)"
_BUSY: Final = Failure("Busy", "is busy with other deployments")


@dataclass
class _Own:
    """What is known of one policy."""

    child: Child
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    failures: int = 0
    """In a row, after which its process was at an end."""
    last: Failure | None = None
    """The newest of these."""
    again: float = 0.0
    """When it may be started again."""
    answered: float | None = None
    told: dict[str, float] = field(default_factory=dict)
    """When which kind of failure was logged."""


class Policy:
    """All policies of this process, by the names that specs give them. Nothing is started before it is asked for.

    `allowed`: the own policies that specs may name. `now`: seconds of a clock that is never set.
    """

    def __init__(
        self,
        allowed: Collection[str] = (),
        limits: Limits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed = frozenset(allowed)
        self._limits = limits or Limits()
        self._now = now
        self._own: dict[str, _Own] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def decide(self, name: str, ask: Ask) -> Answer:
        """The answer of the policy of this name, within all bounds. `Answer.policy` says whose it is."""
        if name == BUILTIN:
            return decide(ask)
        if name not in self._allowed:
            return instead(name, ask, NOT_ALLOWED, lately=False)
        own = self._own.setdefault(name, _Own(Child(name, self._limits)))
        told = await self._ask(own, name, ask)
        if isinstance(told, Answer):
            own.answered = self._now()
            return told
        self._report(own, name, told)
        lately = own.answered is not None and self._now() - own.answered < LATELY_SECONDS
        return instead(name, ask, told.cause, lately=lately)

    async def close(self) -> None:
        """End what was started. Asked again, it starts anew."""
        await asyncio.gather(*(own.child.end() for own in self._own.values()))

    async def _ask(self, own: _Own, name: str, ask: Ask) -> Answer | Failure:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await own.turn.acquire()
        except TimeoutError:
            return _BUSY
        try:
            if own.last is not None and self._now() < own.again:
                return own.last
            told = await own.child.ask(ask)
            told = _judged(name, ask, told) if isinstance(told, Answer) else told
            self._count(own, name, told)
            return told
        finally:
            own.turn.release()

    def _count(self, own: _Own, name: str, told: Answer | Failure) -> None:
        if isinstance(told, Failure):
            metrics.POLICY_FAILURES.labels(policy=name, reason=told.kind).inc()
        if isinstance(told, Answer) or not told.over:
            own.failures, own.last = 0, None
            return
        own.failures, own.last = own.failures + 1, told
        own.again = self._now() + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(own.failures - 1, 30))

    def _report(self, own: _Own, name: str, failure: Failure) -> None:
        before = own.told.get(failure.kind)
        if before is None or self._now() - before >= TOLD_SECONDS:
            own.told[failure.kind] = self._now()
            said = f": {failure.detail}" if failure.detail else ""
            logger.warning("scaling policy %s %s%s; the built-in policy answers", name, failure.cause, said)


def _judged(name: str, ask: Ask, answer: Answer) -> Answer | Failure:
    try:
        return taken(name, ask, answer)
    except NonsenseError as error:
        return Failure("Nonsense", f"answered nonsense: {error}")
