"""What the chart makes of its values, rendered by the real helm: rights, safety, and words for wrong values."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from headrace_operator.permissions import RULES
from headrace_operator.settings import Settings
from local import chart
from local.errors import LocalError

Object = dict[str, Any]


def rendered(*values: str) -> list[Object]:
    words = [word for value in values for word in ("--set", value)]
    return [document for document in yaml.safe_load_all(chart.render(*words)) if document]


def only(kind: str, objects: list[Object], name: str | None = None) -> Object:
    (found,) = [d for d in objects if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    return found


def pod_spec(objects: list[Object]) -> Object:
    spec: Object = only("Deployment", objects)["spec"]["template"]["spec"]
    return spec


def environment(objects: list[Object]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in pod_spec(objects)["containers"][0]["env"]}


def test_by_default_it_looks_after_all_namespaces() -> None:
    objects = rendered()
    assert sorted(document["kind"] for document in objects) == [
        "ClusterRole",
        "ClusterRoleBinding",
        "Deployment",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ]
    assert environment(objects)["HEADRACE_NAMESPACES"] == ""


def test_with_namespaces_it_has_rights_there_and_nowhere_else() -> None:
    objects = rendered("watchNamespaces={team-a,team-b}")
    kinds = {document["kind"] for document in objects}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding"}
    for kind in ("Role", "RoleBinding"):
        found = [document["metadata"]["namespace"] for document in objects if document["kind"] == kind]
        assert found == [chart.NAMESPACE, "team-a", "team-b"]
    bound = [subject for document in objects for subject in document.get("subjects", ())]
    assert {subject["namespace"] for subject in bound} == {chart.NAMESPACE}
    assert environment(objects)["HEADRACE_NAMESPACES"] == "team-a,team-b"


@pytest.mark.parametrize(("kind", "values"), [("ClusterRole", []), ("Role", ["watchNamespaces={team-a}"])])
def test_the_role_is_the_list_of_permissions(kind: str, values: list[str]) -> None:
    rules = only(kind, rendered(*values), "headrace")["rules"]
    assert rules == [
        {"apiGroups": [rule.group], "resources": list(rule.resources), "verbs": list(rule.verbs)} for rule in RULES
    ]


def test_no_rule_has_a_wildcard() -> None:
    for rule in only("ClusterRole", rendered())["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_secrets_are_made_and_never_read() -> None:
    verbs = [verb for rule in RULES if "secrets" in rule.resources for verb in rule.verbs]
    assert verbs == ["create"]


def test_the_pod_is_what_the_restricted_standard_asks_for() -> None:
    spec = pod_spec(rendered())
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert {"livenessProbe", "readinessProbe"} <= container.keys()


def test_operators_elect_one_by_a_lease_that_only_they_may_write() -> None:
    objects = rendered()
    assert environment(objects)["HEADRACE_LEASE"] == f"{chart.NAMESPACE}/headrace"
    role = only("Role", objects, "headrace-election")
    assert role["metadata"]["namespace"] == chart.NAMESPACE
    assert [(tuple(rule["verbs"]), rule.get("resourceNames")) for rule in role["rules"]] == [
        (("create",), None),
        (("get", "patch"), ["headrace"]),
    ]
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"leases"}
    assert only("RoleBinding", objects)["subjects"][0]["namespace"] == chart.NAMESPACE


def test_a_rollout_of_operators_begins_the_next_before_it_ends_one() -> None:
    spec = only("Deployment", rendered())["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_drains_take_one_operator_at_a_time_and_a_single_one_blocks_none() -> None:
    budget = only("PodDisruptionBudget", rendered())["spec"]
    labels = only("Deployment", rendered())["spec"]["selector"]["matchLabels"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    assert not [d for d in rendered("replicas=1") if d["kind"] == "PodDisruptionBudget"]


def test_operators_keep_apart_unless_they_are_told_otherwise() -> None:
    (term,) = pod_spec(rendered())["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    mine = pod_spec(rendered("affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey=zone"))
    assert mine["affinity"].keys() == {"podAffinity"}


def test_every_variable_is_a_setting_of_the_operator() -> None:
    settings = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields}
    assert environment(rendered()).keys() <= settings


def test_own_policies_come_from_a_config_map_that_the_operator_itself_does_not_import_from() -> None:
    assert "HEADRACE_POLICIES" not in environment(rendered())
    objects = rendered("policies.names={steady:decide,acme.night:decide}", "policies.configMap=my-policies")
    given, (container,) = environment(objects), pod_spec(objects)["containers"]
    assert Settings(policies=given["HEADRACE_POLICIES"]).policy_names == {"steady:decide", "acme.night:decide"}
    assert given["HEADRACE_POLICY_SECONDS"] == "1"
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "policies"]
    assert (mount["mountPath"], mount["readOnly"]) == (given["HEADRACE_POLICY_PATH"], True)
    assert {"name": "policies", "configMap": {"name": "my-policies", "optional": True}} in pod_spec(objects)["volumes"]
    assert "PYTHONPATH" not in given


def test_a_digest_wins_over_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    objects = rendered(f"images.operator.digest={digest}", "images.operator.tag=1.2.3")
    assert pod_spec(objects)["containers"][0]["image"] == f"headrace.dev/operator@{digest}"


def test_images_of_gateways_and_engines_are_handed_to_the_operator() -> None:
    given = environment(rendered("images.engine.repository=registry.test/engine", "images.engine.tag=v7"))
    assert given["HEADRACE_ENGINE_IMAGE"] == "registry.test/engine:v7"
    assert given["HEADRACE_GATEWAY_IMAGE"].startswith("headrace.dev/runtime:")


def test_an_account_of_the_users_own_is_bound() -> None:
    objects = rendered("serviceAccount.create=false", "serviceAccount.name=mine")
    assert not [document for document in objects if document["kind"] == "ServiceAccount"]
    assert only("ClusterRoleBinding", objects)["subjects"][0]["name"] == "mine"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("logLevel=info", "/logLevel"),
        ("watchNamespaces={Team}", "/watchNamespaces/0"),
        ("images.operator.tga=1", "/images/operator"),
        ("images.operator.digest=abc", "/images/operator/digest"),
        ("resources.limits.memory=lots", "/resources/limits/memory"),
        ("concurrency=0", "/concurrency"),
        ("replicas=two", "/replicas"),
        ("extraEnv[0].name=HEADRACE_PORT", "/extraEnv/0/name"),
        ("policies.names={steady}", "/policies/names/0"),
        ("extraEnv[0].name=HEADRACE_POLICIES", "/extraEnv/0/name"),
        ("extraEnv[0].name=HEADRACE_LEASE", "/extraEnv/0/name"),
        ("serviceAccount.create=false", "serviceAccount.name"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, named: str) -> None:
    with pytest.raises(LocalError) as refusal:
        rendered(value)
    assert named in refusal.value.message


def test_every_value_is_in_the_schema_and_has_a_comment() -> None:
    lines = (chart.CHART / "values.yaml").read_text().splitlines()
    above = dict(zip(lines[1:], lines, strict=False))
    uncommented = [
        line
        for line in lines
        if line and line[0].isalpha() and not above.get(line, "").startswith("#") and not above[line][:1].isalpha()
    ]
    # Groups whose members carry the comments.
    assert uncommented == ["serviceAccount:", "rbac:"]


def test_the_plain_manifest_is_up_to_date() -> None:
    assert chart.INSTALL.read_text() == chart.install_manifest(), "run `make generate` and commit the result"


def test_the_notes_say_how_to_leave() -> None:
    notes = (chart.CHART / "templates" / "NOTES.txt").read_text()
    for words in ("kubectl apply --server-side", "helm uninstall", "kubectl delete infd", "No finalizers"):
        assert words in notes
