"""The loop of one object: wakes melt, failures back off, the end is the end."""

import asyncio
from collections.abc import Callable

import pytest

from headrace_operator import worker
from headrace_operator.errors import ClusterError, Conflict
from headrace_operator.state import Look, Ref
from headrace_operator.turns import Turns, Urgency
from headrace_operator.worker import Workers, backoff, resync_after

REF = Ref("demo", "chat", "uid-1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SETTLE_SECONDS", 0.0)


class Passes:
    """Passes that answer in turn, the last answer for ever."""

    def __init__(self, *answers: Look | Exception) -> None:
        self.answers = list(answers) or [Look()]
        self.count = 0
        self.running = 0
        self.most = 0
        self.asked: list[Ref] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, ref: Ref) -> Look:
        self.count += 1
        self.asked.append(ref)
        self.running += 1
        self.most = max(self.most, self.running)
        await self.go.wait()
        self.running -= 1
        answer = self.answers[min(self.count, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


async def quiet() -> None:
    """Let every task that can run do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_an_object_that_is_noticed_gets_one_pass() -> None:
    passes = Passes()
    workers = Workers(passes)
    workers.notice(REF, 1)
    await until(lambda: passes.count == 1)
    await quiet()
    assert passes.count == 1
    await workers.close()


async def test_the_same_generation_again_is_no_news() -> None:
    passes = Passes()
    workers = Workers(passes)
    workers.notice(REF, 1)
    await until(lambda: passes.count == 1)
    workers.notice(REF, 1)
    await quiet()
    assert passes.count == 1
    workers.notice(REF, 2)
    await until(lambda: passes.count == 2)
    await workers.close()


async def test_a_burst_during_a_pass_is_one_further_pass_and_never_two_at_once() -> None:
    passes = Passes()
    passes.go.clear()
    workers = Workers(passes)
    workers.notice(REF, 1)
    await until(lambda: passes.running == 1)
    for _ in range(20):
        workers.wake(REF.uid)
    passes.go.set()
    await until(lambda: passes.count == 2)
    await quiet()
    assert passes.count == 2
    assert passes.most == 1
    await workers.close()


@pytest.mark.parametrize(
    "failure",
    [
        ClusterError("GET x", 500, "InternalError", ""),
        RuntimeError("surprise"),
        Look(retry=True),
        Conflict("x", 409, "", ""),
    ],
)
async def test_a_failed_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, failure: Look | Exception) -> None:
    monkeypatch.setattr(worker, "backoff", lambda failures: 0.001)
    passes = Passes(failure, failure, Look())
    workers = Workers(passes)
    workers.notice(REF, 1)
    await until(lambda: passes.count == 3)
    await quiet()
    assert passes.count == 3
    await workers.close()


async def test_a_wake_breaks_off_the_pause_after_a_failure() -> None:
    passes = Passes(Look(retry=True))
    workers = Workers(passes)
    workers.notice(REF, 1)
    await until(lambda: passes.count == 1)
    workers.wake(REF.uid)
    async with asyncio.timeout(0.4):
        await until(lambda: passes.count == 2)
    await workers.close()


async def test_nobody_wakes_it_and_it_looks_again_all_the_same() -> None:
    passes = Passes()
    workers = Workers(passes, resync_seconds=0.001)
    workers.notice(REF, 1)
    await until(lambda: passes.count > 3)
    await workers.close()


async def test_an_object_that_is_gone_has_no_worker() -> None:
    passes = Passes(Look(ended=True))
    workers = Workers(passes)
    workers.notice(REF, 1)
    await until(lambda: len(workers) == 0)
    workers.wake(REF.uid)
    await quiet()
    assert passes.count == 1


async def test_an_end_breaks_off_a_running_pass() -> None:
    passes = Passes()
    passes.go.clear()
    workers = Workers(passes)
    workers.notice(REF, 1)
    await until(lambda: passes.running == 1)
    workers.end(REF.uid)
    await quiet()
    assert len(workers) == 0
    assert {t.get_name() for t in asyncio.all_tasks()}.isdisjoint({f"worker {REF}"})


async def test_no_more_passes_at_once_than_allowed() -> None:
    passes = Passes()
    passes.go.clear()
    workers = Workers(passes, concurrency=3)
    for number in range(10):
        workers.notice(Ref("demo", f"chat-{number}", f"uid-{number}"), 1)
    await until(lambda: passes.running == 3)
    passes.go.set()
    await until(lambda: passes.count == 10)
    assert passes.most == 3
    await workers.close()


async def order_of(workers: Workers, passes: Passes, *news: Callable[[], None]) -> list[str]:
    """In which order passes are made where one at a time may, and all of the news has come while one was under way."""
    passes.go.clear()
    workers.notice(Ref("demo", "first", "first"), 1)
    await until(lambda: passes.running == 1)
    for tell in news:
        tell()
        await quiet()
    passes.go.set()
    await until(lambda: passes.count == len(workers))
    return [ref.name for ref in passes.asked[1:]]


async def test_an_edit_goes_before_objects_that_were_there_when_the_operator_started() -> None:
    passes = Passes()
    workers = Workers(passes, concurrency=1)
    old = [Ref("demo", name, name) for name in ("old-1", "old-2", "edited")]
    listed = [lambda ref=ref: workers.notice(ref, 1) for ref in old]
    made = Ref("demo", "made", "made")
    news = [*listed, lambda: workers.notice(made, 1, fresh=True), lambda: workers.notice(old[2], 2)]
    assert await order_of(workers, passes, *news) == ["made", "edited", "old-1", "old-2"]
    await workers.close()


async def test_a_change_of_a_child_goes_before_a_resync() -> None:
    turns, went = Turns(1), []

    async def go(key: str, urgency: Urgency) -> None:
        async with turns.turn(key, urgency):
            went.append(key)

    async with turns.turn("holder", Urgency.ROUTINE):
        keys = [("resync", Urgency.ROUTINE), ("child", Urgency.CHANGE), ("edit", Urgency.EDIT)]
        tasks = [asyncio.create_task(go(*key)) for key in keys]
        await quiet()
    await asyncio.wait(tasks)
    assert went == ["edit", "child", "resync"]


async def test_one_that_ends_while_it_waits_keeps_nobody_from_a_turn() -> None:
    turns, went = Turns(1), []

    async def go(key: str, urgency: Urgency) -> None:
        async with turns.turn(key, urgency):
            went.append(key)
            await quiet()

    async with turns.turn("holder", Urgency.ROUTINE):
        tasks = {key: asyncio.create_task(go(key, Urgency.ROUTINE)) for key in ("a", "b", "c")}
        await quiet()
        turns.hurry("c", Urgency.EDIT)
        tasks["a"].cancel()
        await quiet()
    # In the same moment as it is its turn.
    tasks["c"].cancel()
    await asyncio.wait(tasks.values())
    assert went == ["b"]
    async with asyncio.timeout(5), turns.turn("last", Urgency.ROUTINE):
        pass


def test_pauses_grow_and_end_growing() -> None:
    assert [backoff(n) for n in range(6)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert backoff(1000) == 60.0


def test_few_objects_are_looked_at_again_as_often_as_is_set_and_many_less_often() -> None:
    assert resync_after(60.0, 1) == 60.0
    assert resync_after(60.0, 1000) == 500.0


async def test_children_that_change_one_after_the_other_are_one_reason_and_an_edit_does_not_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    passes = Passes()
    workers = Workers(passes)
    workers.notice(REF, 1, fresh=True)
    await until(lambda: passes.count == 1)
    monkeypatch.setattr(worker.asyncio, "sleep", counted)
    workers.wake(REF.uid)
    while passes.count < 2:
        await sleep(0.001)
    assert len(slept) == worker.SETTLES
    workers.wake(REF.uid)
    workers.notice(REF, 2)
    while passes.count < 3:
        await sleep(0.001)
    assert len(slept) == worker.SETTLES + 1
    workers.edited(REF.uid)
    while passes.count < 4:
        await sleep(0.001)
    assert len(slept) == worker.SETTLES + 2
    monkeypatch.undo()
    await workers.close()
