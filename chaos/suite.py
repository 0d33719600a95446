"""Many scenarios in a row: those that share a deployment find it running."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console

from chaos import cluster, processes
from chaos.run import Outcome, run
from chaos.scenario import Deployment, Scenario
from chaos.world import World


@dataclass(frozen=True)
class Suite:
    """How they are run: `runs` strikes each (None: as many as the scenario says)."""

    runs: int | None
    seed: int
    console: Console

    def run(self, scenarios: Sequence[Scenario]) -> Iterator[Outcome]:
        """Each outcome as soon as it is known, shown by then."""
        self.console.print(f"seed {self.seed}")
        for (world, deployment), group in groupby(scenarios, key=lambda one: (one.world, one.deployment)):
            with self._opened(world, deployment) as opened:
                for scenario in group:
                    outcome = run(scenario, opened, self.runs or scenario.runs, self.seed, self.console.out)
                    self.show(outcome)
                    if not outcome.ok:
                        self.console.print(f"  {opened.note()}")
                    yield outcome

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
