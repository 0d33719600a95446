"""The samples: valid as they stand, before Python and before the CRD's schema."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from headrace_operator import names
from headrace_operator.api.crd import crd
from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

FOLDER = Path(__file__).parents[2] / "manifests/samples"
FILES = sorted(FOLDER.glob("*.yaml"))
SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def load(file: Path) -> dict[str, Any]:
    sample: dict[str, Any] = yaml.safe_load(file.read_text())
    return sample


def test_there_is_one_for_each_kind_of_deployment() -> None:
    assert {file.stem for file in FILES} >= {"cpu-demo", "gpu-aggregated", "gpu-prefill-decode", "multi-node"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sample_has_no_problems(file: Path) -> None:
    sample = load(file)

    assert isinstance(parse(sample), InferenceDeploymentSpec), parse(sample)
    assert (sample["apiVersion"], sample["kind"]) == (names.API_VERSION, names.KIND)
    assert "namespace" not in sample["metadata"]
    jsonschema.Draft202012Validator(SCHEMA).validate(sample)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sample_says_first_what_it_is_for(file: Path) -> None:
    assert file.read_text().startswith("# ")
