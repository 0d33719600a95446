"""One ladder per condition: everything known in, (status, reason, message) out; the first rung that fits wins. Pure.

The order of rungs is the same everywhere: cannot know, does not apply, blocked (with the blockers), busy (with
numbers), well. Messages name counts and pods, and hold nothing that changes by itself, since every new message is a
write. `status.py` is the only caller. The ladder of ScalingActive has a file of its own.
"""

from collections.abc import Callable

from headrace_operator import versions, weights
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from headrace_operator.api.problems import sentence
from headrace_operator.api.v1alpha1 import LocalRef, Model
from headrace_operator.gangs import whole
from headrace_operator.judgement import Judgement, nobody_wanted, sleeps, unknown
from headrace_operator.known import (
    SHOWN,
    Known,
    blockers,
    counts,
    gateway_counts,
    gateway_deployment,
    grown,
    joined_nodes,
    listed,
    overdue,
    ready_of,
    required,
    rolled_out,
    shortages,
    silent,
)
from headrace_operator.kvcache import disks
from headrace_operator.scaling_ladder import scaling_active
from headrace_operator.state import Object

Ladder = Callable[[Known], Judgement]


def accepted(known: Known) -> Judgement:
    outcome = known.outcome
    if known.problems:
        return Judgement("False", Reason.INVALID_SPEC, sentence(known.problems))
    if outcome.not_owned:
        found = ", ".join(outcome.not_owned)
        return Judgement(
            "False", Reason.NOT_OWNED, f"{found}: exists and belongs to somebody else; rename one of the two."
        )
    if outcome.refused:
        return Judgement("False", Reason.REFUSED_BY_CLUSTER, "; ".join(outcome.refused))
    return Judgement("True", Reason.VALID, "The spec is valid.")


def model_ready(known: Known) -> Judgement:
    if known.manifest_missing:
        return Judgement(
            "False",
            Reason.MANIFEST_NOT_FOUND,
            "spec.model.integrity.manifest: no ConfigMap of that name with the key SHA256SUMS as `sha256sum` writes it",
        )
    if (rung := unknown(known)) is not None:
        return rung
    if (rung := nobody_wanted(known)) is not None:
        return rung
    missing = [b for b in blockers(known.observed.engines()) if b.reason in NO_MODEL]
    if missing:
        return Judgement("False", missing[0].reason, listed(missing))
    lacking = missing_secret(known, "spec.model.credentialsSecretRef", _model_of(known).credentials_secret_ref)
    if lacking is not None:
        return lacking
    wanted = known.wanted
    assert wanted is not None
    engines = [p for p in known.observed.engines() if p.live]
    loaded = sum(p.ready or (p.agent is not None and p.agent.ready_seconds is not None) for p in engines)
    if loaded >= wanted.pods:
        return Judgement("True", Reason.LOADED, f"{loaded} {wanted.counted} have loaded the model.")
    told = f"{loaded} of {wanted.pods} {wanted.counted} have loaded the model"
    busy = weights.fetching(known.observed.engines())
    if busy:
        return Judgement("False", Reason.FETCHING, f"{told}, {busy}.")
    return Judgement("False", Reason.LOADING, f"{told}.")


NO_MODEL = (Reason.MODEL_NOT_FOUND, Reason.FETCH_FAILED, Reason.CACHE_TOO_SMALL)


def _model_of(known: Known) -> Model:
    """As the spec has it; while that is invalid, one that asks for nothing."""
    return known.subject.spec.model if known.subject is not None else Model(source="node:///unknown")


def missing_secret(known: Known, field: str, ref: LocalRef | None) -> Judgement | None:
    """What engines wait for, where it is the Secret that this field names."""
    waits = [b for b in blockers(known.observed.engines()) if b.reason == Reason.SECRET_NOT_FOUND]
    found = next((b for b in waits if ref is not None and f" {ref.name} " in b.message), None)
    return Judgement("False", Reason.SECRET_NOT_FOUND, f"{field}: {found.message}") if found else None


def weights_verified(known: Known) -> Judgement:
    if (rung := unknown(known)) is not None:
        return rung
    if (rung := nobody_wanted(known)) is not None:
        return rung
    if known.subject is not None and known.subject.spec.model.integrity.policy == "Off":
        return Judgement("Unknown", Reason.NOT_CHECKED, 'spec.model.integrity.policy is "Off".')
    signature = _model_of(known).integrity.signature
    key = signature.public_key_secret_ref if signature is not None else None
    lacking = missing_secret(known, "spec.model.integrity.signature.publicKeySecretRef", key)
    if lacking is not None:
        return lacking
    wanted = known.wanted
    assert wanted is not None
    engines = known.observed.engines()
    bad = weights.refused(engines)
    if bad:
        return Judgement("False", bad[0].reason, listed(bad))
    said = [state for _, state in weights.said(engines)]
    digests = {state.digest for state in said if state.digest}
    if len(digests) > 1:
        return Judgement("False", Reason.DIGEST_MISMATCH, f"engines loaded {len(digests)} different sets of files")
    done, notes = sum(state.verified is True for state in said), weights.notes(engines)
    found = f"{done} {wanted.counted} found the files"
    if done < wanted.pods:
        told = f"{done} of {wanted.pods} {wanted.counted} have verified the weights.{notes}"
        return Judgement("Unknown", Reason.VERIFYING, told)
    promises = {"the manifest says": known.observed.manifest, "the signer does": signature}
    given = [words for words, promise in promises.items() if promise is not None]
    if not given:
        return Judgement("True", Reason.DIGEST_PINNED, f"{found} of the first load.{notes}")
    return Judgement("True", Reason.VERIFIED, f"{found} as {' and '.join(given)}.{notes}")


def ray_ready(known: Known) -> Judgement:
    if (rung := unknown(known)) is not None:
        return rung
    wanted, head = known.wanted, known.observed.head
    assert wanted is not None
    if head is None or not head.ready or head.going:
        why = listed(blockers([head])) if head is not None else ""
        return Judgement("False", Reason.HEAD_NOT_READY, why or "the head's pod is not ready")
    joined = joined_nodes(known)
    if joined < wanted.pods:
        told = f"{joined} of {wanted.pods} {wanted.counted} have joined Ray."
        if strangers := versions.strangers_to_ray(known.observed.engines()):
            told = f"{told} {strangers}: spec.engine.image and the head's image must hold the same."
        return Judgement("False", Reason.NODES_MISSING, told)
    return Judgement("True", Reason.NODES_JOINED, f"The head and {joined} {wanted.counted} are there.")


def roles_ready(known: Known) -> Judgement:
    if (rung := unknown(known)) is not None:
        return rung
    wanted = known.wanted
    assert wanted is not None
    if known.suspended:
        return Judgement("False", Reason.SUSPENDED, "spec.suspend is true: no engine is wanted.")
    if known.asleep:
        return Judgement("True", Reason.ASLEEP, sleeps(known))
    numbers = counts(known, wanted)
    if not any(size for role, size in wanted.sizes.items() if role != "prefill"):
        return Judgement("False", Reason.SCALED_TO_ZERO, f"{numbers} ready: no engine is wanted that could answer.")
    if all(ready_of(known, role) >= size for role, size in required(known, wanted).items()):
        return Judgement("True", Reason.ENGINES_READY, f"{numbers} ready.")
    found = blockers(p for p in known.observed.engines() if not p.ready)
    if found:
        return Judgement("False", found[0].reason, f"{numbers} ready; {listed(found)}")
    if mute := silent(known):
        return Judgement(
            "False", Reason.ENGINES_STARTING, f"{numbers} ready; no answer from {', '.join(mute[:SHOWN])}."
        )
    return Judgement("False", Reason.ENGINES_STARTING, f"{numbers} ready.")


def gateway_ready(known: Known) -> Judgement:
    if known.observed.failure is not None:
        return Judgement("Unknown", Reason.OBSERVE_FAILED, known.observed.failure)
    deployment = gateway_deployment(known)
    if deployment is None:
        return Judgement("False", Reason.GATEWAY_NOT_READY, "the gateway does not exist yet")
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return Judgement("Unknown", Reason.NOT_OBSERVED, "the gateway's Deployment was just changed")
    ready, size = gateway_counts(known)
    lacking = [b for b in blockers(known.observed.gateways) if b.reason == Reason.SECRET_NOT_FOUND]
    if lacking:
        # Whether or not pods from before still serve: what they ask their clients for is not what is wanted.
        why = f"spec.gateway.apiKeysSecretRef: {lacking[0].message}"
        return Judgement("False", Reason.SECRET_NOT_FOUND, f"{ready}/{size} ready; {why}")
    if ready == 0:
        found = blockers(known.observed.gateways)
        why = listed(found) or _no_pods(status)
        return Judgement("False", Reason.GATEWAY_NOT_READY, f"0/{size} ready" + (f"; {why}" if why else ""))
    return Judgement("True", Reason.GATEWAY_ANSWERS, f"{ready}/{size} ready.")


def _no_pods(status: Object) -> str:
    """Why the Deployment's pods cannot be made: a quota, or an admission webhook. Only its controller was told."""
    failed = [x for x in status.get("conditions") or () if x["type"] == "ReplicaFailure" and x["status"] == "True"]
    return str(failed[0].get("message", "")) if failed else ""


def kv_cache_ready(known: Known) -> Judgement:
    if (rung := unknown(known)) is not None:
        return rung
    cache = known.subject.spec.kv_cache if known.subject is not None else None
    on_disk = cache.disk is not None if cache is not None else known.previous.kv_cache is not None
    if not on_disk and cache is not None and cache.host is not None:
        return Judgement("True", Reason.IN_MEMORY, "KV blocks are kept on the device and in host memory.")
    if not on_disk:
        return Judgement("True", Reason.NOT_CONFIGURED, "KV blocks are kept on the device only.")
    if (rung := nobody_wanted(known)) is not None:
        return rung
    encryption = cache.disk.encryption if cache is not None and cache.disk is not None else None
    key = encryption.key_secret_ref if encryption is not None else None
    lacking = missing_secret(known, "spec.kvCache.disk.encryption.keySecretRef", key)
    if lacking is not None:
        return lacking
    wanted, found = known.wanted, disks(known.observed.engines())
    assert wanted is not None
    if found.troubled:
        return Judgement("False", found.troubled[0].reason, listed([*found.troubled]))
    if found.opened < wanted.engines:
        said = f"{found.opened} of {wanted.engines} engines have opened their disk."
        return Judgement("Unknown", Reason.OPENING, said)
    said = f"{found.opened} engines keep KV blocks on disk, nodes: {len(found.nodes)}."
    return Judgement("True", Reason.ON_DISK, said)


def progressing(known: Known) -> Judgement:
    if (rung := unknown(known)) is not None:
        return rung
    wanted = known.wanted
    assert wanted is not None
    if known.problems:
        return Judgement("False", Reason.INVALID_SPEC, "Nothing is changed until the spec is valid.")
    if known.paused:
        return Judgement("False", Reason.PAUSED, "spec.paused is true: nothing is changed.")
    if (failure := rollout_failed(known)) is not None:
        return failure
    engines = whole(known.observed.engines())
    old = sum(p.live and p.revision != wanted.revision for p in engines)
    new = sum(p.live and p.revision == wanted.revision for p in engines)
    draining = sum(p.going for p in engines)
    if old:
        done = f"{new - sum(p.live and not p.ready and p.revision == wanted.revision for p in engines)}"
        return Judgement(
            "True",
            Reason.ROLLING_OUT,
            f"{done} of {wanted.engines} engines of {wanted.revision} ready, {old} old ones left.{tried(known)}"
            f"{lacking(known)}",
        )
    if new > wanted.engines or draining:
        told = f"{max(0, new - wanted.engines) + draining} engines are leaving.{lacking(known)}"
        return Judgement("True", Reason.SCALING, told)
    if grown(known):
        return Judgement("True", Reason.SCALING, f"{counts(known, wanted)} ready.{lacking(known)}")
    if known.asleep:
        return Judgement("False", Reason.ASLEEP, sleeps(known))
    if not rolled_out(known):
        return Judgement("True", Reason.CREATING, f"{counts(known, wanted)} ready.{lacking(known)}")
    return Judgement("False", Reason.UP_TO_DATE, f"All engines are of revision {wanted.revision}.")


def lacking(known: Known) -> str:
    """Which engines wait for accelerators that others hold."""
    return f" {known.plan.lacking}" if known.plan is not None and known.plan.lacking else ""


def tried(known: Known) -> str:
    """How the canary stands that keeps a rollout from its end."""
    step = known.plan.canary if known.plan is not None and known.plan.trying else None
    if step is None:
        return ""
    waits = f"; {step.waits}" if step.waits else ""
    if step.since is None:
        return f" Canary: the step of {step.step} % begins once its engines are ready{waits}."
    return f" Canary: {step.share} % of requests go to it{waits}."


def rollout_failed(known: Known) -> Judgement | None:
    """That the rollout of the spec as it is written has failed, and what became of it; None: it has not."""
    target = known.target
    if target is None or target.failed is None:
        return None
    told = f"The rollout of revision {target.failed} has failed: {target.message.rstrip('.')}."
    undo = f"or `headrace rollback -n {known.ref.namespace} {known.ref.name}` puts an earlier one back"
    if target.rolled_back:
        told += f" Engines are of revision {target.revision} again, whatever the spec says: edit it, {undo}."
    elif target.held:
        told += f" No more of its engines are made: edit the spec, {undo}."
    else:
        told += " No other revision is there, so that its engines are waited for: edit the spec."
    return Judgement("False", target.reason, told)


HARD = frozenset(
    {
        Reason.MODEL_NOT_FOUND,
        Reason.FETCH_FAILED,
        Reason.CACHE_TOO_SMALL,
        Reason.UNSAFE_FILES,
        Reason.FILES_DAMAGED,
        Reason.SIGNATURE_INVALID,
        Reason.DIGEST_MISMATCH,
        Reason.ENGINE_MISSING,
        Reason.ENGINE_TOO_OLD,
        Reason.CONNECTOR_MISSING,
        Reason.LOADER_MISSING,
        Reason.RAY_MISSING,
        Reason.RUNTIME_MISSING,
        Reason.IMAGE_PULL_FAILED,
        Reason.RESTART_BUDGET_SPENT,
        Reason.UNSCHEDULABLE,
        Reason.SECRET_NOT_FOUND,
        Reason.CONTAINER_FAILED,
        Reason.ENGINE_FAILED,
        Reason.ENGINE_UNHEALTHY,
    }
)
"""Blockers that waiting alone does not end, so that they count before the deployment was ever ready."""


def degraded(known: Known) -> Judgement:
    if (rung := unknown(known)) is not None:
        return rung
    if known.outcome.errors:
        return Judgement("True", Reason.APPLY_FAILED, "; ".join(known.outcome.errors[:SHOWN]))
    if (failure := rollout_failed(known)) is not None:
        return failure._replace(status="True")
    found = [b for b in blockers(known.observed.pods) if b.reason in HARD]
    if found:
        return Judgement("True", found[0].reason, listed(found))
    if held := overdue(known):
        told = ", ".join(f"{pod.name} on {pod.node or 'no node'}" for pod in held[:SHOWN])
        return Judgement("True", Reason.END_OVERDUE, f"told to end and not gone: {told}; see its node and finalizers")
    wanted = known.wanted
    if wanted is not None and (told := versions.differing(known.observed.engines(), wanted.revision)):
        why = f"engines of revision {wanted.revision} have {told}; name spec.engine.image by its digest"
        return Judgement("True", Reason.VERSIONS_DIFFER, why)
    lacking = [f"adapter {adapter.name}: {adapter.message}" for adapter in known.adapters if adapter.message]
    if lacking:
        return Judgement("True", Reason.ADAPTER_FAILED, "; ".join(lacking[:SHOWN]))
    cache = kv_cache_ready(known)
    if cache.status == "False":
        return cache._replace(status="True")
    served = known.previous.canary is not None
    short = shortages(known, _missed(known))
    if served and short and not known.suspended and not known.rest.waking:
        return Judgement("True", Reason.BELOW_WANTED, f"{', '.join(short)} ready.")
    return Judgement("False", Reason.AS_WANTED, "Nothing that was there is missing.")


def _missed(known: Known) -> dict[str, int] | None:
    """Engines that are missed where they are not there: not those that a larger size has on their way. None: all."""
    wanted = known.wanted
    return required(known, wanted) if wanted is not None and progressing(known).reason == Reason.SCALING else None


def ready(known: Known) -> Judgement:
    """True only while a real request was answered by the current revision in every role, and nothing it needs is
    gone."""
    if (rung := unknown(known)) is not None and not known.problems:
        return rung
    if known.problems:
        return Judgement("False", Reason.INVALID_SPEC, "The spec is not valid: see Accepted.")
    roles, gateway = roles_ready(known), gateway_ready(known)
    if gateway.status == "True" and (known.asleep or known.rest.waking):
        return _resting(known, roles)
    for needed in (roles, gateway):
        if needed.status != "True":
            return Judgement(needed.status, needed.reason, needed.message)
    answered, wanted = known.previous.canary, known.wanted
    assert wanted is not None
    if known.canary is not None and known.canary.failure is None:
        return Judgement("True", Reason.ANSWERED, _answered(wanted.revision, known.canary.decode, known.canary.prefill))
    if (
        answered is not None
        and known.was(c.READY) == "True"
        and (answered.revision == wanted.revision or not rolled_out(known))
    ):
        return Judgement("True", Reason.ANSWERED, _answered(answered.revision, answered.decode, answered.prefill or ""))
    if known.canary is not None:
        return Judgement("False", Reason.CANARY_FAILED, known.canary.failure or "")
    return Judgement("False", Reason.AWAITING_CANARY, "Engines and gateway are ready; no request was answered yet.")


def _resting(known: Known, roles: Judgement) -> Judgement:
    """What is asked is answered, in time: so far nothing says that it will not be."""
    if known.asleep:
        return Judgement("False" if known.paused else "True", roles.reason, roles.message)
    return Judgement("True", Reason.WAKING, f"Requests wait at the gateway for engines that start: {roles.message}")


def _answered(revision: str, decode: str, prefill: str) -> str:
    return f"Revision {revision} answered: {f'prompt by {prefill}, ' if prefill else ''}tokens by {decode}."


def canary_due(known: Known) -> bool:
    """Whether a request must show that all of it works: everything is there, and it was not shown for this revision."""
    answered, wanted = known.previous.canary, known.wanted
    shown = answered is not None and wanted is not None and answered.revision == wanted.revision
    return (
        known.plan is not None
        and not known.suspended
        and not known.asleep
        and rolled_out(known)
        and roles_ready(known).status == "True"
        and gateway_ready(known).status == "True"
        and not (shown and known.was(c.READY) == "True")
    )


LADDERS: dict[str, Ladder] = {
    c.ACCEPTED: accepted,
    c.MODEL_READY: model_ready,
    c.WEIGHTS_VERIFIED: weights_verified,
    c.RAY_READY: ray_ready,
    c.ROLES_READY: roles_ready,
    c.GATEWAY_READY: gateway_ready,
    c.KV_CACHE_READY: kv_cache_ready,
    c.SCALING_ACTIVE: scaling_active,
    c.PROGRESSING: progressing,
    c.DEGRADED: degraded,
    c.READY: ready,
}
