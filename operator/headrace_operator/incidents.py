"""What failed, as pods and agents tell it, for `status.recovery`. Pure; called by status.

An incident is known by its kind, its target and its time, all three as they were observed, so that looking again at the
same fact adds nothing. The status is the only memory: an agent or a container remembers its last failure, and what came
before that is what the status kept.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from headrace_operator.api.status import Incident, RecoveryStatus
from headrace_operator.state import Pod, Termination

KEPT: Final = 20
CUT: Final = "RequestsCut"
"""A drain was at its deadline before its requests were."""


def recovery(before: RecoveryStatus | None, pods: Iterable[Pod], now: datetime) -> RecoveryStatus | None:
    """The newest incidents, those of before among them; None while there never was one."""
    there = list(pods)
    known = {_key(one): one for one in (before.incidents if before is not None else ())}
    found = {_key(one): one for pod in there for one in _of(pod)}
    ready = {pod.name for pod in there if pod.ready and pod.live}
    told = [_put_right(one, ready, now) for one in {**found, **known}.values()]
    newest = sorted(told, key=lambda one: (one.time, one.target, one.kind), reverse=True)[:KEPT]
    return RecoveryStatus(incidents=tuple(newest)) if newest else before


def _key(incident: Incident) -> tuple[str, str, datetime]:
    return incident.kind, incident.target, incident.time


def _of(pod: Pod) -> Iterator[Incident]:
    yield from (_ended(pod, how) for how in pod.terminations)
    agent = pod.agent
    if agent is None:
        return
    if agent.failure is not None:
        yield Incident(time=_moment(agent.failure.at), kind=agent.failure.reason, target=pod.name)
    if agent.cut_at is not None:
        yield Incident(time=_moment(agent.cut_at), kind=CUT, target=pod.name, requests_cut=agent.cut)


def _ended(pod: Pod, how: Termination) -> Incident:
    kind = "OutOfMemory" if how.reason == "OOMKilled" else "ContainerFailed"
    said = f"container {how.container} ended with exit code {how.exit_code}"
    return Incident(time=how.at, kind=kind, target=pod.name, message=said)


def _put_right(incident: Incident, ready: set[str], now: datetime) -> Incident:
    """Once its pod is ready again. A pod that goes is not put right, but replaced: conditions tell of that."""
    if incident.recovered_in is not None or incident.kind == CUT or incident.target not in ready:
        return incident
    took = max(timedelta(), now - incident.time)
    return incident.model_copy(update={"recovered_in": f"{took.total_seconds():.0f}s"})


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
