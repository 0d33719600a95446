"""What the gateway holds of its engines between discovery, health checks, requests and the clock's ticks."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.fleet import Fleet, Slot, Watch

SILENCE = 3.0
TICK = 0.25


def endpoint(name: str = "a", port: int = 1, **fields: object) -> Endpoint:
    return Endpoint.model_validate(
        {"name": name, "url": f"http://h:{port}", "role": "serve", "revision": "r", **fields}
    )


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Answer:
    """An engine's answer as the fleet sees it."""

    beats: int = 0
    complete: bool = False
    paused: bool = False
    status: int = 200


def fleet(*endpoints: Endpoint, clock: Callable[[], float] = lambda: 1000.0) -> Fleet:
    found = Fleet(SILENCE, clock=clock)
    found.publish(endpoints)
    for one in endpoints:
        found.answered(one)
    return found


def slot(of: Fleet, name: str = "a") -> Slot:
    return next(slot for slot in of.slots() if slot.endpoint.name == name)


def listen(to: Fleet, seconds: float) -> None:
    for _ in range(round(seconds / TICK)):
        to.tick(TICK)


class Owed:
    """An answer that a fleet watches in a test, and whether it was given up."""

    def __init__(self, of: Fleet, name: str = "a", prompt_tokens: int = 0, beats: int = 0) -> None:
        self.answer = Answer(beats=beats)
        self.given_up = 0
        watch = Watch(self.answer, self._give_up, prompt_tokens, beats)
        self._watching = of.watching(slot(of, name).endpoint, watch)
        self._watching.__enter__()

    def _give_up(self) -> None:
        self.given_up += 1
        self.end()

    def end(self) -> None:
        self._watching.__exit__(None, None, None)


def test_no_engines_is_an_answer_of_discovery() -> None:
    empty = Fleet()
    assert not empty.discovered
    empty.publish([])
    assert empty.discovered
    assert empty.engines() == []


def test_a_new_engine_takes_nothing_before_its_first_good_check() -> None:
    new = Fleet()
    new.publish([endpoint()])
    assert not slot(new).healthy
    assert not new.engines()[0].healthy  # nor as the last one left
    new.answered(endpoint())
    assert slot(new).healthy


def test_one_check_without_an_answer_is_forgiven_two_are_not() -> None:
    held = fleet(endpoint())
    held.unwell(endpoint(), "timeout")
    assert slot(held).healthy
    held.unwell(endpoint(), "timeout")
    assert not slot(held).healthy
    held.answered(endpoint())
    assert not slot(held).healthy, "the front end answers, which does not mean the engine does"
    assert held.begin_probe(slot(held))
    held.alive(slot(held))
    assert slot(held).healthy


def test_checks_without_an_answer_say_nothing_of_an_engine_whose_tokens_flow() -> None:
    held = fleet(endpoint())
    owed = Owed(held)
    for beat in range(1, 5):
        owed.answer.beats = beat
        held.tick(TICK)
        held.unwell(endpoint(), "timeout")
    assert slot(held).healthy


@pytest.mark.parametrize("reason", ["connect", "unhealthy"])
def test_a_check_that_says_no_puts_an_engine_out_at_once(reason: str) -> None:
    held = fleet(endpoint())
    held.unwell(endpoint(), "connect" if reason == "connect" else "unhealthy")
    assert slot(held).breaker.reason == reason
    assert held.quarantined == {reason: 1}


def test_a_refused_connection_puts_an_engine_out_at_once() -> None:
    held = fleet(endpoint())
    held.failed(endpoint(), "connect")
    assert not slot(held).healthy


def test_a_token_makes_the_failures_before_it_forgotten() -> None:
    held = fleet(endpoint())
    for _ in range(10):
        held.failed(endpoint(), "status")
        held.failed(endpoint(), "reset")
        held.gave_token(endpoint())
    assert slot(held).healthy
    for _ in range(3):
        held.failed(endpoint(), "reset")
    assert not slot(held).healthy


def test_where_all_are_in_quarantine_they_are_tried_nevertheless() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    held.failed(endpoint("a"), "connect")
    assert [engine.healthy for engine in held.engines()] == [False, True]
    held.failed(endpoint("b", 2), "connect")
    assert [engine.healthy for engine in held.engines()] == [True, True]
    assert not any(one.routable for one in held.slots())
    held.publish([endpoint("a", draining=True), endpoint("b", 2)])
    assert [engine.endpoint.draining for engine in held.engines()] == [True, False]


async def test_an_engine_that_was_there_is_waited_for_and_one_that_never_was_is_not() -> None:
    held = Fleet(SILENCE)
    assert not await held.back(30.0)
    held.publish([endpoint()])
    assert not await held.back(30.0)
    held.answered(endpoint())
    assert not await held.back(30.0), "it is there: whoever asks failed for another reason"
    held.failed(endpoint(), "connect")
    assert not await held.back(0.01)
    waiting = asyncio.create_task(held.back(30.0))
    await asyncio.sleep(0)
    held.alive(slot(held))
    assert await waiting
    held.publish([endpoint(draining=True)])
    assert not await held.back(30.0)


def test_only_one_probe_at_a_time_and_none_of_a_sound_engine() -> None:
    clock = Clock()
    held = fleet(endpoint(), clock=clock)
    assert not held.begin_probe(slot(held))
    held.failed(endpoint(), "connect")
    assert not held.begin_probe(slot(held))
    clock.now += 0.5
    assert held.begin_probe(slot(held))
    assert not held.begin_probe(slot(held))
    held.probe_failed(slot(held))
    assert not held.begin_probe(slot(held))
    clock.now += 1.0
    assert held.begin_probe(slot(held))


def test_an_engine_that_was_back_before_any_check_failed_is_probed_at_once() -> None:
    held = fleet(endpoint())
    for _ in range(5):
        held.failed(endpoint(), "connect")
        held.answered(endpoint())
        assert held.begin_probe(slot(held))
        held.alive(slot(held))
    held.failed(endpoint(), "silent")
    held.answered(endpoint())
    assert not held.begin_probe(slot(held)), "the front end of a hung engine is well"


def test_news_of_the_same_set_keeps_health_and_load() -> None:
    held = fleet(endpoint())
    with held.using(endpoint()):
        held.publish([endpoint(draining=True)])
        assert (slot(held).load, slot(held).healthy, slot(held).routable) == (1, True, False)
    assert slot(held).load == 0


def test_a_pod_that_came_back_elsewhere_begins_anew() -> None:
    held = fleet(endpoint(port=1))
    with held.using(endpoint(port=1)):
        held.publish([endpoint(port=2)])
        held.answered(endpoint(port=1))  # a late answer of the old address
        assert (slot(held).load, slot(held).healthy) == (0, False)
    assert slot(held).load == 0


def test_tells_of_new_engines_and_moved_ones_only() -> None:
    held = Fleet()
    new: list[str] = []
    held.on_new(lambda one: new.append(one.url))
    for endpoints in ([endpoint()], [endpoint()], [endpoint(port=2)], [endpoint(port=2), endpoint("b", 3)]):
        held.publish(endpoints)
    assert new == ["http://h:1", "http://h:2", "http://h:3"]


# Silence


def test_an_engine_that_owes_nothing_may_be_silent_for_ever() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    with held.watching(endpoint("a"), Watch(Answer(complete=True), lambda: None)):
        listen(held, 1000)
    listen(held, 1000)
    assert all(one.routable for one in held.slots())


@pytest.mark.parametrize("beats", [0, 7], ids=["before its first token", "between two tokens"])
def test_an_engine_that_owes_bytes_and_sends_none_is_hung(beats: int) -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    hung, other = Owed(held, "a", beats=beats), Owed(held, "b", beats=beats)
    for _ in range(round(SILENCE / TICK)):
        assert not hung.given_up
        other.answer.beats += 1
        held.tick(TICK)
    assert (hung.given_up, other.given_up) == (1, 0)
    assert slot(held, "a").breaker.reason == "silent"
    assert slot(held, "b").routable


def test_one_stream_that_moves_shows_that_the_engine_does() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    quiet, moving = Owed(held), Owed(held)
    for _ in range(100):
        moving.answer.beats += 1
        held.tick(TICK)
    assert not quiet.given_up


def test_a_refusal_does_not_show_that_the_engine_moves() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    hung = Owed(held)
    for _ in range(round(SILENCE / TICK)):
        refused = Owed(held)
        refused.answer.status, refused.answer.beats = 400, 1
        refused.end()
        held.tick(TICK)
    assert hung.given_up


def test_answers_that_begin_and_end_between_two_ticks_show_it_too() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    waiting = Owed(held)
    for _ in range(100):
        short = Owed(held)
        short.answer.beats = 1
        short.end()
        held.tick(TICK)
    assert not waiting.given_up


def test_a_slow_client_says_nothing_of_the_engine() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    slow = Owed(held, beats=3)
    slow.answer.paused = True
    listen(held, 1000)
    assert (slow.given_up, slot(held).routable) == (0, True)


def test_a_long_prompt_has_its_time() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    long = Owed(held, prompt_tokens=10_000)
    listen(held, 30)
    assert not long.given_up
    listen(held, 30)
    assert long.given_up


def test_an_engine_shown_to_compute_is_silent_for_as_long_as_it_likes() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    whole = Owed(held)
    for _ in range(100):
        listen(held, SILENCE / 2)
        assert held.suspects() == [slot(held)]
        held.alive(slot(held))
    assert (whole.given_up, held.suspects()) == (0, [])


def test_the_last_engine_is_waited_for_longer() -> None:
    held = fleet(endpoint("a"))
    hung = Owed(held)
    listen(held, 3 * SILENCE)
    assert not hung.given_up
    listen(held, SILENCE)
    assert hung.given_up


def test_engines_that_are_silent_together_are_waited_for_longer() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    both = Owed(held, "a"), Owed(held, "b")
    listen(held, 3 * SILENCE)
    assert [one.given_up for one in both] == [0, 0]


def test_an_engine_that_was_slow_before_gets_longer() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    starved = Owed(held, beats=1)
    listen(held, 2.0)
    starved.answer.beats += 1
    listen(held, 5.0)
    assert not starved.given_up
    listen(held, 2.0)
    assert starved.given_up


def test_what_an_engine_owes_is_given_up_when_it_goes() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    gone, stays = Owed(held, "a"), Owed(held, "b")
    held.publish([endpoint("b", 2)])
    assert (gone.given_up, stays.given_up) == (1, 0)


def test_answers_that_ended_are_left_alone() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    done = Owed(held)
    done.end()
    listen(held, 100)
    held.publish([])
    assert not done.given_up


def test_an_engine_that_stays_is_used_only_where_nobody_else_of_its_role_is() -> None:
    staying = endpoint("d0", 1, role="decode", draining=True, stays=True)
    prefill, successor = endpoint("p0", 2, role="prefill"), endpoint("d1", 3, role="decode")
    held = fleet(staying, prefill)
    assert {engine.name for engine in held.engines() if engine.usable} == {"d0", "p0"}
    held.publish([staying, prefill, successor])  # nobody knows yet how the successor is
    assert {engine.name for engine in held.engines() if engine.usable} == {"d0", "p0"}
    held.answered(successor)
    assert {engine.name for engine in held.engines() if engine.usable} == {"d1", "p0"}


def test_an_engine_that_drains_and_does_not_stay_takes_nothing_even_as_the_last_one() -> None:
    assert not fleet(endpoint("d0", draining=True)).engines()[0].usable


def test_an_engine_that_stays_and_is_out_takes_nothing() -> None:
    held = fleet(endpoint("d0", draining=True, stays=True), endpoint("p0", 2, role="prefill"))
    held.unwell(slot(held, "d0").endpoint, "unhealthy")
    assert [engine.name for engine in held.engines() if engine.usable] == ["p0"]
