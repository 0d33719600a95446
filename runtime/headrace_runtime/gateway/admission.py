"""The way in: who asks (API key), and whether and when the request may go to an engine.

Puts a clock, a timer and waiting tasks around the pure `gate.py`. `flow.py` asks `caller` before it reads a request,
and holds `admitted` around everything that an engine does for it. The gateway's own canary (`canary.py`) comes in with
a key that only this process knows, and counts against no limit: a deployment at its limit still shows that it works.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from headrace_runtime.gateway import keys
from headrace_runtime.gateway.errors import NoKeyError, NotAdmittedError
from headrace_runtime.gateway.gate import NO_KEY, Cause, Gate, State, Ticket
from headrace_runtime.gateway.rates import Bucket
from headrace_runtime.gateway.reload import Live
from headrace_runtime.gateway.telemetry import Record, Telemetry

BEARER = "bearer "
_NO_DEMAND: Final[frozenset[Cause]] = frozenset(
    ("key_requests", "key_tokens", "key_concurrency", "too_many_tokens", "leaving")
)
"""Refused at once for these, a request says nothing about how many engines there should be: it is more than its key or
anybody may have, or another gateway's."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `key` is the key's name; empty where no keys are asked for."""

    key: str
    exempt: bool = False
    """The gateway itself: no limit holds."""


async def _not_held() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Place:
    """What a request has that was let in."""

    limits: Headers = ()
    """`x-ratelimit-` headers of its answer."""
    held: Callable[[], Awaitable[bool]] = _not_held
    """Back into the line, since no engine is left and it has no answer yet. True: it was let in again. False: nobody
    waits for an engine here. Raises NotAdmittedError."""


class Admission:
    """Made inside the event loop that it is used in."""

    def __init__(self, live: Live, telemetry: Telemetry, came: Callable[[], None] = lambda: None) -> None:
        """`came` is called after a request was counted."""
        self.own_key = secrets.token_hex(32)
        self._own_digest = keys.digest(self.own_key)
        self._live = live
        self._telemetry = telemetry
        self._gate = Gate(live.contract.admission, time.monotonic())
        self._there = True
        self._came = came
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._gate.line)

    @property
    def oldest_wait(self) -> float:
        """Seconds that the request at the head of the queue has waited; 0 where none waits."""
        oldest = self._gate.line.oldest()
        return max(0.0, time.monotonic() - oldest.arrived) if oldest is not None else 0.0

    @property
    def running(self) -> int:
        return self._gate.running

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Raises NoKeyError (401)."""
        said = headers.get("authorization")
        key = said[len(BEARER) :].strip() if said and said[: len(BEARER)].lower() == BEARER else ""
        digest = keys.digest(key) if key else b""
        if secrets.compare_digest(digest, self._own_digest):
            return Caller("headrace", exempt=True)
        if self._live.contract.keys_folder is None:
            return Caller(NO_KEY)
        name = self._live.keys.get(digest)
        if name is None:
            self._telemetry.not_admitted("unknown_key" if said else "no_key")
            raise NoKeyError(given=bool(said))
        return Caller(name)

    def engines(self, there: bool) -> None:
        """Whether any engine may be asked now. While none may, requests wait for one where the contract has `hold`."""
        self._there = there
        self._gate.hold(None if there else self._live.contract.hold, time.monotonic())
        self._settle()

    @asynccontextmanager
    async def admitted(self, caller: Caller, record: Record, size: int) -> AsyncIterator["Place"]:
        """Wait for a turn, and hold a place while the block runs. `size`: of the body, in bytes.

        The budget of tokens is charged with the prompt's estimate, and in the end with what `record.tokens` says.
        Raises NotAdmittedError (429, 503).
        """
        if caller.exempt:
            yield Place()
            return
        ticket = self._gate.arrive(caller.key, record.prompt_tokens, time.monotonic(), size)
        if ticket.refusal is None or ticket.refusal.cause not in _NO_DEMAND:
            self._telemetry.came(record)
            self._came()
        try:
            await self._in(ticket)
            record.queued = ticket.began - ticket.arrived
            yield Place(self._limits(ticket), lambda: self._again(ticket))
        finally:
            self._gate.leave(ticket, time.monotonic(), record.tokens)
            self._settle()

    def reload(self) -> None:
        """The contract or the keys are others."""
        self._gate.change(self._live.contract.admission, time.monotonic())
        self.engines(self._there)
        if self._live.contract.keys_folder is not None:
            self._gate.forget_all_but(set(self._live.keys.values()))
        self._settle()

    def turn_away(self) -> None:
        """Refuse all who wait and all who come."""
        self._gate.turn_away(time.monotonic())
        self._settle()

    async def _in(self, ticket: Ticket) -> None:
        """Until the gate lets it in. Raises NotAdmittedError."""
        if ticket.state is State.WAITING:
            await self._turn(ticket)
        if ticket.refusal is not None:
            self._telemetry.not_admitted(ticket.refusal.cause)
            raise NotAdmittedError(ticket.refusal, self._limits(ticket))

    async def _again(self, ticket: Ticket) -> bool:
        if not self._gate.again(ticket, time.monotonic()):
            return False
        await self._in(ticket)
        return True

    async def _turn(self, ticket: Ticket) -> None:
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        self._settle()
        try:
            await waiter
        finally:
            del self._waiters[ticket]
            self._telemetry.queued(time.monotonic() - ticket.arrived)

    def _settle(self) -> None:
        """After every call of the gate: wake whose state has changed, and look again when time alone changes one."""
        for ticket in self._gate.changed():
            waiter = self._waiters.get(ticket)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._gate.line) and (due := self._gate.due(time.monotonic())) is not None:
            self._timer = asyncio.get_running_loop().call_later(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._gate.tick(time.monotonic())
        self._settle()

    def _limits(self, ticket: Ticket) -> Headers:
        requests, tokens = self._gate.budgets(ticket)
        now = time.monotonic()
        return (*_budget("requests", requests, now), *_budget("tokens", tokens, now))


def _budget(what: str, bucket: Bucket | None, now: float) -> Headers:
    """One budget as OpenAI tells it: the limit, what is left, and how long until all of it is there again."""
    if bucket is None:
        return ()
    return (
        (f"x-ratelimit-limit-{what}", str(bucket.capacity)),
        (f"x-ratelimit-remaining-{what}", str(max(0, int(bucket.level(now))))),
        (f"x-ratelimit-reset-{what}", duration(bucket.wait(bucket.capacity, now))),
    )


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `6.5s`, `1m30s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
