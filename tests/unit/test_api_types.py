"""Quantities and durations: what is taken, what it comes to, and the form the API server would give it."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from headrace_operator.api.types import Bytes, Duration, Quantity

QUANTITY = TypeAdapter(Quantity)
BYTES = TypeAdapter(Bytes)
DURATION = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("written", "canonical"),
    # As `resource.MustParse(written).String()` of k8s.io/apimachinery gives them.
    [
        ("0", "0"),
        ("0Gi", "0"),
        (5, "5"),
        ("1000", "1k"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        (".5", "500m"),
        (1.5, "1500m"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("1000Mi", "1000Mi"),
        ("2048Gi", "2Ti"),
        ("100.3Ki", "102708"),
        ("1e3", "1e3"),
        ("1500e3", "1500e3"),
        ("+3", "3"),
        ("1E", "1E"),
        ("1Ei", "1Ei"),
        ("0.1n", "1n"),
    ],
)
def test_quantities_take_the_api_servers_form(written: Any, canonical: str) -> None:
    assert QUANTITY.validate_python(written) == canonical


@pytest.mark.parametrize(
    "written", ["", "Gi", "4GB", "1 Gi", "-1", "1.2.3", "1e", "٣", True, None, [], "1" * 33, "nan"]
)
def test_refuses_what_is_no_quantity(written: Any) -> None:
    with pytest.raises(ValidationError, match="quantity"):
        QUANTITY.validate_python(written)


UNITS = {"": Fraction(1), "m": Fraction(1, 1000), "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9)}
UNITS |= {
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "e3": Fraction(1000),
    "E2": Fraction(100),
}
NUMBERS = st.builds(
    lambda whole, part: f"{whole}" if part is None else f"{whole}.{part}",
    st.integers(0, 10**6),
    st.one_of(st.none(), st.integers(0, 999)),
)


@given(NUMBERS, st.sampled_from(sorted(UNITS)))
def test_the_form_of_a_form_is_itself(number: str, unit: str) -> None:
    once = QUANTITY.validate_python(number + unit)

    assert QUANTITY.validate_python(str(once)) == once


@given(NUMBERS, st.sampled_from(sorted(UNITS)))
def test_a_new_form_is_the_same_amount_rounded_up(number: str, unit: str) -> None:
    exact = Fraction(number) * UNITS[unit]

    quantity = QUANTITY.validate_python(number + unit)

    assert quantity.bytes == -(-exact // 1)
    assert 0 <= quantity.value - exact < 1


def test_sizes_are_above_zero() -> None:
    assert BYTES.validate_python("256Mi").bytes == 268_435_456
    with pytest.raises(ValidationError, match="more than 0"):
        BYTES.validate_python("0Mi")


@pytest.mark.parametrize(
    ("written", "seconds"), [("1ms", 0.001), ("30s", 30), ("5m", 300), ("1h30m0.5s", 5400.5), ("10000h", 36_000_000)]
)
def test_durations_come_to_seconds(written: str, seconds: float) -> None:
    assert DURATION.validate_python(written).seconds == seconds


@pytest.mark.parametrize(
    "written", ["", "5", "s", "-5s", "5 s", "1d", "5S", "0s", "0h0m", "10000h1ms", 5, None, "1s" * 17]
)
def test_refuses_what_is_no_duration(written: Any) -> None:
    with pytest.raises(ValidationError, match=r"duration|longer than 0s"):
        DURATION.validate_python(written)


def test_a_duration_is_the_text_that_was_written() -> None:
    assert DURATION.validate_python("90s") == "90s"
    assert DURATION.dump_json(Duration("90s")) == b'"90s"'
