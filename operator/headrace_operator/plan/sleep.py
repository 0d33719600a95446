"""Whether a deployment sleeps: no engine runs, since nobody asked for a while, and gateways hold who comes. Pure;
called by `sleeping.py`.

What is decided is written before it is carried out (`scaling.asleepSince`, the only thing that is remembered), and the
figures are asked for once more before any engine goes. It sleeps only on what every gateway says, and wakes on what any
of them does: figures that are missing put nobody to sleep. A request that comes while engines leave is answered by
them, or held and wakes; an engine that still drains is asked to stay then (`leaving.py`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from headrace_operator.api import conditions as c
from headrace_operator.api.roles import ToZero
from headrace_operator.api.status import ScalingDecision
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.gangs import whole
from headrace_operator.state import Pod, Rest, Target
from headrace_operator.wakings import (
    ALL_ENGINES,
    FIRST_ENGINE,
    FIRST_REQUEST,
    NOBODY,
    QUIET,
    first_request,
    of_sleep,
)
from headrace_runtime.contract import GatewayFigures

__all__ = ["Rest", "Scene", "may_sleep", "rest"]

LOOK_SECONDS: Final = 60.0
"""A deployment that is awake is looked at so often at the least."""
SHORTEST_LOOK_SECONDS: Final = 1.0
MARGIN_SECONDS: Final = 15.0
LONGEST_WAIT_SECONDS: Final = 86_400.0
"""What is said to have waited longer is not believed."""

Told = Mapping[str, GatewayFigures | None]
"""By address of every ready gateway; None: no usable answer."""


@dataclass(frozen=True)
class Scene:
    """What a pass knows when it asks."""

    target: Target
    previous: InferenceDeploymentStatus
    engines: Sequence[Pod]
    sizes: Mapping[str, int]
    """That roles have when it is awake."""
    told: Told
    now: datetime

    @property
    def since(self) -> datetime | None:
        return self.previous.scaling.asleep_since if self.previous.scaling is not None else None


def may_sleep(spec: InferenceDeploymentSpec) -> ToZero | None:
    """The terms on which it may; None: it may not. A suspended deployment has no engines anyhow."""
    scaling = spec.scaling
    return None if scaling.mode == "External" or scaling.dry_run or spec.suspend else scaling.to_zero


def rest(scene: Scene) -> Rest:
    """Whether it sleeps, and for how long not to look."""
    spec, since = scene.target.spec, scene.since
    terms = may_sleep(spec)
    if spec.paused and terms is not None:
        return Rest(since, carried_out=since is not None)
    if terms is None:
        why = "" if spec.suspend else "By spec.scaling it may not sleep any more."
        return Rest(decisions=_woken(scene, why, NOBODY) if since is not None and why else ())
    if since is None:
        return _awake(scene, terms)
    if not _proven(scene):
        why = f"Revision {scene.target.revision} has yet to answer a request."
        return Rest(decisions=_woken(scene, why, NOBODY))
    if why := _wake(scene, since, terms):
        return Rest(decisions=_woken(scene, why, _first(scene)), waking=True)
    return Rest(since, carried_out=True, listen=scene.told)


def _awake(scene: Scene, terms: ToZero) -> Rest:
    waking, took = _under_way(scene, terms)
    quiet = _quiet(scene.told.values())
    if quiet is not None and quiet >= terms.after.seconds and _whole(scene) and not waking:
        inputs = {QUIET: f"{quiet:.0f} s"}
        reason = f"Nobody has asked for {terms.after}."
        return Rest(scene.now, decisions=tuple(_decisions(scene, reason, inputs, asleep=True)), took=took)
    left = terms.after.seconds - (quiet or 0.0)
    return Rest(waking=waking, took=took, look=min(LOOK_SECONDS, max(SHORTEST_LOOK_SECONDS, left)))


def _wake(scene: Scene, since: datetime, terms: ToZero) -> str:
    """Why it wakes. Empty: it sleeps on."""
    told = [one for one in scene.told.values() if one is not None]
    if waiting := sum(one.waiting for one in told):
        return f"Requests wait at the gateway: {waiting}."
    # Who fell asleep had not been asked for `after` by then: somewhere in that time lies the line, so that neither
    # the time between the pass's beginning and the reading nor a clock that is set a little hides a request.
    margin = min(MARGIN_SECONDS, terms.after.seconds / 2)
    asleep = max(0.0, (scene.now - since).total_seconds())
    if any(one.running or _asked_within(one, asleep + margin) for one in told):
        return "A request came."
    if any(pod.live for pod in scene.engines) and _quiet(scene.told.values()) is None:
        return "A gateway does not say any more that nobody asks."
    return ""


def _asked_within(told: GatewayFigures, seconds: float) -> bool:
    """A request was here in the last so many seconds, whether or not it is now."""
    return told.demand is not None and told.demand.requests > 0 and told.demand.idle < seconds


def _quiet(told: Iterable[GatewayFigures | None]) -> float | None:
    """Seconds in which no request was at any gateway, all of which would hold one. None: nobody knows, or one is."""
    found = list(told)
    idle = [
        one.demand.idle
        for one in found
        if one is not None and one.demand is not None and one.holds and not (one.waiting or one.running)
    ]
    return min(idle) if idle and len(idle) == len(found) else None


def _proven(scene: Scene) -> bool:
    """The revision that engines are made of has answered a request."""
    answered = scene.previous.canary
    return answered is not None and answered.revision == scene.target.revision


def _whole(scene: Scene) -> bool:
    """Everything is there and has been seen to work: nothing changes."""
    revision, target = scene.previous.revision, scene.target
    ready = any(one.type == c.READY and one.status == "True" for one in scene.previous.conditions)
    rolling = target.held or revision is None or revision.updating is not None
    return ready and not rolling and _proven(scene) and sum(scene.sizes.values()) > 0 and _there(scene)


def _there(scene: Scene) -> bool:
    """Every engine is ready and of the target's revision, and none leaves."""
    engines = whole(scene.engines)
    good = all(pod.live and pod.ready and pod.revision == scene.target.revision for pod in engines)
    return good and all(sum(pod.role == role for pod in engines) == size for role, size in scene.sizes.items())


def _under_way(scene: Scene, terms: ToZero) -> tuple[bool, dict[str, str]]:
    """Whether it is waking up, and what can be said now of how long that takes. After `holdTimeout` it is no waking any
    more but a deployment that lacks its engines."""
    known = scene.previous.scaling.last_decisions if scene.previous.scaling is not None else ()
    last = next(filter(of_sleep, known), None)
    began = first_request(last) if last is not None else None
    if last is None or began is None or ALL_ENGINES in last.inputs:
        return False, {}
    inputs, age = last.inputs, max(0.0, (scene.now - began).total_seconds())
    took = f"{age:.1f} s"
    found: dict[str, str] = {}
    if FIRST_ENGINE not in inputs and any(pod.live and pod.ready for pod in scene.engines):
        found[FIRST_ENGINE] = took
    if _there(scene):
        found[ALL_ENGINES] = took
    return age < terms.hold_timeout.seconds and ALL_ENGINES not in found and _proven(scene), found


def _first(scene: Scene) -> str:
    """When the first of the requests that wait came. One whose client gave up is not known by its time."""
    waited = max((one.oldest_wait for one in scene.told.values() if one is not None), default=0.0)
    came = scene.now - timedelta(seconds=min(waited, LONGEST_WAIT_SECONDS))
    return came.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _woken(scene: Scene, reason: str, request: str) -> tuple[ScalingDecision, ...]:
    return tuple(_decisions(scene, reason, {FIRST_REQUEST: request}, asleep=False))


def _decisions(scene: Scene, reason: str, inputs: dict[str, str], *, asleep: bool) -> Iterator[ScalingDecision]:
    for role, size in scene.sizes.items():
        sizes = (size, 0) if asleep else (0, size)
        if size:
            yield ScalingDecision(time=scene.now, role=role, from_=sizes[0], to=sizes[1], reason=reason, inputs=inputs)
