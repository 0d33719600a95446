"""The circuit breaker of an engine: what opens it, and that it never stays open for ever."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway import quarantine
from headrace_runtime.gateway.quarantine import NEW, STRONG, Breaker, Reason, Rules

RULES = Rules(failures=3, window=10.0, backoff=0.5, longest_backoff=8.0, memory=30.0)
WEAK: tuple[Reason, ...] = ("reset", "timeout", "status", "error_event")


def failed(breaker: Breaker, *reasons: Reason, now: float = 100.0) -> Breaker:
    for reason in reasons:
        breaker = quarantine.failed(breaker, reason, now, RULES)
    return breaker


def test_nothing_happens_to_an_engine_that_answers() -> None:
    assert quarantine.succeeded(Breaker(), 1.0) == Breaker()
    assert quarantine.turned_healthy(Breaker(), 1.0) == Breaker()
    assert quarantine.probe_failed(Breaker(), 1.0, RULES) == Breaker()
    assert quarantine.probe_ended(Breaker(), 1.0) == Breaker()
    assert not quarantine.probe_due(Breaker(), 1.0)


def test_one_strong_sign_is_enough() -> None:
    for reason in sorted(STRONG):
        assert (failed(Breaker(), reason).state, failed(Breaker(), reason).reason) == ("open", reason)


def test_of_weak_signs_it_takes_several_with_no_success_between_them() -> None:
    assert failed(Breaker(), "reset", "status").state == "closed"
    assert failed(Breaker(), "reset", "status", "error_event").state == "open"
    forgiven = quarantine.succeeded(failed(Breaker(), "reset", "status"), 100.0)
    assert failed(forgiven, "reset", "reset").state == "closed"


def test_weak_signs_of_long_ago_are_forgotten() -> None:
    old = failed(Breaker(), "reset", "reset", now=0.0)
    assert failed(old, "reset", now=10.1).state == "closed"
    assert failed(old, "reset", now=9.9).state == "open"


def test_one_probe_decides_and_each_that_fails_doubles_the_wait() -> None:
    breaker = failed(Breaker(), "silent", now=0.0)
    waits = []
    for _ in range(6):
        assert not quarantine.probe_due(breaker, breaker.probe_at - 0.01)
        assert quarantine.probe_due(breaker, breaker.probe_at)
        probing, at = quarantine.probing(breaker), breaker.probe_at
        assert not quarantine.probe_due(probing, at + 99)
        breaker = quarantine.probe_failed(probing, at, RULES)
        waits.append(breaker.probe_at - at)
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert quarantine.succeeded(quarantine.probing(breaker), 1.0).state == "closed"


def test_an_engine_that_falls_again_at_once_waits_longer_than_one_that_was_well_for_long() -> None:
    back = quarantine.succeeded(quarantine.probing(failed(Breaker(), "silent", now=0.0)), 1.0)
    assert failed(back, "silent", now=2.0).probe_at == 3.0
    assert failed(back, "silent", now=40.0).probe_at == 40.5


def test_health_that_comes_back_brings_a_probe_and_lets_a_new_engine_in() -> None:
    assert quarantine.turned_healthy(NEW, 5.0).state == "closed"
    assert not quarantine.probe_due(NEW, 1e9)
    out = failed(Breaker(), "connect", now=5.0)
    assert not quarantine.probe_due(out, 5.1)
    assert quarantine.probe_due(quarantine.turned_healthy(out, 5.1), 5.1)


def test_a_probe_that_showed_nothing_is_made_again() -> None:
    ended = quarantine.probe_ended(quarantine.probing(failed(Breaker(), "connect")), 101.0)
    assert quarantine.probe_due(ended, 101.0)
    assert ended.times_open == 1


EVENTS: dict[str, Callable[[Breaker, float], Breaker]] = {
    "weak": lambda breaker, now: quarantine.failed(breaker, "reset", now, RULES),
    "strong": lambda breaker, now: quarantine.failed(breaker, "connect", now, RULES),
    "success": quarantine.succeeded,
    "healthy": quarantine.turned_healthy,
    "probe": lambda breaker, now: quarantine.probing(breaker) if quarantine.probe_due(breaker, now) else breaker,
    "probe fails": lambda breaker, now: quarantine.probe_failed(breaker, now, RULES),
    "probe ends": quarantine.probe_ended,
}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.floats(0, 20)), max_size=60))
def test_whatever_happens_it_opens_for_a_reason_and_can_always_come_back(events: list[tuple[str, float]]) -> None:
    breaker, now, weak = Breaker(), 0.0, 0
    for event, wait in events:
        now += wait
        before, breaker = breaker, EVENTS[event](breaker, now)
        weak = 0 if event == "success" else weak + (event == "weak")
        if before.state == "closed" and breaker.state != "closed":
            assert event == "strong" or weak >= RULES.failures
        if breaker.state == "open":
            assert breaker.probe_at <= now + RULES.longest_backoff
        assert (breaker.state == "closed") == (not breaker.reason)
        assert len(breaker.failures) < RULES.failures
    assert quarantine.succeeded(breaker, now).state == "closed"
