"""Many scenarios in a row: those that share a deployment find it running."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby

from rich.console import Console

from chaos import cluster, processes
from chaos.run import Outcome, run
from chaos.scenario import Deployment, Scenario
from chaos.world import World
from local.errors import LocalError

STUCK = (TimeoutError, LocalError, RuntimeError, OSError, KeyError)
"""The load got no answers, a fault could not be done, or what it is done to is not there."""


@dataclass(frozen=True)
class Suite:
    """How they are run: `runs` strikes each (None: as many as the scenario says)."""

    runs: int | None
    seed: int
    console: Console
    stuck: list[str] = field(default_factory=list)
    """Names of scenarios that came to no verdict."""

    def run(self, scenarios: Sequence[Scenario]) -> Iterator[Outcome]:
        """Each outcome as soon as it is known, shown by then; a scenario that got stuck has none (`stuck`)."""
        self.console.print(f"seed {self.seed}")
        for (world, deployment), group in groupby(scenarios, key=lambda one: (one.world, one.deployment)):
            waiting = list(group)
            while waiting:
                with self._opened(world, deployment) as opened:
                    yield from self._until_broken(waiting, opened)

    def _until_broken(self, waiting: list[Scenario], world: World) -> Iterator[Outcome]:
        """Takes scenarios off `waiting` until none is left, or one leaves a deployment that the next cannot use."""
        while waiting:
            scenario = waiting.pop(0)
            try:
                outcome = run(scenario, world, self.runs or scenario.runs, self.seed, self.console.out)
            except STUCK as error:
                self.stuck.append(scenario.name)
                self.console.print(f"[red]fails[/] {scenario.title}: {type(error).__name__}: {error}\n  {world.note()}")
                return
            self.show(outcome)
            if not outcome.ok:
                self.console.print(f"  {world.note()}")
            yield outcome
            if None in outcome.verdict.whole:
                return

    def _opened(self, world: str, deployment: Deployment) -> AbstractContextManager[World]:
        return cluster.opened(deployment) if world == "cluster" else processes.opened(deployment)

    def show(self, outcome: Outcome) -> None:
        verdict, say = outcome.verdict, self.console.print
        mark = "[green]holds[/]" if outcome.ok else "[red]fails[/]"
        say(
            f"{mark} {outcome.scenario.title}: {len(verdict.whole)} strikes, {verdict.requests} requests "
            f"({verdict.struck} struck), lost {verdict.lost}, duplicated {verdict.duplicated}, "
            f"mismatched {verdict.mismatched}, longest silence {verdict.longest_silence:.1f} s"
        )
        for sentence in [*outcome.broken, *(f"{count} times: {how}" for how, count in outcome.errors.items())]:
            say(f"  [red]{sentence}[/]")
        for arm, found in outcome.caught.items():
            say(f"  planted, {arm}: {found or '[red]NOT found[/]'}", style="dim")
