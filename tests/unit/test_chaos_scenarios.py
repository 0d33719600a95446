"""Scenario files, and the document that is made from their results."""

from pathlib import Path

import pytest

from chaos import results, table
from chaos.cluster import manifest
from chaos.questions import CHAT, Shape, is_long, questions
from chaos.results import Record
from chaos.scenario import FOLDER, Deployment, Expectation, load, read
from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

FAULTS = {
    "engine_killed", "engine_stopped", "engine_out_of_memory", "front_end_killed", "pod_deleted", "pod_evicted",
    "node_killed", "node_cut", "link_cut", "head_killed", "gcs_lost", "gateway_killed", "operator_killed",
    "api_server_away", "dns_away",
}  # fmt: skip


LIMITS = {
    name: Expectation(detect_seconds=2.0, recover_seconds=2.0, whole_seconds=None)
    for name in ("engine-killed", "other")
}


def measured(**changes: object) -> Record:
    fields: dict[str, object] = {
        "scenario": "engine-killed",
        "title": "Engine killed",
        "how": "SIGKILL.",
        "world": "processes",
        "engines": "vllm",
        "client_retries": 0,
        "seed": 7,
        "commit": "abc",
        "cpus": 2,
        "kernel": "6.1",
        "requests": 50,
        "struck": 9,
        "lost": 0,
        "cut": 0,
        "duplicated": 0,
        "mismatched": 0,
        "statuses": {},
        "detect": [0.1, 0.3, 0.2],
        "recover": [0.0, 1.5, 0.0],
        "whole": [3.0, None, 4.0],
        "longest_silence": 1.7,
        "caught": {"tokens given twice": "1 more duplicated than expected"},
    }
    return Record.model_validate(fields | changes)


def test_every_fault_has_a_scenario() -> None:
    assert {scenario.fault for scenario in load()} == FAULTS


def test_every_scenario_strikes_what_its_deployment_has() -> None:
    for scenario in load():
        if scenario.target != "none":
            assert getattr(scenario.deployment, scenario.target) > 0, scenario.name


def test_scenarios_that_share_a_deployment_are_neighbours() -> None:
    seen = [(scenario.world, scenario.deployment.model_dump_json()) for scenario in load()]
    changes = [one for one, before in zip(seen[1:], seen, strict=False) if one != before]
    assert len(changes) == len(set(seen)) - 1


def test_what_is_struck_in_the_cluster_is_a_valid_deployment_of_the_asked_size() -> None:
    spec = parse(manifest(Deployment(engines="vllm", prefill=1, decode=3, gateways=2)))
    assert isinstance(spec, InferenceDeploymentSpec), spec
    assert {role.name: role.replicas for role in spec.roles} == {"prefill": 1, "decode": 3}
    assert spec.gateway.replicas == 2


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no such scenario: nothing"):
        load(["nothing"])


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(next(FOLDER.glob("*.yaml")).read_text() + "colour: red\n")
    with pytest.raises(ValueError, match="is no scenario"):
        read(file)


def test_questions_are_the_same_each_time_and_of_every_kind() -> None:
    asked = questions("m", Shape())
    assert asked == questions("m", Shape())
    assert {one.streamed for one in asked} == {True, False}
    assert {bool(one.body.get("return_token_ids")) for one in asked} == {True, False}
    assert {is_long(number) for number, one in enumerate(asked) if one.path == CHAT} == {True, False}


def test_the_page_has_a_row_for_each_record_with_its_spread() -> None:
    page = table.page([measured()], LIMITS)
    (row,) = [line for line in page.splitlines() if line.startswith("| Engine killed")]
    assert "| 0.2 (0.1 to 0.3) | 0.0 (0.0 to 1.5) | 3.5 (3.0 to 4.0, 1 never) | 1 of 1 found | holds |" in row


def test_the_page_says_what_does_not_hold_and_which_engines_are_simulated() -> None:
    bad = measured(engines="simulated", lost=3, cut=2)
    page = table.page([bad, measured(scenario="other", caught={"tokens given twice": ""})], LIMITS)
    assert "processes, *simulated*" in page
    assert "| 3 (2 cut) |" in page
    assert "**Does not hold: 3 more lost than expected.**" in page
    assert page.count("| **fails** |") == 2


def test_the_page_names_what_was_not_measured() -> None:
    assert table.page([measured()], LIMITS).endswith("\nNot measured yet: `other`.\n")
    assert "Not measured" not in table.page([measured(), measured(scenario="other")], LIMITS)


def test_sessions_of_one_scenario_are_added_up() -> None:
    later = measured(seed=8, detect=[0.9], recover=[0.0], whole=[1.0], lost=1)
    page = table.page([measured(), later], LIMITS)
    (row,) = [line for line in page.splitlines() if line.startswith("| Engine killed")]
    assert "| 4 | 100 | 18 | 1 | 0 | 0 | 0.2 (0.1 to 0.9) |" in row
    assert row.endswith("| 2 of 2 found | **fails** |")
    assert "`engine-killed`: 7 (abc, 3 runs), 8 (abc, 1 runs)" in page


def test_the_document_is_what_its_results_make() -> None:
    assert table.check() == ""


def test_a_document_that_was_edited_is_found(tmp_path: Path) -> None:
    source, target = tmp_path / "recovery.json", tmp_path / "recovery.md"
    source.write_text("[" + measured().model_dump_json() + "]")
    target.write_text(table.page(results.read(source), table.current_limits()))
    assert table.check(source, target) == ""
    target.write_text(target.read_text() + "All is well.\n")
    assert "is not what recovery.json makes" in table.check(source, target)
