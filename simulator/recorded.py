"""A *simulated* run as a recording, as `headrace record` writes it of a real one: what its gateway would have counted
and its status would have said, each half minute. Worked out afterwards from what the run left; decides nothing.

So `headrace replay` can be tried without a cluster. Its windows come of readings 30 s apart and of sketches, those of
the run itself of every request: sizes are close, not the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from headrace_operator import __version__
from headrace_operator.api.status import RoleSize, ScalingDecision, ScalingModel, ScalingStatus
from headrace_operator.api.v1alpha1 import InferenceDeploymentStatus, RoleStatus
from headrace_operator.commands.recording import Header, Moment, RecordedPod, Writer
from headrace_operator.plan.scaling import Aim, Target
from headrace_operator.readings import EVERY_SECONDS
from headrace_runtime.contract import DemandFigures, GatewayFigures, RoleFigures, Sketch
from headrace_runtime.contract.sketch import bucket
from simulator.engine import Engine, Journey
from simulator.fleet import Fleet
from simulator.scalers import Product

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
GATEWAY: Final = "simulated-gateway-0"
DECISIONS: Final = 20
"""That a status keeps."""


def write(file: Path, fleet: Fleet, scaler: Product, journeys: Sequence[Journey]) -> None:
    """The whole run. The engines of the fleet must have kept their roles."""
    writer = Writer(
        file, Header(written_by=__version__, namespace="simulated", name="simulated", uid="simulated", every=30.0)
    )
    try:
        for found in moments(fleet, scaler, journeys):
            writer.write(found)
    finally:
        writer.close()


def moments(fleet: Fleet, scaler: Product, journeys: Sequence[Journey]) -> Iterator[Moment]:
    """Each as it was just before what was decided in it."""
    counter, spec = _Counter(sorted(journeys, key=lambda one: one.request.at)), _spec(fleet)
    for turn in range(int(fleet.now // EVERY_SECONDS) + 1):
        now = turn * EVERY_SECONDS
        pods = [*_engines(fleet, now), RecordedPod(name=GATEWAY, component="gateway", ready=True)]
        yield Moment(
            at=_at(now),
            elapsed=now,
            spec=spec,
            status=_status(fleet, scaler, now),
            pods=tuple(pods),
            gateways={GATEWAY: counter.until(now, fleet.roles)},
        )


@dataclass
class _Counter:
    """What the gateway counts. Times of the run only grow."""

    arriving: Sequence[Journey]
    """By their arrival."""
    taken: int = 0
    waiting: list[Journey] = field(default_factory=list)
    writing: list[Journey] = field(default_factory=list)
    answered: list[Journey] = field(default_factory=list)
    prompts: list[Journey] = field(default_factory=list)
    """With a first token."""

    def until(self, now: float, roles: Sequence[str]) -> GatewayFigures:
        while self.taken < len(self.arriving) and self.arriving[self.taken].request.at <= now:
            self.waiting.append(self.arriving[self.taken])
            self.taken += 1
        first = [one for one in self.waiting if one.first is not None and one.first <= now]
        self.waiting = [one for one in self.waiting if one.first is None or one.first > now]
        self.prompts += first
        self.writing += first
        self.answered += [one for one in self.writing if one.end is not None and one.end <= now]
        self.writing = [one for one in self.writing if one.end is None or one.end > now]
        return GatewayFigures(
            start="simulated",
            seconds=now,
            arrivals=self.taken,
            answered=len(self.answered),
            running=len(self.waiting) + len(self.writing),
            roles=self._roles(roles),
            demand=self._demand(now),
        )

    def _roles(self, roles: Sequence[str]) -> tuple[RoleFigures, ...]:
        tokens = sum(one.request.prompt for one in self.prompts)
        prefill = {
            "prompts": len(self.prompts),
            "prompt_tokens": tokens,
            "looked_up_tokens": tokens,
            "cached_tokens": max(0, tokens - sum(one.computed for one in self.prompts)),
            "ttft": _sketch([(one.first or 0.0) - one.request.at for one in self.prompts]),
        }
        decode = {
            "answers": len(self.answered),
            "output_tokens": sum(one.request.output for one in self.answered),
            "itl": _sketch([one.gap for one in self.answered]),
        }
        told = {roles[0]: prefill} | {roles[-1]: decode | (prefill if len(roles) == 1 else {})}
        return tuple(RoleFigures.model_validate({"role": role, "revision": "r", **said}) for role, said in told.items())

    def _demand(self, now: float) -> DemandFigures:
        here = self.arriving[: self.taken]
        written = sum((one.end or 0.0) - (one.first or 0.0) for one in self.answered)
        return DemandFigures(
            requests=self.taken,
            prompt_tokens=sum(one.request.prompt for one in here),
            prompts=_sketch([one.request.prompt / 1000 for one in here]),
            unanswered=max((now - one.request.at for one in self.waiting), default=0.0),
            writing=written + sum(now - (one.first or 0.0) for one in self.writing),
        )


def _sketch(values: Sequence[float]) -> Sketch:
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket(value)] = counts.get(bucket(value), 0) + 1
    return Sketch(counts={place: counts[place] for place in sorted(counts)})


def _spec(fleet: Fleet) -> dict[str, object]:
    bounds = {"min": fleet.setting.least, "max": fleet.setting.most}
    roles = [{"name": role, "scaling": bounds} for role in fleet.roles]
    return {"scaling": {"mode": "SLO"}, "slo": _slo(fleet.setting.aim), "roles": roles}


def _slo(aim: Aim) -> dict[str, object]:
    targets = (("ttft", aim.ttft), ("itl", aim.itl))
    return {name: _target(target) for name, target in targets if target is not None}


def _target(target: Target) -> dict[str, object]:
    return {"target": f"{target.seconds * 1e3:.3f}ms", "percentile": round(target.share * 100)}


def _engines(fleet: Fleet, now: float) -> Iterator[RecordedPod]:
    for role in fleet.roles:
        there = [e for e in fleet.engines if e.role == role and e.created <= now and (e.gone is None or e.gone > now)]
        # Those above the size are leaving: they are the ones that are gone first.
        leaving = sorted(there, key=_gone)[: max(0, len(there) - _size(fleet, role, now))]
        for engine in there:
            ready = engine.ready_at <= now
            # Those of the beginning had been started before it.
            created = engine.created if engine.created < engine.ready_at else engine.created - fleet.setting.cold_start
            yield RecordedPod(
                name=engine.name,
                component="engine",
                role=role,
                revision="r",
                ready=ready,
                going=engine in leaving,
                created=_at(created),
                ready_since=_at(engine.ready_at) if ready else None,
            )


def _gone(engine: Engine) -> float:
    return engine.gone if engine.gone is not None else float("inf")


def _size(fleet: Fleet, role: str, now: float) -> int:
    """Before what is decided at this very moment."""
    past = [event.after for event in fleet.events if event.role == role and event.at < now]
    return past[-1] if past else fleet.setting.start[role]


def _status(fleet: Fleet, scaler: Product, now: float) -> dict[str, object]:
    turns = [(turn * scaler.interval, answer) for turn, answer in enumerate(scaler.answers, start=1)]
    past = [(at, answer) for at, answer in turns if at < now]
    decisions = [
        ScalingDecision(
            time=_at(at), role=one.role, from_=one.before, to=one.after, reason=one.reason, swap=one.swap,
            inputs=dict(answer.inputs),
        )
        for at, answer in reversed(past)
        for one in answer.decisions
    ]  # fmt: skip
    fitted = next((answer.model for _, answer in reversed(past) if answer.model.fitted), None)
    model = ScalingModel(**{name: getattr(fitted, name) for name in ScalingModel.model_fields}) if fitted else None
    sizes = {role: _size(fleet, role, now) for role in fleet.roles}
    status = InferenceDeploymentStatus(
        roles=tuple(RoleStatus.model_validate({"name": role, "desired": size}) for role, size in sizes.items()),
        scaling=ScalingStatus(
            sizes=tuple(RoleSize(name=role, size=size) for role, size in sizes.items()),
            last_decisions=tuple(decisions[:DECISIONS]),
            model=model,
        ),
    )
    return status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def _at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)
