"""One pass over one InferenceDeployment: get, parse, observe, size, plan one step, desired, apply, prune, status, look.

Level-triggered: what to do follows from what is there, never from what happened. Safe to repeat and to interrupt at any
call. Called by the worker; raises ClusterError where the pass could not be finished.
"""

import asyncio
import logging
from dataclasses import replace

from pydantic import ValidationError

from headrace_operator.api.conditions import Reason
from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus, RevisionStatus
from headrace_operator.apply import apply_and_prune
from headrace_operator.cluster import INFERENCE_DEPLOYMENT
from headrace_operator.desired import contracts, desired_objects, kept
from headrace_operator.desired.adapters import pinned_digests
from headrace_operator.desired.head import token_secret
from headrace_operator.figures import in_step
from headrace_operator.inference_roles import new_role_statuses
from headrace_operator.known import Known, rolled_out, shortages
from headrace_operator.ladders import canary_due, kv_cache_ready, progressing, ray_ready
from headrace_operator.observe import observe, read_figures
from headrace_operator.plan import Terms, make_plan
from headrace_operator.plan.canary import WHOLE, Trial, Verdict, judge, told
from headrace_operator.plan.leaving import needed_still
from headrace_operator.plan.revision import engine_revision
from headrace_operator.plan.target import choose
from headrace_operator.sizing import forget, next_reading, size, soonest
from headrace_operator.sleeping import resting, with_rest
from headrace_operator.state import (
    Canary,
    CanaryAnswer,
    Look,
    Object,
    Observed,
    Outcome,
    Plan,
    Pod,
    Ref,
    Subject,
    Target,
)
from headrace_operator.status import announcements, new_status
from headrace_operator.world import World

__all__ = ["World", "reconcile"]

logger = logging.getLogger(__name__)

STARTING_SECONDS = 5.0
"""How soon a deployment is looked at again while something starts: agents and Events wake nobody by themselves."""
AGAIN_SECONDS = 0.5
"""The same after a pass that wrote something: the next step may follow from that alone, and own writes wake nobody."""
CANARY_WORDS = 400
"""Length of the canary's prompt where it shall be split: a few KV blocks, whatever their size."""


async def reconcile(world: World, ref: Ref) -> Look:
    """One pass. The answer says when to look again."""
    obj = await world.cluster.get(INFERENCE_DEPLOYMENT, ref.namespace, ref.name)
    if obj is None or obj["metadata"]["uid"] != ref.uid or "deletionTimestamp" in obj["metadata"]:
        forget(world, ref)
        return Look(ended=True)
    known = await _perform(world, ref, obj)
    told = await _publish(world, known, obj["metadata"]["resourceVersion"])
    look = _answer(known)
    # Where something starts, what is told may be new in every pass: that alone is no reason for the next.
    decided = known.scaling is not None and known.scaling.decisions
    again = known.outcome.applied or known.outcome.deleted or (told and (decided or look.seconds is None))
    if look.retry:
        return look
    waits = soonest(look.seconds, soonest(next_reading(world, known), known.rest.look))
    return Look(AGAIN_SECONDS if again else waits, listen=known.rest.listen)


async def _perform(world: World, ref: Ref, obj: Object) -> Known:
    """Steps 2 to 7."""
    spec = parse(obj)
    previous = _previous(obj)
    valid = spec if isinstance(spec, InferenceDeploymentSpec) else None
    manifest = _manifest_name(valid)
    observed = await observe(world.cluster, world.runtime, ref, manifest)
    known = Known(
        ref=ref,
        generation=obj["metadata"]["generation"],
        now=world.now(),
        previous=previous,
        observed=observed,
        problems=() if isinstance(spec, InferenceDeploymentSpec) else tuple(spec),
        manifest_missing=manifest is not None and observed.manifest is None and observed.failure is None,
    )
    if valid is None or observed.failure is not None:
        return known
    verdict = await _verdict(world, valid, observed, previous)
    lost = verdict.message if verdict.state == "Failed" else None
    target = choose(valid, observed, previous, known.now, canary_lost=lost)
    spec, observed = target.spec, replace(observed, manifest=target.manifest)
    digest = contracts.pinned_digest(
        observed.children, previous.model.digest if previous.model else None, spec.model.source
    )
    adapters = pinned_digests(observed.children, previous.model.adapters if previous.model else (), spec)
    subject = Subject(ref, known.generation, spec, world.defaults, digest, adapters, target.manifest)
    placed = {place.slot: place.node for place in previous.kv_cache.placement} if previous.kv_cache else {}
    trial = _trial(target, previous.revision, verdict)
    scaling = await size(world, ref, spec, observed, previous, known.now)
    rest = await resting(world, target, observed, previous, scaling.sizes, known.now)
    terms = Terms(held=target.held, trial=trial, sizes=scaling.sizes, asleep=rest.carried_out)
    plan = make_plan(spec, observed, placed, known.now, terms)
    known = replace(
        known, observed=observed, subject=subject, target=target, scaling=with_rest(scaling, rest), rest=rest, plan=plan
    )
    if not spec.paused and not known.manifest_missing:
        await _hold(world, needed_still(plan, observed.engines(), spec.rollout.max_unavailable))
        known = replace(known, outcome=await _change(world, subject, target, plan, observed))
    if canary_due(known):
        known = replace(known, canary=await _canary(world, subject, plan, observed))
    return known


async def _verdict(
    world: World, spec: InferenceDeploymentSpec, observed: Observed, previous: InferenceDeploymentStatus
) -> Verdict:
    """Whether the canary's step is passed. Gateways are asked for their figures only where one is under way."""
    said = previous.revision
    step = said.canary if said is not None else None
    if spec.rollout.canary is None or said is None or said.current is None or step is None or step.step == WHOLE:
        return Verdict("None")
    revision, share = engine_revision(spec, observed.manifest), told(step)
    if revision in (said.failed, said.current) or revision != step.revision or spec.paused:
        return Verdict("None")
    windows = [in_step(reading, share) for reading in (await read_figures(world.runtime, observed)).values()]
    return judge(spec.rollout.canary, step, said.current, windows, revision)


def _trial(target: Target, said: RevisionStatus | None, verdict: Verdict) -> Trial:
    """What the planner has to know of a canary. There is none on the way back."""
    canary = target.spec.rollout.canary if target.failed is None else None
    stays = target.failed is not None and not target.rolled_back
    said = said or RevisionStatus()
    return Trial(canary, said.current, said.canary, verdict, failed=stays)


async def _hold(world: World, pods: tuple[Pod, ...]) -> None:
    """Before anything else: an engine that nobody asks anything of leaves two seconds after it was told to."""
    await asyncio.gather(*(world.runtime.stay(pod.ip) for pod in pods))


async def _canary(world: World, subject: Subject, plan: Plan, observed: Observed) -> CanaryAnswer:
    """A gateway asks on our behalf: it needs no API key of its clients, and we none either."""
    gateway = next((pod for pod in observed.gateways if pod.ready and pod.live and pod.ip), None)
    if gateway is None:
        return CanaryAnswer(failure="no gateway pod is ready to be asked")
    return await world.runtime.canary(gateway.ip, _question(subject, plan))


async def _change(world: World, subject: Subject, target: Target, plan: Plan, observed: Observed) -> Outcome:
    """Steps 5 to 7."""
    head_is_new = plan.head and observed.head is None
    if head_is_new or observed.lacks_token:
        # Before the pods that mount it. Where it exists it is left alone, and its value is never read.
        await world.cluster.create_once(token_secret(subject, world.token()))
    stay = kept(plan, observed, target.records)
    return await apply_and_prune(world.cluster, subject.ref, desired_objects(subject, plan), observed, stay)


async def _publish(world: World, known: Known, version: str) -> bool:
    """Step 8: one write, only if there is something new, and before it one for each InferenceRole; then the Events.
    Whether there was something new of the deployment."""
    for role, said_of_role in new_role_statuses(known):
        await world.cluster.apply_role_status(role, said_of_role)
    status = new_status(known)
    if status == known.previous:
        return False
    said = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    await world.cluster.apply_status(known.ref, version, said)
    for note in announcements(known.previous, status):
        await world.cluster.event(known.ref, note.type, note.reason, note.message)
    return True


def _previous(obj: Object) -> InferenceDeploymentStatus:
    """The status as it was last written. One that cannot be read is written anew."""
    try:
        return InferenceDeploymentStatus.model_validate(obj.get("status") or {})
    except ValidationError:
        logger.warning("%s: the status cannot be read and is written anew", obj["metadata"]["name"])
        return InferenceDeploymentStatus()


def _manifest_name(spec: InferenceDeploymentSpec | None) -> str | None:
    manifest = spec.model.integrity.manifest if spec else None
    return manifest.config_map_ref.name if manifest and manifest.config_map_ref else None


def _question(subject: Subject, plan: Plan) -> Canary:
    longest = subject.spec.engine.max_model_len
    # Without a prefill engine, decode engines compute all prompts: nothing can be split then.
    split = all(plan.sizes.get(role, 0) > 0 for role in ("prefill", "decode"))
    words = CANARY_WORDS if split else 1
    # A word of the prompt is about one token, and the chat template takes some.
    return Canary(plan.revision, min(words, longest // 2) if longest else words, split)


def _answer(known: Known) -> Look:
    """Step 9."""
    failed = known.outcome.errors or known.outcome.not_owned or (known.canary and known.canary.failure)
    if failed or known.observed.failure is not None:
        return Look(retry=True)
    if known.manifest_missing:
        return Look(STARTING_SECONDS)
    if known.subject is None or known.paused:
        return Look()
    # Ray joins after the engines are ready, disks are opened by them, and nothing in Kubernetes tells of either.
    whole = rolled_out(known) and ray_ready(known).status == "True" and kv_cache_ready(known).reason != Reason.OPENING
    settled = whole and not shortages(known) and progressing(known).status == "False"
    # Nor of adapters, which a running engine loads.
    settled = settled and all(adapter.ready >= adapter.expected for adapter in known.adapters)
    return Look() if settled else Look(STARTING_SECONDS)
