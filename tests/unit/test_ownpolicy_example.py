"""The own policy on the page about autoscaling is one that works: in the kit, in a process, in a fleet in numbers."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from headrace_operator.ownpolicy.kit import SPLIT, check, measured
from headrace_operator.ownpolicy.process import Limits
from headrace_operator.plan.scaling import Aim, Ask
from headrace_operator.policies import Policy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "autoscaling.md"
ASK = Ask(Aim(), SPLIT, tuple(replace(measured(8.0), age=30.0 * place) for place in range(12)))


@pytest.fixture
def steady(tmp_path: Path) -> ModuleType:
    """The module, written into a folder as a user would."""
    found = re.search(r'```python\n("""steady\.py.*?)```', PAGE.read_text(), re.DOTALL)
    assert found, "the page has the example"
    (tmp_path / "steady.py").write_text(found[1])
    spec = importlib.util.spec_from_file_location("steady", tmp_path / "steady.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_sizes_by_what_an_engine_bears(steady: ModuleType) -> None:
    answer = steady.decide(ASK)
    assert (answer.sizes, answer.verdict) == ({"prefill": 3, "decode": 1}, "Sized")
    assert [(one.role, one.before, one.after) for one in answer.decisions] == [("prefill", 2, 3), ("decode", 2, 1)]
    settled = replace(ASK, roles=tuple(replace(role, size=answer.sizes[role.name]) for role in SPLIT))
    assert steady.decide(settled).decisions == (), "and then there is nothing to do"


def test_it_keeps_all_promises(steady: ModuleType) -> None:
    assert check(steady.decide, seconds=30.0) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_it_runs_as_the_operator_would_run_it(steady: ModuleType, tmp_path: Path) -> None:
    async with Policy(["steady:decide"], Limits(60.0, folder=str(tmp_path), start_seconds=120.0)) as policy:
        answer = await policy.decide("steady:decide", ASK)
    assert (answer.policy, answer.sizes) == ("steady:decide", steady.decide(ASK).sizes)
    assert answer.message == "steady:decide: Sized for the most of five minutes."
