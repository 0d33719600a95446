"""docs/recovery.md, made from docs/recovery.json and from nothing else. Pure, but for reading and writing the two."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from chaos import results
from chaos.results import Record

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

COLUMNS = (
    "fault", "world", "runs", "requests", "struck", "lost", "duplicated", "mismatched", "detect", "recover", "whole",
    "planted", "verdict",
)  # fmt: skip


def page(records: Sequence[Record]) -> str:
    """The whole document."""
    lines = [HEAD, "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(one)) + " |" for one in sorted(records, key=_place)]
    lines += ["", "## How", ""]
    lines += [
        f"- **{one.title}** ({_where(one)}, `{one.scenario}`): {one.how}{_remarks(one)}"
        for one in sorted(records, key=_place)
    ]
    lines += ["", "## On what", ""]
    machines = sorted({f"{one.cpus} processors, Linux {one.kernel}" for one in records})
    lines += [f"Machine: {'; '.join(machines)}. Runs, with the start value of what was drawn by chance:", ""]
    lines += [f"- `{one.scenario}`: seed {one.seed}, code {one.commit}" for one in sorted(records, key=_place)]
    return "\n".join(lines) + "\n"


def write() -> str:
    """Returns what is wrong, empty if nothing is."""
    records = results.read()
    if not records:
        return f"{results.FILE} has no results: `make chaos` measures them"
    FILE.write_text(page(records))
    return ""


def check(source: Path = results.FILE, target: Path = FILE) -> str:
    """What is wrong; empty where the document is what the results make."""
    if target.read_text() != page(results.read(source)):
        return f"{target.name} is not what {source.name} makes: run `python -m chaos table`"
    return ""


def _place(record: Record) -> tuple[bool, bool, str]:
    return record.world != "processes", record.engines == "simulated", record.scenario


def _where(record: Record) -> str:
    place = "cluster" if record.world == "cluster" else "processes"
    return f"{place}, *simulated*" if record.engines == "simulated" else place


def _cells(record: Record) -> list[str]:
    lost = f"{record.lost} ({record.cut} cut)" if record.cut else str(record.lost)
    return [
        record.title,
        _where(record),
        str(len(record.whole)),
        str(record.requests),
        str(record.struck),
        lost,
        str(record.duplicated),
        str(record.mismatched),
        _spread(record.detect),
        _spread(record.recover),
        _spread(record.whole),
        f"{sum(map(bool, record.caught.values()))} of {len(record.caught)} found",
        "holds" if record.ok else "**fails**",
    ]


def _remarks(record: Record) -> str:
    retries = f" Clients retry {record.client_retries} times, as OpenAI's do." if record.client_retries else ""
    broken = f" **Does not hold: {'; '.join(record.broken)}.**" if record.broken else ""
    return retries + broken


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    missing = f", {len(values) - len(known)} never" if len(known) < len(values) else ""
    return f"{median(known):.1f} ({min(known):.1f} to {max(known):.1f}{missing})"
