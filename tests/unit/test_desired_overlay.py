"""A pod template over a generated pod: Kubernetes' strategic merge."""

from typing import Any

import pytest

from headrace_operator.desired.overlay import lay_over, merge

POD: dict[str, Any] = {
    "metadata": {"name": "p", "labels": {"headrace.dev/role": "decode"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "image": "a",
                "command": ["run"],
                "env": [{"name": "A", "value": "1"}],
                "volumeMounts": [{"name": "model", "mountPath": "/model"}],
            }
        ],
        "volumes": [{"name": "model", "hostPath": {"path": "/m"}}, {"name": "tmp", "emptyDir": {}}],
        "tolerations": [{"key": "a"}],
    },
}


def laid(spec: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = lay_over(POD, {"spec": spec})["spec"]
    return result


def test_an_empty_template_changes_nothing() -> None:
    assert lay_over(POD, {}) == POD
    assert lay_over(POD, {"spec": {}, "metadata": {}}) == POD


def test_the_engine_is_found_by_its_name_and_keeps_what_is_not_mentioned() -> None:
    env = [{"name": "PATH", "value": "/venv/bin:/usr/bin"}]
    mounts = [{"name": "venv", "mountPath": "/venv", "readOnly": True}]
    spec = laid(
        {
            "containers": [{"name": "engine", "env": env, "volumeMounts": mounts}],
            "volumes": [{"name": "venv", "hostPath": {"path": "/venv"}}],
        }
    )
    (engine,) = spec["containers"]
    assert engine["image"] == "a"
    assert engine["env"] == [{"name": "A", "value": "1"}, *env]
    assert [mount["mountPath"] for mount in engine["volumeMounts"]] == ["/model", "/venv"]
    assert [volume["name"] for volume in spec["volumes"]] == ["model", "tmp", "venv"]


def test_sidecars_and_tolerations_are_added() -> None:
    spec = laid({"containers": [{"name": "proxy", "image": "b"}], "tolerations": [{"key": "gpu"}, {"key": "a"}]})
    assert [container["name"] for container in spec["containers"]] == ["engine", "proxy"]
    assert spec["tolerations"] == [{"key": "a"}, {"key": "gpu"}]


def test_a_volume_of_another_kind_takes_the_place_of_the_generated_one() -> None:
    spec = laid({"volumes": [{"name": "tmp", "ephemeral": {"x": 1}}]})
    assert spec["volumes"][1] == {"name": "tmp", "ephemeral": {"x": 1}}


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ({"containers": [{"name": "engine", "command": ["other"]}]}, ("containers", 0, "command"), ["other"]),
        ({"tolerations": None}, ("tolerations",), None),
        (
            {"containers": [{"name": "engine", "env": [{"name": "A", "$patch": "delete"}]}]},
            ("containers", 0, "env"),
            [],
        ),
        ({"securityContext": {"runAsUser": 5}}, ("securityContext",), {"runAsUser": 5}),
        ({"nodeSelector": {"a": "b", "$patch": "replace"}}, ("nodeSelector",), {"a": "b"}),
    ],
)
def test_merges(template: dict[str, Any], path: tuple[Any, ...], expected: Any) -> None:
    value: Any = laid(template)
    for step in path:
        value = value.get(step) if isinstance(value, dict) else value[step]
    assert value == expected


def test_identity_cannot_be_overwritten_but_labels_and_annotations_are_added() -> None:
    meta = {"labels": {"headrace.dev/role": "prefill", "team": "a"}, "annotations": {"note": "b"}}
    laid_over = lay_over(POD, {"metadata": meta})["metadata"]
    assert laid_over["labels"] == {"headrace.dev/role": "decode", "team": "a"}
    assert laid_over["annotations"] == {"note": "b"}
    assert laid_over["name"] == "p"


def test_neither_side_is_changed() -> None:
    base, over = {"env": [{"name": "A"}]}, {"env": [{"name": "A", "value": "2"}]}
    merge(base, over)
    assert base == {"env": [{"name": "A"}]}
    assert over == {"env": [{"name": "A", "value": "2"}]}
