"""What a gateway tells of its requests by role and revision, and how it shares them out while a canary is under way."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import (
    Admission,
    CanaryShare,
    DemandFigures,
    GatewayFigures,
    KeyRule,
    Limit,
    RoleFigures,
)
from headrace_runtime.contract.sketch import ERROR
from tests.wire.gateways import LONG, SHORT, Got, World, world

TWO = {f"{role}-{number}": {"revision": f"r{number}"} for role in ("prefill", "decode", "serve") for number in (1, 2)}


async def figures(w: World) -> GatewayFigures:
    async with w.client.get(f"http://127.0.0.1:{w.gateway.admin_port}/figures") as answer:
        assert answer.status == 200
        return GatewayFigures.model_validate_json(await answer.read())


def of(told: GatewayFigures, role: str, revision: str = "r1") -> RoleFigures:
    return next(one for one in told.roles if (one.role, one.revision) == (role, revision))


async def many(w: World, number: int, **fields: Any) -> list[Got]:
    """Thirty at a time."""
    room = asyncio.Semaphore(30)

    async def one() -> Got:
        async with room:
            return await w.ask(**fields)

    return await asyncio.gather(*(one() for _ in range(number)))


async def test_a_gateway_that_nobody_asked_has_counted_nothing() -> None:
    async with world("serve-1") as w:
        told = await figures(w)
        assert (told.arrivals, told.roles, told.canary, told.oldest_wait) == (0, (), None, 0.0)
        assert told.start == (await figures(w)).start


async def test_figures_are_those_of_a_known_script() -> None:
    async with world("prefill-0", "decode-0") as w:
        w.engines["decode-0"].become(itl=0.02)
        w.engines["prefill-0"].become(prefill_rate=len(LONG) / 0.1)
        for _ in range(5):
            assert (await w.ask(max_tokens=10)).status == 200
        await w.ask(prompt=SHORT, max_tokens=1)
        told = await figures(w)
        prefill, decode = of(told, "prefill"), of(told, "decode")
        assert (told.arrivals, told.answered, told.failed, told.broken) == (6, 6, 0, 0)
        assert (prefill.requests, prefill.errors, prefill.prompts, prefill.prompt_tokens) == (5, 0, 5, 5 * len(LONG))
        assert (prefill.answers, prefill.itl.samples) == (0, 0)
        assert (decode.requests, decode.answers, decode.itl.samples) == (6, 6, 5)
        assert (decode.prompts, decode.prompt_tokens) == (1, len(SHORT))
        assert decode.output_tokens == 5 * 10 + 1
        # The script's times are the least; a busy machine adds to them.
        ttft, itl = prefill.ttft.quantile(0.5), decode.itl.quantile(0.5)
        assert ttft is not None
        assert itl is not None
        assert ttft >= 0.1 * 0.97
        assert itl >= 0.02 * 0.9


async def test_a_failure_counts_where_it_happened_though_another_engine_answers() -> None:
    async with world("serve-1", "serve-2", places=TWO, routing="RoundRobin") as w:
        w.engines["serve-2"].become(fault="status")
        assert all(got.status == 200 for got in await many(w, 8, prompt=SHORT))
        told = await figures(w)
        bad = of(told, "serve", "r2")
        assert bad.errors == bad.requests > 0
        labels = {"role": "serve", "revision": "r2"}
        assert w.metric("headrace_gateway_engine_errors_total", **labels) == bad.errors
        assert w.metric("headrace_gateway_engine_requests_total", **labels) == bad.requests
        assert (of(told, "serve", "r1").errors, told.answered, told.failed) == (0, 8, 0)


async def test_an_answer_that_is_lost_on_the_way_counts_as_broken() -> None:
    async with world("serve-1", resume=None) as w:
        w.engines["serve-1"].become(fault="cut", at=3)
        await w.ask()
        told = await figures(w)
        assert (told.broken, told.answered, of(told, "serve").answers) == (1, 0, 0)


async def test_the_operators_own_question_is_in_no_figure() -> None:
    async with world("serve-1") as w:
        await w.ask(headers={"x-headrace-canary": "r1"})
        told = await figures(w)
        assert (told.answered, told.roles) == (0, ())


@pytest.mark.parametrize("routing", ["LeastLoaded", "RoundRobin", "PrefixAware"])
@pytest.mark.parametrize("percent", [0, 10, 50, 100])
async def test_the_share_is_held_whatever_the_routing_and_the_prompt(routing: str, percent: int) -> None:
    share = CanaryShare(revision="r2", percent=percent, step="one")
    async with world("serve-1", "serve-2", places=TWO, routing=routing, canary=share) as w:
        answers = await many(w, 200, max_tokens=1)  # one and the same prompt: every cache speaks for one engine
        got = Counter(answer.headers["x-headrace-revision"] for answer in answers)
        assert abs(got["r2"] - 2 * percent) <= 4, got


async def test_pairs_are_of_one_revision_while_both_have_their_share() -> None:
    share = CanaryShare(revision="r2", percent=30, step="one")
    async with world("prefill-1", "decode-1", "prefill-2", "decode-2", places=TWO, canary=share) as w:
        answers = await many(w, 100)
        pairs = Counter((got.headers["x-headrace-prefill"], got.headers["x-headrace-decode"]) for got in answers)
        assert pairs.keys() == {("prefill-1", "decode-1"), ("prefill-2", "decode-2")}
        assert abs(pairs["prefill-2", "decode-2"] - 30) <= 4


async def test_a_canary_that_fails_loses_no_request_and_is_seen_to_fail() -> None:
    share = CanaryShare(revision="r2", percent=50, step="one")
    async with world("serve-1", "serve-2", places=TWO, canary=share) as w:
        w.engines["serve-2"].become(fault="status")
        assert all(got.status == 200 for got in await many(w, 60, prompt=SHORT))
        told = await figures(w)
        assert of(told, "serve", "r2").errors >= 3  # then it is in quarantine, and nobody asks it
        assert of(told, "serve", "r1").errors == 0


async def test_figures_tell_what_was_counted_before_the_step() -> None:
    share = CanaryShare(revision="r2", percent=50, step="one")
    async with world("serve-1", "serve-2", places=TWO, canary=share) as w:
        assert (await figures(w)).canary is not None
        await many(w, 10, prompt=SHORT)
        w.gateway._telemetry.figures.share(share.model_copy(update={"step": "two"}))
        await many(w, 4, prompt=SHORT)
        told = await figures(w)
        assert told.canary is not None
        assert told.canary.share.step == "two"
        assert sum(one.requests for one in told.canary.before) == 10
        assert sum(one.requests for one in told.roles) == 14
        w.gateway._telemetry.figures.share(told.canary.share)
        again = await figures(w)
        assert again.canary is not None
        assert again.canary.before == told.canary.before


def demand(told: GatewayFigures) -> DemandFigures:
    assert told.demand is not None
    return told.demand


async def until_told(w: World, what: Callable[[GatewayFigures], bool]) -> GatewayFigures:
    async with asyncio.timeout(30):
        while not what(told := await figures(w)):
            await asyncio.sleep(0.01)
    return told


async def test_demand_of_a_gateway_that_nobody_asked_is_only_its_idle_time() -> None:
    async with world("serve-1") as w:
        asked = demand(await figures(w))
        assert asked == DemandFigures(idle=asked.idle)
        assert asked.idle > 0


async def test_demand_is_what_engines_are_asked_to_compute_and_nothing_else() -> None:
    async with world("serve-1") as w:
        for _ in range(2):
            assert (await w.ask(prompt=LONG)).status == 200
            assert (await w.ask(prompt=SHORT, stream=False)).status == 200
        assert (await w.ask("/tokenize", prompt="some words")).status == 200
        assert (await w.ask(headers={"x-headrace-canary": "r1"})).status == 200
        assert (await w.ask(model="another")).status == 404
        asked = demand(await figures(w))
        assert (asked.requests, asked.prompt_tokens) == (4, 2 * len(LONG) + 2 * len(SHORT))
        longest = asked.prompts.quantile(0.99)
        assert longest is not None
        assert abs(1000 * longest - len(LONG)) <= ERROR * len(LONG) * 1.001
        assert asked.unanswered == 0


async def test_a_key_above_its_own_rate_makes_no_demand_and_a_full_queue_does(tmp_path: Path) -> None:
    async with world("serve-1", admission=Admission(total=Limit(max_concurrent=1), queue_length=0)) as w:
        w.engines["serve-1"].become(ttft=60.0)
        first = asyncio.ensure_future(w.ask())
        await until_told(w, lambda told: told.running == 1)
        assert (await w.ask()).status == 503
        told = await figures(w)
        assert (told.arrivals, demand(told).requests) == (2, 2)
        first.cancel()
    (tmp_path / "team-a").write_text("sk-a\n")
    rules = Admission(each_key=KeyRule(limits=Limit(tokens_per_minute=10)))
    async with world("serve-1", admission=rules, keys_folder=str(tmp_path)) as w:
        assert (await w.ask(headers={"authorization": "Bearer sk-a"})).status == 429
        assert (await w.ask()).status == 401
        told = await figures(w)
        assert (told.arrivals, demand(told).requests) == (2, 0)


async def test_the_oldest_without_a_first_token_is_told_of_wherever_it_waits() -> None:
    async with world("serve-1", admission=Admission(total=Limit(max_concurrent=1))) as w:
        w.engines["serve-1"].become(ttft=60.0)
        at_engine = asyncio.ensure_future(w.ask())
        await until_told(w, lambda told: told.running == 1)
        waiting = asyncio.ensure_future(w.ask())
        told = await until_told(w, lambda told: told.waiting == 1 and demand(told).unanswered > 0.3)
        assert told.running == 1
        assert demand(told).unanswered > told.oldest_wait
        at_engine.cancel()
        waiting.cancel()
        told = await until_told(w, lambda told: demand(told).idle > 0)
        assert demand(told).unanswered == 0


async def test_an_answer_under_way_is_no_wait_and_counts_as_being_written_until_it_ends() -> None:
    async with world("serve-1") as w:
        w.engines["serve-1"].become(itl=60.0)
        answer = asyncio.ensure_future(w.ask())
        told = await until_told(w, lambda told: demand(told).writing > 0.2)
        assert (demand(told).unanswered, demand(told).idle) == (0, 0)
        answer.cancel()
        told = await until_told(w, lambda told: demand(told).idle > 0)
        assert demand(await figures(w)).writing == demand(told).writing


async def test_the_time_to_first_token_is_told_when_it_comes_and_of_no_refusal() -> None:
    async with world("serve-1") as w:
        w.engines["serve-1"].become(itl=60.0)
        answer = asyncio.ensure_future(w.ask())
        told = await until_told(w, lambda told: bool(told.roles) and of(told, "serve").prompts == 1)
        assert of(told, "serve").ttft.samples == 1
        answer.cancel()
        refused = await w.ask(prompt=[1] * 5000)
        assert refused.status == 400
        assert of(await figures(w), "serve").ttft.samples == 1


async def test_times_to_first_token_are_those_that_clients_see() -> None:
    async with world("prefill-0", "decode-0") as w:
        w.engines["prefill-0"].become(prefill_rate=1000.0)

        async def seen(tokens: int) -> float:
            document = {"model": "fake", "prompt": [7] * tokens, "max_tokens": 2, "stream": True}
            began = time.monotonic()
            async with w.client.post(f"{w.url}/v1/completions", json=document) as answer:
                await answer.content.readany()
                first = time.monotonic() - began
                await answer.read()
            return first

        lengths = [100, 150, 200, 250, 300, 400, 500, 700, 900, 1200]
        clients = sorted(await asyncio.gather(*map(seen, lengths)))
        told = of(await figures(w), "prefill").ttft
        assert told.samples == len(lengths)
        # Not before the engine has it, and not after the client has: however busy the machine is.
        for rank, (tokens, client) in enumerate(zip(lengths, clients, strict=True), 1):
            time_told = told.quantile(rank / len(lengths) - 1e-9)
            assert time_told is not None
            assert tokens / 1000.0 * (1 - ERROR) * 0.99 <= time_told <= client * (1 + ERROR) * 1.01


async def test_answers_in_one_piece_tell_their_lengths_and_no_times() -> None:
    async with world("prefill-0", "decode-0") as w:
        assert (await w.ask(stream=False, max_tokens=7)).status == 200
        assert (await w.ask(prompt=SHORT, stream=False, max_tokens=3)).status == 200
        told = await figures(w)
        decode = of(told, "decode")
        assert (decode.answers, decode.output_tokens) == (2, 10)
        assert (decode.itl.samples, decode.ttft.samples, of(told, "prefill").ttft.samples) == (0, 0, 0)
        assert demand(told).unanswered == 0
