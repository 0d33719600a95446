"""The ladder of ScalingActive: who decides the roles' sizes, and how that goes. Pure; one of `ladders.py`.

A policy is not asked in every pass, and its figures are never twice the same: what it said is kept until it says
something else.
"""

import re

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason, Truth
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.judgement import Judgement, sleeps, unknown
from headrace_operator.known import Known


def scaling_active(known: Known) -> Judgement:
    if (rung := unknown(known)) is not None:
        return rung
    said = next((x for x in known.previous.conditions if x.type == c.SCALING_ACTIVE), None)
    before = Judgement(said.status, said.reason, said.message) if said is not None else None
    if known.subject is None:
        return before or Judgement("Unknown", Reason.NOT_OBSERVED, "Not looked at yet.")
    if known.asleep:
        return Judgement("True", Reason.ASLEEP, sleeps(known))
    if known.subject.spec.scaling.mode == "Fixed":
        return _fixed(known.subject.spec)
    if known.suspended:
        return Judgement("Unknown", Reason.SUSPENDED, "No engine is wanted.")
    if known.paused:
        return Judgement("False", Reason.PAUSED, "spec.paused is true: nothing is decided.")
    if known.subject.spec.scaling.mode == "External":
        return scaled_by_others(known.subject.spec, known)
    return _scaling(known, before if before is not None and before.reason in SCALING else None)


def _fixed(spec: InferenceDeploymentSpec) -> Judgement:
    told, zero = "The size of each role is fixed in the spec", spec.scaling.to_zero
    if zero is None:
        return Judgement("False", Reason.NOT_CONFIGURED, f"{told}.")
    return Judgement("True", Reason.SCALES_TO_ZERO, f"{told}; all engines go after {zero.after} without a request.")


SCALING: dict[str, Truth] = {
    Reason.SIZED: "True",
    Reason.POLICY_FAILED: "True",
    Reason.FIGURES_MISSING: "Unknown",
    Reason.TARGET_OUT_OF_REACH: "False",
    Reason.CAP_TOO_SMALL: "False",
}
"""What a policy's verdicts mean. Where one's own failed the built-in one decides in its place."""


def _scaling(known: Known, before: Judgement | None) -> Judgement:
    """What the policy said last: it is not asked in every pass. Its words are told anew where they say something else,
    and not for every figure in them."""
    sized = known.scaling
    if sized is None or not sized.verdict:
        return before or Judgement("Unknown", Reason.FIGURES_MISSING, "Gateways were not asked twice yet.")
    dry = known.subject is not None and known.subject.spec.scaling.dry_run
    message = f"{sized.message}{' Dry run: not carried out.' if dry else ''}"
    found = Judgement(SCALING[sized.verdict], sized.verdict, message)
    if before is None or sized.decisions or before.reason != found.reason:
        return found
    return before if alike(before.message, message, much=sized.verdict != Reason.SIZED) else found


NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def alike(before: str, after: str, *, much: bool) -> bool:
    """Whether two messages differ in numbers alone; with `much`, in none by more than a half."""
    if NUMBER.sub("#", before) != NUMBER.sub("#", after):
        return False
    pairs = zip(NUMBER.findall(before), NUMBER.findall(after), strict=True)
    return not much or all(abs(float(new) - float(old)) <= float(old) / 2 for old, new in pairs)


def scaled_by_others(spec: InferenceDeploymentSpec, known: Known) -> Judgement:
    """The sizes that are carried out, and the objects by which they are changed."""
    assert known.wanted is not None
    sizes, bounded = known.wanted.sizes, [role.name for role in spec.roles if role.scaling is not None]
    told = [f"{role} {sizes[role]} by InferenceRole {names.inference_role(known.ref.name, role)}" for role in bounded]
    return Judgement("True", Reason.EXTERNAL, f"{', '.join(told)}.")
