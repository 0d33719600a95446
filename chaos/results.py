"""What was measured, as JSON: docs/recovery.json, a record for each session in which a scenario was run."""

import json
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from chaos.oracle import Verdict
from chaos.run import Outcome

REPOSITORY = Path(__file__).resolve().parent.parent
FILE = REPOSITORY / "docs" / "recovery.json"


class Record(BaseModel):
    """One scenario's outcome in one session. Seconds, one per strike; None: it did not come to that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: str
    title: str
    how: str
    world: Literal["processes", "cluster"]
    engines: Literal["simulated", "vllm"]
    client_retries: int
    seed: int
    commit: str
    """Of the code that ran."""
    cpus: int
    kernel: str
    requests: int
    struck: int
    lost: int
    cut: int
    duplicated: int
    mismatched: int
    statuses: dict[int, int]
    detect: list[float | None]
    recover: list[float]
    whole: list[float | None]
    longest_silence: float
    caught: dict[str, str]
    """Of each planted arm, what was found."""

    @property
    def verdict(self) -> Verdict:
        return Verdict(
            requests=self.requests,
            struck=self.struck,
            lost=self.lost,
            cut=self.cut,
            duplicated=self.duplicated,
            mismatched=self.mismatched,
            statuses=self.statuses,
            detect=tuple(self.detect),
            recover=tuple(self.recover),
            whole=tuple(self.whole),
            longest_silence=self.longest_silence,
        )


def record(outcome: Outcome) -> Record:
    scenario, verdict = outcome.scenario, outcome.verdict
    return Record(
        scenario=scenario.name,
        title=scenario.title,
        how=scenario.how,
        world=scenario.world,
        engines=scenario.deployment.engines,
        client_retries=scenario.load.retries,
        seed=outcome.seed,
        commit=_commit(),
        cpus=os.cpu_count() or 0,
        kernel=".".join(platform.release().split(".")[:2]),
        requests=verdict.requests,
        struck=verdict.struck,
        lost=verdict.lost,
        cut=verdict.cut,
        duplicated=verdict.duplicated,
        mismatched=verdict.mismatched,
        statuses=verdict.statuses,
        detect=[None if one is None else round(one, 2) for one in verdict.detect],
        recover=[round(one, 2) for one in verdict.recover],
        whole=[None if one is None else round(one, 2) for one in verdict.whole],
        longest_silence=round(verdict.longest_silence, 2),
        caught=outcome.caught,
    )


def read(file: Path = FILE) -> list[Record]:
    """In the order of the scenarios' names. Empty where there is no file."""
    return [Record.model_validate(one) for one in json.loads(file.read_text())] if file.exists() else []


def add(file: Path, outcome: Outcome, keep: bool) -> None:
    """Beside the scenario's earlier sessions if they are to be kept, else in their place."""
    records = [one for one in read(file) if keep or one.scenario != outcome.scenario.name]
    records = sorted([*records, record(outcome)], key=lambda one: one.scenario)
    file.write_text("[\n" + ",\n".join(one.model_dump_json() for one in records) + "\n]\n")


def write_journal(folder: Path, outcome: Outcome) -> None:
    """What a verdict is made of: a line of JSON for each strike, then one for each request."""
    entries, strikes = outcome.journal
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(one) for one in (*map(asdict, strikes), *map(asdict, entries))]
    (folder / f"{outcome.scenario.name}.jsonl").write_text("\n".join(lines) + "\n")


def _commit() -> str:
    """Short, with a + where files differ from it; empty outside a repository."""
    words = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""
