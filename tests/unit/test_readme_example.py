"""The first InferenceDeployment that a newcomer sees must be one that works."""

import re
from pathlib import Path

import yaml

from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_of_the_readme_is_valid() -> None:
    text = (ROOT / "README.md").read_text()
    example = re.search(r"```yaml\n(apiVersion: headrace.dev.*?)```", text, re.DOTALL)
    assert example
    assert isinstance(parse(yaml.safe_load(example[1]) | {"status": {}}), InferenceDeploymentSpec)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
