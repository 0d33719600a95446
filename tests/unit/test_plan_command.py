"""The command line: `plan` without a cluster, and `run` where there is none."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from headrace_operator.__main__ import main
from headrace_operator.testing import Sample
from headrace_runtime.contract import LocalContract


def call(*arguments: str | Path, **env: str) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env=env)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(Sample().split(1, 2).build()))
    return path


def test_prints_every_object_as_yaml(file: Path) -> None:
    result = call("plan", file)
    assert result.exit_code == 0
    objects = list(yaml.safe_load_all(result.stdout))
    assert {obj["metadata"]["namespace"] for obj in objects} == {"demo"}
    assert sum(obj["kind"] == "Pod" for obj in objects) == 4
    assert "Secret" not in {obj["kind"] for obj in objects}


def test_images_come_from_the_settings(file: Path) -> None:
    assert "example.org/mine:3" in call("plan", file, HEADRACE_ENGINE_IMAGE="example.org/mine:3").stdout


def test_prints_the_contract_of_plain_processes(file: Path) -> None:
    contract = LocalContract.model_validate(json.loads(call("plan", "--contracts", "local", file).stdout))
    assert [node.role for node in contract.nodes] == ["prefill", "decode", "decode"]
    assert {node.model.path for node in contract.nodes} == {"/models/tiny"}


def test_a_claim_is_no_folder_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(Sample().set("model.source", "pvc://claim/path").build()))
    result = call("plan", "--contracts", "local", path)
    assert result.exit_code == 1
    assert "spec.model.source" in result.output


def test_shows_every_problem_of_a_spec_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(Sample().set("engine.dtype", "float17").set("kvCache.host", {"size": "0"}).build()))
    result = call("plan", path)
    assert result.exit_code == 1
    assert "spec.engine.dtype" in result.output
    assert "spec.kvCache.host" in result.output


@pytest.mark.parametrize("text", ["", "a: [", "kind: Pod\n"])
def test_a_file_without_a_deployment_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "none.yaml"
    path.write_text(text)
    result = call("plan", path)
    assert result.exit_code == 1
    assert "none.yaml" in result.output


def written(path: Path, sample: Sample) -> Path:
    path.write_text(yaml.safe_dump(sample.build()))
    return path


def test_simulates_a_rollout_step_by_step_within_its_bounds(tmp_path: Path) -> None:
    old = written(tmp_path / "old.yaml", Sample().split(1, 2))
    new = written(tmp_path / "new.yaml", Sample().split(1, 2).set("engine.dtype", "float16"))
    result = call("plan", new, "--simulate", "--from", old)
    assert result.exit_code == 0, result.output
    head, *rows, outcome = result.stdout.splitlines()[1:]
    assert head.count("prefill") == head.count("decode") == 2
    cells = [row.split() for row in rows]
    ready, pods = ([int(row[place]) for row in cells] for place in (5, 6))
    assert (min(ready), max(pods)) == (3, 5)
    assert cells[0][1:5] == ["1/1", "2/2", "-", "-"]
    assert cells[-1][1:5] == ["-", "-", "1/1", "2/2"]
    assert outcome.startswith("UpToDate")


def test_simulates_the_steps_of_a_canary(tmp_path: Path) -> None:
    sample = Sample().split(2, 3).set("rollout.canary", {"steps": [10, 50, 100]})
    old = written(tmp_path / "old.yaml", sample)
    new = written(tmp_path / "new.yaml", sample.set("engine.dtype", "float16"))
    told = call("plan", new, "--simulate", "--from", old).stdout
    shares = [line.rpartition("canary gets ")[2] for line in told.splitlines() if "canary gets" in line]
    assert shares == ["10 %", "50 %", "100 %"]
    assert told.splitlines()[-1].startswith("UpToDate")


def test_simulates_the_making_of_a_deployment(file: Path) -> None:
    first, last, outcome = (line.split() for line in call("plan", file, "--simulate").stdout.splitlines()[2:])
    assert first[1:] == ["0/1", "0/2", "0", "3", "created", "3"]
    assert last[1:] == ["1/1", "2/2", "3", "3"]
    assert outcome[0] == "UpToDate:"


def test_a_simulation_says_where_it_stands_still(tmp_path: Path) -> None:
    paused = written(tmp_path / "paused.yaml", Sample().serve(1).set("paused", True))
    assert call("plan", paused, "--simulate").stdout.splitlines()[-1].startswith("Paused")


def test_from_without_simulate_is_refused(file: Path) -> None:
    result = call("plan", file, "--from", file)
    assert (result.exit_code, "--from needs --simulate" in result.output) == (2, True)


def test_a_wrong_setting_is_named_with_its_variable() -> None:
    result = call("run", HEADRACE_RESYNC_SECONDS="soon")
    assert result.exit_code == 1
    assert "HEADRACE_RESYNC_SECONDS" in result.output


def test_run_lists_its_environment() -> None:
    assert "HEADRACE_NAMESPACES" in call("run", "--help").output


@pytest.fixture
def sized(tmp_path: Path) -> Path:
    path = tmp_path / "sized.yaml"
    sample = Sample().set("roles", [{"name": "serve", "scaling": {"min": 2, "max": 6}}]).set("scaling.mode", "SLO")
    sample.set("slo", {"ttft": {"target": "1s"}}).set("scaling.toZero", {"after": "10s"})
    path.write_text(yaml.safe_dump(sample.build()))
    return path


def test_roles_whose_sizes_are_decided_are_shown_at_their_least_which_is_said(sized: Path) -> None:
    said = "# scaling.mode SLO decides sizes (serve 2 to 6): roles are shown at their least"
    objects = call("plan", sized)
    assert sum(obj["kind"] == "Pod" for obj in yaml.safe_load_all(objects.stdout)) == 3
    assert said in objects.stderr
    local = call("plan", "--contracts", "local", sized)
    assert len(LocalContract.model_validate(json.loads(local.stdout)).nodes) == 2
    steps = call("plan", "--simulate", sized)
    assert said in steps.stderr
    assert steps.stdout.splitlines()[-2].split()[-2:] == ["2", "2"]
    assert steps.stdout.splitlines()[-1].startswith("UpToDate")


def test_nothing_is_said_of_sizes_that_are_fixed(file: Path) -> None:
    assert "decides sizes" not in call("plan", file).stderr
