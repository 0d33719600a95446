"""When an engine is asked nothing for a while: a circuit breaker, of an engine or of the link between two.

Pure: times are arguments, in seconds of one monotonic clock. closed: takes requests · open: takes none until a probe
shows that it answers · half_open: that one probe is under way. What counts as a failure, and who probes, is the
callers' business (`fleet.py`, `health.py`). A client's own mistakes (4xx) are none, nor is a client that reads slowly.
"""

from dataclasses import dataclass, replace
from typing import Literal

State = Literal["closed", "open", "half_open"]
Reason = Literal[
    "", "new", "connect", "connect_timeout", "unhealthy", "silent", "reset", "timeout", "status", "error_event"
]
"""new: not known to answer yet · connect: nobody listens · connect_timeout: no answer, for which one lost packet is
enough, or a busy machine · unhealthy: `/health` says no, or nothing · silent: owes bytes and sends none · the others:
what requests ended by."""

DISPROVED_BY_HEALTH: frozenset[Reason] = frozenset({"new", "connect", "connect_timeout", "unhealthy"})
"""What a good health check speaks against, so that a probe is worth its while at once."""
STRONG: frozenset[Reason] = frozenset({"connect", "unhealthy", "silent"})
"""One is enough. Of the others it takes several with no success between them: one request may be at fault itself."""


@dataclass(frozen=True, slots=True)
class Rules:
    failures: int = 3
    """So many weak ones within `window` seconds, with no success between them, open the breaker."""
    window: float = 10.0
    backoff: float = 0.5
    """Until the first probe; doubled with each that fails."""
    longest_backoff: float = 5.0
    memory: float = 10.0
    """Opened again so soon after it closed, a breaker goes on with the backoff that it had."""


@dataclass(frozen=True, slots=True)
class Breaker:
    state: State = "closed"
    reason: Reason = ""
    """Why it is not closed."""
    failures: tuple[float, ...] = ()
    """Times of the weak failures since the last success."""
    times_open: int = 0
    """How often in a row it opened, probes that failed included."""
    probe_at: float = 0.0
    """While open: no probe before."""
    closed_at: float = float("-inf")


NEW = Breaker(state="open", reason="new", probe_at=float("inf"))
"""Of an engine that was never heard: out until its first sign of health, which is enough."""


def failed(breaker: Breaker, reason: Reason, now: float, rules: Rules) -> Breaker:
    """A request or a check failed. News of one that is out already changes nothing: only probes count there."""
    if breaker.state != "closed":
        return breaker
    failures = (*(at for at in breaker.failures if at > now - rules.window), now)
    if reason not in STRONG and len(failures) < rules.failures:
        return replace(breaker, failures=failures)
    soon = now - breaker.closed_at < rules.memory
    return _opened(replace(breaker, times_open=breaker.times_open if soon else 0), reason, now, rules)


def succeeded(breaker: Breaker, now: float) -> Breaker:
    """It gave a token: to a probe, or to a request that was sent there because nobody else was left."""
    if breaker.state == "closed":
        return replace(breaker, failures=()) if breaker.failures else breaker
    return Breaker(times_open=breaker.times_open, closed_at=now)


def turned_healthy(breaker: Breaker, now: float) -> Breaker:
    """Its `/health` is good, which it was not or which speaks against the reason. A token must prove it, at once."""
    if breaker.reason == "new":
        return succeeded(breaker, now)
    return replace(breaker, probe_at=min(breaker.probe_at, now)) if breaker.state == "open" else breaker


def probe_due(breaker: Breaker, now: float) -> bool:
    return breaker.state == "open" and now >= breaker.probe_at


def probing(breaker: Breaker) -> Breaker:
    """The one probe begins. Call only where it is due."""
    return replace(breaker, state="half_open")


def probe_failed(breaker: Breaker, now: float, rules: Rules) -> Breaker:
    return _opened(breaker, breaker.reason, now, rules) if breaker.state == "half_open" else breaker


def probe_ended(breaker: Breaker, now: float) -> Breaker:
    """The probe ended and showed neither: another may begin."""
    return replace(breaker, state="open", probe_at=now) if breaker.state == "half_open" else breaker


def _opened(breaker: Breaker, reason: Reason, now: float, rules: Rules) -> Breaker:
    backoff = min(rules.backoff * 2.0 ** min(breaker.times_open, 30), rules.longest_backoff)
    return Breaker("open", reason, (), breaker.times_open + 1, now + backoff, breaker.closed_at)
