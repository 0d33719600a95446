"""A gateway without engines that holds requests until some come: over HTTP, with simulated engines."""

import asyncio
import contextlib
from pathlib import Path

from headrace_runtime.contract import Admission, Endpoint, GatewayFigures, Hold, Limit
from headrace_runtime.gateway import polls
from tests.wire.gateways import LONG, TEXT, Got, World, until, world

HOLD = Hold(requests=50, seconds=60.0)
STORM = 90
"""As many connections as the client of these tests opens."""


def endpoints(w: World, *names: str) -> list[Endpoint]:
    return [slot.endpoint for slot in w.gateway.fleet.slots() if not names or slot.endpoint.name in names]


def waiting(w: World) -> float:
    return w.metric("headrace_gateway_queue_length")


async def held(w: World, number: int, **fields: object) -> "list[asyncio.Task[Got]]":
    """So many requests, one after the other, all of which wait."""
    tasks = []
    for _ in range(number):
        already = waiting(w)
        tasks.append(asyncio.create_task(w.ask(**fields)))
        await until(lambda already=already: waiting(w) == already + 1, seconds=20)
    return tasks


async def test_where_nothing_is_held_a_request_without_an_engine_is_refused_at_once() -> None:
    async with world("serve-0") as w:
        w.gateway.fleet.publish(())
        got = await w.ask()
        assert (got.status, got.error["code"], got.headers["retry-after"]) == (503, "no_engine_ready", "1")
        async with w.client.get(f"{w.url}/health") as answer:
            assert answer.status == 503


async def test_requests_wait_for_an_engine_and_are_answered_in_their_order() -> None:
    one = Admission(total=Limit(max_concurrent=1))
    async with world("serve-0", hold=HOLD, admission=one) as w:
        there = endpoints(w)
        w.gateway.fleet.publish(())
        async with w.client.get(f"{w.url}/health") as answer:
            assert answer.status == 200  # who asks is answered, in time
        tasks = []
        for number in range(5):
            tasks += await held(w, 1, prompt=[number])
        w.gateway.fleet.publish(there)
        answers = await asyncio.gather(*tasks)
        assert [got.text for got in answers] == [TEXT] * 5
        assert [body["prompt"] for body in w.engines["serve-0"].seen] == [[number] for number in range(5)]


async def test_the_first_engine_answers_though_its_partner_is_not_there_yet() -> None:
    async with world("prefill-0", "decode-0", hold=HOLD) as w:
        both = endpoints(w)
        w.gateway.fleet.publish(())
        (task,) = await held(w, 1)
        w.gateway.fleet.publish([one for one in both if one.role == "decode"])
        got = await task
        assert (got.status, got.headers["x-headrace-decode"]) == (200, "decode-0")
        assert "x-headrace-prefill" not in got.headers
        w.gateway.fleet.publish(both)
        await until(lambda: len([slot for slot in w.gateway.fleet.slots() if slot.routable]) == 2, seconds=20)
        assert (await w.ask()).headers["x-headrace-prefill"] == "prefill-0"


async def test_beyond_the_bound_and_beyond_the_time_a_request_is_refused_and_told_when_to_come_back() -> None:
    async with world("serve-0", hold=Hold(requests=1, seconds=4.0)) as w:
        w.gateway.fleet.publish(())
        (first,) = await held(w, 1)
        got = await w.ask()
        assert (got.status, got.error["code"]) == (503, "overloaded")
        assert 1 <= int(got.headers["retry-after"]) <= 4
        assert "No engine is running, and 1 requests wait" in got.error["message"]
        late = await first
        assert (late.status, late.error["message"]) == (
            503,
            "No engine is running, and the request has waited its time for one.",
        )
        assert w.metric("headrace_gateway_not_admitted_total", cause="hold_wait") == 1
        assert w.metric("headrace_gateway_not_admitted_total", cause="hold_full") == 1


async def test_a_client_that_leaves_makes_room() -> None:
    async with world("serve-0", hold=Hold(requests=1, seconds=60.0)) as w:
        there = endpoints(w)
        w.gateway.fleet.publish(())
        (first,) = await held(w, 1)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        await until(lambda: waiting(w) == 0, seconds=20)
        (second,) = await held(w, 1)
        w.gateway.fleet.publish(there)
        assert (await second).status == 200


async def test_a_storm_on_a_gateway_without_engines_is_held_and_answered_to_the_last() -> None:
    async with world("serve-0", hold=Hold(requests=STORM, seconds=60.0)) as w:
        there = endpoints(w)
        w.gateway.fleet.publish(())
        tasks = [asyncio.create_task(w.ask(prompt=[number])) for number in range(STORM)]
        await until(lambda: waiting(w) == STORM, seconds=30)
        w.gateway.fleet.publish(there)
        assert {got.status for got in await asyncio.gather(*tasks)} == {200}


async def test_a_request_that_was_let_in_when_the_last_engine_left_waits_for_the_next() -> None:
    """It refuses what comes, as one that ends does, and the gateway is told so only then."""
    async with world("serve-0", hold=HOLD) as w:
        there = endpoints(w)
        w.engines["serve-0"].become(fault="stall")
        task = asyncio.create_task(w.ask(prompt=LONG))
        await until(lambda: w.engines["serve-0"].running == 1, seconds=20)
        w.gateway.fleet.publish(())
        await until(lambda: waiting(w) == 1, seconds=20)
        w.engines["serve-0"].become(fault=None)
        w.gateway.fleet.publish(there)
        got = await task
        assert (got.status, got.text) == (200, TEXT)


async def test_what_an_engine_that_drains_computes_goes_on_and_what_comes_is_held() -> None:
    async with world("serve-0", hold=HOLD) as w:
        (there,) = endpoints(w)
        w.engines["serve-0"].become(itl=0.05)
        first = asyncio.create_task(w.ask(max_tokens=20))
        await until(lambda: w.engines["serve-0"].running == 1, seconds=20)
        w.gateway.fleet.publish([there.model_copy(update={"draining": True})])
        (second,) = await held(w, 1)
        assert (await first).status == 200
        assert not second.done()
        # Asked to stay on, it takes requests as the last of its role.
        w.gateway.fleet.publish([there.model_copy(update={"draining": True, "stays": True})])
        assert (await second).status == 200


async def test_the_operators_question_waits_for_nothing() -> None:
    async with world("serve-0", hold=HOLD) as w:
        w.gateway.fleet.publish(())
        url = f"http://127.0.0.1:{w.gateway.admin_port}/canary"
        async with w.client.post(url, json={"revision": "r1"}) as answer:
            assert answer.status == 503
        assert waiting(w) == 0


async def test_what_holds_is_changed_while_the_gateway_runs() -> None:
    async with world("serve-0") as w:
        w.gateway.fleet.publish(())
        assert (await w.ask()).status == 503
        live = w.gateway._live
        live.contract = live.contract.model_copy(update={"hold": HOLD})
        w.gateway._reloaded("contract", "changed")
        (task,) = await held(w, 1)
        live.contract = live.contract.model_copy(update={"hold": None})
        w.gateway._reloaded("contract", "changed")
        assert (await task).status == 503


# How whoever decides about engines hears of it


async def figures(w: World, **query: object) -> tuple[int, GatewayFigures | None]:
    said = {name: str(value) for name, value in query.items()}
    async with w.client.get(f"http://127.0.0.1:{w.gateway.admin_port}/figures", params=said) as answer:
        text = await answer.read()
        return answer.status, GatewayFigures.model_validate_json(text) if answer.status == 200 else None


async def told(w: World, **query: object) -> GatewayFigures:
    status, found = await figures(w, **query)
    assert status == 200
    assert found is not None
    assert found.demand is not None
    return found


async def polling(w: World, seen: GatewayFigures) -> "asyncio.Task[GatewayFigures]":
    assert seen.demand is not None
    task = asyncio.create_task(told(w, start=seen.start, requests=seen.demand.requests, wait=60))
    await until(lambda: len(w.gateway._polls._waiting) > 0, seconds=20)
    return task


async def test_figures_tell_whether_requests_are_held() -> None:
    async with world("serve-0", hold=HOLD) as w, world("serve-0") as other:
        assert ((await told(w)).holds, (await told(other)).holds) == (50, 0)


async def test_a_poll_without_news_is_answered_when_its_time_is_over() -> None:
    async with world("serve-0", hold=HOLD) as w:
        seen = await told(w)
        again = await told(w, start=seen.start, requests=0, wait=0.2)
        assert again.seconds - seen.seconds >= 0.2
        assert (again.start, again.demand.requests if again.demand else None) == (seen.start, 0)


async def test_a_poll_is_answered_by_the_first_request_and_the_operators_question_is_none() -> None:
    async with world("serve-0", hold=HOLD) as w:
        task = await polling(w, await told(w))
        url = f"http://127.0.0.1:{w.gateway.admin_port}/canary"
        async with w.client.post(url, json={"revision": "r1"}) as answer:
            assert answer.status == 200
        assert not task.done()
        assert (await told(w)).running == 0
        assert (await w.ask()).status == 200
        found = await task
        assert found.demand is not None
        assert found.demand.requests == 1


async def test_a_poll_is_answered_by_a_request_that_is_held_and_at_once_while_it_is() -> None:
    async with world("serve-0", hold=HOLD) as w:
        there = endpoints(w)
        w.gateway.fleet.publish(())
        task = await polling(w, await told(w))
        (request,) = await held(w, 1)
        found = await task
        assert (found.waiting, found.demand.idle if found.demand else None) == (1, 0.0)
        assert (await told(w, start=found.start, requests=1, wait=60)).waiting == 1
        w.gateway.fleet.publish(there)
        assert (await request).status == 200


async def test_a_request_without_a_key_is_nobody_to_wake_for(tmp_path: Path) -> None:
    (tmp_path / "team").write_text("sk-a\n")
    async with world("serve-0", hold=HOLD, keys_folder=str(tmp_path)) as w:
        w.gateway.fleet.publish(())
        task = await polling(w, await told(w))
        assert (await w.ask()).status == 401
        assert (await w.ask(headers={"authorization": "Bearer sk-a"}, model="another")).status == 404
        assert not task.done()
        request = asyncio.create_task(w.ask(headers={"authorization": "Bearer sk-a"}))
        assert (await task).waiting == 1
        request.cancel()


async def test_who_polls_another_process_than_it_thinks_hears_so_at_once() -> None:
    async with world("serve-0", hold=HOLD) as w:
        assert (await told(w, start="another", requests=7, wait=60)).start != "another"


async def test_polls_are_bounded_in_number_and_time() -> None:
    async with world("serve-0", hold=HOLD) as w:
        seen = await told(w)
        for query in ({"wait": 3600}, {"wait": "nan"}, {"requests": -1}, {"requests": "x"}, {"what": 1}):
            assert (await figures(w, **query))[0] == 400
        tasks = [asyncio.create_task(told(w, start=seen.start, wait=60)) for _ in range(polls.MOST)]
        await until(lambda: len(w.gateway._polls._waiting) == polls.MOST, seconds=20)
        assert (await told(w, start=seen.start, wait=60)).start == seen.start
        assert (await w.ask()).status == 200
        await asyncio.gather(*tasks)


async def test_a_gateway_that_ends_keeps_nobody_waiting() -> None:
    async with asyncio.timeout(30):
        async with world("serve-0", hold=HOLD) as w:
            task = await polling(w, await told(w))
        assert (await task).start
