"""Engines killed under load, as processes of this machine: no answer is lost, doubled or changed.

How long it takes is measured by `make chaos`, and asserted nowhere: a busy machine is no bug.
"""

from chaos import processes
from chaos.run import Outcome, run
from chaos.scenario import Scenario, load

SEED = 4


def struck(name: str, runs: int, **changes: object) -> Outcome:
    """The outcome of a scenario that may take its time."""
    (scenario,) = load([name])
    unhurried = {"detect_seconds": None, "recover_seconds": None, "whole_seconds": 120.0}
    expect = scenario.expect.model_copy(update=unhurried)
    changed: Scenario = scenario.model_copy(update={"expect": expect, **changes})
    with processes.opened(changed.deployment) as world:
        outcome = run(changed, world, runs, SEED, print)
    assert outcome.broken == [], outcome.errors
    assert outcome.verdict.struck > 0
    return outcome


def test_killed_engines_cost_no_answer_and_a_gateway_that_gives_up_is_found() -> None:
    outcome = struck("engine-killed-simulated", 8)
    assert len(outcome.caught) == 6
    assert all(outcome.caught.values()), outcome.caught


def test_killed_vllm_engines_cost_no_answer() -> None:
    struck("engine-killed-process", 3, planted="doctored")
