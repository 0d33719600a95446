"""What the benchmark of many deployments compares with, and how it counts: no control plane here."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import scale
from bench.fleet import Eyes, Fleet
from bench.plane import Audit
from bench.report import Options, Report


def line(verb: str, resource: str, code: int, subresource: str = "") -> str:
    ref = {"resource": resource} | ({"subresource": subresource} if subresource else {})
    return json.dumps({"verb": verb, "objectRef": ref, "responseStatus": {"code": code}}) + "\n"


def test_the_minimum_is_every_child_once_a_secret_and_one_status() -> None:
    least = scale.minimum()
    assert (least["Pod"], least["Service"], least["Deployment"]) == (3, 2, 1)
    assert (least["Secret"], least["status"]) == (1, 1)
    assert least["ConfigMap with the digest"] == 2


def test_a_roll_needs_new_engines_and_contracts_the_end_of_the_old_and_a_status() -> None:
    assert scale.roll_minimum() >= 4 + 4 + 1


def test_writes_are_counted_once_with_what_became_of_them(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line("patch", "services", 201) + line("patch", "pods", 409) + line("create", "pods", 201)[:-9])
    audit = Audit(log)
    assert audit.since() == {("create", "services", True): 1, ("patch", "pods", False): 1}
    with log.open("a") as more:
        more.write(line("create", "pods", 201)[-9:] + line("patch", "inferencedeployments", 200, "status"))
    assert audit.since() == {("create", "pods", True): 1, ("patch", "inferencedeployments/status", True): 1}
    assert not audit.since()


class NoServer:
    """Nothing is ever told of anything."""

    def watch(self, *_: Any, **__: Any) -> None:
        return


def deployment(name: str, ready: str, observed: int = 1) -> Any:
    status = {"observedGeneration": observed, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"namespace": "scale-0", "name": name, "generation": 1}, "status": status}


def test_all_are_ready_once_each_says_so_of_its_spec_as_it_is() -> None:
    eyes = Eyes(NoServer())  # type: ignore[arg-type]
    fleet = Fleet(NoServer(), eyes, 2)  # type: ignore[arg-type]
    assert fleet.keys == [("scale-0", "d-0"), ("scale-0", "d-1")]
    eyes._deployment("ADDED", deployment("d-0", "True"))
    assert not fleet.ready()
    eyes._deployment("ADDED", deployment("d-1", "True", observed=0))
    assert not fleet.ready()
    eyes._deployment("MODIFIED", deployment("d-1", "True"))
    assert fleet.ready()
    eyes._deployment("MODIFIED", deployment("d-0", "False"))
    assert not fleet.ready()


def test_a_size_that_did_not_come_to_its_end_fails_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(size: int, quick: bool, report: Report) -> dict[str, float]:
        if size == 5000:
            report.checks.append(scale.Check("5,000 objects: waited in vain", 0, "to the end", ok=False))
            return {"created, s": 1.0}
        return {"writes per object ÷ minimum": 1.05, "all Ready, s": 50.0, "operator: peak memory MB": 200.0}

    monkeypatch.setattr(scale, "_measured", measured)
    report = scale.run(Options(objects=(1000, 5000)))
    assert not report.ok
    assert ["created, s", "", "1", "", ""] in report.rows
    assert ["all Ready, s", "50", "", "113", "82.2"] in report.rows
    assert all(check.ok for check in report.checks if check.what.startswith("1,000"))
    report.show(Console(quiet=True))
