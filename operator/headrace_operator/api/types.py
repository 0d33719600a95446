"""The building blocks of the API's models: the frozen base, quantities, durations, timestamps and free-form objects.

Each type carries its own JSON Schema, in the words of a structural schema, so that `crd.py` has nothing to guess.
Pure values; used by every module of `api`.
"""

import re
from datetime import UTC
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class Frozen(BaseModel):
    """camelCase on the wire, snake_case in Python; unknown fields refused; values do not change."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


class _Text(str):
    """A string with a rule and a JSON Schema of its own. Subclasses say how input becomes text."""

    __slots__ = ()
    schema: ClassVar[JsonSchemaValue]

    @classmethod
    def _read(cls, value: Any) -> str:
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: cls(cls._read(value)), serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return dict(cls.schema)


_QUANTITY = re.compile(
    r"\+?(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?"
)
_BINARY: Final = {"": 0, "Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL: Final = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


class Quantity(_Text):
    """A Kubernetes quantity (`512Mi`, `1.5`, `2e3`), kept in the form that the API server would give it.

    Rules: k8s.io/apimachinery `pkg/api/resource/quantity.go`. No negative values; the finest step is 1n,
    rounded up.
    """

    __slots__ = ()
    schema: ClassVar[JsonSchemaValue] = {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$",
        "maxLength": 32,
        "x-kubernetes-int-or-string": True,
    }

    @property
    def value(self) -> Fraction:
        """The exact amount: 1 for `1000m`."""
        return _amount(self)[0]

    @property
    def bytes(self) -> int:
        """The amount as a whole number, rounded up, as the API server rounds."""
        return _ceil(self.value)

    @classmethod
    def _read(cls, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("must be a quantity such as 512Mi, 2 or 1500m")
        text = str(value).strip()
        if not _QUANTITY.fullmatch(text) or len(text) > cls.schema["maxLength"]:
            raise ValueError(f"{text[:40]!r} is not a quantity: write a number with a unit, such as 512Mi, 2 or 1500m")
        return _canonical(*_amount(text))


class Bytes(Quantity):
    """A quantity above zero, such as the size of a cache."""

    __slots__ = ()
    schema: ClassVar[JsonSchemaValue] = {
        **Quantity.schema,
        "x-kubernetes-validations": [
            {
                "rule": "type(self) == int ? int(self) > 0 : "
                "!isQuantity(string(self)) || quantity(string(self)).isGreaterThan(quantity('0'))",
                "message": "must be more than 0",
            }
        ],
    }

    @classmethod
    def _read(cls, value: Any) -> str:
        text = super()._read(value)
        if _amount(text)[0] == 0:
            raise ValueError("must be more than 0")
        return text


def _ceil(amount: Fraction) -> int:
    return -(-amount.numerator // amount.denominator)


def _amount(text: str) -> tuple[Fraction, str]:
    """The exact amount and the family of the suffix: `Ki`, `k` or `e`."""
    match = _QUANTITY.fullmatch(text)
    assert match, text
    number, suffix = Fraction(match["number"]), match["suffix"] or ""
    if suffix[:1] in {"e", "E"} and len(suffix) > 1 and suffix != "Ei":
        factor, family = Fraction(10) ** int(suffix[1:]), "e"
    elif suffix.endswith("i"):
        factor, family = Fraction(1024) ** _BINARY[suffix], "Ki"
    else:
        factor, family = Fraction(1000) ** _DECIMAL[suffix], "k"
    return Fraction(_ceil(number * factor * 10**9), 10**9), family


def _canonical(amount: Fraction, family: str) -> str:
    """No fraction, and the largest unit that needs none. Binary amounts below 1024 are written in decimal units."""
    if amount == 0:
        return "0"
    if family == "Ki" and amount >= 1024:
        whole, units = _ceil(amount), list(_BINARY)
        power = max(p for p in range(len(units)) if whole % 1024**p == 0)
        return f"{whole // 1024**power}{units[power]}"
    power = max(p for p in _DECIMAL.values() if (amount / Fraction(1000) ** p).denominator == 1)
    number = amount / Fraction(1000) ** power
    if family == "e":
        return f"{number}e{3 * power}" if power else f"{number}"
    return f"{number}{next(unit for unit, p in _DECIMAL.items() if p == power)}"


_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}


class Duration(_Text):
    """A Go-style duration above zero: `500ms`, `90s`, `1h30m`. At most 10 000 hours."""

    __slots__ = ()
    schema: ClassVar[JsonSchemaValue] = {
        "type": "string",
        "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$",
        "maxLength": 32,
        "x-kubernetes-validations": [
            {
                "rule": "self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') ? "
                "duration(self) > duration('0s') && duration(self) <= duration('10000h') : true",
                "message": "must be longer than 0s and at most 10000h",
            }
        ],
    }

    @property
    def seconds(self) -> float:
        return float(_seconds(self))

    @classmethod
    def _read(cls, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be a duration with a unit, such as 30s or 5m, not {value!r}")
        if not re.fullmatch(cls.schema["pattern"], value) or len(value) > cls.schema["maxLength"]:
            raise ValueError(f"{value[:40]!r} is not a duration: write numbers with ms, s, m or h, such as 1h30m")
        if not 0 < _seconds(value) <= 36_000_000:
            raise ValueError(f"{value!r} must be longer than 0s and at most 10000h")
        return value


@lru_cache(maxsize=256)  # the same few durations are read in every pass
def _seconds(text: str) -> Fraction:
    return sum((Fraction(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)), Fraction(0))


Timestamp = Annotated[
    AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC).replace(microsecond=0)), Field(strict=False)
]
"""A moment in UTC, to the second, as the API server writes them."""

FreeForm = Annotated[
    dict[str, Any], Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""An object whose schema is Kubernetes' own and too large to repeat: kept as it is, checked when it is applied."""


def list_map(key: str) -> dict[str, Any]:
    """Schema words for a list whose entries are known by `key`, so that server-side apply merges them one by one."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}
PARTIAL: Final[dict[str, Any]] = {"x-headrace-partial": True}
"""Marks an override: `crd.py` emits no defaults and no required fields below it, so that only what was given counts.
Read it with `effective.py`, never field by field: the Python value below it does carry defaults."""

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""A DNS label."""
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of another object in the same namespace."""


class LocalRef(Frozen):
    """Another object in the same namespace."""

    name: ObjectName
    """The object's name."""
