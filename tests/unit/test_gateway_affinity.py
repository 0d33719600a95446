"""What PrefixAware routing knows of requests under way."""

import orjson
import pytest

from headrace_runtime.gateway.affinity import HALF_LIFE_SECONDS, Affinity
from headrace_runtime.gateway.blocks import Stored
from headrace_runtime.gateway.prefix import HOPE_SECONDS
from headrace_runtime.gateway.request import COMPLETIONS, Facts, parse
from headrace_runtime.gateway.sources import Work

BLOCK = 16


def facts(prompt: object) -> Facts:
    return parse(COMPLETIONS, orjson.dumps({"model": "m", "prompt": prompt}), "m")


@pytest.fixture
def affinity() -> Affinity:
    made = Affinity(clock=lambda: 0.0)
    for engine in ("a", "b"):
        made.index.join(engine)
        made.index.heard(engine, 0.0)
    made.index.store("a", Stored([1, 2], None, list(range(32)), BLOCK))
    return made


def test_an_idle_gateway_has_nothing_under_way(affinity: Affinity) -> None:
    asked = affinity.prompt(affinity.read(facts([7] * 64)))
    assert (asked.tokens, asked.held, asked.waiting, asked.writing) == (64, {}, {}, {})


def test_a_request_waits_with_what_is_not_held_then_writes_and_then_is_gone(affinity: Affinity) -> None:
    reading = affinity.read(facts(list(range(48))))
    assert affinity.prompt(reading).held == {"a": 32}
    with affinity.placed(reading, "a") as placed:
        assert (affinity.waiting, affinity.writing) == ({"a": 16}, {})
        placed.computed()
        placed.computed()
        assert (affinity.waiting, affinity.writing) == ({}, {"a": 48})
    assert (affinity.waiting, affinity.writing) == ({}, {})


def test_a_request_that_fails_before_its_first_token_waits_no_longer(affinity: Affinity) -> None:
    with pytest.raises(ValueError, match="lost"), affinity.placed(affinity.read(facts([7] * 64)), "b"):
        raise ValueError("lost")
    assert (affinity.waiting, affinity.writing) == ({}, {})


def test_what_was_computed_lately_is_remembered_and_fades() -> None:
    now = 0.0
    affinity = Affinity(clock=lambda: now)
    reading = affinity.read(facts([7] * 64))
    affinity.prompt(reading)
    for _ in range(2):
        with affinity.placed(reading, "a"):
            pass
    assert affinity.prompt(reading).fresh == {"a": 128}
    now = HALF_LIFE_SECONDS
    assert affinity.prompt(reading).fresh == {"a": 64}
    for _ in range(8):
        now += HALF_LIFE_SECONDS
        affinity.prompt(reading)
    assert affinity.prompt(reading).fresh == {}


def test_equal_prompts_of_a_burst_meet_where_the_first_was_sent(affinity: Affinity) -> None:
    reading = affinity.read(facts([7] * 64))
    with affinity.placed(reading, "b"):
        assert affinity.prompt(reading).held == {"b": 64}


def test_learnt_text_is_found_where_its_blocks_are() -> None:
    now = 0.0
    affinity = Affinity(clock=lambda: now)
    affinity.index.join("a")
    affinity.index.heard("a", 0.0)
    ids = list(range(500, 600))
    affinity.index.store("a", Stored(list(range(6)), None, ids[:96], BLOCK))
    asked = facts("once upon a time " * 30)
    assert affinity.prompt(affinity.read(asked)).held == {}
    affinity.learn(asked, orjson.dumps({"prompt_token_ids": ids}))
    assert affinity.prompt(affinity.read(asked)).held == {"a": 96}
    now = 2 * HOPE_SECONDS
    assert affinity.prompt(affinity.read(asked)).held == {"a": 96}


def test_the_work_of_a_prompt_on_disk_is_loading_it_and_its_times_teach_what_that_costs(affinity: Affinity) -> None:
    ids = list(range(1024))
    affinity.index.store("b", Stored([10 + place for place in range(64)], None, ids, BLOCK))
    affinity.index.remove("b", [10 + place for place in range(64)])
    affinity.index.refer("b", [10 + place for place in range(64)], "disk")
    computed, loaded = affinity.read(facts([7] * 1024)), affinity.read(facts(ids))
    with affinity.placed(computed, "a") as placed:
        placed.took(1.024)
    assert affinity.pace == pytest.approx(0.001)
    with affinity.placed(loaded, "b") as placed:
        assert placed.work == Work(disk=1024)
    affinity.index.clear("b")
    affinity.index.refer("b", [10 + place for place in range(64)], "disk")
    for _ in range(30):
        affinity.learn_time("b", placed.work, 0.1024)
    assert affinity.prompt(loaded).cost("b") == pytest.approx(102.4, rel=0.01)
    assert affinity.prompt(loaded).cost("a") == 1024 - 32


def test_a_time_that_others_were_part_of_does_not_say_how_long_computing_takes(affinity: Affinity) -> None:
    reading = affinity.read(facts([7] * 1024))
    with affinity.placed(reading, "b"), affinity.placed(affinity.read(facts([8] * 1024)), "b") as second:
        second.took(5.0)
    assert affinity.pace == 0.0


def test_what_was_learnt_of_an_engine_is_forgotten_with_it() -> None:
    now = 0.0
    affinity = Affinity(clock=lambda: now)
    affinity.pace = 0.001
    affinity.learn_time("gone", Work(disk=1000), 3.0)
    assert affinity.rates["gone"].disk > 0.5
    affinity.prompt(affinity.read(facts([7] * 64)))
    assert affinity.rates == {}
