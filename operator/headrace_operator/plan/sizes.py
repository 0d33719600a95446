"""How many engines each role is to have: what the spec fixes, or what is decided by figures. Pure; called by sizing.

A pass carries out what the status said when it began. What it decides is written first and carried out by the next
one, so that an operator that is cut off in between, or whose write is refused, never ends engines that it has just
made. Bounds and the cap of the spec hold at once, whatever was decided before; in a dry run too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from statistics import median_low
from typing import Final

from headrace_operator.api.conditions import Reason
from headrace_operator.api.effective import EffectiveRole, effective_roles
from headrace_operator.api.roles import LatencyTarget
from headrace_operator.api.scaling import rollout_spare
from headrace_operator.api.status import ScalingDecision, ScalingModel
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.gangs import whole
from headrace_operator.plan.scaling import Aim, Answer, Ask, Changed, Model, Role, Target, Window
from headrace_operator.plan.scaling.bounds import allowed, granted
from headrace_operator.plan.scaling.own import VERDICTS
from headrace_operator.state import Observed, Pod, Sized
from headrace_operator.wakings import of_sleep

__all__ = ["Sized", "ask_of", "sized"]

MOVED: Final = 0.25
"""Of a figure of the model: less is not worth a write."""
TEXT: Final = 1024
"""Characters of a text in the status."""
MOST_INPUTS: Final = 32
MOST_STARTUP: Final = 3600.0
"""An engine that became ready later had another trouble than its start."""


def ask_of(
    spec: InferenceDeploymentSpec,
    observed: Observed,
    previous: InferenceDeploymentStatus,
    windows: Sequence[Window],
    now: datetime,
    learnt: Model | None = None,
) -> Ask:
    """What the policy is asked. `learnt`: the model after the ask before; None: as the status keeps it."""
    engines = whole(observed.engines())
    aim, sizes = aim_of(spec), standing(spec, previous)
    rolling = _rolling(engines, previous)
    roles = [_role(role, sizes, engines, now, rolling=rolling) for role in effective_roles(spec)]
    known = previous.scaling.last_decisions if previous.scaling is not None else ()
    model = learnt or _model(previous)
    return Ask(
        # Engines of the old revision cannot take the role of one of the new.
        aim=replace(aim, role_change=aim.role_change and not rolling),
        roles=tuple(roles),
        windows=tuple(windows),
        changes=tuple(
            Changed(_age(now, one.time), one.role, one.from_, one.to, one.swap) for one in known if not of_sleep(one)
        ),
        model=replace(model, startup=_startup(engines) or model.startup),
    )


def sized(
    spec: InferenceDeploymentSpec,
    previous: InferenceDeploymentStatus,
    now: datetime,
    ask: Ask | None = None,
    answer: Answer | None = None,
) -> Sized:
    """The sizes of this pass, and, where a policy was asked, those of the next."""
    roles = effective_roles(spec)
    if spec.scaling.mode == "Fixed":
        fixed: dict[str, int] = {role.name: role.replicas for role in roles}
        return Sized(fixed, fixed)
    stands = standing(spec, previous)
    carried = within(spec, carried_out(previous)) if spec.scaling.dry_run else stands
    back = _clamped(previous, stands, now)
    least: dict[str, int] = {role.name: min(stands[role.name], bounds_of(role)[0]) for role in roles}
    if ask is None or answer is None:
        return Sized(carried, stands, tuple(back), least=least)
    wished = allowed(answer.sizes, ask)
    decided = (*_decided(ask, answer, wished, now), *back)
    model = _worth_writing(previous, answer.model, decided=bool(decided))
    verdict = answer.verdict if answer.verdict in VERDICTS else Reason.SIZED
    return Sized(carried, wished, decided, verdict, answer.message[:TEXT], model, least)


def standing(spec: InferenceDeploymentSpec, previous: InferenceDeploymentStatus) -> dict[str, int]:
    """What was decided before, within the bounds of the spec as it is now. Where nothing was decided yet, the sizes
    that roles had so far: who lets sizes be decided loses no engine by that alone."""
    said = previous.scaling.sizes if previous.scaling is not None else ()
    return within(spec, {one.name: one.size for one in said} if said else carried_out(previous))


def aim_of(spec: InferenceDeploymentSpec) -> Aim:
    """What the spec asks for, in the policy's words."""
    change = spec.disaggregation.role_change
    return Aim(
        ttft=_target(spec.slo.ttft if spec.slo is not None else None),
        itl=_target(spec.slo.itl if spec.slo is not None else None),
        cap=spec.scaling.max_accelerators,
        spare=rollout_spare(spec),
        role_change=change.enabled,
        role_change_pause=change.cooldown.seconds,
    )


def _target(said: LatencyTarget | None) -> Target | None:
    return Target(said.target.seconds, said.percentile / 100) if said is not None else None


def bounds_of(role: EffectiveRole) -> tuple[int, int]:
    """Fewest and most engines. A role with `replicas` has no others."""
    scaling = role.role.scaling
    return (scaling.min, scaling.max) if scaling is not None else (role.replicas, role.replicas)


def within(spec: InferenceDeploymentSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes within the bounds of each role and the cap; at its least what has none."""
    roles = []
    for role in effective_roles(spec):
        least, most = bounds_of(role)
        roles.append(Role(role.name, sizes.get(role.name, least), least, most, role.accelerators))
    return granted({}, tuple(roles), aim_of(spec), _fewest)


def _fewest(_: Role, engines: int) -> float:
    """Where the cap is short, roles grow evenly."""
    return -engines


def carried_out(previous: InferenceDeploymentStatus) -> dict[str, int]:
    """The sizes that the last pass aimed at. 0 where the deployment was suspended."""
    return {role.name: role.desired for role in previous.roles}


def _rolling(engines: Sequence[Pod], previous: InferenceDeploymentStatus) -> bool:
    """A rollout or a canary is under way. Its figures are of two revisions, one of them just started."""
    updating = previous.revision is not None and previous.revision.updating is not None
    return updating or len({pod.revision for pod in engines if pod.live}) > 1


def _role(
    role: EffectiveRole, sizes: Mapping[str, int], engines: Sequence[Pod], now: datetime, *, rolling: bool
) -> Role:
    """While a rollout goes on, a role may grow and does not get smaller."""
    least, most = bounds_of(role)
    mine = [pod for pod in engines if pod.role == role.name and pod.live]
    return Role(
        name=role.name,
        size=sizes[role.name],
        least=sizes[role.name] if rolling else least,
        most=most,
        accelerators=role.accelerators,
        ready=sum(pod.ready for pod in mine),
        starting=tuple(_age(now, pod.created or now) for pod in mine if not pod.ready),
    )


def _age(now: datetime, then: datetime) -> float:
    """Seconds. The clocks of two operators differ, and are set."""
    return max(0.0, (now - then).total_seconds())


def _startup(engines: Sequence[Pod]) -> float | None:
    """Seconds from an engine's creation until it was ready. One whose container failed says nothing of it."""
    took = [
        _age(pod.ready_since, pod.created)
        for pod in engines
        if pod.live and pod.ready and pod.ready_since is not None and pod.created is not None and not pod.terminations
    ]
    return min(MOST_STARTUP, median_low(took)) if took else None


def _model(previous: InferenceDeploymentStatus) -> Model:
    said = previous.scaling.model if previous.scaling is not None else None
    return Model(**said.model_dump(), fitted=True) if said is not None else Model()


def _worth_writing(previous: InferenceDeploymentStatus, model: Model, *, decided: bool) -> ScalingModel | None:
    """The model to three digits. None: it is about what the status has, and nothing was decided by it."""
    was = previous.scaling.model if previous.scaling is not None else None
    if not model.fitted:
        return None
    told = ScalingModel(**{name: float(f"{getattr(model, name):.3g}") for name in ScalingModel.model_fields})
    moved = was is None or any(
        abs(getattr(told, name) - getattr(was, name)) > MOVED * abs(getattr(was, name))
        for name in ScalingModel.model_fields
    )
    return told if moved or decided else None


def _decided(ask: Ask, answer: Answer, wished: Mapping[str, int], now: datetime) -> Iterator[ScalingDecision]:
    inputs = {key[:TEXT]: str(value)[:TEXT] for key, value in [*answer.inputs.items()][:MOST_INPUTS]}
    for role in ask.roles:
        size = wished[role.name]
        if size == role.size:
            continue
        said = next((one for one in answer.decisions if one.role == role.name and one.after == size), None)
        reason = (
            said.reason if said is not None else f"{answer.sizes.get(role.name, role.size)} wanted, {size} allowed."
        )
        yield ScalingDecision(
            time=now,
            role=role.name,
            from_=role.size,
            to=size,
            reason=reason[:TEXT],
            swap=said is not None and said.swap,
            inputs=inputs,
        )


def _clamped(previous: InferenceDeploymentStatus, stands: Mapping[str, int], now: datetime) -> list[ScalingDecision]:
    """What an edit of the bounds changed."""
    said = previous.scaling.sizes if previous.scaling is not None else ()
    return [
        ScalingDecision(
            time=now, role=one.name, from_=one.size, to=stands[one.name], reason="Back within the bounds of the spec."
        )
        for one in said
        if one.name in stands and stands[one.name] != one.size
    ]
