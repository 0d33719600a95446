"""`headrace replay`: what policies decide of a recording, beside what was recorded."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from pydantic import ValidationError

from headrace_operator.api import scaling
from headrace_operator.api.problems import sentence
from headrace_operator.api.types import Frozen
from headrace_operator.commands.caller import output_option
from headrace_operator.commands.plot import drawn
from headrace_operator.commands.recording import Moment, RecordingError, Session, sessions
from headrace_operator.commands.replaying import Run, Sizes, needed, recorded, replayed
from headrace_operator.commands.text import table
from headrace_operator.ownpolicy.loading import BUILTIN
from headrace_operator.state import Object

NEED: Final = (
    "Needed: the fewest engines that keep the targets under the measured load, by what was learnt until the end."
)
OPEN_LOOP: Final = (
    "Open loop: latencies and ready engines are those of the recorded sizes, whatever a policy would have had.\n"
    "It shows what a policy decides of the same figures, not what would have come of it: see headrace simulate."
)


CHECKS: Final = (
    scaling.bounds,
    scaling.slo_target,
    scaling.moves_something,
    scaling.moved_by_a_target,
)
"""Of the API, what is asked of a deployment whose sizes are decided."""
OPTIONS: Final = "Here these are changed with --ttft 500ms, --itl 50ms, --bounds decode=1:8 and --max-accelerators 8."


@dataclass(frozen=True)
class Changed:
    """What the recorded spec is replaced by. None and nothing: it holds as it was recorded."""

    ttft: str | None = None
    itl: str | None = None
    percentile: int | None = None
    max_accelerators: int | None = None
    bounds: tuple[tuple[str, int, int], ...] = ()
    """Role, fewest and most engines."""

    def moment(self, moment: Moment) -> Moment:
        """The moment as it would be where a policy decides. Pauses, dry runs and sleep are left out."""
        return moment.model_copy(update={"spec": self.spec(moment.spec)})

    def spec(self, words: Object) -> Object:
        said = {key: value for key, value in (words.get("scaling") or {}).items() if key not in ("dryRun", "toZero")}
        cap = {"maxAccelerators": self.max_accelerators} if self.max_accelerators is not None else {}
        changed = {**words, "scaling": {**said, **cap, "mode": "SLO"}, "slo": self._slo(words.get("slo") or {})}
        changed.pop("paused", None)
        if words.get("roles"):
            changed["roles"] = [self._role(role) for role in words["roles"]]
        return changed

    def _slo(self, words: Object) -> Object:
        slo = {name: dict(said) for name, said in words.items() if said}
        for name, target in (("ttft", self.ttft), ("itl", self.itl)):
            if target is not None:
                slo[name] = slo.get(name, {}) | {"target": target}
        if self.percentile is not None:
            slo = {name: said | {"percentile": self.percentile} for name, said in slo.items()}
        return slo

    def _role(self, role: Object) -> Object:
        for name, least, most in self.bounds:
            if name == role["name"]:
                kept = {key: said for key, said in role.items() if key != "replicas"}
                return {**kept, "scaling": {"min": least, "max": most}}
        return role


def read(file: Path, changed: Changed) -> list[Session]:
    """The recording under the changes. ClickException: it is none, or nothing of it can be decided by figures."""
    try:
        found = list(sessions(file))
    except (RecordingError, OSError) as error:
        raise click.ClickException(str(error)) from error
    kept = [
        session.model_copy(update={"moments": tuple(map(changed.moment, session.moments))})
        for session in found
        if session.moments
    ]
    if not kept:
        raise click.ClickException(f"{file}: holds no moment yet")
    for session in kept:
        for moment in session.moments:
            _decide_by(moment)
    return kept


def _decide_by(moment: Moment) -> None:
    """ClickException: nothing can be decided by figures here, with the fields and the options that mend it."""
    try:
        spec, _ = moment.deployment()
    except ValidationError as error:
        said = error.errors()[0]
        raise click.ClickException(f"spec.{'.'.join(map(str, said['loc']))}: {said['msg']}") from error
    problems = [problem for check in CHECKS for problem in check(spec)]
    if problems:
        raise click.ClickException(f"{sentence(problems)}. {OPTIONS}")


class Bounds(click.ParamType[tuple[str, int, int]]):
    """ROLE=MIN:MAX."""

    name = "role=min:max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int, int]:
        if isinstance(value, tuple):
            return value
        role, _, numbers = str(value).partition("=")
        low, _, high = numbers.partition(":")
        if role not in ("serve", "prefill", "decode") or not (low.isdecimal() and high.isdecimal()):
            self.fail(f"{value!r} is not of the form decode=1:8", param, ctx)
        if not 0 <= int(low) <= int(high) <= 1000 or int(high) < 1:
            self.fail(f"{value!r}: 0 <= MIN <= MAX <= 1000, and MAX at least 1", param, ctx)
        return role, int(low), int(high)


def sizes_text(sizes: Sizes | None) -> str:
    """`2P 1D`."""
    return "?" if sizes is None else " ".join(f"{count}{role[:1].upper()}" for role, count in sizes.items())


def lines(name: str, recording: Sequence[Session], runs: Sequence[Run], needs: Sequence[Sizes | None]) -> Iterator[str]:
    """The text: sizes wherever one of them changed, then the sums, then the decisions."""
    head, first, last = recording[0].header, runs[0].steps[0].at, runs[0].steps[-1].at
    moments = [moment for session in recording for moment in session.moments]
    missing = sum(not moment.gateways or None in moment.gateways.values() for moment in moments)
    yield f"{name}: {head.namespace}/{head.name}, {first:%Y-%m-%d %H:%M:%SZ} to {last:%Y-%m-%d %H:%M:%SZ}"
    yield f"{len(moments)} moments in {len(recording)} sessions, {missing} of them without the figures of every gateway"
    yield OPEN_LOOP
    yield ""
    yield from table(["TIME", "NEEDED", *(run.name.upper() for run in runs)], list(_rows(runs, needs)))
    yield ""
    sums = [
        [
            run.name,
            f"{run.engine_seconds:,.0f}",
            str(run.changes),
            f"{run.short_seconds(needs) / 60:.1f}",
            str(len(run.failed)),
        ]
        for run in runs
    ]
    yield from table(["", "ENGINE-SECONDS", "CHANGES", "MINUTES BELOW NEED", "FAILED"], sums)
    yield NEED
    for run in runs:
        yield from _decided(run)


def _rows(runs: Sequence[Run], needs: Sequence[Sizes | None]) -> Iterator[list[str]]:
    """The first moment, the last, and each at which a size is another."""
    before: list[str] | None = None
    count = len(runs[0].steps)
    for place in range(count):
        cells = [sizes_text(run.steps[place].sizes) for run in runs]
        if cells != before or place == count - 1:
            yield [f"{runs[0].steps[place].at:%H:%M:%S}", sizes_text(needs[place]), *cells]
        before = cells


def _decided(run: Run) -> Iterator[str]:
    made = [one for step in run.steps for one in step.decisions]
    if run.failed:
        yield ""
        first = run.failed[0]
        yield f"{run.name} failed {len(run.failed)} times, first at {first.at:%H:%M:%S}: {first.message}"
    if made:
        yield ""
        yield f"Decisions, {run.name}"
    for one in made:
        yield f"  {one.time:%H:%M:%S}  {one.role} {one.from_} -> {one.to}: {one.reason}"


def as_json(recording: Sequence[Session], runs: Sequence[Run], needs: Sequence[Sizes | None]) -> dict[str, Any]:
    """The same for programs."""
    head = recording[0].header
    return {
        "deployment": f"{head.namespace}/{head.name}",
        "openLoop": True,
        "times": [step.at.isoformat() for step in runs[0].steps],
        "needed": [None if sizes is None else dict(sizes) for sizes in needs],
        "runs": [
            {
                "name": run.name,
                "engineSeconds": round(run.engine_seconds, 3),
                "changes": run.changes,
                "secondsBelowNeed": round(run.short_seconds(needs), 3),
                "failed": len(run.failed),
                "sizes": [dict(step.sizes) for step in run.steps],
                "decisions": [_wire(one) for step in run.steps for one in step.decisions],
            }
            for run in runs
        ],
    }


def _wire(value: Frozen) -> Object:
    return value.model_dump(mode="json", by_alias=True)


async def _all(recording: Sequence[Session], policies: Sequence[str]) -> tuple[list[Run], list[Sizes | None]]:
    """What was recorded and every policy, and what was needed, by what the built-in one learnt."""
    measure = await replayed(recording, BUILTIN, Path.cwd())
    others = [measure if name == BUILTIN else await replayed(recording, name, Path.cwd()) for name in policies]
    return [recorded(recording), *others], needed(measure)


@click.command(short_help="Decide once more on a recording, policies side by side.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=[BUILTIN],
    show_default=True,
    help="builtin, or package.module:function, looked for in this folder too. More than once: side by side.",
)
@click.option("--ttft", help="Target for the first token in place of the recorded one: 500ms.")
@click.option("--itl", help="Target for the time between tokens in place of the recorded one: 50ms.")
@click.option("--percentile", type=click.IntRange(1, 99), help="Of both targets.")
@click.option("--max-accelerators", type=click.IntRange(1, 100_000), help="The cap in place of the recorded one.")
@click.option("--bounds", type=Bounds(), multiple=True, help="A role's bounds in place of the recorded ones.")
@output_option
@click.option("--plot", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Draw it: NAME.svg.")
def replay(file: Path, policies: tuple[str, ...], output: str, plot: Path | None, **changed: Any) -> None:
    """Decide once more on what `headrace record` wrote to FILE, and show it beside what was recorded.

    The same code decides as in the operator, an own policy under the same limits. It is open loop: the recorded
    latencies came of the recorded sizes. The same file gives the same output.
    """
    if plot is not None and plot.suffix != ".svg":
        raise click.BadParameter(f"{plot}: only SVG is drawn: name a file .svg", param_hint="--plot")
    recording = read(file, Changed(**changed))
    runs, needs = asyncio.run(_all(recording, tuple(dict.fromkeys(policies))))
    if plot is not None:
        plot.write_text(drawn(runs, needs))
    if output == "json":
        click.echo(json.dumps(as_json(recording, runs, needs), indent=2))
        return
    for line in lines(file.name, recording, runs, needs):
        click.echo(line)
