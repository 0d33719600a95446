"""`headrace explain`: what it says of a status, without a cluster."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner

from headrace_operator.__main__ import main
from headrace_operator.commands.explain import as_json, lines, told
from headrace_operator.commands.text import ago, columns, table
from headrace_operator.state import Object

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
SLO = {"ttft": {"target": "500ms"}, "itl": {"target": "50ms", "percentile": 99}}
ROLES = [
    {"name": "prefill", "scaling": {"min": 1, "max": 4}},
    {"name": "decode", "scaling": {"max": 8}, "engine": {"device": {"resource": "nvidia.com/gpu", "count": 2}}},
]
READY = [{"name": "prefill", "desired": 1, "ready": 1}, {"name": "decode", "desired": 2, "ready": 1, "draining": 1}]
MODEL = {"pace": 5e-5, "step": 0.0044, "perRequest": 4.8e-5, "perToken": 2.27e-8, "queueing": 1.0, "startup": 120.0}
SIZES = [{"name": "prefill", "size": 1}, {"name": "decode", "size": 2}]
DECISION = {
    "time": "2026-03-01T02:48:00Z",
    "role": "decode",
    "from": 1,
    "to": 2,
    "reason": "1 more: 8.00 requests/s foreseen in 120 s, token gap 41 ms (p99, target 50 ms) with 2.",
    "inputs": {"rate": "7.10/s", "foreseen": "8.00/s", "itl": "55 ms"},
}


def judged(kind: str, status: str, reason: str, message: str = "") -> Object:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": "2026-03-01T02:50:00Z",
    }


CALM = [judged("Ready", "True", "Ready"), judged("ScalingActive", "True", "Sized"), judged("Degraded", "False", "No")]


def deployment(asked: Object | None = None, decided: Object | None = None, conditions: Any = CALM) -> Object:
    """`asked`: over spec.scaling. `decided`: status.scaling."""
    spec = {
        "model": {"source": "node:///models/tiny"},
        "roles": ROLES,
        "slo": SLO,
        "scaling": {"mode": "SLO", "maxAccelerators": 9} | (asked or {}),
    }
    status = {"conditions": conditions, "roles": READY} | ({"scaling": decided} if decided is not None else {})
    return {"metadata": {"name": "chat"}, "spec": spec, "status": status}


def text(obj: Object, last: int = 3) -> str:
    return "\n".join(lines(told(obj, NOW), last))


def test_nothing_decided_yet_is_said_so() -> None:
    said = text(deployment())
    assert said.startswith("chat: SLO: the built-in policy decides from what clients saw, and its decision is carried")
    assert "time to first token: 500ms or less for 95 % of requests" in said
    assert "time between tokens: 50ms or less for 99 % of requests" in said
    assert "none yet" in said
    assert "nothing was measured yet" in said


def test_sizes_stand_in_a_table_with_their_bounds_and_the_cap() -> None:
    said = text(deployment(decided={"sizes": SIZES})).splitlines()
    at = next(place for place, line in enumerate(said) if line.startswith("ROLE"))
    assert said[at + 1].split() == ["prefill", "1", "1", "1", "0", "1..4", "1"]
    assert said[at + 2].split() == ["decode", "2", "2", "1", "1", "1..8", "2"]
    assert "  cap: 9 accelerators, of which 5 are for the wanted engines" in said


def test_a_decision_is_told_with_its_time_its_sentence_and_its_inputs() -> None:
    said = text(deployment(decided={"sizes": SIZES, "lastDecisions": [DECISION, DECISION], "model": MODEL}), last=1)
    assert "2026-03-01 02:48:00Z  decode 1 -> 2, 12 min ago" in said
    assert "1 more: 8.00 requests/s foreseen in 120 s" in said
    assert "foreseen  8.00/s" in said
    assert "and 1 earlier: --last 2" in said
    assert "computes 20,000 prompt tokens/s" in said
    assert "a decode step takes 4.4 ms, 48 µs more for each request in it" in said
    assert "a new engine is ready after 120 s" in said


def test_a_dry_run_says_that_nothing_is_carried_out_and_shows_both_sizes() -> None:
    said = text(deployment({"dryRun": True}, {"sizes": [{"name": "decode", "size": 5}]}))
    assert "NOT carried out" in said
    assert [line.split()[:3] for line in said.splitlines() if line.startswith("decode")] == [["decode", "5", "2"]]


def test_one_that_sleeps_says_since_when() -> None:
    assert "asleep since 2026-03-01 01:30:00Z, 90 min" in text(
        deployment(decided={"asleepSince": "2026-03-01T01:30:00Z"})
    )


def test_fixed_sizes_that_sleep_show_when_and_why_they_slept_and_woke() -> None:
    asleep = judged("Ready", "Unknown", "Asleep", "No request for 10 min.")
    obj = deployment(
        {"mode": "Fixed", "toZero": {"after": "10m"}},
        {"asleepSince": "2026-03-01T01:30:00Z", "lastDecisions": [DECISION | {"to": 0, "reason": "Nobody asked."}]},
        [asleep],
    )
    said = text(obj)
    assert said.startswith("chat: Fixed: "), "that it sleeps is nothing wrong"
    assert "  sleep: after 10m without a request; at most 256 requests wait up to 120s while it wakes" in said
    assert "decode 1 -> 0" in said
    assert "What was learnt" not in said


@pytest.mark.parametrize(
    ("condition", "first"),
    [
        (
            judged("ScalingActive", "True", "TargetOutOfReach", "Best: 2 s."),
            "! ScalingActive is True since 10 min: Targ",
        ),
        (
            judged("ScalingActive", "Unknown", "FiguresMissing", "No figures."),
            "! ScalingActive is Unknown since 10 min: ",
        ),
        (judged("Ready", "False", "NotReady", "0/1."), "! Ready is False since 10 min: NotReady: 0/1."),
        (judged("Degraded", "True", "RoleShort", "decode"), "! Degraded is True since 10 min"),
    ],
)
def test_what_is_wrong_comes_first(condition: Object, first: str) -> None:
    others = [one for one in CALM if one["type"] != condition["type"]]
    assert text(deployment(conditions=[*others, condition])).startswith(first)


def test_a_deployment_that_no_operator_has_seen_says_so() -> None:
    obj = deployment()
    obj["status"] = {}
    assert text(obj).startswith("! The status says nothing yet")


@pytest.mark.parametrize(
    ("mode", "who"), [("Fixed", "spec.roles[].replicas"), ("External", "kubectl scale infrole chat-prefill")]
)
def test_other_modes_say_who_decides_and_nothing_of_a_policy(mode: str, who: str) -> None:
    inactive = [judged("ScalingActive", "False", "NotConfigured", "The size of each role is fixed in the spec.")]
    said = text(deployment({"mode": mode}, conditions=inactive if mode == "Fixed" else CALM))
    assert said.startswith(f"chat: {mode}: ")
    assert who in said
    assert "Last decisions" not in said


def test_programs_get_the_names_of_the_api() -> None:
    said = as_json(told(deployment(decided={"sizes": SIZES, "lastDecisions": [DECISION] * 5, "model": MODEL}), NOW), 2)
    assert json.loads(json.dumps(said)) == said
    assert said["roles"][1]["decided"] == 2
    assert (said["roles"][1]["min"], said["roles"][1]["max"]) == (1, 8)
    assert said["lastDecisions"] == [DECISION | {"swap": False}] * 2
    assert said["model"] == MODEL
    assert said["wrong"] == []


def test_an_object_of_another_version_is_refused_with_its_field() -> None:
    with pytest.raises(click.ClickException, match=r"cannot be read: scaling.mode: .*as new as the operator"):
        told(deployment({"mode": "Oracle"}), NOW)


def test_help_names_its_options() -> None:
    result = CliRunner().invoke(main, ["explain", "--help"])
    assert result.exit_code == 0
    assert "--last" in result.output


def test_tables_and_columns_of_nothing() -> None:
    assert list(table(["A", "B"], [])) == ["A  B"]
    assert list(columns([], 80)) == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7500, "2 h 5 min"), (200_000, "2 d 7 h")],
)
def test_times_are_told_in_two_units_at_most(seconds: int, said: str) -> None:
    assert ago(timedelta(seconds=seconds)) == said
