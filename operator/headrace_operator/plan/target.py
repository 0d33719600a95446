"""Which spec the engines are to be made from now: the user's, or, once its rollout has failed, an earlier one. Pure.

Called by reconcile before `make_plan`. The user's spec is never touched: a rollout that failed makes the *target*
another one, for as long as the spec has the revision that failed. Any other revision begins anew. All that is
remembered is in the status (`revision`): how far the rollout had come and when, what has failed and why, and which
revisions were good.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from headrace_operator import history
from headrace_operator.api.conditions import Reason
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.parse import parse
from headrace_operator.api.problems import sentence
from headrace_operator.api.v1alpha1 import (
    InferenceDeploymentSpec,
    InferenceDeploymentStatus,
    RevisionStatus,
    RolloutProgress,
)
from headrace_operator.gangs import whole
from headrace_operator.known import SHOWN, blockers, listed
from headrace_operator.plan.revision import engine_revision
from headrace_operator.state import Observed, Pod, Target

__all__ = ["Target", "choose"]

MESSAGE = 1000
"""Characters of a reason that the status keeps."""
TRIED = frozenset({Reason.APPLY_FAILED, Reason.REFUSED_BY_CLUSTER, Reason.CANARY_FAILED})
"""Reasons of a pass before that tell of a rollout which stands without any engine to wait for."""


def choose(
    spec: InferenceDeploymentSpec,
    observed: Observed,
    before: InferenceDeploymentStatus,
    now: datetime,
    *,
    canary_lost: str | None = None,
) -> Target:
    """The target of this pass. `canary_lost`: the canary of the spec's own revision was judged and lost, by these
    figures.

    Must not be called when the reads failed.
    """
    wanted = engine_revision(spec, observed.manifest)
    said, found = before.revision or RevisionStatus(), history.records(observed.children.values())
    size = _size(spec, before)
    progress = None if spec.paused else _progress(before, wanted, observed, size, now)
    target = Target(spec, observed.manifest, wanted, progress=progress)
    failure = _failure(target, before, observed, now)
    if canary_lost is not None:
        failure = _canary_lost(target, said, canary_lost)
    if failure is not None:
        target = _failed(replace(target, failed=wanted, reason=failure.reason, message=failure.message), observed)
        good = next((one for one in said.good if one != wanted and one in found), None)
        if spec.rollout.auto_rollback and good is not None:
            target = _back(target, found[good])
        if target.rolled_back and not spec.paused:
            target = replace(target, progress=_progress(before, target.revision, observed, size, now))
    used = {wanted, target.revision, *said.good[:1], *(pod.revision for pod in observed.engines())}
    return replace(target, records=history.kept(found, spec.rollout.history_limit, used))


class _Failure(NamedTuple):
    reason: str
    message: str


def _canary_lost(target: Target, said: RevisionStatus, figures: str) -> _Failure:
    before = f"revision {said.good[0]}" if said.good and said.good[0] != target.revision else "the one before"
    return _Failure(Reason.CANARY_REJECTED, f"its canary did worse than {before}: {figures}"[:MESSAGE])


def _failure(target: Target, before: InferenceDeploymentStatus, observed: Observed, now: datetime) -> _Failure | None:
    """Why the rollout of the spec's own revision has failed: as it was told before, or because it stands too long."""
    said = before.revision or RevisionStatus()
    if said.failed == target.revision and not _came_further(target, said):
        return _Failure(said.reason or Reason.PROGRESS_DEADLINE_EXCEEDED, said.message or "")
    deadline = target.spec.rollout.progress_deadline
    stands = _stands_since(target, before, observed)
    if deadline is None or stands is None or now - stands < timedelta(seconds=deadline.seconds):
        return None
    waiting = list(_waiting(target, observed))
    ready = target.progress.ready if target.progress else 0
    told = f"{ready} of {_size(target.spec, before)} engines became ready, and no other in {deadline}"
    causes = listed(blockers(waiting)) or ", ".join(pod.name for pod in waiting[:SHOWN])
    return _Failure(Reason.PROGRESS_DEADLINE_EXCEEDED, f"{told}: {causes}"[:MESSAGE] if causes else told)


def _came_further(target: Target, said: RevisionStatus) -> bool:
    """Whether engines became ready after their deadline, while it was not gone back: then the rollout goes on. What a
    canary has shown, no engine that becomes ready takes back."""
    was, now = said.progress, target.progress
    return (
        said.reason == Reason.PROGRESS_DEADLINE_EXCEEDED
        and was is not None
        and now is not None
        and was.revision == now.revision
        and now.ready > was.ready
    )


def _stands_since(target: Target, before: InferenceDeploymentStatus, observed: Observed) -> datetime | None:
    """Since when nothing has moved, though something should. None: it moves, or it is for us to move it.

    Time in which no engine was waited for does not count: an operator that was away, or old engines that drain for
    long, make no rollout fail.
    """
    progress = target.progress
    if progress is None:
        return None
    since = [pod.waiting_since for pod in _waiting(target, observed) if pod.waiting_since is not None]
    if since:
        return max(progress.since, min(since))
    tried = [one.last_transition_time for one in before.conditions if one.reason in TRIED]
    return max(progress.since, min(tried)) if tried else None


def _waiting(target: Target, observed: Observed) -> Iterator[Pod]:
    return (p for p in observed.engines() if p.live and not p.ready and p.revision == target.revision)


def _size(spec: InferenceDeploymentSpec, before: InferenceDeploymentStatus) -> int:
    """Engines of all roles. Of one that the spec does not fix, as many as the last pass wanted."""
    last = {role.name: role.desired for role in before.roles}
    roles = effective_roles(spec)
    return sum(last.get(r.name, r.replicas) if r.role.scaling is not None else r.replicas for r in roles)


def _progress(
    before: InferenceDeploymentStatus, revision: str, observed: Observed, size: int, now: datetime
) -> RolloutProgress | None:
    """How far the rollout of a revision has come. It is over once the status holds no progress of its `current`. What
    came ready beyond a size that is smaller now is not to be reached again."""
    said = before.revision
    was = said.progress if said else None
    if said is not None and said.current == revision and was is None:
        return None
    ready = sum(pod.live and pod.ready and pod.revision == revision for pod in whole(observed.engines()))
    ready = min(ready, size)
    if was is not None and was.revision == revision and ready <= was.ready:
        return was if was.ready <= size else was.model_copy(update={"ready": size})
    return RolloutProgress(revision=revision, ready=ready, since=now)


def _failed(target: Target, observed: Observed) -> Target:
    """No further engine is made, as long as engines of another revision are there to be kept."""
    others = any(pod.live and pod.revision != target.revision for pod in observed.engines())
    return replace(target, held=others)


def _back(target: Target, record: history.Record) -> Target:
    """The target after going back to a good revision; as it is, with the reason, where that cannot be."""
    back = history.restored(record, target.spec.model_dump(mode="json", by_alias=True, exclude_unset=True))
    spec = parse({"metadata": {"name": record.name}, "spec": back}) if isinstance(back, dict) else back
    if isinstance(spec, list):
        why = f"; revision {record.revision} does not go with the rest of the spec: {sentence(spec)}"
        return target if why in target.message else replace(target, message=f"{target.message}{why}"[:MESSAGE])
    return replace(target, spec=spec, manifest=record.checksums, revision=record.revision, held=False)
