"""Engines killed and stopped under load, as processes of this machine: no answer is lost, doubled or changed.

How long it takes is measured by `make chaos`, and asserted nowhere: a busy machine is no bug.
"""

import pytest

from chaos import processes
from chaos.run import Outcome, run
from chaos.scenario import Scenario, load

SEED = 4


def struck(name: str, runs: int, **changes: object) -> Outcome:
    (scenario,) = load([name])
    unhurried = scenario.expect.model_copy(update={"detect_seconds": None, "recover_seconds": None})
    changed: Scenario = scenario.model_copy(update={"expect": unhurried.model_copy(update=changes)})
    with processes.opened(changed.deployment) as world:
        return run(changed, world, runs, SEED, print)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        pytest.param("engine-killed-simulated", 10, id="simulated engines"),
        pytest.param("engine-killed-process", 3, id="vLLM engines"),
    ],
)
def test_killed_engines_cost_no_answer_and_a_gateway_that_gives_up_is_found(name: str, runs: int) -> None:
    outcome = struck(name, runs, whole_seconds=120.0)
    assert outcome.broken == [], outcome.errors
    assert outcome.verdict.struck > 0
    assert all(outcome.caught.values()), outcome.caught


def test_a_stopped_engine_costs_no_answer() -> None:
    outcome = struck("engine-stopped-simulated", 2, whole_seconds=120.0)
    assert outcome.broken == [], outcome.errors
    assert outcome.verdict.struck > 0
