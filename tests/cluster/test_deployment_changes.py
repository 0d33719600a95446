"""A small deployment's life: made while the operator is replaced, grown, shrunk, deleted without a trace."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from local.images import DEBIAN
from tests.cluster.deployments import Infd, tiny


@pytest.fixture(scope="module")
def small(headrace: Any) -> Any:
    infd: Infd = headrace.infd("small")
    try:
        yield infd
    finally:
        infd.delete()


@pytest.mark.timeout(300)
def test_an_operator_replaced_half_way_comes_to_the_same_end(headrace: Any, small: Infd) -> None:
    operator = headrace.operator_pod()
    small.apply(tiny("small"))
    small.until("something is made", small.children, 90)
    headrace.system("delete", "pod", operator, "--grace-period=0", "--force")
    print(f"Ready {small.until_ready():.1f} s after the operator was killed in the middle")
    assert sorted(kind.partition("/")[0] for kind in small.children() if not kind.startswith("ReplicaSet")) == sorted(
        ["Pod"] * 3 + ["ConfigMap"] * 3 + ["Service"] * 2 + ["Secret", "Deployment", "Role", "RoleBinding"]
        + ["ServiceAccount", "ControllerRevision"]
    )  # fmt: skip
    with small.gateway() as url:
        assert small.complete(url, [5, 6, 7]).status == 200


@pytest.mark.timeout(300)
def test_it_grows_and_shrinks_and_keeps_its_first_engine(small: Infd) -> None:
    (first,), lives = small.pods(), small.lives()
    small.scale(2)
    try:
        small.until_condition(c.ROLES_READY, "True", Reason.ENGINES_READY, 120)
        assert len(small.pods()) == 2
        with small.gateway() as url:
            small.until("both answer", lambda: len({_engine(small, url, seed) for seed in range(6)}) == 2, 90)
    finally:
        small.scale(1)
    small.until("one engine is left", lambda: list(small.pods()) == [first], 120)
    small.until_ready(60)
    assert small.lives() == lives


def _engine(infd: Infd, url: str, seed: int) -> str:
    return infd.complete(url, [seed + 5] * 8).headers["x-headrace-decode"]


def test_a_label_that_somebody_took_is_put_back(small: Infd) -> None:
    pod, lives = small.pod(), small.lives()
    small.kubectl("label", "pod", pod, f"{names.MANAGED_BY}-")
    small.until("it is back", lambda: small.pods()[pod]["metadata"]["labels"].get(names.MANAGED_BY), 90)
    assert small.lives() == lives


def test_a_pod_of_somebody_else_is_named_and_left_alone(headrace: Any) -> None:
    infd: Infd = headrace.infd("taken")
    theirs = names.head(infd.name)
    headrace.kubectl("run", theirs, f"--image={DEBIAN}", "--command", "--", "sleep", "infinity")
    uid = headrace.kubectl("get", "pod", theirs, "--output=jsonpath={.metadata.uid}")
    try:
        infd.apply(tiny(infd.name, replicas=0))
        infd.until_condition(c.ACCEPTED, "False", Reason.NOT_OWNED)
        assert f"Pod/{theirs}" in infd.message(c.ACCEPTED)
        assert headrace.kubectl("get", "pod", theirs, "--output=jsonpath={.metadata.uid}") == uid
    finally:
        headrace.kubectl("delete", "pod", theirs, "--now")
        infd.delete()


@pytest.mark.timeout(180)
def test_a_deleted_deployment_leaves_nothing(small: Infd) -> None:
    assert len(small.children()) > 10
    small.kubectl("delete", "infd", small.name, "--wait")
    seconds = small.until_gone()
    print(f"nothing left {seconds:.1f} s after it was deleted")
