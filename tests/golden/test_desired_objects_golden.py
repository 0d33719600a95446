"""Every object of every sample, as YAML: a change of what is applied is a change of these files, to be read in the
review."""

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
GOLDEN = Path(__file__).parent / "desired_objects"


def rendered(sample: Path) -> str:
    document = next(d for d in yaml.safe_load_all(sample.read_text()) if d and d["kind"] == "InferenceDeployment")
    spec = parse(document)
    assert isinstance(spec, InferenceDeploymentSpec), spec
    subject = Subject(Ref("demo", document["metadata"]["name"], "the-uid"), 1, spec, DEFAULTS)
    return yaml.safe_dump_all(desired_objects(subject, make_plan(spec, Observed())), sort_keys=False, width=120)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_made_into_these_objects(name: str) -> None:
    golden, objects = GOLDEN / f"{name}.yaml", rendered(SAMPLES[name])
    if os.environ.get("GOLDEN_UPDATE"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(objects)
    assert objects == golden.read_text(), "make golden-update writes the files anew"


def test_every_golden_file_has_its_sample() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == SAMPLES.keys()
