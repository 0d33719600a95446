"""What must hold of sizes that are decided, and of the cap: checks as those of `checks.py`, listed in `rules.py`. Pure.

`rollout_spare` is also what a policy sets aside of the cap, so that what is accepted here can be rolled out.
"""

from typing import Any

from headrace_operator.api.checks import Problems
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.problems import Problem
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

LEAST_QUIET_SECONDS = 10
"""Before a deployment may sleep."""


def rollout_spare(spec: InferenceDeploymentSpec) -> int:
    """Accelerators that a rollout needs beside those of the roles' sizes: one more engine of each role, where none may
    be missing. Where some may, old engines end first."""
    if spec.rollout.max_unavailable > 0:
        return 0
    return sum(role.accelerators for role in effective_roles(spec) if role.role.replicas != 0)


def replicas_or_scaling(spec: InferenceDeploymentSpec) -> Problems:
    for index, role in enumerate(spec.roles):
        if role.replicas is not None and role.scaling is not None:
            yield Problem(f"spec.roles[{index}]", "has both replicas and scaling: keep the one that is meant")


def bounds(spec: InferenceDeploymentSpec) -> Problems:
    for index, role in enumerate(spec.roles):
        if role.scaling and role.scaling.min > role.scaling.max:
            low, high = role.scaling.min, role.scaling.max
            yield Problem(f"spec.roles[{index}].scaling", f"min {low} is above max {high}: lower min or raise max")


def mode(spec: InferenceDeploymentSpec) -> Problems:
    said = spec.scaling.mode
    if said == "SLO" and spec.slo is None:
        yield Problem("spec.slo", "scaling.mode SLO needs targets: set slo.ttft or slo.itl")
    if said == "Fixed":
        for index, role in enumerate(spec.roles):
            if role.scaling is not None:
                yield Problem(
                    f"spec.roles[{index}].scaling", "needs scaling.mode SLO or External; with Fixed use replicas"
                )


def inert(spec: InferenceDeploymentSpec) -> Problems:
    """What the mode would ignore."""
    said = spec.scaling.mode
    if said != "SLO" and spec.slo is not None:
        yield Problem("spec.slo", f"nothing acts on it with scaling.mode {said}: set the mode to SLO, or remove slo")
    if said != "SLO" and spec.scaling.dry_run:
        fix = "set the mode to SLO, or remove it"
        yield Problem("spec.scaling.dryRun", f"the operator decides nothing with scaling.mode {said}: {fix}")
    if said != "SLO" and spec.scaling.policy != "builtin":
        fix = "set the mode to SLO, or remove it"
        yield Problem("spec.scaling.policy", f"no policy is asked with scaling.mode {said}: {fix}")
    if said == "External" and spec.scaling.to_zero is not None:
        fix = "remove it, and set roles[].scaling.min to 0 where that is meant"
        yield Problem("spec.scaling.toZero", f"with scaling.mode External engines go when somebody scales to 0: {fix}")


def to_zero(spec: InferenceDeploymentSpec) -> Problems:
    zero = spec.scaling.to_zero
    if zero is not None and zero.after.seconds < LEAST_QUIET_SECONDS:
        fix = f"set {LEAST_QUIET_SECONDS}s or more"
        yield Problem("spec.scaling.toZero.after", f"{zero.after} is shorter than a pause between two questions: {fix}")


def moves_something(spec: InferenceDeploymentSpec) -> Problems:
    said = spec.scaling.mode
    if said != "Fixed" and all(role.scaling is None for role in spec.roles):
        names = " or ".join(role.name for role in spec.roles)
        yield Problem(
            "spec.scaling.mode",
            f"{said} moves roles that have bounds, and none has: give {names} scaling.max in place of replicas",
        )


def slo_target(spec: InferenceDeploymentSpec) -> Problems:
    if spec.slo is not None and spec.slo.ttft is None and spec.slo.itl is None:
        yield Problem("spec.slo", "has no target: set ttft, itl or both")


def moved_by_a_target(spec: InferenceDeploymentSpec) -> Problems:
    """A role with bounds and without a target that moves it would stay at its least. `serve` is moved by either."""
    if spec.scaling.mode != "SLO" or spec.slo is None:
        return
    targets = {"prefill": ("ttft", spec.slo.ttft), "decode": ("itl", spec.slo.itl)}
    for index, role in enumerate(spec.roles):
        name, target = targets.get(role.name, ("", None))
        if role.scaling is not None and name and target is None:
            yield Problem(
                f"spec.roles[{index}].scaling",
                f"nothing moves {role.name} but slo.{name}, which is not set: set it, or give replicas in place of "
                "scaling",
            )


def somebody_answers(spec: InferenceDeploymentSpec) -> Problems:
    """Without a prefill engine decode engines compute the prompts; without the others nobody does anything."""
    for index, role in enumerate(spec.roles):
        none = role.scaling is not None and role.scaling.min == 0
        if spec.scaling.mode == "SLO" and none and role.name != "prefill":
            yield Problem(
                f"spec.roles[{index}].scaling.min",
                f"is 0, and without a {role.name} engine nobody answers: set 1 or more; scaling.toZero is what lets "
                "engines go while nobody asks",
            )


def cap(spec: InferenceDeploymentSpec) -> Problems:
    """The cap holds at every step, so that what it must hold at least is the least of all roles and room to roll out
    a change of them."""
    most, path = spec.scaling.max_accelerators, "spec.scaling.maxAccelerators"
    if most is None:
        return
    roles = effective_roles(spec)
    if all(role.on_cpu for role in roles):
        yield Problem(path, "counts nothing, since every role is on cpu: remove it, or set engine.device.resource")
        return
    least = sum(role.replicas * role.accelerators for role in roles)  # of one with bounds, its min
    spare = rollout_spare(spec)
    said = " + ".join(f"{role.name} {role.replicas} x {role.accelerators}" for role in roles)
    if least > most:
        fix = f"raise it to {least + spare}, or lower roles[].scaling.min or replicas"
        yield Problem(path, f"is {most}, and the least of all roles takes {least} ({said}): {fix}")
    elif least + spare > most:
        yield Problem(
            path,
            f"is {most}, which leaves no room for a rollout: with rollout.maxUnavailable 0 one more engine of each "
            f"role must fit beside the least of all roles, {least} ({said}) + {spare} = {least + spare}: raise it to "
            f"{least + spare}, or set rollout.maxUnavailable to 1",
        )


def countable(spec: InferenceDeploymentSpec) -> Problems:
    """What a pod template gives beside `engine.device` would be in no size, and pass the cap."""
    for index, role in enumerate(effective_roles(spec) if spec.scaling.max_accelerators is not None else ()):
        device, pod = role.engine.device.resource, role.role.pod_template.get("spec")
        for kind in ("containers", "initContainers"):
            for number, container in enumerate(_entries(pod, kind)):
                amounts = container.get("resources")
                parts = amounts.values() if isinstance(amounts, dict) else ()
                if any(isinstance(part, dict) and device in part for part in parts):
                    yield Problem(
                        f"spec.roles[{index}].podTemplate.spec.{kind}[{number}].resources",
                        f"names {device}, which scaling.maxAccelerators cannot count here: set engine.device.count",
                    )


def _entries(pod: Any, kind: str) -> list[dict[str, Any]]:
    """Entries of a list of a template, as far as they are what they should be (`podtemplate.py` says what is not)."""
    found = pod.get(kind) if isinstance(pod, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
