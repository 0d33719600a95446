"""Conditions: all there from the first pass, and a transition time that moves on a flip only."""

import re
from datetime import UTC, datetime, timedelta
from typing import get_args

from headrace_operator.api.conditions import READY, TYPES, Reason, Truth, initial, set_condition
from headrace_operator.api.status import Condition
from headrace_runtime.contract import KvReason

START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = START + timedelta(minutes=5)


def ready(status: Truth, now: datetime, message: str = "", generation: int = 1) -> Condition:
    return Condition(
        type=READY,
        status=status,
        reason=Reason.AWAITING_CANARY,
        message=message,
        observed_generation=generation,
        last_transition_time=now,
    )


def by_type(conditions: tuple[Condition, ...]) -> dict[str, Condition]:
    return {condition.type: condition for condition in conditions}


def test_all_are_there_and_unknown_from_the_first_pass() -> None:
    first = initial(3, START)

    assert tuple(condition.type for condition in first) == TYPES
    assert {(condition.status, condition.reason, condition.observed_generation) for condition in first} == {
        ("Unknown", Reason.NOT_OBSERVED, 3)
    }


def test_a_flip_moves_the_time() -> None:
    assert by_type(set_condition(initial(1, START), ready("False", LATER)))[READY].last_transition_time == LATER


def test_a_new_message_leaves_the_time() -> None:
    before = set_condition(initial(1, START), ready("False", START, "1 of 2"))

    after = by_type(set_condition(before, ready("False", LATER, "2 of 2", generation=2)))[READY]

    assert (after.last_transition_time, after.message, after.observed_generation) == (START, "2 of 2", 2)


def test_the_same_judgement_again_changes_nothing() -> None:
    before = set_condition(initial(1, START), ready("True", START))

    assert set_condition(before, ready("True", LATER)) == before


def test_the_order_is_that_of_the_types_and_strangers_come_last() -> None:
    stranger = ready("True", START).model_copy(update={"type": "FromElsewhere"})

    after = set_condition((stranger, *reversed(initial(1, START))), ready("True", LATER))

    assert tuple(condition.type for condition in after) == (*TYPES, "FromElsewhere")


def test_times_are_kept_to_the_second_in_utc() -> None:
    condition = ready("True", datetime.fromisoformat("2026-01-01T02:00:00.987654+02:00"))

    assert condition.model_dump(mode="json", by_alias=True)["lastTransitionTime"] == "2026-01-01T00:00:00Z"


def test_reasons_are_camel_case_and_named_like_their_constant() -> None:
    reasons = {key: value for key, value in vars(Reason).items() if key.isupper()}

    for constant, reason in reasons.items():
        assert re.fullmatch(r"([A-Z][a-z]+)+", reason)
        assert reason.lower() == constant.replace("_", "").lower()


def test_what_an_agent_says_of_its_disk_is_a_reason_of_the_api() -> None:
    ours = {value for name, value in vars(Reason).items() if name.isupper()}
    assert set(get_args(KvReason)) - {""} <= ours
