"""Values of a leaf, from its schema alone: valid ones, those at its limits, and bad ones. Pure.

A pattern that stands in `FORMATS` has values that mean something; of any other, hypothesis finds the shortest text.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st

Schema = dict[str, Any]

WORD = "hush-hush-4c1d"
"""Stands where users put secrets by mistake: no status, Event or log may say it."""


@dataclass(frozen=True)
class Values:
    """What is tried at one leaf."""

    valid: tuple[Any, ...]
    boundary: tuple[Any, ...] = ()
    invalid: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Format:
    """Texts of one pattern."""

    valid: tuple[str, ...]
    invalid: tuple[str, ...]
    short: str = ""
    long: Callable[[int], str] | None = None
    """The longest text of so many characters."""


NAME = Format(("blue", "green-2"), ("Blue", "-blue", "blue/2"), "b", lambda most: "b" * most)
DURATION = Format(("90s", "2m", "1m30s"), ("soon", "10", "-5s", "0s", "20000h"), "1ms")
QUANTITY = Values(("2Gi", "3Gi"), ("1.5Gi", 2147483648), ("lots", "1Gb", "-1Gi", True))
FORMATS: dict[str, Format] = {
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": NAME,
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": NAME,
    r"^[a-zA-Z0-9_-][-._a-zA-Z0-9]*$": Format(("blue", "Green_2"), (".blue", "a b"), "b", lambda most: "b" * most),
    r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$": DURATION,
    r"^(hf|oci|s3|https|pvc|node)://[^\s]+$": Format(
        ("node:///models/other", "pvc://models/other", "hf://org/name@" + "a" * 40),
        ("/models/other", "ftp://models/other", "node://models", "node:///models/../other", "hf://org/name@main"),
    ),
    r"^(pvc|node)://[^\s]+$": Format(("node:///adapters", "pvc://adapters"), ("s3://adapters/x", "node://adapters")),
    r"^[^\s]+$": Format(("example.org/blue:2", "example.org/green:3"), ("two words",), "b", lambda most: "b" * most),
    r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$": Format(("org/blue", "green:2"), ("/blue",), "b", lambda most: "b" * most),
    r"^(cpu|[a-z0-9.-]+/[A-Za-z0-9._-]+)$": Format(("nvidia.com/gpu", "amd.com/gpu"), ("gpu", "nvidia.com/"), "cpu"),
    r"^[A-Za-z_][A-Za-z0-9_]*$": Format(("BLUE", "GREEN_2"), ("2BLUE", "A-B"), "B", lambda most: "B" * most),
    r"^/[^\s:]+$": Format(("/var/lib/blue", "/srv/green"), ("var/lib", "/a:b"), "/b", lambda n: "/b" * (n // 2)),
    r"^[A-Za-z0-9.-]+:[0-9]{1,5}$": Format(("blue:6379", "green.example.org:1"), ("blue", "blue:port"), "b:1"),
}  # fmt: skip


def values(schema: Schema) -> Values:
    """What is tried at a leaf with this schema. ValueError: it is of no kind that is known here."""
    kind = schema.get("type")
    if "enum" in schema:
        return _enum(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return QUANTITY
    if kind == "boolean":
        return Values((True, False), (), ("yes", 1))
    if kind in {"integer", "number"}:
        return _number(schema)
    if kind == "string":
        return _text(schema)
    if kind == "array":
        inside = values(schema["items"])
        return Values(tuple([one] for one in inside.valid), (), (*inside.invalid[:1], [*inside.invalid[:1]]))
    if "additionalProperties" in schema:
        return _mapping(schema["additionalProperties"])
    if schema.get("x-kubernetes-preserve-unknown-fields") or kind == "object":
        return Values(({},), (), (3, [1]))
    raise ValueError(f"values of {schema} are not known")


def _enum(entries: list[Any]) -> Values:
    wrong = max(entries) + 1 if all(isinstance(entry, int) for entry in entries) else "Nonsense"
    return Values(tuple(entries), (), (wrong, {}))


def _number(schema: Schema) -> Values:
    least, most = schema.get("minimum"), schema.get("maximum")
    low = least if least is not None else 0
    if schema["type"] == "number":
        middle = (low + (most if most is not None else low + 2)) / 2
        return Values((middle,), tuple(_given(least, most)), (*_beyond(least, most), "much"))
    near = tuple(value for value in (low + 1, low + 2, low) if most is None or value <= most)
    return Values(near, tuple(_given(least, most)), (*_beyond(least, most), "many", low + 0.5))


def _given(*limits: Any) -> Iterator[Any]:
    return (limit for limit in limits if limit is not None)


def _beyond(least: Any, most: Any) -> Iterator[Any]:
    if least is not None:
        yield least - 1
    if most is not None:
        yield most + 1


def _text(schema: Schema) -> Values:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 1024)
    known = FORMATS.get(schema.get("pattern", ""))
    wrong: list[Any] = [7, "b" * (most + 1)] + ([""] if least or schema.get("pattern") else [])
    if known is None:
        shortest = _shortest(schema.get("pattern"), least, most)
        other = _other(schema.get("pattern"), shortest, most)
        return Values((other, shortest), (shortest,), tuple(wrong))
    ends = [known.short] if known.short else []
    ends += [known.long(most)] if known.long else []
    return Values(known.valid, tuple(ends), (*known.invalid, *wrong))


def _shortest(pattern: str | None, least: int, most: int) -> str:
    """The simplest text that a schema takes."""
    if pattern is None:
        return "b" * least
    quiet = settings(
        database=None, deadline=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)
    )
    texts = st.from_regex(pattern, fullmatch=True, alphabet=st.characters(min_codepoint=32, max_codepoint=126))
    return find(texts, lambda text: least <= len(text) <= most, settings=quiet)


def _other(pattern: str | None, text: str, most: int) -> str:
    """Another text than the shortest, where one of the plain ones fits."""
    plain = ("blue", text + "b", text + text, text + "0")
    fits = (one for one in plain if len(one) <= most and (pattern is None or re.search(pattern, one)))
    return next(fits, text)


def _mapping(schema: Schema) -> Values:
    """A mapping is one value: what it holds under one key, and nothing."""
    if "type" not in schema and not schema.get("x-kubernetes-int-or-string"):
        return Values(({"seed": 7}, {"seed": 8}), ({},), ("seed", 3))
    inside = values(schema)
    key = "cpu" if schema.get("x-kubernetes-int-or-string") else "zone"
    valid = tuple({key: value} for value in inside.valid)
    return Values(valid, ({},), (*({key: value} for value in inside.invalid[:2]), "cpu"))
