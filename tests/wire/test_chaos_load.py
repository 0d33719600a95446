"""The load of the chaos suite before a simulated engine: what it writes down is what the engine did."""

import asyncio
from collections.abc import Sequence

import pytest

from chaos.client import loading, truths
from chaos.journal import Entry
from chaos.load import Plan
from chaos.oracle import fate
from chaos.questions import Shape, questions
from headrace_runtime.engine.fake import FakeEngine, Script

pytestmark = pytest.mark.slow

ASKED = questions("fake", Shape(count=8, answer=(4, 8), long=(50, 60)))


def here(command: Sequence[str]) -> list[str]:
    return list(command)


def journal(url: str, count: int, retries: int = 0) -> list[Entry]:
    with loading(Plan(url, ASKED, rate=50, retries=retries, run="r"), here) as load:
        load.wait_for_answers(count)
        return load.stop()


async def test_undisturbed_every_answer_is_the_true_one() -> None:
    async with FakeEngine(Script(itl=0.002)).serving() as url:
        right = await asyncio.to_thread(truths, Plan(url, ASKED, 0), here)
        entries = await asyncio.to_thread(journal, url, 16)
    assert {fate(entry, right[entry.question]) for entry in entries} == {"answered"}
    assert [entry.question for entry in sorted(entries, key=lambda one: one.scheduled)][:9] == [*range(8), 0]
    assert any(entry.token_ids for entry in entries)


async def test_streams_that_are_cut_or_refused_are_told_apart() -> None:
    engine = FakeEngine(Script(itl=0.002, fault="cut", at=2))
    async with engine.serving() as url:
        cut = await asyncio.to_thread(journal, url, 8)
        engine.become(fault="status")
        refused = await asyncio.to_thread(journal, url, 8)
    assert not any(entry.complete for entry in [*cut, *refused])
    assert {entry.status for entry in cut if ASKED[entry.question].streamed} == {200}
    assert {entry.status for entry in refused} == {503}
    assert {entry.tries for entry in refused} == {1}


async def test_a_client_that_retries_asks_again_only_what_was_refused() -> None:
    engine = FakeEngine(Script(itl=0.002, fault="status"))
    async with engine.serving() as url:
        refused = await asyncio.to_thread(journal, url, 2, 2)
    assert {entry.tries for entry in refused} == {3}


async def test_an_open_loop_sends_on_while_nothing_is_answered() -> None:
    engine = FakeEngine(Script(ttft=1.0))
    async with engine.serving() as url:
        entries = await asyncio.to_thread(journal, url, 1)
    assert len(entries) >= 30
