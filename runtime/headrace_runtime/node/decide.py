"""What the agent does next: one level-triggered step from what is seen to one action.

Pure: a frozen `Seen`, the time and the contract in, a `Decision` out. It keeps no state, so a restarted agent comes to
the same answer, and its tests are tables. `agent.py` looks, asks here, and acts.
"""

from dataclasses import dataclass, replace
from typing import Literal

from headrace_runtime.contract import Backoff, NodeContract, Phase, Reason

HEALTH_FAILURES = 4
"""Failed health checks in a row, each up to 3 s long, that make a ready engine unhealthy."""
STILL_SECONDS = 5.0
"""A ready engine that owes an answer and has used no processor for this long hangs."""
STALL_SECONDS = 60.0
"""One that has let nothing pass through EngineCore for this long hangs too, however busy: its front end alone may still
say 200."""
ADAPTERS_SECONDS = 60.0
"""How long an engine that answers is held back for adapters that its clients may ask it for."""
QUIET_SECONDS = 2.0
"""How long a draining engine must have had no request: one routed just before is still under way to it."""
END_SECONDS = 10.0
"""Between SIGTERM and SIGKILL of a drained engine."""
TELL_SECONDS = 8.0
"""After its deadline a drain that cut requests is there for so long to say so: the operator asks every five seconds."""


@dataclass(frozen=True)
class Verdict:
    """Why something cannot go on, in the words of `NodeState`."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class EngineSeen:
    """One started engine. Times are seconds of one monotonic clock."""

    started_at: float
    ready_at: float | None = None
    ended: str = ""
    """How its first process ended; empty while it lives."""
    health_failures: int = 0
    still_seconds: float = 0.0
    """For how long it has owed an answer and done nothing."""
    stalled_seconds: float = 0.0
    quiet_seconds: float = 0.0
    """How long it has had no request, running or waiting; counted while draining."""
    requests: int = 0
    """Running and waiting, as last counted while draining."""
    terminated_at: float | None = None


@dataclass(frozen=True)
class GangSeen:
    """Of an engine over several pods: what the other ranks say to rank 0, or rank 0 to another rank."""

    leads: bool
    """This is rank 0, which alone counts failures and decides when to try again."""
    missing: str = ""
    """Why no part may be started now."""
    lost: str = ""
    """Why the part that runs here belongs to nothing any more."""
    leaving_for: float | None = None
    """For how many seconds a rank has waited to leave. It holds its part until no request needs it."""


@dataclass(frozen=True)
class Seen:
    """Everything that a step is decided from."""

    lacks: Verdict | None = None
    """What the image does not carry."""
    weights: Literal["Fetching", "Reading", "Usable"] | Verdict = "Reading"
    refused_at: float = 0.0
    """When the weights were found bad under a running engine."""
    engine: EngineSeen | None = None
    failures: int = 0
    """Engines in a row that ended since one was last ready; the one that was ready counts."""
    failed_at: float = 0.0
    was_ready: bool = False
    """The first of these failures ended an engine that was ready: its restart need not wait."""
    failure: Verdict | None = None
    adapters_pending: bool = False
    """The engine has yet to be given the adapters that it should have from its start."""
    draining_at: float | None = None
    gang: GangSeen | None = None
    """None: the engine has this pod alone."""
    staying: bool = False
    """While it drains it shall answer on: the operator has no other engine for its requests yet."""
    cut: int = 0
    """Requests that this drain has cut."""


@dataclass(frozen=True)
class Decision:
    """`Start` an engine, `Terminate` it (SIGTERM), `Kill` its session, `Leave` (the agent ends), or only `Stay`."""

    act: Literal["Stay", "Start", "Terminate", "Kill", "Leave"]
    phase: Phase
    reason: Reason = ""
    message: str = ""
    staying: bool = False
    """It takes requests although it drains."""
    cut: int = 0
    """Requests that the action ends."""


def decide(seen: Seen, now: float, contract: NodeContract) -> Decision:
    if seen.engine and seen.gang and seen.gang.lost:
        return _lose(seen.gang, draining=seen.draining_at is not None)
    if seen.draining_at is not None:
        return _leave(seen, now - seen.draining_at, now, contract)
    if seen.lacks:
        return Decision("Stay", "Failed", seen.lacks.reason, seen.lacks.message)
    if isinstance(seen.weights, Verdict):
        return _refuse(seen.engine, seen.weights, now - seen.refused_at, now, contract)
    if seen.engine:
        return _keep(seen.engine, seen, now, contract)
    if seen.weights == "Fetching":
        return Decision("Stay", "FetchingWeights")
    if seen.weights == "Reading":
        return Decision("Stay", "VerifyingWeights")
    return _start(seen, now, contract)


def restart_delay(failures: int, was_ready: bool, backoff: Backoff) -> float:
    """Seconds to wait after the `failures`-th failure in a row: doubling; none after an engine that was ready."""
    doublings = failures - 2 if was_ready else failures - 1
    if failures == 0 or doublings < 0:
        return 0.0
    return float(min(backoff.max_seconds, backoff.base_seconds * 2.0 ** min(doublings, 32)))


def _lose(gang: GangSeen, *, draining: bool) -> Decision:
    """An engine that has lost a rank neither computes nor ends by itself: every rank ends its part."""
    phase: Phase = "Draining" if draining else "BackOff" if gang.leads else "Waiting"
    return Decision("Kill", phase, "RankLost", gang.lost)


def _keep(engine: EngineSeen, seen: Seen, now: float, contract: NodeContract) -> Decision:
    gang = seen.gang
    if gang and gang.leaving_for is not None:
        return replace(_drain(engine, gang.leaving_for, now, contract), reason="RankLost", message="a rank leaves")
    decision = _watch(engine, seen.adapters_pending, now, contract)
    # What ends a part is a failure of the engine: rank 0 hears of it, counts it, and says when all try again.
    return replace(decision, phase="Waiting") if gang and not gang.leads and decision.act == "Kill" else decision


def _refuse(
    engine: EngineSeen | None, why: Verdict, refused_for: float, now: float, contract: NodeContract
) -> Decision:
    """Nothing starts on weights that were refused. What runs has loaded them before: its streams may end in time."""
    if engine is None:
        return Decision("Stay", "Failed", why.reason, why.message)
    return replace(_drain(engine, refused_for, now, contract), reason=why.reason, message=why.message)


def _watch(engine: EngineSeen, adapters_pending: bool, now: float, contract: NodeContract) -> Decision:
    if engine.ended:
        # Whatever its exit code: an engine is not a thing that finishes.
        return Decision("Kill", "BackOff", "EngineFailed", f"the engine {engine.ended}")
    if engine.ready_at is None:
        if now - engine.started_at > contract.start_seconds:
            late = f"the engine gave no token within {contract.start_seconds:g} s of its start"
            return Decision("Kill", "BackOff", "EngineUnhealthy", late)
        return Decision("Stay", "StartingEngine")
    if engine.health_failures >= HEALTH_FAILURES:
        return Decision(
            "Kill", "BackOff", "EngineUnhealthy", f"the engine failed {HEALTH_FAILURES} health checks in a row"
        )
    if engine.still_seconds >= STILL_SECONDS:
        still = f"the engine hangs: it owes an answer and has used no processor for {STILL_SECONDS:g} s"
        return Decision("Kill", "BackOff", "EngineUnhealthy", still)
    if engine.stalled_seconds >= STALL_SECONDS:
        stalled = f"the engine has let no request through for {STALL_SECONDS:g} s"
        return Decision("Kill", "BackOff", "EngineUnhealthy", stalled)
    if adapters_pending and now - engine.ready_at < ADAPTERS_SECONDS:
        return Decision("Stay", "StartingEngine", message="the engine is given its adapters")
    return Decision("Stay", "Ready")


def _start(seen: Seen, now: float, contract: NodeContract) -> Decision:
    backoff = contract.backoff
    if not seen.failure:
        return _begin(seen, Decision("Start", "StartingEngine"))
    if seen.failures > backoff.max_restarts:
        spent = f"gave up after {backoff.max_restarts} restarts; last: {seen.failure.message}"
        return Decision("Stay", "Failed", "RestartBudgetSpent", spent)
    if now < seen.failed_at + restart_delay(seen.failures, seen.was_ready, backoff):
        # No countdown in the message: it would change the deployment's status every second.
        count = f"{seen.failure.message} (restart {seen.failures} of {backoff.max_restarts})"
        return Decision("Stay", "BackOff", seen.failure.reason, count)
    return _begin(seen, Decision("Start", "StartingEngine", seen.failure.reason, seen.failure.message))


def _begin(seen: Seen, start: Decision) -> Decision:
    """All ranks or none: an engine that starts without one of them would wait for it, and hold its devices."""
    if seen.gang and seen.gang.missing:
        return Decision("Stay", "Waiting", "RanksMissing", seen.gang.missing)
    return start


def _leave(seen: Seen, drained_for: float, now: float, contract: NodeContract) -> Decision:
    if seen.cut and not seen.engine and drained_for < contract.drain_seconds + TELL_SECONDS:
        return Decision("Stay", "Draining", message=_cut(seen.cut, contract))
    return _drain(seen.engine, drained_for, now, contract, staying=seen.staying)


def _drain(
    engine: EngineSeen | None, drained_for: float, now: float, contract: NodeContract, *, staying: bool = False
) -> Decision:
    if engine is None:
        return Decision("Leave", "Draining")
    if engine.ended or engine.ready_at is None:
        return Decision("Kill", "Draining")
    if engine.terminated_at is not None:
        act: Literal["Stay", "Kill"] = "Kill" if now - engine.terminated_at >= END_SECONDS else "Stay"
        return Decision(act, "Draining")
    if staying and drained_for < contract.drain_seconds / 2:  # what it is asked last has the other half
        return Decision("Stay", "Draining", message="answers until its replacement does", staying=True)
    if engine.quiet_seconds >= QUIET_SECONDS:
        return Decision("Terminate", "Draining")
    if drained_for >= contract.drain_seconds:
        return Decision("Terminate", "Draining", message=_cut(engine.requests, contract), cut=engine.requests)
    return Decision("Stay", "Draining")


def _cut(requests: int, contract: NodeContract) -> str:
    if not requests:
        return f"ended after {contract.drain_seconds:g} s, before it was quiet"
    return f"requests cut after {contract.drain_seconds:g} s: {requests}"
