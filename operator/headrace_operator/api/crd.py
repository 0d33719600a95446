"""The models as CustomResourceDefinitions: structural schema, CEL rules, printer columns, subresources.

pydantic writes JSON Schema; a structural schema is narrower. What it can say is inlined, dropped or turned; what it
cannot say raises `NotStructuralError`, so that a bad model fails at generation and not in a cluster. Pure; called by
`generate.py`.
"""

from copy import deepcopy
from typing import Any, Final

import yaml

from headrace_operator import names
from headrace_operator.api.inferencerole import SCALING_LIMITED, InferenceRoleSpec, InferenceRoleStatus
from headrace_operator.api.rules import RULES
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus

Schema = dict[str, Any]

HEADER: Final = "# Generated from operator/headrace_operator/api by `make generate`. Do not edit.\n"

_KEPT: Final = {
    "type", "description", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems",
    "maxItems", "maxProperties", "required", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip
_PYTHON_ONLY: Final = {"title", "propertyNames", "patternProperties"}
"""Titles say nothing new; rules for the keys of a mapping have no Kubernetes form, and `parse.py` keeps them."""
_PARTIAL: Final = "x-headrace-partial"
_ORDER: Final = {"type": 0, "description": 0, "properties": 2, "items": 2, "additionalProperties": 2}
"""What a reader looks for first stands first; long blocks stand last."""

COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Model", "type": "string", "jsonPath": ".status.model.servedName"},
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "Prefill", "type": "string", "jsonPath": '.status.roles[?(@.name=="prefill")].summary'},
    {"name": "Decode", "type": "string", "jsonPath": '.status.roles[?(@.name=="decode")].summary'},
    {"name": "Serve", "type": "string", "jsonPath": '.status.roles[?(@.name=="serve")].summary', "priority": 1},
    {"name": "Revision", "type": "string", "jsonPath": ".status.revision.current"},
    {"name": "URL", "type": "string", "jsonPath": ".status.url", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]

ROLE_COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Deployment", "type": "string", "jsonPath": ".spec.deploymentName"},
    {"name": "Role", "type": "string", "jsonPath": ".spec.role"},
    {"name": "Asked", "type": "integer", "jsonPath": ".spec.replicas"},
    {"name": "Engines", "type": "integer", "jsonPath": ".status.replicas"},
    {"name": "Ready", "type": "integer", "jsonPath": ".status.readyReplicas"},
    {
        "name": "Limited",
        "type": "string",
        "jsonPath": f'.status.conditions[?(@.type=="{SCALING_LIMITED}")].reason',
        "priority": 1,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
SCALE: Final = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}

NAME_RULE: Final = {
    "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "message": "metadata.name must fit a Service: lower-case letters, digits and -, beginning with a letter",
}


class NotStructuralError(ValueError):
    """A model says something that a structural schema cannot hold. The message begins with the path."""


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition of InferenceDeployment as plain values."""
    root = _root(
        "A language model, served: a Ray cluster of engines behind one OpenAI-compatible gateway.",
        structural(InferenceDeploymentSpec.model_json_schema(), "spec"),
        structural(InferenceDeploymentStatus.model_json_schema(mode="serialization"), "status"),
    )
    root["x-kubernetes-validations"] = [NAME_RULE]
    for rule in RULES:
        for place in rule.at:
            said = {"rule": rule.cel, "message": rule.message} | ({"fieldPath": rule.field} if rule.field else {})
            _at(root, place).setdefault("x-kubernetes-validations", []).append(said)
    return _definition((names.KIND, names.PLURAL, names.SHORT), root, {"status": {}}, COLUMNS)


def role_crd() -> dict[str, Any]:
    """The same of InferenceRole, which has a scale subresource."""
    root = _root(
        "One role of an InferenceDeployment whose size somebody else decides, made by the operator for "
        "scaling.mode External.",
        structural(InferenceRoleSpec.model_json_schema(), "spec"),
        structural(InferenceRoleStatus.model_json_schema(mode="serialization"), "status"),
    )
    for field in ("deploymentName", "role"):
        never = {"rule": "self == oldSelf", "message": f"{field} never changes"}
        _at(root, f"spec.{field}")["x-kubernetes-validations"] = [never]
    kind = names.ROLE_KIND, names.ROLE_PLURAL, names.ROLE_SHORT
    return _definition(kind, root, {"status": {}, "scale": SCALE}, ROLE_COLUMNS)


def _root(description: str, spec: Schema, status: Schema) -> Schema:
    return {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }


def _definition(
    called: tuple[str, str, str], root: Schema, subresources: dict[str, Any], columns: list[dict[str, Any]]
) -> dict[str, Any]:
    kind, plural, short = called
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": [names.CATEGORY],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "subresources": subresources,
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }


def crd_yaml() -> str:
    """The CustomResourceDefinition of InferenceDeployment as a file."""
    return _file(crd())


def role_crd_yaml() -> str:
    """The same of InferenceRole."""
    return _file(role_crd())


def _file(definition: dict[str, Any]) -> str:
    return HEADER + yaml.dump(definition, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """YAML without anchors: a rule that stands at several places is written out at each."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def structural(schema: Schema, path: str) -> Schema:
    """A JSON Schema of pydantic's as a structural schema. `path` is named when that cannot be done."""
    definitions = schema.get("$defs", {})
    return _node({key: value for key, value in schema.items() if key != "$defs"}, definitions, path, partial=False)


def _node(schema: Schema, definitions: dict[str, Schema], path: str, *, partial: bool) -> Schema:
    schema = _without_null(_resolved(schema, definitions), definitions, path)
    partial = partial or schema.pop(_PARTIAL, False)
    node: Schema = {}
    for key in schema.keys() & {"properties", "items", "additionalProperties"}:
        node |= _inside(key, schema, definitions, path, partial=partial)
    for key, value in schema.items():
        if key == "default" and not partial:
            node |= _default(value, schema, path)
        elif key not in {"default", "properties", "items", "additionalProperties"}:
            node |= _word(key, value, schema, path)
    _complete(node, path)
    return dict(sorted(node.items(), key=lambda entry: _ORDER.get(entry[0], 1)))


def _inside(key: str, schema: Schema, definitions: dict[str, Schema], path: str, *, partial: bool) -> Schema:
    """The schemas inside this one. Values of a mapping beside properties are none: the API server prunes."""
    value = schema[key]
    if key == "properties":
        inside = {name: _node(child, definitions, f"{path}.{name}", partial=partial) for name, child in value.items()}
        return {key: inside}
    if isinstance(value, dict):
        return {key: _node(value, definitions, f"{path}[]" if key == "items" else f"{path}.*", partial=partial)}
    if value is True and not schema.get("x-kubernetes-preserve-unknown-fields"):
        raise NotStructuralError(f"{path}: values of any kind need x-kubernetes-preserve-unknown-fields")
    return {}


def _word(key: str, value: Any, schema: Schema, path: str) -> Schema:
    """One key of JSON Schema in Kubernetes' words."""
    if key == "description":
        return {key: " ".join(value.split())}
    if key == "const":
        return {"enum": [value]}
    if key in {"exclusiveMinimum", "exclusiveMaximum"}:
        return {key.replace("exclusiveM", "m"): value, key: True}
    if key in _KEPT or (key == "anyOf" and schema.get("x-kubernetes-int-or-string")):
        return {key: deepcopy(value)}
    if key in _PYTHON_ONLY:
        return {}
    raise NotStructuralError(f"{path}: {key} has no place in a structural schema")


def _resolved(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """References inlined; what stands beside a reference (the field's own description and default) wins."""
    schema = dict(schema)
    while "$ref" in schema:
        name = schema.pop("$ref").rpartition("/")[2]
        schema = {**definitions[name], **schema}
    return schema


def _without_null(schema: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    """An optional is a property that may be absent, not one that may be null."""
    if "anyOf" not in schema or schema.get("x-kubernetes-int-or-string"):
        return schema
    beside = {key: value for key, value in schema.items() if key != "anyOf"}
    variants = [variant for variant in schema["anyOf"] if variant != {"type": "null"}]
    if len(variants) != 1:
        raise NotStructuralError(f"{path}: a union of types is not structural; use one optional field each")
    return _without_null({**_resolved(variants[0], definitions), **beside}, definitions, path)


def _default(value: Any, schema: Schema, path: str) -> Schema:
    """What the API server fills in: scalars, and objects with the scalars in them.

    Objects are written out, since rules see a default as it stands, before the defaults below it. Lists and free-form
    objects get none: a default entry of a list-map is nobody's, so that server-side apply could never take it away.
    """
    if value is None or isinstance(value, list):
        return {}
    if not isinstance(value, dict):
        return {"default": value}
    if "properties" not in schema:
        return {}
    if schema.get("required"):
        raise NotStructuralError(f"{path}: has a default but also required fields")
    return {"default": _scalars(value)}


def _scalars(value: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _scalars(item) if isinstance(item, dict) else item for key, item in value.items()}
    return {key: item for key, item in kept.items() if item is not None and not isinstance(item, list) and item != {}}


def _complete(node: Schema, path: str) -> None:
    """What must be there, for the API server and for its estimate of what CEL costs."""
    free = node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-int-or-string")
    if "type" not in node and not free:
        raise NotStructuralError(f"{path}: has no type")
    if node.get("type") == "array" and not {"items", "maxItems", "x-kubernetes-list-type"} <= node.keys():
        raise NotStructuralError(f"{path}: a list needs items, a greatest length and a list type")
    if node.get("type") == "string" and not {"maxLength", "enum", "format"} & node.keys():
        raise NotStructuralError(f"{path}: a text needs a greatest length or an enum")
    if "additionalProperties" in node and "maxProperties" not in node:
        raise NotStructuralError(f"{path}: a mapping needs a greatest number of entries")


def _at(root: Schema, place: str) -> Schema:
    """The schema at a place such as `spec.roles[].engine`."""
    node = root
    for step in place.split("."):
        node = node["properties"][step.removesuffix("[]")]
        if step.endswith("[]"):
            node = node["items"]
    return node
