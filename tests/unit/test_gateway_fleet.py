"""What the gateway holds of its engines between discovery, health checks and requests."""

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.fleet import FAILURES_TO_GIVE_UP, Fleet, Slot


def endpoint(name: str = "a", port: int = 1, **fields: object) -> Endpoint:
    return Endpoint.model_validate(
        {"name": name, "url": f"http://h:{port}", "role": "serve", "revision": "r", **fields}
    )


def fleet(*endpoints: Endpoint) -> Fleet:
    found = Fleet()
    found.publish(endpoints)
    for one in endpoints:
        found.answered(one)
    return found


def slot(of: Fleet, name: str = "a") -> Slot:
    return next(slot for slot in of.slots() if slot.endpoint.name == name)


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
    new.answered(endpoint())
    assert slot(new).healthy


def test_one_failed_check_is_forgiven_two_are_not_and_one_good_one_heals() -> None:
    held = fleet(endpoint())
    held.failed(endpoint())
    assert slot(held).healthy
    held.failed(endpoint())
    assert not slot(held).healthy
    held.answered(endpoint())
    assert slot(held).healthy


def test_a_refused_connection_puts_an_engine_out_at_once() -> None:
    held = fleet(endpoint())
    held.refused(endpoint())
    assert not slot(held).healthy


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


def test_waiting_requests_are_taken_from_an_engine_that_stays_silent_or_goes() -> None:
    held = fleet(endpoint("a"), endpoint("b", 2))
    given_up: list[str] = []
    with (
        held.waiting(endpoint("a"), lambda: given_up.append("a")),
        held.waiting(endpoint("b", 2), lambda: given_up.append("b")),
    ):
        for _ in range(FAILURES_TO_GIVE_UP - 1):
            held.failed(endpoint("a"))
        assert given_up == []
        held.failed(endpoint("a"))
        assert given_up == ["a"]
        held.publish([endpoint("a")])
        assert given_up == ["a", "b"]


def test_answered_requests_are_left_alone() -> None:
    held = fleet(endpoint())
    with held.waiting(endpoint(), lambda: (_ for _ in ()).throw(AssertionError)):
        pass
    for _ in range(2 * FAILURES_TO_GIVE_UP):
        held.failed(endpoint())
    held.publish([])
