"""A role that others scale: `kubectl scale`, a real HorizontalPodAutoscaler, and a label that somebody takes. Of pods
without an engine in them, since they only have to be there to be counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason
from local import toolchain
from local.programs import run
from tests.cluster.deployments import Infd, Json, tiny

HPA = Path(__file__).parents[2] / "manifests/scalers/hpa.yaml"
NAME = "scaled"
ROLE = names.inference_role(NAME, "serve")


def external() -> Json:
    manifest = tiny(NAME, mounted=False)
    (role,) = manifest["spec"]["roles"]
    del role["replicas"]
    role["scaling"] = {"min": 1, "max": 2}
    manifest["spec"]["scaling"] = {"mode": "External"}
    return manifest


@pytest.fixture(scope="module")
def scaled(headrace: Any) -> Iterator[Infd]:
    infd: Infd = headrace.infd(NAME)
    infd.apply(external())
    try:
        infd.until_condition(c.SCALING_ACTIVE, "True", Reason.EXTERNAL)
        yield infd
    finally:
        infd.delete()


def role(infd: Infd) -> Json:
    return infd.json("get", names.ROLE_SHORT, ROLE)


def until_sized(infd: Infd, size: int, limit: float = 60) -> float:
    """Seconds until so many engines are there, and whoever scales is told so."""

    def holds() -> bool:
        return len(infd.pods()) == size and role(infd).get("status", {}).get("replicas") == size

    return infd.until(f"{size} engines are there and told", holds, limit)


def scale(infd: Infd, replicas: int) -> None:
    infd.kubectl("scale", f"{names.ROLE_SHORT}/{ROLE}", f"--replicas={replicas}")


def test_kubectl_scale_is_carried_out_within_the_bounds(scaled: Infd) -> None:
    until_sized(scaled, 1)
    scale(scaled, 5)
    print(f"a second engine's pod {until_sized(scaled, 2):.1f} s after kubectl scale")
    (limited,) = role(scaled)["status"]["conditions"]
    assert (limited["type"], limited["status"], limited["reason"]) == ("ScalingLimited", "True", "TooManyReplicas")
    assert role(scaled)["spec"]["replicas"] == 5
    scale(scaled, 1)
    until_sized(scaled, 1)


def test_a_label_that_somebody_takes_is_put_back_and_the_size_stays(scaled: Infd) -> None:
    scale(scaled, 2)
    until_sized(scaled, 2)
    scaled.kubectl("label", names.ROLE_SHORT, ROLE, f"{names.DEPLOYMENT}-")
    scaled.until("the label is back", lambda: names.DEPLOYMENT in role(scaled)["metadata"]["labels"], 60)
    assert (role(scaled)["spec"]["replicas"], len(scaled.pods())) == (2, 2)
    scale(scaled, 1)
    until_sized(scaled, 1)


@pytest.mark.timeout(240)
def test_a_real_autoscaler_finds_it_and_scales_it(scaled: Infd) -> None:
    # Without a metrics adapter it still raises what is below its own least.
    hpa = copy.deepcopy(yaml.safe_load(HPA.read_text()))
    hpa["spec"] |= {"minReplicas": 2, "maxReplicas": 2}
    hpa["spec"]["scaleTargetRef"]["name"] = ROLE
    to = ("--kubeconfig", scaled.kubectl.kubeconfig, "--namespace", scaled.kubectl.namespace)
    run(toolchain.kubectl(), *to, "apply", "--filename=-", stdin=json.dumps(hpa))
    try:
        print(f"two engines' pods {until_sized(scaled, 2, 120):.1f} s after the autoscaler was made")
        assert role(scaled)["spec"]["replicas"] == 2
    finally:
        scaled.kubectl("delete", "hpa", hpa["metadata"]["name"])


def test_a_mode_that_changes_back_takes_it_away_and_keeps_the_engines(scaled: Infd) -> None:
    scale(scaled, 2)
    until_sized(scaled, 2)
    lives = scaled.lives()
    fixed = tiny(NAME, mounted=False, replicas=2)
    scaled.apply(fixed)
    scaled.until("its InferenceRole is gone", lambda: not scaled.json("get", names.ROLE_PLURAL)["items"], 60)
    assert scaled.lives().keys() == lives.keys()
