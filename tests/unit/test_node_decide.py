"""The agent's one step, as a table: what is seen, what is done, what the status says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_runtime.contract import Backoff, Engine, Model, NodeContract
from headrace_runtime.node.decide import (
    ADAPTERS_SECONDS,
    END_SECONDS,
    HEALTH_FAILURES,
    QUIET_SECONDS,
    STALL_SECONDS,
    STILL_SECONDS,
    TELL_SECONDS,
    Decision,
    EngineSeen,
    Seen,
    Verdict,
    decide,
    restart_delay,
)

NOW = 1000.0
CONTRACT = NodeContract(
    namespace="demo",
    deployment="chat",
    revision="r1",
    role="serve",
    model=Model(source="node:///m", served_name="m"),
    engine=Engine(device="cpu"),
    backoff=Backoff(base_seconds=5, max_seconds=60, max_restarts=3),
    drain_seconds=30,
    start_seconds=600,
)
READY = EngineSeen(started_at=NOW - 100, ready_at=NOW - 80)
CRASH = Verdict("EngineFailed", "the engine ended by SIGKILL")


def step(seen: Seen) -> Decision:
    return decide(seen, NOW, CONTRACT)


@pytest.mark.parametrize(
    ("seen", "act", "phase", "reason"),
    [
        pytest.param(Seen(weights="Usable", engine=READY), "Stay", "Ready", "", id="nothing to do"),
        pytest.param(Seen(), "Stay", "VerifyingWeights", "", id="no engine before the weights are read"),
        pytest.param(Seen(weights="Usable"), "Start", "StartingEngine", "", id="usable weights start the engine"),
        pytest.param(
            Seen(lacks=Verdict("EngineMissing", "no vLLM"), weights="Usable"),
            "Stay", "Failed", "EngineMissing", id="an image without an engine is said, not tried",
        ),
        pytest.param(
            Seen(weights=Verdict("DigestMismatch", "a.safetensors: SHA-256 is")),
            "Stay", "Failed", "DigestMismatch", id="wrong weights never start an engine",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(started_at=NOW - 10)),
            "Stay", "StartingEngine", "", id="a starting engine is given its time",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(started_at=NOW - 601)),
            "Kill", "BackOff", "EngineUnhealthy", id="an engine without a token is started anew after startSeconds",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 9, NOW - 5, ended="ended with exit code 0")),
            "Kill", "BackOff", "EngineFailed", id="exit code 0 is a failure too",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 9, NOW - 5, health_failures=HEALTH_FAILURES - 1)),
            "Stay", "Ready", "", id="a few failed health checks are borne",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 9, NOW - 5, health_failures=HEALTH_FAILURES)),
            "Kill", "BackOff", "EngineUnhealthy", id="too many failed health checks are not",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 99, NOW - 95, still_seconds=STILL_SECONDS - 0.1)),
            "Stay", "Ready", "", id="an engine may rest for a moment before it answers",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 99, NOW - 95, still_seconds=STILL_SECONDS)),
            "Kill", "BackOff", "EngineUnhealthy", id="an engine that owes an answer and does nothing hangs",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 99, NOW - 95, stalled_seconds=STALL_SECONDS - 1)),
            "Stay", "Ready", "", id="a step over a long prompt is given its time",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 99, NOW - 95, stalled_seconds=STALL_SECONDS)),
            "Kill", "BackOff", "EngineUnhealthy", id="an engine that lets nothing through hangs, however busy it is",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 9, NOW - 5), adapters_pending=True),
            "Stay", "StartingEngine", "", id="an engine is not ready before it has its adapters",
        ),
        pytest.param(
            Seen(weights="Usable", engine=EngineSeen(NOW - 99, NOW - ADAPTERS_SECONDS), adapters_pending=True),
            "Stay", "Ready", "", id="adapters that do not come hold no engine back for long",
        ),
        pytest.param(
            Seen(weights="Usable", failures=1, failed_at=NOW - 0.1, was_ready=True, failure=CRASH),
            "Start", "StartingEngine", "EngineFailed", id="an engine that was ready is started again at once",
        ),
        pytest.param(
            Seen(weights="Usable", failures=1, failed_at=NOW - 4.9, failure=CRASH),
            "Stay", "BackOff", "EngineFailed", id="one that was not waits for the backoff",
        ),
        pytest.param(
            Seen(weights="Usable", failures=3, failed_at=NOW - 19, failure=CRASH),
            "Stay", "BackOff", "EngineFailed", id="the third failure waits four times as long",
        ),
        pytest.param(
            Seen(weights="Usable", failures=3, failed_at=NOW - 20, failure=CRASH),
            "Start", "StartingEngine", "EngineFailed", id="and then the engine starts",
        ),
        pytest.param(
            Seen(weights="Usable", failures=4, failed_at=NOW - 9999, failure=CRASH),
            "Stay", "Failed", "RestartBudgetSpent", id="a spent budget ends it",
        ),
    ],
)  # fmt: skip
def test_one_step(seen: Seen, act: str, phase: str, reason: str) -> None:
    decision = step(seen)
    assert (decision.act, decision.phase, decision.reason) == (act, phase, reason)


@pytest.mark.parametrize(
    ("engine", "drained_for", "act"),
    [
        pytest.param(None, 0.0, "Leave", id="leaves when there is no engine"),
        pytest.param(READY, 1.0, "Stay", id="streams go on"),
        pytest.param(
            EngineSeen(NOW - 9, NOW - 5, quiet_seconds=QUIET_SECONDS), 3.0, "Terminate", id="ends it once it is quiet"
        ),
        pytest.param(READY, 30.0, "Terminate", id="ends it when the time is up"),
        pytest.param(EngineSeen(NOW - 9), 0.0, "Kill", id="an engine that never was ready has no streams"),
        pytest.param(EngineSeen(NOW - 9, NOW - 5, ended="ended by SIGKILL"), 1.0, "Kill", id="cleans up after a crash"),
        pytest.param(
            EngineSeen(NOW - 9, NOW - 5, terminated_at=NOW - 1, quiet_seconds=9),
            9.0,
            "Stay",
            id="lets it end by itself",
        ),
        pytest.param(
            EngineSeen(NOW - 99, NOW - 95, terminated_at=NOW - END_SECONDS), 99.0, "Kill", id="kills what does not end"
        ),
    ],
)
def test_a_drain(engine: EngineSeen | None, drained_for: float, act: str) -> None:
    decision = step(Seen(weights="Usable", engine=engine, draining_at=NOW - drained_for))
    assert (decision.act, decision.phase) == (act, "Draining")


def test_a_drain_says_what_it_cut() -> None:
    busy = replace(READY, requests=3)
    decision = step(Seen(weights="Usable", engine=busy, draining_at=NOW - 31))
    assert (decision.message, decision.cut) == ("requests cut after 30 s: 3", 3)
    decision = step(Seen(weights="Usable", engine=READY, draining_at=NOW - 31))
    assert (decision.message, decision.cut) == ("ended after 30 s, before it was quiet", 0)


@pytest.mark.parametrize(("drained_for", "act"), [(31.0, "Stay"), (30 + TELL_SECONDS, "Leave")])
def test_an_agent_that_cut_requests_stays_to_say_so(drained_for: float, act: str) -> None:
    assert step(Seen(weights="Usable", draining_at=NOW - drained_for, cut=3)).act == act


def test_an_engine_that_is_asked_to_answers_on_while_it_drains_however_quiet() -> None:
    quiet = replace(READY, quiet_seconds=9)
    decision = step(Seen(weights="Usable", engine=quiet, draining_at=NOW - 5, staying=True))
    assert (decision.act, decision.phase, decision.staying) == ("Stay", "Draining", True)


def test_but_not_into_the_second_half_of_the_time_which_is_for_what_was_asked_last() -> None:
    decision = step(Seen(weights="Usable", engine=READY, draining_at=NOW - 15, staying=True))
    assert (decision.act, decision.staying) == ("Stay", False)
    quiet = replace(READY, quiet_seconds=QUIET_SECONDS)
    assert step(Seen(weights="Usable", engine=quiet, draining_at=NOW - 15, staying=True)).act == "Terminate"


def test_an_engine_that_ended_stays_for_nobody() -> None:
    gone = replace(READY, ended="ended by SIGKILL")
    assert step(Seen(weights="Usable", engine=gone, draining_at=NOW - 1, staying=True)).act == "Kill"
    assert step(Seen(weights="Usable", draining_at=NOW - 1, staying=True)).act == "Leave"


def test_a_spent_budget_tells_the_last_failure() -> None:
    decision = step(Seen(weights="Usable", failures=4, failure=CRASH))
    assert decision.message == "gave up after 3 restarts; last: the engine ended by SIGKILL"


@given(
    failures=st.integers(0, 10_000),
    was_ready=st.booleans(),
    base=st.floats(0.1, 100),
    cap=st.floats(0.1, 1000),
)
def test_the_backoff_never_shrinks_and_never_passes_its_maximum(
    failures: int, was_ready: bool, base: float, cap: float
) -> None:
    backoff = Backoff(base_seconds=base, max_seconds=cap)
    delay = restart_delay(failures, was_ready, backoff)
    assert 0 <= delay <= cap
    assert delay <= restart_delay(failures + 1, was_ready, backoff)
    assert restart_delay(failures, True, backoff) <= restart_delay(failures, False, backoff)


@given(
    engine=st.none()
    | st.builds(
        EngineSeen,
        started_at=st.floats(0, NOW),
        ready_at=st.none() | st.floats(0, NOW),
        ended=st.sampled_from(["", "ended with exit code 0"]),
        health_failures=st.integers(0, 9),
        stalled_seconds=st.floats(0, 99),
        quiet_seconds=st.floats(0, 99),
        requests=st.integers(0, 9),
        terminated_at=st.none() | st.floats(0, NOW),
    ),
    weights=st.sampled_from(["Reading", "Usable", Verdict("DigestMismatch", "x")]),
    draining_at=st.none() | st.floats(0, NOW),
    failures=st.integers(0, 9),
)
def test_never_two_engines_and_none_from_weights_that_are_not_verified(
    engine: EngineSeen | None, weights: object, draining_at: float | None, failures: int
) -> None:
    failure = CRASH if failures else None
    decision = step(
        Seen(weights=weights, engine=engine, draining_at=draining_at, failures=failures, failure=failure)  # type: ignore[arg-type]
    )
    if decision.act == "Start":
        assert engine is None
        assert weights == "Usable"
        assert draining_at is None
    if decision.act in ("Kill", "Terminate"):
        assert engine is not None
    if decision.act == "Leave":
        assert draining_at is not None


# ---- weights that were found bad under a running engine

BAD = Verdict("DigestMismatch", "a.safetensors: SHA-256 is")


@pytest.mark.parametrize(
    ("engine", "act", "phase"),
    [
        (None, "Stay", "Failed"),
        (replace(READY, quiet_seconds=0.0), "Stay", "Draining"),
        (replace(READY, quiet_seconds=QUIET_SECONDS), "Terminate", "Draining"),
        (replace(READY, terminated_at=NOW - 1), "Stay", "Draining"),
        (replace(READY, terminated_at=NOW - END_SECONDS), "Kill", "Draining"),
        (replace(READY, ended="ended with exit code 0"), "Kill", "Draining"),
        (EngineSeen(started_at=NOW - 1), "Kill", "Draining"),
    ],
)
def test_an_engine_on_bad_weights_ends_its_streams_and_no_other_starts(
    engine: EngineSeen | None, act: str, phase: str
) -> None:
    decision = step(Seen(weights=BAD, refused_at=NOW - 10, engine=engine))
    assert (decision.act, decision.phase, decision.reason, decision.message) == (act, phase, BAD.reason, BAD.message)


def test_streams_on_bad_weights_have_no_longer_than_any_drain() -> None:
    late = Seen(weights=BAD, refused_at=NOW - CONTRACT.drain_seconds, engine=READY)
    assert step(late).act == "Terminate"


def test_a_fetch_has_a_phase_of_its_own() -> None:
    assert step(Seen(weights="Fetching")) == Decision("Stay", "FetchingWeights")
