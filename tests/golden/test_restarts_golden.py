"""A new version of the operator restarts no pod: of every sample the revisions, and the pods that its Deployment makes,
are those of the releases before.

A line of `restarts.yaml` that changes is a restart of somebody's engines, heads or gateways at an upgrade. So
`make golden-update` adds lines for new samples and changes none: whoever means it edits the line, and says so in the
changelog.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.desired import desired_objects
from headrace_operator.plan import make_plan
from headrace_operator.state import Observed, Ref, Subject
from headrace_operator.testing import DEFAULTS

SAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "manifests/samples").glob("*.yaml"))}
GOLDEN = Path(__file__).parent / "restarts.yaml"


def restarts(sample: Path) -> dict[str, str]:
    """What pods are replaced for when it changes, by who they are."""
    document = next(d for d in yaml.safe_load_all(sample.read_text()) if d and d["kind"] == "InferenceDeployment")
    spec = parse(document)
    assert isinstance(spec, InferenceDeploymentSpec), spec
    subject = Subject(Ref("demo", document["metadata"]["name"], "the-uid"), 1, spec, DEFAULTS)
    plan = make_plan(spec, Observed())
    (gateway,) = [o for o in desired_objects(subject, plan) if o["kind"] == "Deployment"]
    template = json.dumps(gateway["spec"]["template"], sort_keys=True)
    return {
        "engines": plan.revision,
        "head": plan.head_revision,
        "gateways": hashlib.sha256(template.encode()).hexdigest()[:10],
    }


def recorded() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = yaml.safe_load(GOLDEN.read_text())
    return found


@pytest.fixture(scope="module", autouse=True)
def _new_samples() -> None:
    if os.environ.get("GOLDEN_UPDATE"):
        lines = {name: restarts(path) for name, path in SAMPLES.items()} | recorded()
        GOLDEN.write_text(yaml.safe_dump(lines))


@pytest.mark.parametrize("name", SAMPLES)
def test_an_upgrade_of_the_operator_restarts_no_pod_of(name: str) -> None:
    assert restarts(SAMPLES[name]) == recorded()[name], "an upgrade to this would restart pods that serve"


def test_every_line_has_its_sample() -> None:
    assert recorded().keys() == SAMPLES.keys()
