"""Step 8 of a pass: everything known → the whole new status, and what to announce about it. Pure; called by reconcile.

What is reported is what was seen in this pass. Five things are carried over from the status before, since nothing else
remembers them: the last answered canary, the digest of the weights that the first load found, where KV blocks are, how
rollouts went, and what was decided of sizes.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.status import RoleSize, ScalingStatus
from headrace_operator.api.v1alpha1 import (
    CanaryStatus,
    Condition,
    InferenceDeploymentStatus,
    KVCacheStatus,
    ModelStatus,
    RayNodes,
    RayStatus,
    RevisionStatus,
    RoleStatus,
)
from headrace_operator.gangs import whole
from headrace_operator.history import records
from headrace_operator.incidents import CUT, recovery
from headrace_operator.known import Known, Wanted, joined_nodes, ready_of, rolled_out
from headrace_operator.kvcache import calm, reported
from headrace_operator.ladders import LADDERS
from headrace_operator.state import Sized
from headrace_operator.wakings import of_sleep, timed
from headrace_runtime.contract import NodeState

DECISIONS = 20
"""About sizes, that are remembered."""


class Announcement(NamedTuple):
    """An Event to be posted once the status is written."""

    type: str
    reason: str
    message: str


def new_status(known: Known) -> InferenceDeploymentStatus:
    """The whole status. Equal to `known.previous` when there is nothing new to tell."""
    wanted = known.wanted
    before = known.previous
    if wanted is None or known.observed.failure is not None:
        # Nothing is known beyond what was: only the conditions say so.
        return before.model_copy(update={"observed_generation": known.generation, "conditions": _conditions(known)})
    status = InferenceDeploymentStatus(
        observed_generation=known.generation,
        url=names.gateway_url(known.ref.namespace, known.ref.name),
        revision=_revision(known, wanted),
        model=_model(known, wanted),
        ray=_ray(known, wanted),
        roles=tuple(_role(known, wanted, role) for role in wanted.sizes),
        canary=_canary(known, wanted),
        scaling=_scaling(known),
        recovery=recovery(before.recovery, known.observed.pods, known.now),
        kv_cache=_kv_cache(known),
        conditions=_conditions(known),
    )
    quiet = status.model_copy(update={"kv_cache": calm(before.kv_cache, status.kv_cache)})
    return before if quiet == before else status


def announcements(before: InferenceDeploymentStatus, after: InferenceDeploymentStatus) -> Iterator[Announcement]:
    """What has flipped and matters to people: Accepted, Ready and Degraded; and requests that were cut. The first good
    news and no news are no event."""
    yield from _cuts(before, after)
    was = {condition.type: condition.status for condition in before.conditions}
    for condition in after.conditions:
        good = "False" if condition.type == c.DEGRADED else "True"
        if condition.type not in (c.ACCEPTED, c.READY, c.DEGRADED) or condition.status == was.get(condition.type):
            continue
        turned_good = condition.status == good and was.get(condition.type) in ("True", "False")
        first_ready = condition.type == c.READY and condition.status == "True"
        turned_bad = condition.status not in (good, "Unknown") and (
            was.get(condition.type) == good or condition.type != c.READY
        )
        if turned_good or first_ready:
            yield Announcement("Normal", condition.reason, f"{condition.type}: {condition.message}")
        elif turned_bad:
            yield Announcement("Warning", condition.reason, f"{condition.type}: {condition.message}")
    yield from _steps(before.revision, after.revision)
    yield from _failures(before, after)
    yield from _resized(before, after)
    yield from _rested(before, after)


def _rested(before: InferenceDeploymentStatus, after: InferenceDeploymentStatus) -> Iterator[Announcement]:
    """That it went to sleep, or woke. Who is suspended does neither."""
    was, now = (said.scaling or ScalingStatus() for said in (before, after))
    asleep, last = now.asleep_since is not None, next(filter(of_sleep, now.last_decisions), None)
    if (was.asleep_since is not None) != asleep and last is not None and (last.to == 0) == asleep:
        yield Announcement("Normal", c.Reason.SLEPT if asleep else c.Reason.WOKEN, last.reason)


def _resized(before: InferenceDeploymentStatus, after: InferenceDeploymentStatus) -> Iterator[Announcement]:
    """Sizes that were decided, oldest first, and a target that is out of reach or within it again."""
    known = before.scaling.last_decisions if before.scaling is not None else ()
    for one in reversed(after.scaling.last_decisions if after.scaling is not None else ()):
        if one not in known and not of_sleep(one):
            reason = c.Reason.SCALED_UP if one.to > one.from_ else c.Reason.SCALED_DOWN
            reason = c.Reason.ROLE_CHANGED if one.swap else reason
            yield Announcement("Normal", reason, f"{one.role} from {one.from_} to {one.to}: {one.reason}")
    was, now = (next((x for x in said.conditions if x.type == c.SCALING_ACTIVE), None) for said in (before, after))
    bad = (c.Reason.TARGET_OUT_OF_REACH, c.Reason.CAP_TOO_SMALL, c.Reason.POLICY_FAILED)
    if now is None or (was is not None and was.reason == now.reason):
        return
    if now.reason in bad:
        yield Announcement("Warning", now.reason, f"{now.type}: {now.message}")
    elif now.reason == c.Reason.SIZED and was is not None and was.reason in bad:
        yield Announcement("Normal", now.reason, f"{now.type}: {now.message}")


def _failures(before: InferenceDeploymentStatus, after: InferenceDeploymentStatus) -> Iterator[Announcement]:
    """A rollout that has failed, where Degraded was True before, for a pod of it, and does not flip."""
    was, now = (said.revision or RevisionStatus() for said in (before, after))
    degraded = any(x.type == c.DEGRADED and x.status == "True" for x in before.conditions)
    if degraded and now.failed not in (None, was.failed):
        told = f"The rollout of revision {now.failed} has failed: {now.message}"
        yield Announcement("Warning", now.reason or c.Reason.PROGRESS_DEADLINE_EXCEEDED, told)


def _steps(before: RevisionStatus | None, after: RevisionStatus | None) -> Iterator[Announcement]:
    """Steps of a canary that were passed, with the figures of both revisions."""
    was, now = (said.canary if said is not None else None for said in (before, after))
    if was is not None and now is not None and was.revision == now.revision and now.step > was.step and now.message:
        yield Announcement("Normal", c.Reason.CANARY_PASSED, f"Revision {now.revision}: {now.message}")


def _cuts(before: InferenceDeploymentStatus, after: InferenceDeploymentStatus) -> Iterator[Announcement]:
    """Drains that ended requests."""
    known = before.recovery.incidents if before.recovery is not None else ()
    for incident in after.recovery.incidents if after.recovery is not None else ():
        if incident.kind == CUT and incident not in known:
            told = f"{incident.target}: {incident.requests_cut} requests were cut at the end of spec.drain.timeout"
            yield Announcement("Warning", CUT, told)


def _conditions(known: Known) -> tuple[Condition, ...]:
    conditions = known.previous.conditions
    for kind, ladder in LADDERS.items():
        status, reason, message = ladder(known)
        judged = Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message[:2000],
            observed_generation=known.generation,
            last_transition_time=known.now,
        )
        conditions = c.set_condition(conditions, judged)
    return conditions


def _revision(known: Known, wanted: Wanted) -> RevisionStatus:
    """`current` is the revision that answers: it changes only once the new one is wholly there."""
    before, target = known.previous.revision or RevisionStatus(), known.target
    current = wanted.revision if before.current is None or rolled_out(known) else before.current
    updating = wanted.revision if current != wanted.revision else None
    if target is None:
        return before.model_copy(update={"current": current, "updating": updating})
    known_good = records(known.observed.children.values()).keys() | {wanted.revision}
    earlier = tuple(one for one in before.good if one in known_good)
    done = rolled_out(known) and _answered(known, wanted) and not known.suspended
    return RevisionStatus(
        current=current,
        updating=updating,
        failed=target.failed,
        reason=target.reason or None,
        message=target.message or None,
        good=(wanted.revision, *(one for one in earlier if one != wanted.revision)) if done else earlier,
        progress=None if done else target.progress,
        canary=before.canary if known.paused or known.plan is None else known.plan.canary,
    )


def _answered(known: Known, wanted: Wanted) -> bool:
    """A request was answered by the wanted revision, in this pass or an earlier one."""
    asked = known.previous.canary
    return known.canary.failure is None if known.canary else asked is not None and asked.revision == wanted.revision


def _role(known: Known, wanted: Wanted, role: str) -> RoleStatus:
    engines = whole(known.observed.engines(role))
    size, ready = wanted.sizes[role], ready_of(known, role)
    labels = names.selector(known.ref.name, "engine") | {names.ROLE: role}
    return RoleStatus(
        name=role,
        desired=size,
        ready=ready,
        updated=sum(p.live and p.revision == wanted.revision for p in engines),
        draining=sum(p.going for p in engines),
        summary=f"{ready}/{size}",
        selector=",".join(f"{key}={value}" for key, value in sorted(labels.items())),
    )


def _scaling(known: Known) -> ScalingStatus | None:
    """What was decided of sizes. None where the spec fixes them."""
    sized, before = known.scaling, known.previous.scaling
    if sized is None or known.paused:
        return before
    if before is not None and known.rest.took:
        decided = tuple(timed(before.last_decisions, known.rest.took))
        before = before.model_copy(update={"last_decisions": decided})
    spec = known.subject.spec if known.subject is not None else None
    if spec is not None and spec.scaling.mode == "Fixed":
        return _slept(sized, before) if spec.scaling.to_zero is not None or sized.decisions else None
    return remembered(sized, before)


def _slept(sized: Sized, before: ScalingStatus | None) -> ScalingStatus | None:
    """What a deployment of fixed sizes remembers: whether it sleeps, and why it slept and woke. None: it never did."""
    known = before.last_decisions if before is not None else ()
    decided = tuple(one for one in (*sized.decisions, *known) if of_sleep(one))[:DECISIONS]
    return ScalingStatus(last_decisions=decided, asleep_since=sized.asleep_since) if decided else None


def remembered(sized: Sized, before: ScalingStatus | None) -> ScalingStatus:
    """What the status keeps of the sizes of one pass, for the next."""
    was = before or ScalingStatus()
    return ScalingStatus(
        sizes=tuple(RoleSize(name=role, size=size) for role, size in sized.wished.items()),
        last_decisions=(*sized.decisions, *was.last_decisions)[:DECISIONS],
        model=sized.model or was.model,
        asleep_since=sized.asleep_since,
    )


def _agents(known: Known) -> list[NodeState]:
    return [p.agent for p in known.observed.engines() if p.agent is not None and p.live]


def _model(known: Known, wanted: Wanted) -> ModelStatus:
    before = known.previous.model
    pinned = known.subject.pinned_digest if known.subject else before.digest if before else None
    # Engines of another revision may have another model.
    agents = [agent for agent in _agents(known) if agent.revision == wanted.revision]
    loaded = [a.weights for a in agents if a.weights.digest and a.weights.verified is not False]
    digests = {weights.digest for weights in loaded}
    # Two engines that load for the first time side by side may differ: nothing is pinned until they agree.
    found = loaded[0] if len(digests) == 1 else None
    digest = pinned or (found.digest if found else None)
    same = before if before is not None and before.digest == digest else None
    # The oldest of those that are there: what the weights of all of them were found to be at some time since.
    at = min((weights.verified_at for weights in loaded if weights.verified and weights.verified_at), default=None)
    return ModelStatus(
        served_name=known.subject.served_name if known.subject else before.served_name if before else None,
        digest=digest,
        bytes=found.bytes_total if found else same.bytes if same else None,
        verified_at=datetime.fromtimestamp(at, UTC) if at else same.verified_at if same else None,
        adapters=known.adapters,
    )


def _ray(known: Known, wanted: Wanted) -> RayStatus:
    head = known.observed.head
    alive = int(head is not None and head.ready) + joined_nodes(known)
    versions = sorted({a.ray.version for a in _agents(known) if a.ray is not None and a.ray.version})
    before = known.previous.ray
    gcs = known.subject.spec.ray.gcs.backend if known.subject else before.gcs if before else None
    return RayStatus(
        address=names.ray_address(known.ref.namespace, known.ref.name),
        version=versions[0] if versions else (before.version if before else None),
        nodes=RayNodes(alive=alive, expected=wanted.pods + 1),
        gcs=gcs,
    )


def _kv_cache(known: Known) -> KVCacheStatus | None:
    before = known.previous.kv_cache
    if known.subject is None or known.plan is None:
        return before
    return reported(known.subject.spec, known.plan, known.observed.engines(), before)


def _canary(known: Known, wanted: Wanted) -> CanaryStatus | None:
    answer = known.canary
    if answer is None or answer.failure is not None:
        return known.previous.canary
    return CanaryStatus(
        revision=wanted.revision, answered_at=known.now, prefill=answer.prefill or None, decode=answer.decode
    )
