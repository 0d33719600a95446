"""`headrace explain`: why a deployment has the sizes that it has, for somebody who was woken at night.

What is wrong comes first, then who decides and by which targets, then sizes, what was learnt, and the last decisions
with the figures that they stood on. All of it is in the InferenceDeployment: nothing else is read, and nothing asked.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

import click
from pydantic import ValidationError

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.effective import EffectiveRole, effective_roles
from headrace_operator.api.roles import SLO
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.commands.caller import call, kubeconfig_option, namespace_option, output_option, the_deployment
from headrace_operator.commands.text import ago, columns, few, table
from headrace_operator.state import Object

if TYPE_CHECKING:
    from headrace_operator.cluster.client import KubernetesCluster

WIDE: Final = 116
"""Characters of a line of the text."""
SHORT: Final = frozenset(
    {c.Reason.FIGURES_MISSING, c.Reason.TARGET_OUT_OF_REACH, c.Reason.CAP_TOO_SMALL, c.Reason.POLICY_FAILED}
)
"""Reasons of `ScalingActive` that are news whatever its status."""


@dataclass(frozen=True)
class Told:
    """One InferenceDeployment as it was read."""

    name: str
    spec: InferenceDeploymentSpec
    status: InferenceDeploymentStatus
    now: datetime
    """When."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """What was decided, by role; empty where the spec fixes them or nothing was decided yet."""
        scaling = self.status.scaling
        return {one.name: one.size for one in scaling.sizes} if scaling else {}


def told(obj: Object, now: datetime) -> Told:
    """ClickException: it was written for another version of this command."""
    try:
        spec = InferenceDeploymentSpec.model_validate(obj["spec"])
        status = InferenceDeploymentStatus.model_validate(obj.get("status") or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise click.ClickException(
            f"the object cannot be read: {field}: {first['msg']}. Is this command as new as the operator?"
        ) from error
    return Told(obj["metadata"]["name"], spec, status, now)


def wrong(found: Told) -> Iterator[str]:
    """What somebody has to know first, each in a sentence with the time since when."""
    for one in found.status.conditions:
        good = "False" if one.type == c.DEGRADED else "True"
        judged = one.type in (c.ACCEPTED, c.READY, c.DEGRADED)
        if one.type == c.SCALING_ACTIVE:
            judged = found.spec.scaling.mode != "Fixed"
            good = "-" if one.reason in SHORT else good
        # That it sleeps has a line of its own.
        if judged and one.status != good and one.reason != c.Reason.ASLEEP:
            since = ago(found.now - one.last_transition_time)
            yield f"{one.type} is {one.status} since {since}: {one.reason}: {one.message}"
    if not found.status.conditions:
        yield "The status says nothing yet: no operator has seen this deployment. Does one run, and for this namespace?"


def decider(found: Told) -> str:
    """Who decides about sizes, in a sentence."""
    scaling = found.spec.scaling
    if scaling.mode == "Fixed":
        return "Fixed: spec.roles[].replicas is the size of each role, and nobody else changes it."
    if scaling.mode == "External":
        roles = [names.inference_role(found.name, role.name) for role in found.spec.roles if role.scaling is not None]
        how = (
            f"kubectl scale {names.ROLE_SHORT} {roles[0]} --replicas=N, an autoscaler, or the like"
            if roles
            else "nobody"
        )
        return f"External: whoever scales {' and '.join(roles) or 'its roles'} decides: {how}."
    policy = "the built-in policy" if scaling.policy == "builtin" else f"the policy {scaling.policy}"
    carried = "is written here and NOT carried out (scaling.dryRun)" if scaling.dry_run else "is carried out"
    return f"SLO: {policy} decides from what clients saw, and its decision {carried}."


def targets(slo: SLO | None) -> Iterator[tuple[str, str]]:
    """What is asked for, and of how many requests."""
    if slo is None:
        return
    for name, target in (("time to first token", slo.ttft), ("time between tokens", slo.itl)):
        if target is not None:
            yield name, f"{target.target} or less for {target.percentile} % of requests"


def role_rows(found: Told) -> Iterator[list[str]]:
    """Each role: what was decided, what is wanted and ready, and the bounds."""
    said = {one.name: one for one in found.status.roles}
    for role in effective_roles(found.spec):
        now, bounds = said.get(role.name), _bounds(role)
        yield [
            role.name,
            str(found.sizes.get(role.name, "-")),
            str(now.desired) if now else "-",
            str(now.ready) if now else "-",
            str(now.draining) if now else "-",
            f"{bounds[0]}..{bounds[1]}" if bounds else "-",
            str(role.accelerators),
        ]


def _bounds(role: EffectiveRole) -> tuple[int, int] | None:
    return (role.role.scaling.min, role.role.scaling.max) if role.role.scaling is not None else None


def _cap(found: Told) -> str | None:
    most = found.spec.scaling.max_accelerators
    if most is None:
        return None
    each = {role.name: role.accelerators for role in effective_roles(found.spec)}
    used = sum(each.get(one.name, 0) * one.desired for one in found.status.roles)
    return f"{most} accelerators, of which {used} are for the wanted engines"


def model_lines(found: Told) -> Iterator[str]:
    """What engines were measured to do."""
    model = found.status.scaling.model if found.status.scaling else None
    if model is None:
        yield "nothing was measured yet: the policy goes by an 8B model on one H200"
        return
    pace = f"{few(1 / model.pace)} prompt tokens/s" if model.pace > 0 else "prompts at no cost"
    yield f"a prefill engine computes {pace}; prompts wait {few(model.queueing)} times as long as the formula says"
    step, request = f"{few(1e3 * model.step)} ms", f"{few(1e6 * model.per_request)} µs"
    token = f"{few(1e9 * model.per_token)} ns"
    yield f"a decode step takes {step}, {request} more for each request in it, {token} for each token of their context"
    yield f"a new engine is ready after {few(model.startup)} s"


def decision_lines(found: Told, last: int) -> Iterator[str]:
    """The newest decisions, newest first, each with what it stood on."""
    made = found.status.scaling.last_decisions if found.status.scaling else ()
    if not made:
        yield "none yet"
    for one in made[:last]:
        swap = " (a change of role)" if one.swap else ""
        moment = one.time.strftime("%Y-%m-%d %H:%M:%SZ")
        yield f"{moment}  {one.role} {one.from_} -> {one.to}{swap}, {ago(found.now - one.time)} ago"
        yield from wrap(one.reason, WIDE, initial_indent="    ", subsequent_indent="    ")
        yield from columns(sorted(one.inputs.items()), WIDE, indent=6)
    if len(made) > last:
        yield f"and {len(made) - last} earlier: --last {len(made)}"


def lines(found: Told, last: int) -> Iterator[str]:
    """All of it as text."""
    for sentence in wrong(found):
        yield from wrap(sentence, WIDE, initial_indent="! ", subsequent_indent="  ")
    yield from wrap(f"{found.name}: {decider(found)}", WIDE, subsequent_indent="  ")
    scaling = found.status.scaling
    if scaling is not None and scaling.asleep_since is not None:
        yield f"  asleep since {scaling.asleep_since:%Y-%m-%d %H:%M:%SZ}, {ago(found.now - scaling.asleep_since)}: "
        yield "  nobody asked, and the first request wakes it"
    for name, target in targets(found.spec.slo):
        yield f"  {name}: {target}"
    if (cap := _cap(found)) is not None:
        yield f"  cap: {cap}"
    if (zero := found.spec.scaling.to_zero) is not None:
        held = f"at most {zero.hold_requests} requests wait up to {zero.hold_timeout} while it wakes"
        yield f"  sleep: after {zero.after} without a request; {held}"
    yield ""
    heads = ["ROLE", "DECIDED", "WANTED", "READY", "DRAINING", "BOUNDS", "ACCELERATORS EACH"]
    yield from table(heads, list(role_rows(found)))
    decides = found.spec.scaling.mode == "SLO"
    if decides:
        yield from ("", "What was learnt")
        yield from (f"  {line}" for line in model_lines(found))
    # Of fixed sizes, those to sleep and to wake.
    if decides or (scaling is not None and scaling.last_decisions):
        yield from ("", "Last decisions")
        yield from (f"  {line}" for line in decision_lines(found, last))


def as_json(found: Told, last: int) -> dict[str, Any]:
    """The same for programs. Names and units are those of the API."""
    spec, scaling = found.spec, found.status.scaling
    wire = scaling.model_dump(mode="json", by_alias=True) if scaling is not None else {}
    return {
        "name": found.name,
        "wrong": list(wrong(found)),
        "mode": spec.scaling.mode,
        "policy": spec.scaling.policy,
        "dryRun": spec.scaling.dry_run,
        "slo": spec.slo.model_dump(mode="json", by_alias=True) if spec.slo else None,
        "maxAccelerators": spec.scaling.max_accelerators,
        "toZero": spec.scaling.to_zero.model_dump(mode="json", by_alias=True) if spec.scaling.to_zero else None,
        "asleepSince": wire.get("asleepSince"),
        "roles": [_role_json(found, role) for role in effective_roles(spec)],
        "model": wire.get("model"),
        "lastDecisions": (wire.get("lastDecisions") or [])[:last],
    }


def _role_json(found: Told, role: EffectiveRole) -> dict[str, Any]:
    said, bounds = next((one for one in found.status.roles if one.name == role.name), None), _bounds(role)
    return {
        "name": role.name,
        "decided": found.sizes.get(role.name),
        "desired": said.desired if said else None,
        "ready": said.ready if said else None,
        "draining": said.draining if said else None,
        "min": bounds[0] if bounds else None,
        "max": bounds[1] if bounds else None,
        "accelerators": role.accelerators,
    }


@click.command(short_help="Why the roles of a deployment have their sizes.")
@click.argument("name")
@namespace_option
@kubeconfig_option
@output_option
@click.option("--last", default=3, show_default=True, type=click.IntRange(0), help="So many decisions.")
def explain(name: str, namespace: str, kubeconfig: Path | None, output: str, last: int) -> None:
    """Say why the roles of the InferenceDeployment NAME have the sizes that they have.

    What is wrong comes first. Of the decisions the status keeps the last 20.
    """

    async def show(cluster: "KubernetesCluster") -> None:
        _, obj = await the_deployment(cluster, namespace, name)
        found = told(obj, datetime.now(UTC))
        if output == "json":
            click.echo(json.dumps(as_json(found, last), indent=2, ensure_ascii=False))
            return
        for line in lines(found, last):
            click.echo(line)

    call(kubeconfig, show)
