"""Our knowledge of vLLM's command line against vLLM's own parser: what fails here changed in vLLM."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import OWNED_OPTIONS, owned_option

GOLDEN = Path(__file__).parents[1] / "golden" / "engine_arguments"

ASK = """
import contextlib, io, json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
answers = {}
for name, argv in json.load(sys.stdin).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = parser.parse_args(argv)
        # A rank above 0 has no server, and so no host.
        answers[name] = "" if parsed.headless or parsed.host == "10.0.0.7" else "host is lost"
    except SystemExit:
        answers[name] = said.getvalue()
options = [option for action in parser._actions for option in action.option_strings]
sys.stdout.write("\\n" + json.dumps({"options": options, "answers": answers}) + "\\n")
"""


@pytest.fixture(scope="module")
def parser(engine_python: Path) -> dict[str, Any]:
    asked = {path.stem: golden_argv(path) for path in GOLDEN.glob("*.txt")}
    done = subprocess.run(
        [engine_python, "-c", ASK], input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def golden_argv(path: Path) -> list[str]:
    words = path.read_text().partition("\nenv\n")[0].splitlines()[1:]
    return [word.strip() for word in words]


def test_vllm_takes_every_command_line_we_write(parser: dict[str, Any]) -> None:
    assert parser["answers"]
    assert {name: error for name, error in parser["answers"].items() if error} == {}


def test_every_owned_option_is_one_of_vllm(parser: dict[str, Any]) -> None:
    assert {f"--{name}" for name in OWNED_OPTIONS} <= set(parser["options"])


def test_no_other_option_is_taken_for_an_owned_one(parser: dict[str, Any]) -> None:
    names = {option.removeprefix("--") for option in parser["options"] if option.startswith("--")}
    mistaken = {name: owned for name in names if (owned := owned_option(name)) not in (None, name.removeprefix("no-"))}
    assert mistaken == {}
