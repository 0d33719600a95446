"""From pydantic's JSON Schema to a structural schema: each thing that differs, and what cannot be said at all."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from headrace_operator.api.crd import NotStructuralError, crd, structural
from headrace_operator.api.types import ATOMIC, PARTIAL, Duration, FreeForm, Frozen, Quantity, Timestamp, list_map


def made(model: type[BaseModel]) -> dict[str, Any]:
    return structural(model.model_json_schema(), "spec")


class Inner(Frozen):
    """The class's words."""

    size: int = Field(default=3, ge=1)
    """How
    much."""


def test_references_are_inlined_and_the_fields_own_words_win() -> None:
    class Outer(Frozen):
        inner: Inner = Inner()
        """The field's words."""

    schema = made(Outer)

    assert "$defs" not in schema
    assert schema["properties"]["inner"]["description"] == "The field's words."
    assert schema["properties"]["inner"]["properties"]["size"] == {
        "description": "How much.",
        "type": "integer",
        "minimum": 1,
        "default": 3,
    }


def test_an_optional_may_be_absent_and_not_null() -> None:
    class Outer(Frozen):
        text: Annotated[str, Field(max_length=5)] | None = None
        inner: Inner | None = None

    schema = made(Outer)

    assert schema["properties"]["text"] == {"type": "string", "maxLength": 5}
    assert schema["properties"]["inner"]["type"] == "object"
    assert "required" not in schema
    assert "null" not in str(schema)
    assert "None" not in str(schema)


def test_titles_and_closed_objects_go() -> None:
    class Outer(Frozen):
        number: int = 0

    assert made(Outer) == {"type": "object", "properties": {"number": {"type": "integer", "default": 0}}}


def test_a_constant_is_an_enum_of_one() -> None:
    class Outer(Frozen):
        kind: Literal["One"] = "One"

    assert made(Outer)["properties"]["kind"]["enum"] == ["One"]


def test_an_exclusive_bound_is_a_flag() -> None:
    class Outer(Frozen):
        share: Annotated[float, Field(gt=0, lt=1)]

    share = made(Outer)["properties"]["share"]
    assert share == {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True}


def test_quantities_are_int_or_string() -> None:
    class Outer(Frozen):
        size: Quantity
        maybe: Quantity | None = None

    for schema in made(Outer)["properties"].values():
        assert schema["x-kubernetes-int-or-string"] is True
        assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        assert "type" not in schema


def test_durations_and_times_are_texts_with_a_form() -> None:
    class Outer(Frozen):
        wait: Duration = Duration("5s")
        moment: Timestamp

    properties = made(Outer)["properties"]
    assert properties["wait"]["default"] == "5s"
    assert properties["wait"]["pattern"].startswith("^(")
    assert properties["moment"] == {"type": "string", "format": "date-time"}


def test_free_form_objects_keep_what_they_are_given() -> None:
    class Outer(Frozen):
        template: FreeForm = Field(default={})

    assert made(Outer)["properties"]["template"] == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def test_lists_say_how_they_merge_and_have_no_default() -> None:
    class Outer(Frozen):
        named: tuple[Inner, ...] = Field(default=(Inner(),), max_length=2, json_schema_extra=list_map("size"))
        plain: tuple[int, ...] = Field(default=(1, 2), max_length=9, json_schema_extra=ATOMIC)

    properties = made(Outer)["properties"]
    assert properties["named"]["x-kubernetes-list-map-keys"] == ["size"]
    assert properties["plain"]["x-kubernetes-list-type"] == "atomic"
    assert "default" not in properties["named"]
    assert "default" not in properties["plain"]


def test_a_default_object_holds_its_scalars_and_nothing_empty() -> None:
    class Deep(Frozen):
        inner: Inner = Inner()
        free: FreeForm = Field(default={})
        maybe: Inner | None = None

    class Outer(Frozen):
        deep: Deep = Deep()

    assert made(Outer)["properties"]["deep"]["default"] == {"inner": {"size": 3}}


def test_an_override_has_no_defaults_all_the_way_down() -> None:
    class Deep(Frozen):
        inner: Inner = Inner()

    class Outer(Frozen):
        over: Deep | None = Field(default=None, json_schema_extra=PARTIAL)

    assert "default" not in str(made(Outer))
    assert "partial" not in str(made(Outer))


def _model(annotation: Any, **words: Any) -> type[BaseModel]:
    class Outer(Frozen):
        field: annotation = Field(**words)

    return Outer


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (_model(int | str), "spec.field: a union of types"),
        (_model(tuple[int, str]), "prefixItems|maxItems"),
        (_model(list[int]), "spec.field: a list needs"),
        (_model(tuple[int, ...], max_length=3), "spec.field: a list needs"),
        (_model(dict[str, int]), "spec.field: a mapping needs"),
        (_model(dict[str, Any], max_length=3), "spec.field: values of any kind"),
        (_model(str), "spec.field: a text needs"),
        (_model(Any), "spec.field: has no type"),
        (_model(int, multiple_of=2), "spec.field: multipleOf has no place"),
    ],
)
def test_refuses_to_guess(model: type[BaseModel], complaint: str) -> None:
    with pytest.raises(NotStructuralError, match=complaint):
        made(model)


def test_a_union_by_discriminator_is_refused() -> None:
    class One(Frozen):
        kind: Literal["One"] = "One"

    class Two(Frozen):
        kind: Literal["Two"] = "Two"

    with pytest.raises(NotStructuralError):
        made(_model(One | Two, discriminator="kind"))


def test_an_object_with_required_fields_has_no_default() -> None:
    class Needs(Frozen):
        name: Literal["a"]

    class Outer(Frozen):
        needs: Needs = Needs(name="a")

    with pytest.raises(NotStructuralError, match=r"spec\.needs: has a default but also required fields"):
        made(Outer)


def described(schema: dict[str, Any], path: str) -> list[str]:
    bare = [] if schema.get("description") else [path]
    for name, child in schema.get("properties", {}).items():
        bare += described(child, f"{path}.{name}")
    if "properties" in schema.get("items", {}):
        bare += described(schema["items"], f"{path}[]")
    return bare


def test_every_field_is_described() -> None:
    properties = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]

    assert described(properties["spec"], "spec") == []
    assert described(properties["status"], "status") == []


def test_roles_adapters_and_conditions_merge_by_key() -> None:
    root = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]

    assert root["spec"]["properties"]["roles"]["x-kubernetes-list-map-keys"] == ["name"]
    assert root["spec"]["properties"]["model"]["properties"]["adapters"]["x-kubernetes-list-map-keys"] == ["name"]
    assert root["status"]["properties"]["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
