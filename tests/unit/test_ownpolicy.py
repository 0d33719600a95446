"""Own policies, each in a process: whatever one does, there is an answer within bounds that says what happened."""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from headrace_operator import policies
from headrace_operator.api.conditions import Reason
from headrace_operator.errors import SettingsError
from headrace_operator.ownpolicy import process
from headrace_operator.ownpolicy.loading import NotLoadedError, load
from headrace_operator.ownpolicy.process import Failure, Limits, answer_in
from headrace_operator.plan.scaling import Aim, Answer, Ask, Role, Target, Window, decide
from headrace_operator.plan.scaling.wire import ask_to_json
from headrace_operator.policies import FIRST_PAUSE, LATELY_SECONDS, Policy
from headrace_operator.settings import Settings
from headrace_operator.settings import load as load_settings

POLICIES = """
import os, sys, time
from headrace_operator.plan.scaling import Answer, Ask, decide

print("imported")

def more(ask: Ask) -> Answer:
    print("asked", file=sys.stderr)
    return Answer({role.name: role.size + 1 for role in ask.roles}, "Sized", f"By process {os.getpid()}.")

def like_yours(ask):
    return decide(ask)

def raises(ask):
    return {}[ask.roles[0].name]

def leaves(ask):
    sys.exit(3)

def dies(ask):
    os._exit(7)

def loops(ask):
    while True:
        pass

def eats(ask):
    return bytearray(2**34)

def babbles(ask):
    return Answer({}, "Sized", "x" * 10**7)

def untyped(ask):
    return {"prefill": 3}

def odd(ask):
    return Answer({"prefill": 2.5}, "Sized", "")

def mistaken(ask):
    return Answer({"prefil": 3}, "Sized", "")

def writes(ask):
    with open(__file__ + ".txt", "w") as file:
        file.write("something")

def tells(ask):
    return Answer({}, "Sized", " ".join(sorted(os.environ)) + " " + os.getcwd())

def forges(ask):
    for number in range(3, 64):
        try:
            os.write(number, b"a line of its own\\n")
        except OSError:
            pass

def fenced(ask):
    import resource
    kinds = "CORE", "DATA", "FSIZE", "NOFILE", "NPROC"
    limits = {kind: resource.getrlimit(getattr(resource, f"RLIMIT_{kind}")) for kind in kinds}
    return Answer({}, "Sized", str(limits))

def picky(ask):
    if ask.windows:
        raise ValueError(f"{ask.windows[0].requests} requests")
    return Answer({"prefill": 4}, "Sized", "")

number = 3
"""

WINDOWS = tuple(
    Window(30.0 * place, 30.0, requests=30.0, prompt=500.0, long_prompt=800.0, output=50.0) for place in range(20)
)
ASK = Ask(
    Aim(Target(0.5), Target(0.05)),
    (Role("prefill", 2, 1, 4, ready=2), Role("decode", 2, 1, 4, ready=2)),
    WINDOWS,
)
PATIENT = Limits(seconds=60.0, start_seconds=120.0)
pytestmark = pytest.mark.timeout(300)  # a process is started in half a second, and in ten where the machine is busy

Asking = Callable[..., Policy]


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    """Makes a `Policy` that knows the policies above, as `my:name`."""
    (tmp_path / "my.py").write_text(POLICIES)
    (tmp_path / "json.py").write_text("raise RuntimeError('in place of ours')\n")
    made: list[Policy] = []

    def make(*names: str, limits: Limits = PATIENT, now: Callable[[], float] = lambda: 0.0) -> Policy:
        made.append(Policy(names, replace(limits, folder=str(tmp_path)), now))
        return made[-1]

    yield make
    for one in made:
        await one.close()


def failures(name: str, reason: str) -> float:
    labels = {"policy": name, "reason": reason}
    return REGISTRY.get_sample_value("headrace_policy_failures_total", labels) or 0.0


async def test_the_built_in_policy_needs_no_process(asking: Asking) -> None:
    answer = await asking().decide("builtin", ASK)
    assert (answer, answer.policy) == (decide(ASK), "builtin")


async def test_an_own_policy_decides_and_one_process_is_kept_for_it(asking: Asking) -> None:
    policy = asking("my:more")
    first, second = await policy.decide("my:more", ASK), await policy.decide("my:more", ASK)
    assert first == second, "the same process"
    assert (first.policy, dict(first.sizes)) == ("my:more", {"prefill": 3, "decode": 3})
    assert [one.reason for one in first.decisions] == ["It gave no reason."] * 2
    pid = int(first.message.removesuffix(".").split()[-1])
    os.kill(pid, 0)
    await policy.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (await policy.decide("my:more", ASK)).message != first.message, "asked again, it starts anew"


@pytest.mark.slow
async def test_many_deployments_may_ask_one_policy_at_once(asking: Asking) -> None:
    policy = asking("my:more")
    answers = await asyncio.gather(*(policy.decide("my:more", ASK) for _ in range(8)))
    assert len({answer.message for answer in answers}) == 1


async def test_a_policy_that_the_operator_does_not_list_is_not_loaded(asking: Asking) -> None:
    answer = await asking("my:more").decide("os:abort", ASK)
    assert (answer.verdict, answer.policy, answer.sizes) == (Reason.POLICY_FAILED, "builtin", decide(ASK).sizes)
    assert answer.message.startswith("os:abort is not one that this operator may load (its setting HEADRACE_POLICIES).")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("my:missing", "NotLoaded", "cannot be imported: my has no missing."),
        ("nowhere:policy", "NotLoaded", "ModuleNotFoundError: No module named 'nowhere'."),
        ("my:number", "NotLoaded", "is not an ordinary function from Ask to Answer."),
        ("my:raises", "Raised", "raised KeyError in my.py, line"),
        ("my:leaves", "Raised", "raised SystemExit in my.py, line"),
        ("my:writes", "Raised", "raised OSError in my.py, line"),
        ("my:eats", "Raised", "raised MemoryError."),
        ("my:dies", "Ended", "ended its process (exit status 7)."),
        ("my:babbles", "Nonsense", "answered nonsense: more than 262144 bytes."),
        ("my:forges", "Nonsense", "answered nonsense: no JSON."),
        ("my:untyped", "Nonsense", "answered nonsense: dict in place of an Answer."),
        ("my:odd", "Nonsense", "answered nonsense: sizes.prefill: Input should be a valid integer"),
        ("my:mistaken", "Nonsense", "sizes has a role that there is not; there are: prefill, decode."),
    ],
)
async def test_where_it_fails_the_built_in_policy_answers_and_says_why(
    asking: Asking, name: str, kind: str, said: str
) -> None:
    before = failures(name, kind)
    answer = await asking(name).decide(name, ASK)
    assert answer.message.startswith(f"{name} ")
    assert said in answer.message
    assert (answer.verdict, answer.policy, answer.sizes) == (Reason.POLICY_FAILED, "builtin", decide(ASK).sizes)
    assert failures(name, kind) == before + 1


@pytest.mark.slow
async def test_one_that_loops_is_ended_and_started_again_after_a_growing_pause(asking: Asking) -> None:
    clock = 0.0
    quick = replace(PATIENT, seconds=0.2)
    policy = asking("my:loops", limits=quick, now=lambda: clock)

    async def tried() -> bool:
        before = failures("my:loops", "TooSlow")
        answer = await policy.decide("my:loops", ASK)
        assert "my:loops took more than 0.2 s." in answer.message
        return failures("my:loops", "TooSlow") > before

    assert await tried()
    assert not await tried(), "not at once"
    clock += FIRST_PAUSE
    assert await tried()
    clock += FIRST_PAUSE
    assert not await tried(), "the second pause is longer"


@pytest.mark.slow
async def test_a_policy_that_fails_now_and_then_makes_no_role_smaller_by_that(
    asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clock = 0.0
    policy = asking("my:picky", now=lambda: clock)
    large = replace(ASK, roles=tuple(replace(role, size=4, ready=4) for role in ASK.roles))
    assert decide(large).sizes["prefill"] < 4
    assert (await policy.decide("my:picky", replace(large, windows=()))).policy == "my:picky"
    for _ in range(3):
        answer = await policy.decide("my:picky", large)
        assert (dict(answer.sizes), answer.decisions) == ({"prefill": 4, "decode": 4}, ())
        assert "raised ValueError in my.py" in answer.message
        assert "30.0 requests" not in answer.message, "what changes each time would be a write of the status each time"
    (record,) = caplog.records
    assert "my:picky raised ValueError in my.py" in record.message
    assert "30.0 requests; the built-in policy answers" in record.message
    clock += LATELY_SECONDS
    assert (await policy.decide("my:picky", large)).sizes == decide(large).sizes


@pytest.mark.slow
async def test_it_sees_nothing_of_the_operators_environment(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", "a secret")
    answer = await asking("my:tells").decide("my:tells", ASK)
    assert "HEADRACE" not in answer.message
    assert "KUBERNETES" not in answer.message
    assert answer.message.endswith(" /")


@pytest.mark.slow
async def test_its_limits_are_set_before_it_is_imported_and_cannot_be_raised(asking: Asking) -> None:
    answer = await asking("my:fenced").decide("my:fenced", ASK)
    memory = PATIENT.memory_bytes
    limits = {"CORE": (0, 0), "DATA": (memory, memory), "FSIZE": (0, 0), "NOFILE": (64, 64), "NPROC": (0, 0)}
    assert answer.message == f"my:fenced: {limits}"


@pytest.mark.slow
async def test_who_waits_too_long_for_a_turn_is_answered_by_the_built_in_policy(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "TURN_SECONDS", 0.01)
    policy = asking("my:more")
    first, second = await asyncio.gather(policy.decide("my:more", ASK), policy.decide("my:more", ASK))
    assert (first.policy, second.policy) == ("my:more", "builtin"), "the first one starts the process"
    assert "my:more is busy with other deployments." in second.message


@pytest.mark.slow
async def test_a_process_that_nothing_asks_any_more_ends_and_comes_again(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "IDLE_SECONDS", 0.05)
    policy = asking("my:more")
    first = await policy.decide("my:more", ASK)
    pid = int(first.message.removesuffix(".").split()[-1])
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.02)
    again = await policy.decide("my:more", ASK)
    assert (again.policy, again.message != first.message) == ("my:more", True)


@pytest.mark.slow
async def test_one_that_loops_ends_itself_where_nobody_does(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(POLICIES)
    words = [sys.executable, "-P", "-m", "headrace_operator.ownpolicy.child", "my:loops", "50", "0.2", f"{2**28}"]
    child = await asyncio.create_subprocess_exec(*words, str(tmp_path), stdin=PIPE, stdout=PIPE)
    asked = json.dumps({"number": 1, "ask": ask_to_json(ASK)})
    said, _ = await child.communicate(f"{asked}\n".encode())
    assert (json.loads(said), child.returncode) == ({"ready": True}, -signal.SIGALRM)


lines = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["number", "answer", "raised", "sizes", "verdict", "spent"]), inner)
    ),
).map(lambda value: json.dumps(value).encode())


@given(lines)
@settings(deadline=None)
def test_whatever_a_process_says_is_an_answer_or_a_failure(line: bytes) -> None:
    assert isinstance(answer_in(line, 1), Answer | Failure)


def test_a_line_that_is_nested_without_end_is_nonsense() -> None:
    told = answer_in(b"[" * 100_000, 1)
    assert isinstance(told, Failure)
    assert told.kind == "Nonsense"


@pytest.mark.slow
async def test_an_ask_that_is_broken_off_leaves_no_answer_behind(asking: Asking) -> None:
    policy = asking("my:more")
    first = await policy.decide("my:more", ASK)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await policy.decide("my:more", ASK)
    again = await policy.decide("my:more", replace(ASK, windows=()))
    assert again.policy == "my:more"
    assert again.message != first.message, "another process"


def test_settings_list_policies_and_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_POLICIES", "steady:decide, acme.night:decide")
    monkeypatch.setenv("HEADRACE_POLICY_SECONDS", "0.5")
    monkeypatch.setenv("HEADRACE_POLICY_MEMORY", "1Gi")
    monkeypatch.setenv("HEADRACE_POLICY_PATH", "/etc/headrace/policies")
    found = load_settings()
    assert found.policy_names == {"steady:decide", "acme.night:decide"}
    assert found.policy_limits == Limits(0.5, 2**30, "/etc/headrace/policies")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("POLICIES", "steady", "HEADRACE_POLICIES: String should match pattern"),
        ("POLICY_MEMORY", "1Mi", "HEADRACE_POLICY_MEMORY: Value error, Python alone needs 64Mi"),
        ("POLICY_SECONDS", "0", "HEADRACE_POLICY_SECONDS: Input should be greater than or equal to 0.01"),
    ],
)
def test_wrong_settings_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    assert Settings().policy_names == frozenset()
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_the_loader_says_what_is_wrong_with_a_name() -> None:
    assert load("builtin") is decide
    assert load("headrace_operator.plan.scaling:decide") is decide
    for name, said in {
        "decide": "is not of the form",
        "os:": "is not of the form",
        "no.such:thing": "cannot be imported: ModuleNotFoundError",
        "os:path": "is not an ordinary function",
    }.items():
        with pytest.raises(NotLoadedError, match=said):
            load(name)
