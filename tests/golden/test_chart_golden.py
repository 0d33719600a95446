"""The chart's objects for a few sets of values: a change of what is installed is a change of these files."""

import os
from pathlib import Path

import pytest

from local import chart

GOLDEN = Path(__file__).parent / "chart_renders"
VALUES = {
    "default": (),
    "namespaces": ("watchNamespaces={team-a,team-b}", "logLevel=DEBUG"),
    "pinned": (
        "images.operator.digest=sha256:" + "0" * 64,
        "images.pullSecrets[0].name=registry",
        "priorityClassName=system-cluster-critical",
        "nodeSelector.disk=ssd",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_become_these_objects(name: str) -> None:
    objects = chart.render(*(word for value in VALUES[name] for word in ("--set", value)))
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("GOLDEN_UPDATE"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(objects)
    assert objects == golden.read_text(), "make golden-update writes the files anew"


def test_every_golden_render_has_its_values() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == VALUES.keys()
