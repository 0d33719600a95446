"""`python -m sweep fuzz`: every leaf of the CRD changed and changed back, and operators that must be caught at it."""

import asyncio
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from local.api_server import api_server
from local.errors import LocalError
from sweep.fuzz.campaign import Campaign, Killed, Tally, Violation, campaign
from sweep.fuzz.cases import Case, UnplannedError, cases, draw
from sweep.fuzz.mutants import MUTANTS, Mutant

QUICK_LEAVES = 6
QUICK_MUTANTS = 2
LEAST_KILLED = 0.95
SHOWN = 10


@dataclass(frozen=True)
class Chosen:
    """What one call plays."""

    cases: Sequence[Case]
    leaves: int
    """Leaves that there are, or that shall be played."""
    mutants: Sequence[Mutant]
    met: Sequence[Case]
    """Cases that mutants meet."""


def chosen(seed: int, *, quick: bool = False, leaf: str = "") -> Chosen:
    """All cases and mutants; with `quick` a sample, one case of each sort of some leaves; or those of one leaf.

    Raises:
        UnplannedError: `hints.py` lacks what a leaf needs.
        ValueError: no leaf's path begins so.
    """
    found = [case for case in cases(seed) if case.leaf.startswith(leaf)]
    if not found:
        raise ValueError(f"no leaf's path begins with {leaf}")
    if not quick:
        return Chosen(found, len({case.leaf for case in found}), MUTANTS if not leaf else (), found)
    some = sorted({case.leaf for case in found}, key=lambda path: draw(seed, path))[:QUICK_LEAVES]
    picked = {(case.leaf, case.sort): case for case in sorted(found, key=lambda case: draw(seed, case.name))}
    mutants = sorted(MUTANTS, key=lambda mutant: draw(seed, mutant.name))[:QUICK_MUTANTS]
    met = [case for case in found if any(mutant.bites(case) for mutant in mutants)]
    return Chosen([case for (path, _), case in picked.items() if path in some], len(some), mutants, met)


def hunted(seed: int, name: str) -> Chosen:
    """One mutant and the cases that it meets. ValueError: there is none of that name."""
    mutants = [mutant for mutant in MUTANTS if mutant.name == name]
    if not mutants:
        raise ValueError(f"no mutant is named {name}: {', '.join(sorted(mutant.name for mutant in MUTANTS))}")
    return Chosen((), 0, mutants, [case for case in cases(seed) if mutants[0].bites(case)])


@dataclass(frozen=True)
class Result:
    """What a campaign found."""

    tally: Tally
    leaves: int
    killed: Sequence[Killed]

    @property
    def violations(self) -> list[Violation]:
        return self.tally.violations

    @property
    def ok(self) -> bool:
        """All leaves, no violation, and nearly every mutant."""
        noticed = sum(one.case is not None for one in self.killed)
        whole = len(self.tally.leaves) == self.leaves
        return whole and not self.violations and noticed >= LEAST_KILLED * len(self.killed)


async def play(made: Campaign, what: Chosen, progress: Progress) -> Result:
    """The whole campaign."""
    tally = Tally(tell=lambda violation: _tell(progress.console, violation))
    for refused in await made.ask([*what.cases, *(case for case in what.met if case not in what.cases)]):
        tally.add(refused)
    await made.loosen()
    played = [case for case in what.cases if case.played]
    bar = progress.add_task("cases", total=len(played))
    await made.run(played, tally, lambda: progress.advance(bar))
    killed = []
    bar = progress.add_task("mutants", total=len(what.mutants))
    for mutant in what.mutants:
        killed.append(await made.kill(mutant, [case for case in what.met if case.played]))
        progress.advance(bar)
    return Result(tally, what.leaves, killed)


@click.command()
@click.option(
    "--quick", is_flag=True, help=f"A case of each sort of {QUICK_LEAVES} leaves, and {QUICK_MUTANTS} mutants."
)
@click.option("--leaf", default="", help="Only leaves whose path begins so, and no mutants: roles[].replicas")
@click.option("--mutant", default="", help="Only this planted bug, and no leaves for their own sake: hoards-claims")
@click.option("--seed", type=int, help="Draws values, order and samples. [default: by chance, and printed]")
@click.option("--jobs", type=click.IntRange(min=1), default=6, show_default=True, help="Namespaces at a time.")
def fuzz(quick: bool, leaf: str, mutant: str, seed: int | None, jobs: int) -> None:
    """Change every leaf of the CRD and change it back.

    Exit 1: a leaf was left out, an invariant did not hold, or more than one mutant in twenty went unnoticed.
    """
    console = Console()
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    try:
        what = hunted(seed, mutant) if mutant else chosen(seed, quick=quick, leaf=leaf)
    except UnplannedError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--mutant" if mutant else "--leaf") from error
    console.print(f"seed {seed}: {len(what.cases)} edits of {what.leaves} leaves, {len(what.mutants)} mutants")
    try:
        with api_server() as kubeconfig:
            result = asyncio.run(_run(kubeconfig, jobs, seed, what, console))
    except LocalError as error:
        raise click.ClickException(str(error)) from error
    _print(console, result)
    sys.exit(0 if result.ok else 1)


async def _run(kubeconfig: Path, jobs: int, seed: int, what: Chosen, console: Console) -> Result:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with campaign(kubeconfig, jobs, seed) as made:
        with Progress(*columns, console=console) as progress:
            return await play(made, what, progress)


def _tell(console: Console, violation: Violation) -> None:
    console.print(f"{violation.case.name}{', taken back' if violation.back else ''}:", style="red", markup=False)
    for line in violation.lines[:SHOWN]:
        console.print(f"  {line}", markup=False)


def _print(console: Console, result: Result) -> None:
    for violation in result.violations[:SHOWN]:
        console.print(f"to see {violation.lines[0].partition(':')[0]} broken, apply:", style="red", markup=False)
        click.echo(violation.case.edit())  # as it is: a console would break its lines
    if result.killed:
        found = Table("Mutant", "Noticed at", "Because")
        for one in result.killed:
            where = one.case.name if one.case is not None else f"NOTHING in {one.tried} leaves"
            found.add_row(one.mutant.name, Text(where), Text(one.line))
        console.print(found)
    tally, noticed = result.tally, sum(one.case is not None for one in result.killed)
    console.print(f"leaves {len(tally.leaves)}/{result.leaves}, steps {tally.steps} in {tally.seconds:.0f} s, ", end="")
    console.print(f"violations {len(result.violations)}, mutants killed {noticed}/{len(result.killed)}")
