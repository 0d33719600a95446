"""When an object must be written, and when it is as it should be."""

import copy

import pytest

from headrace_operator import names
from headrace_operator.apply import covers, needed, stamp
from headrace_operator.state import Object

SERVICE: Object = {
    "kind": "Service",
    "metadata": {"name": "chat", "labels": {"a": "b"}, "ownerReferences": [{"uid": "u", "controller": True}]},
    "spec": {"selector": {"x": "y"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
}


def kept(obj: Object) -> Object:
    """The object as a server returns it: with defaults."""
    seen = copy.deepcopy(obj)
    seen["metadata"] |= {"uid": "1", "managedFields": []}
    if "ports" in seen["spec"]:
        seen["spec"]["ports"][0]["protocol"] = "TCP"
    seen["spec"]["clusterIP"] = "10.0.0.1"
    return seen


def test_writes_nothing_where_a_server_only_added_defaults() -> None:
    assert not needed(stamp(SERVICE), kept(stamp(SERVICE)))


def test_writes_what_is_not_there() -> None:
    assert needed(stamp(SERVICE), None)


def test_writes_where_our_wish_changed_even_if_the_rest_covers_it() -> None:
    wish = copy.deepcopy(SERVICE)
    del wish["spec"]["selector"]
    assert covers(kept(stamp(SERVICE))["spec"], wish["spec"])
    assert needed(stamp(wish), kept(stamp(SERVICE)))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("spec", {"selector": {"x": "z"}}),
        ("spec", {"ports": []}),
        ("metadata", {"labels": {}}),
        ("spec", {"selector": None}),
    ],
)
def test_writes_where_somebody_else_changed_what_we_said(part: str, change: Object) -> None:
    seen = kept(stamp(SERVICE))
    seen[part] |= change
    assert needed(stamp(SERVICE), seen)


def test_a_pod_that_would_be_rendered_otherwise_today_is_left_alone() -> None:
    pod = {**SERVICE, "kind": "Pod"}
    newer = {**pod, "spec": {"selector": {"other": "fields"}}}
    assert not needed(stamp(newer), kept(stamp(pod)))


def test_a_pod_whose_labels_were_taken_is_written() -> None:
    pod = {**SERVICE, "kind": "Pod"}
    seen = kept(stamp(pod))
    seen["metadata"]["labels"] = {}
    assert needed(stamp(pod), seen)


@pytest.mark.parametrize(
    ("observed", "desired", "same"),
    [
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1000m"}}, True),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1024Mi"}}, True),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "2Gi"}}, False),
        ({"labels": {"a": "1"}}, {"labels": {"a": "1000m"}}, False),
        ({"sizeLimit": "1Gi"}, {"sizeLimit": "1024Mi"}, True),
        ({}, {"emptyDir": {}}, True),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "B", "value": "2"}]},
            True,
        ),
        ({"command": ["a"]}, {"command": ["a", "b"]}, False),
        ({"rules": [{"verbs": ["get"]}]}, {"rules": [{"verbs": ["get"]}]}, True),
        ({"x": "text"}, {"x": {"y": 1}}, False),
        ({"readOnly": True}, {"readOnly": False}, False),
        ({}, {"readOnly": False}, False),
    ],
)
def test_covers(observed: Object, desired: Object, same: bool) -> None:
    assert covers(observed, desired) is same


def test_the_stamp_is_a_hash_of_what_is_sent_and_of_nothing_else() -> None:
    assert stamp(SERVICE) == stamp(copy.deepcopy(SERVICE))
    assert "annotations" not in SERVICE["metadata"]
    other = stamp({**SERVICE, "spec": {}})
    assert other["metadata"]["annotations"][names.APPLIED] != stamp(SERVICE)["metadata"]["annotations"][names.APPLIED]
