"""The API's tables about the engine agree with the runtime's, which has the last word."""

from headrace_operator.api.options import OWNED, OWNED_ENV, QUANTIZATIONS
from headrace_runtime.engine import arguments


def test_every_variable_that_the_runtime_refuses_is_refused_before() -> None:
    assert OWNED_ENV >= arguments.OWNED_ENV


def test_advice_says_what_to_do() -> None:
    assert all(advice and not advice.endswith(".") for advice in OWNED.values())


def test_quantizations_are_sorted_and_named_once() -> None:
    assert list(QUANTIZATIONS) == sorted(set(QUANTIZATIONS))
