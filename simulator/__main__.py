"""The simulator's command line, `headrace simulate`: one load, one fleet, the operator's policy beside others, in one
table."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from headrace_operator.ownpolicy.loading import NotLoadedError
from headrace_operator.ownpolicy.loading import load as load_policy
from headrace_operator.plan.scaling import Aim, Answer, Ask, Role, Target
from headrace_operator.plan.scaling.model import need
from headrace_operator.plan.scaling.own import fenced
from simulator import load, recorded
from simulator.fleet import ROLES, Fleet, Outcome, Scaler, Setting
from simulator.profile import H200_8B, Profile
from simulator.profile import read as read_profile
from simulator.request import Request
from simulator.scalers import Oracle, PlusMinusOne, Product, Static, hpa, kpa, load_of, truth

MOST = 64
"""Engines of a role."""


@dataclass(frozen=True)
class Case:
    """A load and what it is run on."""

    requests: Sequence[Request]
    profile: Profile
    aim: Aim
    cold_start: float


class Amount(click.FloatRange):
    """A number that is one: neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        given = float(super().convert(value, param, ctx))
        if not math.isfinite(given):
            self.fail(f"{value} is not a finite number", param, ctx)
        return given


SOME = Amount(0, min_open=True)
ANY = Amount(0)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A .jsonl.xz or .csv.xz.")
@click.option("--copies", default=1, show_default=True, type=click.IntRange(1, 20), help="Of the trace, at once.")
@click.option(
    "--rate", nargs=2, type=ANY, default=(4.0, 16.0), show_default=True, help="Without a trace: lowest, highest 1/s."
)
@click.option(
    "--minutes",
    type=Amount(0, 10_000, min_open=True),
    default=60.0,
    show_default=True,
    help="Without a trace: how long. With one: at most.",
)
@click.option(
    "--slower",
    type=SOME,
    default=1.0,
    show_default=True,
    help="Engines against --profile, or else an 8B model on one H200.",
)
@click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Engines as in this file, which `python -m bench fidelity --profile FILE` writes.",
)
@click.option("--ttft", type=SOME, default=0.5, show_default=True, help="Target for the first token, seconds.")
@click.option("--itl", type=SOME, default=0.05, show_default=True, help="Target for the time between tokens, seconds.")
@click.option("--percentile", default=95, show_default=True, type=click.IntRange(1, 99), help="Of both targets.")
@click.option("--cold-start", type=ANY, default=60.0, show_default=True, help="Seconds until a new engine is ready.")
@click.option("--role-change", is_flag=True, help="Engines may change their role.")
@click.option("--failures", type=ANY, default=0.0, show_default=True, help="Of an engine, an hour.")
@click.option("--seed", default=1, show_default=True, help="Of the load and of the failures.")
@click.option("--policy", help="package.module:function from Ask to Answer, beside the built-in one.")
@click.option("--events", is_flag=True, help="Print each change of size of the operator's policy.")
@click.option(
    "--record",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the built-in policy's run to a new file, for headrace replay.",
)
def main(policy: str | None, events: bool, failures: float, seed: int, record: Path | None, **given: object) -> None:
    """Run the operator's policy on a fleet that exists in numbers only, beside fixed fleets and other policies.

    All figures are simulated: they compare policies with each other and say nothing about your hardware.
    """
    case = _case(seed, **given)  # type: ignore[arg-type]
    if record is not None and record.exists():
        raise click.BadParameter(f"{record} is there already: name another file", param_hint="--record")
    if record is not None and case.aim.role_change:
        raise click.UsageError("--record does not go with --role-change: a run does not keep when engines changed")
    if not case.requests:
        raise click.ClickException("the load has no request: raise --rate or --minutes")
    mean, peak = _fixed(case)
    table = Table("policy", *(f"{name}\n(simulated)" for name in ("within targets %", "engine-seconds", "changes")))
    table.add_column("TTFT p50, p95 s\n(simulated)")
    table.add_column("token gap p95 ms\n(simulated)")
    console = Console()
    for scaler in _scalers(case, mean, peak, policy):
        start = scaler.fixed if isinstance(scaler, Static) else mean
        setting = Setting(
            case.profile, case.aim, start, cold_start=case.cold_start, most=MOST, failures=failures, seed=seed
        )
        fleet = Fleet(setting, scaler)
        ran = fleet.run(case.requests)
        table.add_row(*_row(ran))
        if record is not None and isinstance(scaler, Product) and scaler.name == "builtin":
            recorded.write(record, fleet, scaler, ran.journeys)
        if events and isinstance(scaler, Product):
            _tell(console, scaler)
    console.print(table)


def _case(  # noqa: PLR0913 - one for each option
    seed: int,
    *,
    trace: Path | None,
    copies: int,
    rate: tuple[float, float],
    minutes: float,
    slower: float,
    profile: Path | None,
    ttft: float,
    itl: float,
    percentile: int,
    cold_start: float,
    role_change: bool,
) -> Case:
    seconds, share = minutes * 60, percentile / 100
    if trace is not None:
        requests = [one for one in load.denser(load.read(trace), copies) if one.at < seconds]
    elif not 0 <= rate[0] <= rate[1] or rate[1] <= 0:
        raise click.BadParameter("give the lowest, then the highest rate, not both zero", param_hint="--rate")
    else:
        requests = load.Wave(*rate, seconds=seconds).requests(seed)
    aim = Aim(Target(ttft, share), Target(itl, share), role_change=role_change)
    return Case(requests, _engine(profile).slower(slower), aim, cold_start)


def _engine(file: Path | None) -> Profile:
    try:
        return H200_8B if file is None else read_profile(file)
    except (OSError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--profile") from error


def _fixed(case: Case) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes for the mean load and for the worst half minute, by an engine's true times."""
    whole = load_of(case.requests, max(1.0, case.requests[-1].at))
    roles = tuple(Role(name, 1, 1, MOST) for name in ROLES)
    model = truth(case.profile, [whole])
    mean = {role.name: need(model, whole, role, case.aim) or MOST for role in roles}
    knowing = Oracle(case.requests, case.profile, case.aim, 0.0)
    spans = int(case.requests[-1].at // knowing.every) + 1
    at = [knowing.at(Ask(case.aim, roles), span * knowing.every) for span in range(spans)]
    return mean, {name: max(sizes[name] for sizes in at) for name in ROLES}


def _scalers(case: Case, mean: dict[str, int], peak: dict[str, int], policy: str | None) -> Iterator[Scaler]:
    rate = len(case.requests) / max(1.0, case.requests[-1].at)
    each = {name: rate / count for name, count in mean.items()}
    yield Product(startup=max(15.0, case.cold_start))
    if policy is not None:
        yield Product(_named(policy), name=policy, startup=max(15.0, case.cold_start))
    yield Static(peak, _fleet("peak", peak))
    yield Static(mean, _fleet("mean", mean))
    yield PlusMinusOne()
    yield hpa(each)
    yield kpa(each)
    # It counts on every prompt to be computed, as it does not know what will be held where.
    yield replace(Oracle(case.requests, case.profile, case.aim, case.cold_start), name="oracle")


def _named(policy: str) -> Callable[[Ask], Answer]:
    """Loaded and kept within bounds as the operator does it, but in this process."""
    try:
        return fenced(policy, load_policy(policy))
    except NotLoadedError as error:
        raise click.BadParameter(f"{policy} {error}", param_hint="--policy") from error


def _fleet(name: str, sizes: dict[str, int]) -> str:
    return f"static {name} {sizes['prefill']}P{sizes['decode']}D"


def _row(ran: Outcome) -> list[str]:
    return [
        ran.scaler,
        f"{100 * ran.attained():.2f}",
        f"{ran.replica_seconds:.0f}",
        f"{ran.moments}",
        f"{ran.ttft(0.5):.2f} {ran.ttft(0.95):6.2f}",
        f"{1e3 * ran.itl(0.95):.0f}",
    ]


def _tell(console: Console, scaler: Product) -> None:
    """Each decision with the figures that it stood on."""
    for turn, answer in enumerate(scaler.answers, start=1):
        for one in answer.decisions:
            console.print(f"{turn * scaler.interval:6.0f} s  {one.role} {one.before} to {one.after}: {one.reason}")
            console.print("          " + ", ".join(f"{name} {said}" for name, said in answer.inputs.items()))


if __name__ == "__main__":
    main()
