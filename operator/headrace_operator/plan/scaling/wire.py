"""Asks and answers as JSON, and back: what own policies are sent, and what records of an operator are made of. Pure.

Fields are named as in `inputs.py`. An ask is written `sane`: figures that cannot be true are missing in it, as they are
for every policy. Reading is strict, since what is read comes from another process or from a file of another version: a
field that is not known, a wrong type or a number that is not finite is a `WireError` that names the place.
"""

import json
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from headrace_operator.plan.scaling.inputs import Answer, Ask, sane

Json = dict[str, Any]
"""What `json` reads and writes: dicts with text for keys, lists, texts, numbers, truths and None."""

_ASK: Final = TypeAdapter(Ask)
_ANSWER: Final = TypeAdapter(Answer)
_T = TypeVar("_T", Ask, Answer)
_SAID: Final = 3
"""Of all that is wrong, so much is said."""


class WireError(ValueError):
    """The text says where the value is wrong, and how: `windows[0].age: Input should be a finite number`."""


def ask_to_json(ask: Ask) -> Json:
    """The ask without figures that cannot be true."""
    return _write(_ASK, sane(ask))


def ask_from_json(plain: object) -> Ask:
    """What `ask_to_json` wrote. WireError where it is something else."""
    return _read(_ASK, plain)


def answer_to_json(answer: Answer) -> Json:
    """WireError where a value is not of its type: a policy may have put anything there."""
    plain = _write(_ANSWER, answer)
    answer_from_json(plain)
    return plain


def answer_from_json(plain: object) -> Answer:
    """What `answer_to_json` wrote. WireError where it is something else."""
    return _read(_ANSWER, plain)


def _write(adapter: TypeAdapter[_T], value: _T) -> Json:
    try:
        plain: Json = adapter.dump_python(value, mode="json", warnings=False)
    except PydanticSerializationError as error:
        raise WireError(str(error)) from error
    return plain


def _read(adapter: TypeAdapter[_T], plain: object) -> _T:
    try:
        # By way of text: a list that stands for a tuple is taken from JSON alone.
        return adapter.validate_json(json.dumps(plain))
    except ValidationError as error:
        raise WireError("; ".join(f"{_place(e['loc'])}{e['msg']}" for e in error.errors()[:_SAID])) from error
    except (TypeError, RecursionError) as error:
        raise WireError(str(error)) from error


def _place(steps: tuple[int | str, ...]) -> str:
    said = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    return f"{said}: " if said else ""
