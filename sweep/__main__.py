"""`python -m sweep`: list the scenarios, cut the operator off at every write of them, and fuzz it (`fuzz/`)."""

import asyncio
import logging
import random
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from local.api_server import api_server
from local.errors import LocalError
from sweep import scenarios
from sweep.fuzz.command import fuzz
from sweep.oracle import Ending
from sweep.planted import PLANTED
from sweep.scenarios import Scenario
from sweep.suite import Caught, Point, Result, Suite, cuts, spoilt, suite

QUICK_POINTS = 8
"""Points of each scenario with --quick."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Cut the operator off at every write it makes, change every field it knows, and see whether the end is right."""
    # What it says of the calls that are cut on purpose is no news here.
    for name in ("headrace_operator", "kopf"):
        logging.getLogger(name).setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with this program


@main.command("list")
def list_() -> None:
    """The scenarios and the planted bugs."""
    console = Console()
    found = Table("Scenario", "What happens", "Ready at any moment")
    for scenario in scenarios.SCENARIOS:
        found.add_row(scenario.name, scenario.story, ", ".join(f"{n} {r}" for r, n in scenario.floors.items()))
    console.print(found)
    bugs = Table("Planted bug", "What it does", "Looked for in")
    for planted in PLANTED:
        bugs.add_row(planted.name, planted.story, f"{planted.scenario}: {', '.join(planted.ways)}")
    console.print(bugs)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help=f"{QUICK_POINTS} points of each scenario, drawn by the seed.")
@click.option("--seed", type=int, help="Draws the points of --quick. [default: by chance, and printed]")
@click.option("--jobs", type=click.IntRange(min=1), default=6, show_default=True, help="Runs at a time.")
@click.option("--no-planted", is_flag=True, help="Leave out the planted bugs: then a pass says less.")
def run(names: tuple[str, ...], quick: bool, seed: int | None, jobs: int, no_planted: bool) -> None:
    """Sweep the scenarios NAMES, or all.

    Exit 1: a run did not end as the clean one, or a planted bug went unnoticed.
    """
    try:
        chosen = scenarios.chosen(names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAMES") from error
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    console = Console()
    console.print(f"seed {seed}")
    try:
        with api_server() as kubeconfig:
            ok = asyncio.run(
                _run(kubeconfig, jobs, _Sweep(console, chosen, random.Random(seed), quick, not no_planted))
            )
    except LocalError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if ok else 1)


async def _run(kubeconfig: Path, jobs: int, sweep: "_Sweep") -> bool:
    async with suite(kubeconfig, jobs) as made:
        return await sweep.run(made)


class _Sweep:
    """What one call of the program does, and what it prints."""

    def __init__(
        self, console: Console, chosen: Sequence[Scenario], draw: random.Random, quick: bool, planted: bool
    ) -> None:
        self._console = console
        self._chosen = chosen
        self._draw = draw
        self._quick = quick
        self._planted = planted

    async def run(self, made: Suite) -> bool:
        """Whether all held."""
        cleans = dict(
            zip(
                (one.name for one in self._chosen),
                await asyncio.gather(*(made.clean(one) for one in self._chosen)),
                strict=True,
            )
        )
        for name, clean in cleans.items():
            self._console.print(f"{name}: {len(clean.writes)} writes in {len(clean.passes)} passes without a cut")
        results = await self._points(made, cleans)
        self._print(results)
        caught = await asyncio.gather(*(made.catch(bug, self._draw) for bug in PLANTED)) if self._planted else []
        if caught:
            self._print_planted(caught)
        return all(result.ok for result in results) and all(one.ok for one in caught)

    async def _points(self, made: Suite, cleans: dict[str, Ending]) -> list[Result]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        results = []
        with Progress(*columns, console=self._console) as progress:
            for scenario in self._chosen:
                points: list[Point] = [*cuts(cleans[scenario.name]), *spoilt(scenario)]
                if self._quick:
                    points = self._draw.sample(points, min(QUICK_POINTS, len(points)))
                bar = progress.add_task(scenario.name, total=len(points))
                results.append(
                    await made.sweep(scenario, cleans[scenario.name], points, lambda bar=bar: progress.advance(bar))  # type: ignore[misc]
                )
        return results

    def _print(self, results: Sequence[Result]) -> None:
        found = Table("Scenario", "Writes", "Points", "Passed", "Failed")
        for result in results:
            failed = str(len(result.failures))
            found.add_row(
                result.scenario.name, str(len(result.clean.writes)), str(len(result.cuts)), str(result.passed), failed
            )
        self._console.print(found)
        for result in results:
            for failure in result.failures:
                self._console.print(f"{result.scenario.name}, {failure.cut or 'clean'}:", style="red")
                for line in failure.differences[:6]:
                    self._console.print(f"  {line}", markup=False)

    def _print_planted(self, caught: Sequence[Caught]) -> None:
        found = Table("Planted bug", "Noticed by", "Because")
        for one in caught:
            where = f"{one.planted.scenario}, {one.cut or 'without a cut'}" if one.ok else "NOTHING: the sweep is void"
            found.add_row(one.planted.name, where, one.differences[0] if one.ok else f"{one.tried} points passed")
        self._console.print(found)


main.add_command(fuzz)


if __name__ == "__main__":
    main()
