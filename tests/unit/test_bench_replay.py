"""The simulated engines and replay of `bench routing`."""

import lzma
import random
from pathlib import Path

import pytest

from bench import enginemodel
from bench.enginemodel import BLOCK, Running, SimulatedEngine, prefill_seconds
from bench.replay import pooled, replay, unlimited
from simulator.load import read_mooncake
from simulator.request import Request


def conversation(users: int = 12, turns: int = 6) -> list[Request]:
    """Each user's prompts grow by a block or two a turn, after one block that is the same for all."""
    chance, made, fresh = random.Random(1), [], iter(range(1, 1_000_000))
    said: dict[int, list[int]] = {user: [0] for user in range(users)}
    for turn in range(turns):
        for user in range(users):
            said[user] += [next(fresh) for _ in range(chance.choice((1, 2)))]
            prompt = len(said[user]) * BLOCK + 100
            made.append(Request(turn * 20.0 + user * 1.5, prompt, 50, (*said[user], next(fresh))))
    return made


def alone(engine: SimulatedEngine, *requests: Request) -> list[Running]:
    ran = []
    for request in requests:
        engine.advance(request.at)
        one = Running(request)
        engine.waiting.append(one)
        ran.append(one)
    engine.advance(float("inf"))
    return ran


def test_an_engine_without_requests_does_nothing() -> None:
    engine = SimulatedEngine()
    engine.advance(10.0)
    assert engine.now == 10.0
    assert not engine.happened


def test_a_prompt_takes_the_time_of_its_tokens_and_a_repeated_one_that_of_what_is_new() -> None:
    asked = Request(0.0, 4 * BLOCK, 2, (1, 2, 3, 4))
    first, second = alone(SimulatedEngine(), asked, Request(100.0, 4 * BLOCK, 2, (1, 2, 3, 4)))
    assert first.first == pytest.approx(prefill_seconds(4 * BLOCK))
    assert second.reused == 3 * BLOCK  # the last block is computed, as its last token has to be
    assert second.first is not None
    assert second.first - 100.0 == pytest.approx(prefill_seconds(BLOCK))


def test_a_long_prompt_is_computed_in_parts() -> None:
    (ran,) = alone(SimulatedEngine(), Request(0.0, 40 * BLOCK, 2, tuple(range(40))))
    whole, rest = divmod(40 * BLOCK, enginemodel.BATCH_TOKENS)
    assert ran.first == pytest.approx(whole * prefill_seconds(enginemodel.BATCH_TOKENS) + prefill_seconds(rest))


def test_blocks_go_when_memory_is_short_and_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enginemodel, "BLOCKS", 6)
    engine = SimulatedEngine()
    ran = alone(engine, *(Request(at * 50.0, 4 * BLOCK, 2, tuple(range(at * 4, at * 4 + 4))) for at in range(3)))
    assert all(one.end is not None for one in ran)
    gone = [block for _, what, _, blocks in engine.happened if what == "removed" for block in blocks]
    assert gone[:4] == [3, 2, 1, 0]  # tails first


@pytest.mark.parametrize("policy", ["RoundRobin", "LeastLoaded", "PrefixAware"])
def test_the_same_trace_gives_the_same_outcome(policy: str) -> None:
    requests = conversation()
    assert replay(requests, policy) == replay(requests, policy)  # type: ignore[arg-type]


def test_prefix_aware_routing_comes_near_to_what_can_be_reused_at_all() -> None:
    requests = conversation()
    robin, aware = replay(requests, "RoundRobin"), replay(requests, "PrefixAware")
    assert robin.reuse < 0.8 * aware.reuse
    assert aware.reuse > 0.9 * unlimited(requests)
    assert aware.mean < robin.mean


def test_conversations_with_but_a_system_prompt_in_common_spread_over_idle_engines() -> None:
    fresh, requests = iter(range(1, 1_000_000)), []
    said: dict[int, list[int]] = {user: [0] for user in range(200)}
    for turn in range(2):
        for user, blocks in said.items():
            blocks += [next(fresh) for _ in range(4)]
            requests.append(Request((turn * 200 + user) * 3.0, len(blocks) * BLOCK + 1, 5, (*blocks, next(fresh))))
    outcome = replay(requests, "PrefixAware")
    assert sum(len(routed) > 20 for routed in outcome.routed) >= 4
    assert outcome.reuse == pytest.approx(unlimited(requests), rel=0.05)


def test_ceilings_stand_in_order() -> None:
    requests = conversation()
    for blocks in (20, 60, 150):
        assert pooled(requests, blocks) <= pooled(requests, blocks, belady=True) <= unlimited(requests)
    assert pooled(requests) == unlimited(requests) > 0


def test_reads_a_trace_at_any_speed(tmp_path: Path) -> None:
    line = '{"timestamp": 3000, "input_length": 1100, "output_length": 7, "hash_ids": [4, 5, 6]}\n'
    (tmp_path / "t.xz").write_bytes(lzma.compress(line.encode()))
    (request,) = read_mooncake(tmp_path / "t.xz", speed=2.0)
    assert (request.at, request.prompt, request.output, request.blocks) == (1.5, 1100, 7, (4, 5))
