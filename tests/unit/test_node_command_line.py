"""`python -m headrace_runtime`: what it refuses and how it says so, and what each process does not load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace_runtime.__main__ import main

PLACE = ["--name", "chat-serve-r1-0", "--address", "127.0.0.1"]


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)
    return result.exit_code, result.output


@pytest.mark.parametrize("command", ["node", "head", "gateway", "local"])
def test_every_command_has_help(command: str) -> None:
    code, text = run(command, "--help")
    assert code == 0
    assert "Usage:" in text


def test_every_problem_of_a_contract_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "contract.json"
    file.write_text(json.dumps({"kind": "Node", "namespace": "n", "rolle": "serve", "drainSeconds": "soon"}))
    code, text = run("node", "--contract", file, *PLACE)
    assert code == 2
    for problem in ("deployment: Field required", "role: Field required", "rolle: Extra inputs", "drainSeconds: Input"):
        assert problem in text


def test_a_contract_for_another_process_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "contract.json"
    file.write_text(json.dumps({"kind": "Head", "namespace": "n", "deployment": "d"}))
    code, text = run("node", "--contract", file, *PLACE)
    assert code == 2
    assert "is no NodeContract" in text
    assert "kind: Input should be 'Node'" in text


@pytest.mark.parametrize(("name", "body"), [("a.json", "{"), ("a.yaml", "a: [")])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, body: str) -> None:
    (tmp_path / name).write_text(body)
    code, text = run("head", "--contract", tmp_path / name, *PLACE)
    assert code == 2
    assert f"{name} is not" in text


@pytest.mark.parametrize("address", ["chat-0", "10.0.0", ""])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    (tmp_path / "a.json").write_text("{}")
    code, text = run("node", "--contract", tmp_path / "a.json", "--name", "x", env={"POD_IP": address})
    assert code == 2
    assert "--address" in text


def test_a_run_directory_with_somebodys_files_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    contract: dict[str, object] = {
        "kind": "Node",
        "namespace": "n",
        "deployment": "d",
        "revision": "r",
        "role": "serve",
    }
    contract |= {"model": {"source": "node:///m", "servedName": "m"}, "engine": {}}
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    code, text = run("node", "--contract", tmp_path / "contract.json", *PLACE, "--run-dir", tmp_path)
    assert code == 2
    assert "choose another --run-dir" in text
    assert (tmp_path / "thesis.tex").exists()


def test_an_agent_loads_neither_ray_nor_the_kubernetes_client_nor_uvloop() -> None:
    script = (
        "import sys, headrace_runtime.__main__, headrace_runtime.node.serve\n"
        "print(sorted({'ray', 'kubernetes', 'uvloop', 'vllm', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
