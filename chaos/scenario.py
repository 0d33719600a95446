"""A scenario: what breaks, when, and what is expected then. One YAML file each, in `scenarios/`.

Frozen values; an unknown field is an error.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chaos.oracle import Verdict

FOLDER = Path(__file__).with_name("scenarios")

Fault = Literal[
    "engine_killed", "engine_stopped", "engine_out_of_memory", "front_end_killed", "pod_deleted", "pod_evicted",
    "node_killed", "node_cut", "link_cut", "head_killed", "gcs_lost", "gateway_killed", "operator_killed",
    "api_server_away", "dns_away",
]  # fmt: skip
"""engine: vLLM's core, which holds the model (of a simulated engine: all of it) · front_end: vLLM's HTTP server · link:
between the prefill engine and a decode engine, silently."""


Oracle = Literal["lost", "duplicated", "mismatched", "detect", "recover", "whole"]
"""By the names of `Verdict`'s fields."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Deployment(Frozen):
    """What is struck. Scenarios of one world with equal deployments share one that runs."""

    engines: Literal["simulated", "vllm"]
    serve: int = 0
    prefill: int = 0
    decode: int = 0
    gateways: int = 1


class Trigger(Frozen):
    """When a fault strikes: after so many more answers, and then at a moment drawn at random."""

    after_answers: int = 10
    moment: Literal["any", "in_stream", "in_prompt"] = "any"
    """any: within the next second · in_stream: while the target writes at least one answer · in_prompt: within 0.1 s of
    a long prompt's way out, while it is computed or its KV blocks are under way."""


class Load(Frozen):
    rate: float = Field(gt=0)
    """Requests per second, at even intervals."""
    answer: tuple[int, int] = (24, 96)
    """Tokens of an answer, from and to."""
    long: tuple[int, int] = (200, 400)
    """Tokens of a long prompt; every fourth is one."""
    retries: int = 0
    """Of the clients. OpenAI's own do two by themselves; 0 shows every failure."""


class Expectation(Frozen):
    """What must hold, else the scenario has failed. `null`: not asked for."""

    lost: int | Literal["begun"] = 0
    """`begun`: only answers that had begun when the fault struck."""
    duplicated: int = 0
    mismatched: int = 0
    detect_seconds: float | None = None
    recover_seconds: float | None
    whole_seconds: float | None

    def asked(self) -> "set[Oracle]":
        """What can be broken."""
        times: dict[Oracle, float | None] = {
            "detect": self.detect_seconds,
            "recover": self.recover_seconds,
            "whole": self.whole_seconds,
        }
        return {"lost", "duplicated", "mismatched", *(oracle for oracle, limit in times.items() if limit is not None)}

    def broken_by(self, verdict: Verdict) -> "dict[Oracle, str]":
        """What does not hold, a sentence each; empty: all holds."""
        found: dict[Oracle, str] = {}
        counts: dict[Oracle, int] = {
            "lost": verdict.lost - verdict.cut if self.lost == "begun" else verdict.lost - self.lost,
            "duplicated": verdict.duplicated - self.duplicated,
            "mismatched": verdict.mismatched - self.mismatched,
        }
        for oracle, count in counts.items():
            if count > 0:
                found[oracle] = f"{count} more {oracle} than expected"
        times: dict[Oracle, tuple[Sequence[float | None], float | None]] = {
            "detect": (verdict.detect, self.detect_seconds),
            "recover": (verdict.recover, self.recover_seconds),
            "whole": (verdict.whole, self.whole_seconds),
        }
        for oracle, (seconds, limit) in times.items():
            if limit is not None and (late := [one for one in seconds if one is None or one > limit]):
                found[oracle] = f"{oracle}: {len(late)} of {len(seconds)} took more than {limit:g} s"
        return found


class Scenario(Frozen):
    name: str
    """The file's name."""
    title: str
    """The fault as the table names it."""
    how: str
    """How it is done and what heals it, in a sentence."""
    world: Literal["processes", "cluster"]
    deployment: Deployment
    fault: Fault
    target: Literal["serve", "prefill", "decode", "none"] = "none"
    """The role whose engine is struck, or whose node."""
    holds_seconds: float = 0.0
    """How long the fault lasts before it is taken back."""
    trigger: Trigger = Trigger()
    load: Load
    patience_seconds: float = 1.0
    """A client that waits longer for a token suffers (`oracle.py`)."""
    expect: Expectation
    planted: Literal["gateway_gives_up", "doctored"]
    """The arm that must fail: a gateway that neither tries again nor resumes; or the run's own journals, spoiled."""
    runs: int = Field(default=10, ge=1)
    """How often it strikes in `make chaos`."""


def load(names: Sequence[str] = ()) -> list[Scenario]:
    """The scenarios of these names, or all. Those that share what runs are neighbours; else the order is the names'.
    ValueError: no such scenario, or a file that is none."""
    found = {scenario.name: scenario for scenario in map(read, sorted(FOLDER.glob("*.yaml")))}
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"no such scenario: {', '.join(unknown)}; `python -m chaos list` names them")
    chosen = [found[name] for name in dict.fromkeys(names)] or list(found.values())
    return sorted(chosen, key=lambda one: (one.world != "processes", one.deployment.model_dump_json()))


def read(file: Path) -> Scenario:
    try:
        fields = yaml.safe_load(file.read_text())
        return Scenario.model_validate({**fields, "name": file.stem})
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{file.name} is no scenario: {error}") from error
