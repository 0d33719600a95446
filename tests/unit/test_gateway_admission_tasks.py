"""Tasks at the way in: whoever leaves at whatever moment, places and turns are not lost."""

import asyncio
import contextlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from headrace_runtime.contract import Admission, GatewayContract, KeyRule, Limit
from headrace_runtime.gateway import admission, keys
from headrace_runtime.gateway.errors import NoKeyError, NotAdmittedError
from headrace_runtime.gateway.reload import Live
from headrace_runtime.gateway.telemetry import Record, Telemetry

MOST = 3


def door(rules: Admission) -> tuple[admission.Admission, Live]:
    """Of a gateway where `a` and `b` hold keys of their names."""
    contract = GatewayContract(namespace="n", deployment="d", served_name="s", keys_folder="/keys", admission=rules)
    live = Live(contract)
    live.keys = {keys.digest(name): name for name in "ab"}
    return admission.Admission(live, Telemetry(CollectorRegistry())), live


async def test_with_nobody_there_nothing_runs_and_nothing_waits() -> None:
    gate, _ = door(Admission())
    assert (gate.running, gate.waiting) == (0, 0)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 4))
async def test_places_are_bounded_and_come_back_whoever_leaves_when(seed: int, queue_length: int) -> None:
    rules = Admission(
        total=Limit(max_concurrent=MOST),
        each_key=KeyRule(limits=Limit(max_concurrent=2)),
        queue_length=queue_length,
    )
    gate, _ = door(rules)
    random = Random(seed)
    inside = 0

    async def client(name: str, stay: int) -> None:
        nonlocal inside
        caller = gate.caller({"authorization": f"Bearer {name}"})
        with contextlib.suppress(NotAdmittedError):
            async with gate.admitted(caller, Record("id", "/", 0.0), 1):
                inside += 1
                try:
                    assert inside <= MOST
                    for _ in range(stay):
                        await asyncio.sleep(0)
                finally:
                    inside -= 1

    tasks = []
    for _ in range(40):
        tasks.append(asyncio.create_task(client(random.choice("ab"), random.randrange(5))))
        if random.random() < 0.5:
            await asyncio.sleep(0)
        if random.random() < 0.3:
            random.choice(tasks).cancel()
        assert gate.waiting <= queue_length
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
    assert (gate.running, gate.waiting, inside) == (0, 0, 0)


async def test_one_who_is_told_to_go_and_leaves_in_the_same_moment_hands_its_turn_on() -> None:
    gate, _ = door(Admission(total=Limit(max_concurrent=1)))
    caller = gate.caller({"authorization": "Bearer a"})
    leave, entered = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def client(done: asyncio.Event) -> None:
        async with gate.admitted(caller, Record("id", "/", 0.0), 1):
            entered.set()
            await done.wait()
        tasks[1].cancel()  # the place was just given to it, and it has not run yet

    tasks.append(asyncio.create_task(client(leave)))
    await entered.wait()
    tasks += [asyncio.create_task(client(asyncio.Event())) for _ in range(2)]
    while gate.waiting < 2:
        await asyncio.sleep(0)
    entered.clear()
    leave.set()
    async with asyncio.timeout(10):
        await entered.wait()
    assert [task.done() for task in tasks] == [True, True, False]
    assert (gate.running, gate.waiting) == (1, 0)
    tasks[2].cancel()


async def test_a_key_that_was_taken_away_lets_nobody_in() -> None:
    gate, live = door(Admission())
    live.keys = {}
    gate.reload()
    with pytest.raises(NoKeyError):
        gate.caller({"authorization": "Bearer a"})
    assert gate.caller({"authorization": f"Bearer {gate.own_key}"}).exempt


@pytest.mark.parametrize("said", ["", "a", "Basic a", "Bearer", "Bearer ", "Bearer a b", "Bearer é"])
async def test_what_is_no_key_is_refused(said: str) -> None:
    gate, _ = door(Admission())
    with pytest.raises(NoKeyError):
        gate.caller({"authorization": said})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.12, "120ms"), (1.0, "1s"), (6.54, "6.5s"), (60.0, "1m0s"), (89.96, "1m30s")]
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert admission.duration(seconds) == text
