"""From the object as it came to a spec that holds, or to every problem it has. Never raises for what a user wrote.

An invalid object is a state of the object, shown whole in its `Accepted` condition. Called once at the top of a pass,
and by `plan FILE`. Pure.
"""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

import headrace_operator
from headrace_operator.api.problems import Problem
from headrace_operator.api.rules import check
from headrace_operator.api.supported import unsupported
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

VERSION: Final = headrace_operator.__version__
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def parse(body: Mapping[str, Any]) -> InferenceDeploymentSpec | list[Problem]:
    """Spec of an InferenceDeployment, or its problems: at least one, all at once. Of `metadata` it reads the name."""
    problems = list(_name(body))
    raw = body.get("spec")
    if not isinstance(raw, Mapping):
        return [*problems, Problem("spec", "is missing: give at least spec.model.source")]
    spec, broken = _validate(_plain(raw))
    problems += broken
    if spec is not None:
        problems += check(spec) + unsupported(spec, VERSION)
    if problems or spec is None:
        return sorted(set(problems))
    return spec


def _name(body: Mapping[str, Any]) -> Iterator[Problem]:
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield Problem(
            "metadata.name",
            f"{name!r} cannot name a Service: use lower-case letters, digits and -, beginning with a letter",
        )


def _plain(raw: Mapping[str, Any]) -> Any:
    """The same as plain JSON values. What JSON has no word for (a date that YAML made up) becomes its text."""
    return json.loads(json.dumps(raw, default=lambda value: dict(value) if isinstance(value, Mapping) else str(value)))


def _validate(raw: dict[str, Any]) -> tuple[InferenceDeploymentSpec | None, list[Problem]]:
    """The spec and the problems of single fields.

    Fields with problems are left out and the rest is read again, so that the rules between the others are checked in
    the same pass; None where nothing readable is left.
    """
    problems: list[Problem] = []
    while True:
        text = json.dumps(raw)
        try:
            return InferenceDeploymentSpec.model_validate_json(text, strict=True), problems
        except ValidationError as error:
            details = error.errors(include_url=False)
        problems = problems or [_problem(detail) for detail in details]
        for detail in details:
            _leave_out(raw, detail)
        if json.dumps(raw) == text:
            return None, problems


def _leave_out(raw: dict[str, Any], detail: ErrorDetails) -> None:
    """Take what has the problem out of `raw`, where it is still there.

    A list goes as a whole, since the numbers of its other entries are part of their paths; so does an object that
    lacks a required field.
    """
    steps = _steps(detail)[: -1 if detail["type"] == "missing" else None]
    if (number := next((place for place, step in enumerate(steps) if isinstance(step, int)), None)) is not None:
        steps = steps[:number]
    inside: Any = raw
    for step in steps[:-1]:
        inside = inside.get(step) if isinstance(inside, dict) else None
    if steps and isinstance(inside, dict):
        inside.pop(steps[-1], None)


def _steps(detail: ErrorDetails) -> list[int | str]:
    """Where it is. pydantic marks the key of a mapping, as against its value, with a last step of its own."""
    marked = detail["loc"][-1] == "[key]" and detail["type"] != "extra_forbidden"
    return list(detail["loc"][:-1] if marked else detail["loc"])


_MESSAGES: Final = {
    "missing": "is required",
    "int_type": "must be a whole number, not {input}",
    "int_from_float": "must be a whole number, not {input}",
    "float_type": "must be a number, not {input}",
    "bool_type": "must be true or false, not {input}",
    "string_type": "must be text, not {input}: put it in quotes",
    "dict_type": "must be an object, not {input}",
    "model_type": "must be an object, not {input}",
    "model_attributes_type": "must be an object, not {input}",
    "tuple_type": "must be a list, not {input}",
    "literal_error": "must be {expected}, not {input}",
    "greater_than_equal": "must be at least {ge}, not {input}",
    "less_than_equal": "must be at most {le}, not {input}",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters long",
    "too_short": "must have at least {min_length} entry",
    "too_long": "must have at most {max_length} entries, not {actual_length}",
    "string_pattern_mismatch": "{input} does not have the form {pattern}",
}


def _problem(detail: ErrorDetails) -> Problem:
    steps = _steps(detail)
    path = "spec" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    kind, context = detail["type"], detail.get("ctx", {})
    model, field = _declared(steps)
    if kind == "extra_forbidden":
        return Problem(path, _unknown(str(steps[-1]), model))
    if kind == "value_error":
        return Problem(path, str(context["error"]))
    if kind == "literal_error" and detail["input"] is False and "'Off'" in context["expected"]:
        return Problem(path, 'must be text: write "Off" in quotes, since YAML reads a bare Off as false')
    template = _MESSAGES.get(kind, detail["msg"].replace("{", "{{").replace("}", "}}"))
    # Whatever stands in an environment variable may be a secret in the wrong place: problems go into the status.
    message = template.format(input="this" if "env" in steps else _shown(detail["input"]), **context)
    if kind in {"missing", "string_pattern_mismatch"} and field is not None and field.description:
        message += ". " + " ".join(field.description.split())
    return Problem(path, message)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(name: str, model: type[BaseModel] | None) -> str:
    known = sorted(str(field.alias) for field in model.model_fields.values()) if model else []
    near = get_close_matches(name, known, n=1)
    return f"unknown field: did you mean {near[0]}?" if near else f"unknown field: there are {', '.join(known)}"


def _declared(steps: list[int | str]) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The model that holds the last step of a path, and the field of it, as far as the types know them."""
    model: type[BaseModel] | None = InferenceDeploymentSpec
    field: FieldInfo | None = None
    for step in steps:
        if isinstance(step, int):
            continue
        if field is not None:
            model = model_inside(field.annotation)
        if model is None:
            return None, None
        field = next((known for known in model.model_fields.values() if known.alias == step), None)
        if field is None:
            return model, None
    return model, field


def model_inside(annotation: Any) -> type[BaseModel] | None:
    """The model inside an optional, a tuple or a bare annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in {Union, UnionType, tuple}:
        return next((model for part in get_args(annotation) if (model := model_inside(part))), None)
    return None
