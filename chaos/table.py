"""docs/recovery.md, made from docs/recovery.json and the scenarios' limits, and from nothing else.

Pure, but for reading and writing the files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from chaos import results, scenario
from chaos.results import Record
from chaos.scenario import Expectation

FILE = results.FILE.with_suffix(".md")

HEAD = """# What a fault costs

Made by `python -m chaos table` from `recovery.json`, which `make chaos` writes; never edited. Every figure was measured
by the scenarios in `chaos/scenarios`: an open-loop load of streamed and whole answers to short and long prompts,
greedy, while the fault struck again and again at random moments.

- **lost**: requests without a complete answer, whatever the reason; *cut*: those whose answer had begun when the fault
  struck. Clients do not retry unless the list below says so.
- **duplicated**: answers that ended twice or gave a token again. **mismatched**: answers that are not, token for token,
  those of an undisturbed run (real engines compute in 32-bit floats, so that a greedy answer does not depend on what
  else is in the batch).
- **struck**: requests under way, at the moment of the fault, in the engine that was struck (anywhere, if none was).
- **detect**: from the fault until the system itself says that something is wrong. **recover**: until at least 95 % of
  the clients are served again without a pause longer than the scenario allows (0: never fewer). **whole**: until what
  was struck serves again, a lasting fault's own length included. Seconds: median (min to max).
- *simulated*: the engines are programs that stream numbered tokens, no model; everything else is real.
- **planted**: bugs put in on purpose, each of which had to be found: a gateway that neither tries again nor resumes,
  before the same engines; and the run's own journal, spoiled in several ways. A scenario that misses one has failed.
"""

MACHINE = """\
Machine: {machines}; clients, gateways, engines and, in the cluster, Kubernetes and Ray share it, so that a part that
starts anew takes processor time from those that serve. Sessions, with the start value of what was drawn by chance:"""

COLUMNS = (
    "fault", "world", "runs", "requests", "struck", "lost", "duplicated", "mismatched", "detect", "recover", "whole",
    "planted", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """All sessions of one scenario, added up. The newest says what it is called and how it is done."""

    sessions: Sequence[Record]
    expect: Expectation

    @property
    def broken(self) -> list[str]:
        """What does not hold, by the limits that the scenario has now."""
        return [sentence for one in self.sessions for sentence in self.expect.broken_by(one.verdict).values()]

    @property
    def newest(self) -> Record:
        return self.sessions[-1]

    @property
    def ok(self) -> bool:
        return not self.broken and all(all(one.caught.values()) for one in self.sessions)

    @property
    def place(self) -> tuple[bool, bool, str]:
        return self.newest.world != "processes", self.newest.engines == "simulated", self.newest.scenario

    @property
    def where(self) -> str:
        return f"{self.newest.world}, *simulated*" if self.newest.engines == "simulated" else self.newest.world

    def total(self, count: Callable[[Record], int]) -> int:
        return sum(map(count, self.sessions))

    def times(self, seconds: Callable[[Record], Sequence[float | None]]) -> str:
        """`median (min to max)` of all strikes."""
        values = [value for one in self.sessions for value in seconds(one)]
        known = [value for value in values if value is not None]
        if not known:
            return "-"
        missing = f", {len(values) - len(known)} never" if len(known) < len(values) else ""
        if len(values) == 1:
            return f"{known[0]:.1f}"
        return f"{median(known):.1f} ({min(known):.1f} to {max(known):.1f}{missing})"

    def cells(self) -> list[str]:
        lost, cut = self.total(lambda one: one.lost), self.total(lambda one: one.cut)
        found = self.total(lambda one: sum(map(bool, one.caught.values())))
        return [
            self.newest.title,
            self.where,
            str(self.total(lambda one: len(one.whole))),
            str(self.total(lambda one: one.requests)),
            str(self.total(lambda one: one.struck)),
            f"{lost} ({cut} cut)" if cut else str(lost),
            str(self.total(lambda one: one.duplicated)),
            str(self.total(lambda one: one.mismatched)),
            self.times(lambda one: one.detect),
            self.times(lambda one: one.recover),
            self.times(lambda one: one.whole),
            f"{found} of {self.total(lambda one: len(one.caught))} found",
            "holds" if self.ok else "**fails**",
        ]

    def remarks(self) -> str:
        retries = self.newest.client_retries
        said = f" Clients retry {retries} times, as OpenAI's do." if retries else ""
        return said + (f" **Does not hold: {'; '.join(self.broken)}.**" if self.broken else "")


def rows(records: Sequence[Record], limits: Mapping[str, Expectation]) -> list[Row]:
    """One for each scenario, as the table orders them. KeyError: there is no such scenario any more."""
    by_scenario: dict[str, list[Record]] = {}
    for one in records:
        by_scenario.setdefault(one.scenario, []).append(one)
    return sorted((Row(found, limits[name]) for name, found in by_scenario.items()), key=lambda row: row.place)


def page(records: Sequence[Record], limits: Mapping[str, Expectation]) -> str:
    """The whole document. `limits`: by the scenario's name."""
    table = rows(records, limits)
    lines = [HEAD, "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in table]
    lines += ["", "## How", ""]
    lines += [f"- **{row.newest.title}** ({row.where}): {row.newest.how}{row.remarks()}" for row in table]
    lines += ["", "## On what", ""]
    machines = sorted({f"{one.cpus} processors, Linux {one.kernel}" for one in records})
    lines += [MACHINE.format(machines="; ".join(machines)), ""]
    for row in table:
        seeds = ", ".join(f"{one.seed} ({one.commit}, {len(one.whole)} runs)" for one in row.sessions)
        lines.append(f"- `{row.newest.scenario}`: {seeds}")
    missing = sorted(set(limits) - {one.scenario for one in records})
    if missing:
        lines += ["", f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}."]
    return "\n".join(lines) + "\n"


def current_limits() -> dict[str, Expectation]:
    return {one.name: one.expect for one in scenario.load()}


def write() -> str:
    """Returns what is wrong, empty if nothing is."""
    records = results.read()
    if not records:
        return f"{results.FILE} has no results: `make chaos` measures them"
    FILE.write_text(page(records, current_limits()))
    return ""


def check(source: Path = results.FILE, target: Path = FILE) -> str:
    """What is wrong; empty where the document is what the results make."""
    if target.read_text() != page(results.read(source), current_limits()):
        return f"{target.name} is not what {source.name} makes: run `python -m chaos table`"
    return ""
