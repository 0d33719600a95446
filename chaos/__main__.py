"""`python -m chaos`: list the scenarios, run them, make the table of docs/recovery.md."""

import secrets
import signal
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from chaos import results, scenario, table
from chaos.suite import Suite
from local.errors import LocalError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Break a running deployment on purpose, under load, and judge what clients saw."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with this program


@main.command("list")
def list_() -> None:
    """The scenarios: what breaks, where, how often."""
    found = Table("Scenario", "Fault", "World", "Engines", "Runs")
    for one in scenario.load():
        found.add_row(one.name, one.title, one.world, one.deployment.engines, str(one.runs))
    Console().print(found)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--runs", type=click.IntRange(min=1), help="How often each fault strikes. [default: the scenario's own]")
@click.option("--seed", type=int, help="Draws targets and moments. [default: by chance, and printed]")
@click.option(
    "--results",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the outcomes to this file, in place of the scenarios' earlier ones. [default: they are only printed]",
)
@click.option("--keep", is_flag=True, help="Keep the earlier outcomes beside the new ones: the table adds them up.")
@click.option(
    "--journals",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write there what every request met, a file for each scenario.",
)
def run(
    names: tuple[str, ...], runs: int | None, seed: int | None, file: Path | None, keep: bool, journals: Path | None
) -> None:
    """Run the scenarios NAMES, or all. Exit 1: an expectation did not hold, or a planted bug went unnoticed."""
    console = Console()
    try:
        chosen = scenario.load(names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAMES") from error
    suite = Suite(runs, secrets.randbelow(1_000_000) if seed is None else seed, console)
    ok = True
    try:
        for outcome in suite.run(chosen):
            ok = ok and outcome.ok
            if file is not None:
                results.add(file, outcome, keep)
            if journals is not None:
                results.write_journal(journals, outcome)
    except LocalError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if ok and not suite.stuck else 1)


@main.command("table")
@click.option("--check", is_flag=True, help="Write nothing; fail where docs/recovery.md is not what the results make.")
def table_(check: bool) -> None:
    """Write docs/recovery.md from docs/recovery.json."""
    problem = table.check() if check else table.write()
    if problem:
        raise click.ClickException(problem)


if __name__ == "__main__":
    main()
