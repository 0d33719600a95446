"""What the documented autoscalers ask Prometheus for is what gateways tell it, within the bounds of what they scale."""

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from headrace_operator import names
from headrace_runtime.gateway.telemetry import Telemetry

MANIFESTS = Path(__file__).parents[2] / "manifests"
SCALERS = sorted((MANIFESTS / "scalers").glob("*.yaml"))
SAMPLE = yaml.safe_load((MANIFESTS / "samples/gpu-external.yaml").read_text())


def told() -> set[str]:
    registry = CollectorRegistry()
    Telemetry(registry)
    return {sample.name for family in registry.collect() for sample in family.samples}


@pytest.mark.parametrize("file", SCALERS, ids=lambda file: file.stem)
def test_a_scaler_asks_for_figures_that_there_are(file: Path) -> None:
    asked = set(re.findall(r"headrace_gateway_\w+", file.read_text()))
    assert asked <= told()
    assert asked or "external-push" in file.read_text()


@pytest.mark.parametrize("file", SCALERS, ids=lambda file: file.stem)
def test_a_scaler_stays_within_the_bounds_of_the_role(file: Path) -> None:
    spec = yaml.safe_load(file.read_text())["spec"]
    bounds = {
        names.inference_role(SAMPLE["metadata"]["name"], role["name"]): (role["scaling"]["min"], role["scaling"]["max"])
        for role in SAMPLE["spec"]["roles"]
    }
    low, high = (spec.get(f"{which}Replicas", spec.get(f"{which}ReplicaCount")) for which in ("min", "max"))
    assert (low, high) == bounds[spec["scaleTargetRef"]["name"]]
