"""vLLM's command line for contracts of many shapes.

Each `engine_arguments/NAME.yaml` has a contract's fields beyond the common ones, and of an engine over several pods the
`rank` of this one; `NAME.txt` has what must come of it.
GOLDEN_UPDATE=1 writes the latter anew.
"""

import os
from pathlib import Path

import pytest
import yaml

from headrace_runtime.contract import NodeContract, Place
from headrace_runtime.engine import arguments

CASES = Path(__file__).parent / "engine_arguments"
PLACE = Place(name="chat-decode-5f2a-0", address="10.0.0.7", node="node-1")
MEETING = arguments.Meeting("10.0.0.6", 29501, "the-life")
WEIGHTS = "sha256:" + "5f2a" * 16
COMMON = {"namespace": "team-a", "deployment": "chat", "revision": "5f2a"}


def shown(launch: arguments.Command) -> str:
    env = [f"{name}={value}" for name, value in sorted(launch.env.items())]
    return "\n".join(["vllm serve", *(f"  {word}" for word in launch.argv), "env", *(f"  {line}" for line in env), ""])


@pytest.mark.parametrize("case", sorted(path.stem for path in CASES.glob("*.yaml")))
def test_contract_becomes_this_command_line(case: str) -> None:
    fields = yaml.safe_load((CASES / f"{case}.yaml").read_text())
    place = PLACE.model_copy(update={"rank": fields.pop("rank", 0)})
    contract = NodeContract.model_validate(COMMON | fields)
    meeting = MEETING if contract.engine.parallelism.pods > 1 else None
    came = shown(arguments.command(contract, place, WEIGHTS, meeting))
    golden = CASES / f"{case}.txt"
    if os.environ.get("GOLDEN_UPDATE"):
        golden.write_text(came)
    assert golden.exists(), f"there is no {golden.name}: make golden-update writes it"
    assert came == golden.read_text()


def test_every_golden_file_has_its_contract() -> None:
    assert {path.stem for path in CASES.glob("*.txt")} == {path.stem for path in CASES.glob("*.yaml")}
