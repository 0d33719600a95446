"""The simulated engines with a disk and a link, and the gateway's choice between both ways."""

import pytest

from bench import storage_path
from bench.enginemodel import BLOCK, Running, prefill_seconds
from bench.storage_path import ARMS, DECODES, PROMPT, Scene, run_scene
from bench.tieredengine import TieredEngine
from simulator.request import Request

IDS = tuple(range(1, 17))


def first_token(engine: TieredEngine, at: float = 0.0, fetched: bool = False, ids: tuple[int, ...] = IDS) -> float:
    one = Running(Request(at, len(ids) * BLOCK, 1, ids))
    engine.submit(one, at, fetched)
    engine.advance(at + 1e3)
    assert one.first is not None
    return one.first - at


def test_an_engine_without_requests_does_nothing() -> None:
    engine = TieredEngine(0.1, 0.1)
    engine.advance(5.0)
    assert not engine.happened


def test_what_is_on_disk_is_loaded_and_the_rest_is_computed() -> None:
    computed = first_token(TieredEngine(0.002, 0.001))
    half = first_token(TieredEngine(0.002, 0.001, IDS[:8]))
    loaded = first_token(TieredEngine(0.002, 0.001, IDS))
    assert computed == pytest.approx(prefill_seconds(PROMPT))
    assert half == pytest.approx(8 * 0.002 + prefill_seconds(PROMPT // 2))
    assert loaded == pytest.approx(16 * 0.002 + prefill_seconds(BLOCK))
    assert first_token(TieredEngine(0.002, 0.001), fetched=True) == pytest.approx(16 * 0.001 + prefill_seconds(BLOCK))


def test_what_was_loaded_is_in_the_cache_and_prompts_wait_for_one_disk() -> None:
    others = tuple(range(100, 116))
    engine = TieredEngine(0.01, 0.001, (*IDS, *others))
    ran = [Running(Request(0.0, PROMPT, 1, ids)) for ids in (IDS, others)]
    for one in ran:
        engine.submit(one, 0.0, fetched=False)
    engine.advance(10.0)
    assert [one.first for one in ran] == pytest.approx([0.16 + prefill_seconds(BLOCK), 0.32 + prefill_seconds(BLOCK)])
    assert first_token(engine, at=20.0) == pytest.approx(prefill_seconds(BLOCK))


def test_all_ways_answer_the_same_requests_and_the_fixed_ones_are_fixed() -> None:
    scene = Scene("half", (0.5,), 0.5)
    ran = {arm: run_scene(scene, arm, 40, seed=1) for arm in ARMS}
    assert (ran["decode"].alone, ran["prefill"].alone) == (1.0, 0.0)
    assert 0.0 < ran["ours"].alone < 1.0
    assert run_scene(scene, "ours", 40, seed=1) == ran["ours"]


@pytest.mark.parametrize("hits", [(1.0,), (0.0,), (0.0, 1.0)])
def test_ours_is_about_as_good_as_the_better_of_both(hits: tuple[float, ...]) -> None:
    """The figures are deterministic: no machine is too slow for them."""
    ran = {arm: run_scene(Scene("s", hits, 0.7), arm, 80, seed=3) for arm in ARMS}
    assert ran["ours"].whole <= storage_path.NOISE * min(ran["decode"].whole, ran["prefill"].whole)


def test_a_sick_disk_is_found_out_by_its_times() -> None:
    scene = Scene("sick", (1.0,), 0.5, slow=DECODES[0])
    ran = {arm: run_scene(scene, arm, 120, seed=2) for arm in ARMS}
    assert ran["ours"].whole < ran["decode"].whole
    assert ran["ours"].alone < 0.9
