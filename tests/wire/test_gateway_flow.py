"""A gateway between a client and simulated engines, over loopback: a request's way, also when parts of it fail."""

import asyncio
from typing import Any

import orjson
import pytest

from headrace_runtime.contract import Resume
from headrace_runtime.engine.fake import FakeEngine
from headrace_runtime.gateway import assemble
from tests.wire.gateways import LONG, SHORT, TEXT, until, world


@pytest.mark.parametrize("stream", [True, False])
async def test_splits_a_long_prompt_and_says_who_took_part(stream: bool) -> None:
    async with world("prefill-0", "decode-0") as w:
        got = await w.ask(stream=stream)
        assert (got.status, got.text) == (200, TEXT)
        assert got.headers["x-headrace-prefill"] == "prefill-0"
        assert got.headers["x-headrace-decode"] == "decode-0"
        assert got.headers["x-headrace-revision"] == "r1"
        assert len(got.headers["x-request-id"]) == 32
        assert w.engines["prefill-0"].computed("local_compute") == len(LONG)
        assert w.engines["decode-0"].computed("external_kv_transfer") == len(LONG)
        assert w.engines["decode-0"].computed("local_compute") == 0
        assert w.metric("headrace_gateway_transfers_total", result="completed") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_sends_a_short_prompt_straight_to_decode(stream: bool) -> None:
    async with world("prefill-0", "decode-0") as w:
        got = await w.ask(prompt=SHORT, stream=stream)
        assert (got.status, got.text) == (200, TEXT)
        assert "x-headrace-prefill" not in got.headers
        assert w.engines["prefill-0"].seen == []
        assert w.engines["decode-0"].seen[0]["prompt"] == SHORT


async def test_answers_chats_in_one_piece_as_the_engine_would() -> None:
    messages = [{"role": "user", "content": "word " * 100}]
    async with world("prefill-0", "decode-0", "serve-0") as w:
        split = await w.ask("/v1/chat/completions", prompt=None, messages=messages, stream=False)
        assert split.headers["x-headrace-prefill"] == "prefill-0"
    async with world("serve-0") as w:
        whole = await w.ask("/v1/chat/completions", prompt=None, messages=messages, stream=False)
    ours, theirs = orjson.loads(split.body), orjson.loads(whole.body)
    assert theirs.pop("kv_transfer_params") is None
    assert ours | {"id": ""} == theirs | {"id": ""}


async def test_serves_an_aggregated_deployment() -> None:
    async with world("serve-0", "serve-1") as w:
        answers = await asyncio.gather(*(w.ask() for _ in range(8)))
        assert all(got.text == TEXT for got in answers)
        assert {got.headers["x-headrace-decode"] for got in answers} == {"serve-0", "serve-1"}


async def test_lets_a_prefill_engine_write_when_no_decode_engine_is_there() -> None:
    async with world("prefill-0") as w:
        got = await w.ask()
        assert (got.text, got.headers["x-headrace-decode"]) == (TEXT, "prefill-0")


async def test_a_canary_is_split_on_its_own_revision_however_short() -> None:
    places = {"prefill-1": {"revision": "r2"}, "decode-1": {"revision": "r2"}}
    async with world("prefill-0", "decode-0", "prefill-1", "decode-1", places=places) as w:
        got = await w.ask(prompt=SHORT, headers={"x-headrace-canary": "r2"})
        assert (got.headers["x-headrace-prefill"], got.headers["x-headrace-decode"]) == ("prefill-1", "decode-1")
        assert got.headers["x-headrace-revision"] == "r2"
        missing = await w.ask(headers={"x-headrace-canary": "r3"})
        assert (missing.status, missing.error["code"]) == (503, "no_engine_ready")


async def test_keeps_the_clients_request_id_and_gives_it_to_the_engines() -> None:
    async with world("decode-0") as w:
        assert (await w.ask(headers={"x-request-id": "mine-7"})).headers["x-request-id"] == "mine-7"
        assert (await w.ask(headers={"x-request-id": "bad id; drop"})).headers["x-request-id"] != "bad id; drop"


# Scenario A: before the first token, another engine is asked

FAULTS = [{"fault": "status"}, {"fault": "error_line"}, {"fault": "reset"}, {"fault": "cut", "at": 0}]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["fault"])
async def test_asks_another_engine_when_one_fails_before_its_first_token(fault: dict[str, Any]) -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(**fault)
        answers = [await w.ask() for _ in range(4)]
        assert [(got.status, got.text, got.headers["x-headrace-decode"]) for got in answers] == [
            (200, TEXT, "decode-1")
        ] * 4
        assert w.engines["decode-0"].seen


async def test_asks_another_engine_when_one_is_gone() -> None:
    async with world("decode-0", "decode-1") as w:
        async with FakeEngine().serving() as gone:
            pass
        slot = next(slot for slot in w.gateway.fleet.slots() if slot.endpoint.name == "decode-0")
        slot.endpoint = slot.endpoint.model_copy(update={"url": gone})
        answers = [await w.ask() for _ in range(4)]
        assert {(got.status, got.headers["x-headrace-decode"]) for got in answers} == {(200, "decode-1")}
        assert w.metric("headrace_gateway_retries_total", phase="decode", cause="connect") == 1  # then it is out


async def test_engines_that_were_all_lost_under_a_request_are_asked_again() -> None:
    async with world("decode-0", "decode-1", engine_wait_seconds=10.0) as w:
        for engine in w.engines.values():
            engine.become(fault="reset")
        asked = asyncio.create_task(w.ask(stream=False))
        await until(lambda: w.metric("headrace_gateway_retries_total", phase="decode", cause="reset") >= 2)
        for engine in w.engines.values():
            engine.become(fault="none")
        got = await asked
        assert (got.status, got.text) == (200, TEXT)


async def test_says_what_the_engine_said_when_all_fail() -> None:
    async with world("decode-0", "decode-1", max_retries=5) as w:
        for engine in w.engines.values():
            engine.become(fault="error_line", error_code=503)
        got = await w.ask()
        assert (got.status, got.error["message"]) == (503, "scripted refusal")
        assert got.headers["retry-after"] == "1"
        assert [len(engine.seen) for engine in w.engines.values()] == [1, 1]


async def test_asks_the_only_engine_again_as_often_as_it_may() -> None:
    async with world("decode-0", max_retries=2) as w:
        w.engines["decode-0"].become(fault="reset")
        got = await w.ask()
        assert (got.status, got.error["code"]) == (503, "engine_failed")
        assert got.headers["retry-after"] == "1"
        assert w.metric("headrace_gateway_retries_total", phase="decode", cause="reset") == 3


async def test_passes_a_refusal_on_without_asking_again() -> None:
    async with world("prefill-0", "decode-0", "decode-1") as w:
        got = await w.ask(prompt=list(range(5000)))
        assert (got.status, got.error["message"]) == (400, "This model's maximum context length is 4096 tokens")
        assert sum(len(engine.seen) for name, engine in w.engines.items() if name != "prefill-0") == 1


async def test_gives_a_late_refusal_its_real_status() -> None:
    async with world("decode-0") as w:
        w.engines["decode-0"].become(fault="error_line", error_code=400)
        got = await w.ask()
        assert (got.status, got.error["message"]) == (400, "scripted refusal")


async def test_without_an_engine_says_so_and_when_to_come_back() -> None:
    async with world() as w:
        got = await w.ask()
        assert (got.status, got.error["code"], got.headers["retry-after"]) == (503, "no_engine_ready", "1")


@pytest.mark.parametrize("stream", [True, False])
async def test_the_only_engine_is_waited_for_while_it_is_away(stream: bool) -> None:
    async with world("serve-0", engine_wait_seconds=30.0) as w:
        w.engines["serve-0"].become(fault="reset")
        asked = [asyncio.create_task(w.ask(stream=stream)) for _ in range(3)]
        await until(lambda: not w.gateway.fleet.slots()[0].healthy)
        w.engines["serve-0"].become(fault="none")
        assert [((got := await one).status, got.text) for one in asked] == [(200, TEXT)] * 3


async def test_the_only_engine_is_not_waited_for_longer_than_said() -> None:
    async with world("serve-0", engine_wait_seconds=0.5) as w:
        w.engines["serve-0"].become(fault="reset", healthy=False)
        got = await w.ask()
        assert (got.status, got.error["code"]) == (503, "engine_failed")


async def test_an_engine_that_goes_loses_its_waiting_requests() -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(fault="stall", at=0)
        asked = [asyncio.create_task(w.ask()) for _ in range(4)]
        silent = w.engines["decode-0"]
        await until(lambda: silent.running == 2)
        stays = [slot.endpoint for slot in w.gateway.fleet.slots() if slot.endpoint.name == "decode-1"]
        w.gateway.fleet.publish(stays)
        assert [(await one).headers["x-headrace-decode"] for one in asked] == ["decode-1"] * 4


# After the first token


async def test_a_broken_stream_ends_with_an_error_event_and_never_as_if_complete() -> None:
    async with world("decode-0", "decode-1") as w:
        for engine in w.engines.values():
            engine.become(fault="cut", at=2)
        got = await w.ask()
        assert got.status == 200
        events = list(assemble.events(got.body))
        assert [orjson.loads(event)["choices"][0]["text"] for event in events[:-1]] == [" t0", " t1"]
        assert orjson.loads(events[-1])["error"]["code"] == "engine_lost"
        assert b"[DONE]" not in got.body
        assert w.metric("headrace_gateway_requests_total", route="/v1/completions", code="200", outcome="broken") == 1


@pytest.mark.parametrize("resume", [None, Resume()], ids=["asked again", "resumed"])
async def test_an_answer_in_one_piece_is_whole_when_it_breaks(resume: Resume | None) -> None:
    async with world("prefill-0", "decode-0", "decode-1", resume=resume) as w:
        w.engines["decode-0"].become(fault="cut", at=2)
        for _ in range(3):
            got = await w.ask(stream=False)
            assert (got.status, got.text, got.headers["x-headrace-decode"]) == (200, TEXT, "decode-1")
            assert "token_ids" not in orjson.loads(got.body)["choices"][0]
        resumed = w.metric("headrace_gateway_resumes_total", result="resumed")
        assert 1 <= w.metric("headrace_gateway_retries_total", phase="decode", cause="reset") + resumed <= 3
        assert bool(resumed) == (resume is not None)


# Scenario B: prefill fails


@pytest.mark.parametrize(
    "fault",
    [{"fault": "status"}, {"fault": "reset"}, {"fault": "cut"}, {"fault": "stall"}],
    ids=lambda fault: fault["fault"],
)
async def test_decode_computes_the_prompt_when_prefill_fails(fault: dict[str, Any]) -> None:
    async with world("prefill-0", "decode-0", prefill_seconds=0.2) as w:
        w.engines["prefill-0"].become(**fault)
        got = await w.ask()
        assert (got.status, got.text) == (200, TEXT)
        assert "x-headrace-prefill" not in got.headers
        assert w.engines["decode-0"].computed("local_compute") == len(LONG)
        assert "kv_transfer_params" not in w.engines["decode-0"].seen[0]


async def test_another_prefill_engine_takes_over_before_decode_has_to() -> None:
    async with world("prefill-0", "prefill-1", "decode-0") as w:
        w.engines["prefill-0"].become(fault="status")
        for _ in range(4):
            assert (await w.ask()).headers["x-headrace-prefill"] == "prefill-1"


async def test_decode_computes_the_prompt_when_every_prefill_engine_fails() -> None:
    async with world("prefill-0", "prefill-1", "prefill-2", "decode-0", max_retries=1) as w:
        for name in ("prefill-0", "prefill-1", "prefill-2"):
            w.engines[name].become(fault="status")
        assert (await w.ask()).text == TEXT
        assert w.metric("headrace_gateway_prefill_fallbacks_total", cause="prefill_status") == 1


async def test_fails_clearly_when_prefill_fails_and_nothing_may_be_computed_again() -> None:
    async with world("prefill-0", "decode-0", on_transfer_failure="Fail") as w:
        w.engines["prefill-0"].become(fault="status")
        got = await w.ask()
        assert (got.status, got.error["code"]) == (502, "kv_transfer_failed")
        assert w.engines["decode-0"].seen == []


# Scenario C: the transfer fails


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("decodes", [1, 2])
async def test_a_hanging_transfer_is_given_up_and_never_replayed(stream: bool, decodes: int) -> None:
    names = [f"decode-{index}" for index in range(decodes)]
    async with world("prefill-0", *names, transfer_seconds=0.2) as w:
        for name in names:
            w.engines[name].become(fault="hang_transfer")
        got = await w.ask(stream=stream)
        assert (got.status, got.text) == (200, TEXT)
        assert "x-headrace-prefill" not in got.headers
        seen = [document for name in names for document in w.engines[name].seen]
        assert sorted("kv_transfer_params" in document for document in seen) == [False, True]
        assert len(w.engines["prefill-0"].seen) == 1
        assert w.metric("headrace_gateway_transfers_total", result="given_up") == 1
        await until(lambda: sum(w.engines[name].aborted for name in names) == 1)


async def test_a_slow_answer_in_one_piece_is_no_hanging_transfer() -> None:
    async with world("prefill-0", "decode-0", transfer_seconds=0.2) as w:
        w.engines["decode-0"].become(itl=0.1)
        got = await w.ask(stream=False)
        assert (got.text, got.headers["x-headrace-prefill"]) == (TEXT, "prefill-0")


async def test_fails_clearly_when_a_transfer_hangs_and_nothing_may_be_computed_again() -> None:
    async with world("prefill-0", "decode-0", transfer_seconds=0.2, on_transfer_failure="Fail") as w:
        w.engines["decode-0"].become(fault="hang_transfer")
        assert (await w.ask()).error["code"] == "kv_transfer_failed"
        assert len(w.engines["decode-0"].seen) == 1


async def test_a_decode_engine_that_fails_with_a_transfer_is_replaced_without_it() -> None:
    async with world("prefill-0", "decode-0", "decode-1") as w:
        for name in ("decode-0", "decode-1"):
            w.engines[name].become(fault="status")
        got = await w.ask()
        assert (got.text, got.headers["x-headrace-decode"]) == (TEXT, "prefill-0")
        seen = [document for name in ("decode-0", "decode-1") for document in w.engines[name].seen]
        assert sorted("kv_transfer_params" in document for document in seen) == [False, True]
        assert w.metric("headrace_gateway_prefill_fallbacks_total", cause="decode_status") == 1


# Scenario D: the client goes away


@pytest.mark.parametrize("fault", [{"ttft": 30.0}, {"itl": 30.0}], ids=["before the first token", "after it"])
async def test_a_client_that_leaves_frees_the_engines_slot(fault: dict[str, Any]) -> None:
    async with world("decode-0") as w:
        engine = w.engines["decode-0"]
        engine.become(**fault)
        asked = asyncio.create_task(w.ask())
        await until(lambda: engine.running == 1)
        asked.cancel()
        await until(lambda: engine.running == 0 and engine.aborted == 1)
        await until(lambda: w.metric("headrace_gateway_requests_in_flight") == 0)
        assert all(slot.load == 0 for slot in w.gateway.fleet.slots())


async def test_a_client_that_leaves_during_prefill_frees_that_slot() -> None:
    async with world("prefill-0", "decode-0") as w:
        w.engines["prefill-0"].become(ttft=30.0)
        asked = asyncio.create_task(w.ask())
        await until(lambda: w.engines["prefill-0"].running == 1)
        asked.cancel()
        await until(lambda: w.engines["prefill-0"].aborted == 1)
        assert w.engines["decode-0"].seen == []
