"""The one shape of every benchmark's result: a table, what it was run on, and checks that hold or do not."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Options:
    """What every benchmark is given."""

    quick: bool = False
    """Fewer repeats and shorter runs: proves that the benchmark works, its figures are not to be quoted."""
    traces: Path | None = None
    """Folder of request traces, for the benchmarks that replay some."""
    objects: tuple[int, ...] = ()
    """How many InferenceDeployments, one run for each number, for the benchmark that makes many."""
    profile: Path | None = None
    """Where the benchmark that takes a profile of engines keeps it."""
    plot: Path | None = None
    """Where a benchmark that has a picture puts it, as SVG."""


@dataclass(frozen=True)
class Check:
    """One figure against its limit. `ok` is decided here and nowhere else."""

    what: str
    value: float
    limit: str
    ok: bool


def at_least(what: str, value: float, limit: float) -> Check:
    return Check(what, round(value, 4), f">= {limit:g}", value >= limit)


def at_most(what: str, value: float, limit: float) -> Check:
    return Check(what, round(value, 4), f"<= {limit:g}", value <= limit)


@dataclass
class Report:
    """`rows` hold cells as they are to be read, one list per line, in the order of `columns`."""

    name: str
    summary: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def show(self, console: Console) -> None:
        table = Table(title=f"{self.name}: {self.summary}", title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", style="dim")
        for check in self.checks:
            mark = "[green]holds [/]" if check.ok else "[red]fails [/]"
            console.print(f"  {mark} {check.what}: {check.value:g} (limit {check.limit})")

    def write(self, file: Path) -> None:
        machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        file.write_text(json.dumps(asdict(self) | {"ok": self.ok, "machine": machine}, indent=2) + "\n")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`median (min..max)` of repeats."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
