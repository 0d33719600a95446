"""The kit for policies of one's own: ours passes, and each kind of bad one is found by its name."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from headrace_operator.ownpolicy.kit import AIM, SPLIT, Violation, World, check, noise, worlds
from headrace_operator.plan.scaling import Answer, Ask, decide


def sized(**sizes: Any) -> Answer:
    return Answer(sizes, "Sized", "As it is.")


def keeps(ask: Ask) -> Answer:
    return sized()


def greedy(ask: Ask) -> Answer:
    return sized(**{role.name: role.most + 1 for role in ask.roles})


def careless(ask: Ask) -> Answer:
    """As many as the bounds allow, whatever the cap is."""
    return sized(**{role.name: role.most for role in ask.roles})


def hasty(ask: Ask) -> Answer:
    """Nothing seen, nothing needed."""
    rate = ask.windows[0].rate
    return sized(**{role.name: role.least if not rate else role.size for role in ask.roles})


def nervous(ask: Ask) -> Answer:
    """As many as the last half minute alone would have needed."""
    rate = ask.windows[0].rate
    if rate is None:
        return sized()
    return sized(**{role.name: min(role.most, max(role.least, round(rate / 1.5))) for role in ask.roles})


def raising(ask: Ask) -> Answer:
    return sized(prefill=ask.windows[99].requests)


def untyped(ask: Ask) -> Any:
    return {"prefill": 1}


def mistaken(ask: Ask) -> Answer:
    return sized(prefil=1)


def halved(ask: Ask) -> Answer:
    return sized(**{role.name: role.size / 2 for role in ask.roles})


def told(found: list[Violation]) -> set[str]:
    return {one.rule for one in found}


def the(name: str) -> list[World]:
    return [world for world in worlds() if world.name == name]


def test_the_built_in_policy_keeps_every_promise() -> None:
    assert check(decide, seconds=30.0) == []


def test_one_that_changes_nothing_breaks_none() -> None:
    assert check(keeps, seconds=30.0) == []


@pytest.mark.parametrize(
    ("policy", "world", "rule"),
    [
        (greedy, "idle", "Bounds"),
        (careless, "under a cap", "Cap"),
        (hasty, "figures that cannot be true", "MissingFigures"),
        (nervous, "steady, 12/s", "Flapping"),
        (raising, "burst", "Raised"),
        (untyped, "burst", "Nonsense"),
        (mistaken, "burst", "Nonsense"),
        (halved, "burst", "Nonsense"),
    ],
)
def test_a_bad_policy_is_found_by_what_it_breaks(policy: Callable[[Ask], Answer], world: str, rule: str) -> None:
    found = check(policy, seconds=30.0, within=the(world))
    assert told(found) == {rule}
    assert check(keeps, seconds=30.0, within=the(world)) == []
    assert all(str(one).startswith(f"{one.rule} in the world {one.world}, step") for one in found)


def test_one_that_answers_otherwise_each_time_is_moody() -> None:
    turns = itertools.count()

    def moody(ask: Ask) -> Answer:
        return sized(**{role.name: role.least + next(turns) % 3 for role in ask.roles})

    assert "Moody" in told(check(moody, seconds=30.0, within=the("burst")))


def test_one_that_takes_its_time_is_too_slow() -> None:
    clock = itertools.count(0.0, 2.0)
    assert told(check(keeps, seconds=1.0, within=the("idle"), clock=lambda: next(clock))) == {"TooSlow"}


def test_worlds_are_the_same_each_time() -> None:
    assert list(worlds()) == list(worlds())
    assert len({world.name for world in worlds()}) == len(list(worlds()))
    assert all(0.9 <= noise(step) <= 1.1 for step in range(1000))
    assert {role.name for role in SPLIT} == {"prefill", "decode"}
    assert AIM.ttft is not None
