"""One scenario from load to verdict.

A load, the fault as often as asked, the journal judged; then the planted arm, which must fail.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from chaos.client import Load, loading, truths
from chaos.doctor import SPOILS, Journal
from chaos.journal import Entry, Strike, Truth
from chaos.load import Plan
from chaos.machine import holds
from chaos.oracle import Verdict, judge
from chaos.questions import Shape, is_long, questions
from chaos.scenario import Expectation, Scenario
from chaos.world import Blow, World

LOOK_SECONDS = 0.05
BEFORE_SECONDS = 5.0
"""Of undisturbed load before the first strike."""
AFTER_SECONDS = 3.0
GRACE_SECONDS = 30.0
"""Beyond the expected times, waited for before they are given up."""
PLANTED_STRIKES = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Of one scenario."""

    scenario: Scenario
    seed: int
    verdict: Verdict
    broken: list[str]
    """Expectations that did not hold, a sentence each."""
    caught: dict[str, str]
    """Of each planted arm, what was found. Empty: it passed, so the scenario proves nothing."""
    errors: dict[str, int] = field(default_factory=dict)
    """How requests ended that were lost: status and words, and how often."""
    journal: Journal = ((), ())

    @property
    def ok(self) -> bool:
        return not self.broken and all(self.caught.values())


@dataclass(frozen=True)
class Run:
    """What all strikes of a scenario share."""

    scenario: Scenario
    world: World
    plan: Plan
    truths: list[Truth]
    chance: random.Random
    say: Say


def run(scenario: Scenario, world: World, runs: int, seed: int, say: Say) -> Outcome:
    """`seed` draws targets and moments. Raises TimeoutError where the load itself gets stuck."""
    load = scenario.load
    shape = Shape(answer=load.answer, long=load.long, vocabulary=world.vocabulary)
    asked = questions(world.model, shape)
    if shape not in world.answers:
        world.answers[shape] = truths(Plan(world.url, asked, 0, run="truth"), world.inside)
    right = world.answers[shape]
    plan = Plan(world.url, asked, load.rate, load.retries, f"{scenario.name}-{seed}")
    arm = Run(scenario, world, plan, right, random.Random(seed), say)
    entries, strikes = disturbed(arm, runs)
    verdict = judge(entries, right, strikes, scenario.patience_seconds)
    caught = spoiled(scenario, (entries, strikes), right)
    if scenario.planted == "gateway_gives_up":
        caught["a gateway that neither tries again nor resumes"] = _planted(arm)
    errors = Counter(f"{entry.status} {entry.error}" for entry in entries if not entry.complete)
    return Outcome(
        scenario,
        seed,
        verdict,
        list(scenario.expect.broken_by(verdict).values()),
        caught,
        dict(errors),
        (entries, strikes),
    )


def spoiled(scenario: Scenario, journal: Journal, right: list[Truth]) -> dict[str, str]:
    """What the oracles find in the run's own journal once it is spoiled, that they did not find in it before."""

    def judged(one: Journal) -> Verdict:
        return judge(one[0], right, one[1], scenario.patience_seconds)

    true = judged(journal)
    caught = {}
    for one in SPOILS:
        if one.oracle in scenario.expect.asked():
            verdict = judged(one.spoil(journal))
            worse = getattr(verdict, one.oracle) != getattr(true, one.oracle)
            caught[one.name] = scenario.expect.broken_by(verdict).get(one.oracle, "") if worse else ""
    return caught


def _planted(arm: Run) -> str:
    """What the planted gateway lost, doubled or changed."""
    scenario = arm.scenario
    with arm.world.planted() as url:
        plan = replace(arm.plan, url=url, retries=0, run=f"{arm.plan.run}-planted")
        entries, strikes = disturbed(replace(arm, plan=plan), PLANTED_STRIKES)
    tokens = Expectation(recover_seconds=None, whole_seconds=None)
    return "; ".join(tokens.broken_by(judge(entries, arm.truths, strikes, scenario.patience_seconds)).values())


def disturbed(arm: Run, runs: int) -> tuple[list[Entry], list[Strike]]:
    """The load with so many strikes, one after the other, each after the last has healed."""
    with loading(arm.plan, arm.world.inside) as load:
        load.wait_for_answers(int(BEFORE_SECONDS * arm.scenario.load.rate))
        strikes = []
        for number in range(runs):
            target = arm.chance.choice(arm.world.targets(arm.scenario))
            strikes.append(_strike(arm, load, target))
            arm.say(f"{arm.scenario.name} {number + 1}/{runs}: {strikes[-1].target}, {_seconds(strikes[-1])}")
            if strikes[-1].whole is None:
                break  # another fault on top would prove nothing
        load.wait_for_answers(int(AFTER_SECONDS * arm.scenario.load.rate))
        return load.stop(), strikes


def _strike(arm: Run, load: Load, target: str) -> Strike:
    """One fault, watched until what was struck serves again or the time for that is over."""
    scenario = arm.scenario
    load.wait_for_answers(scenario.trigger.after_answers)
    _wait_for_moment(arm, load, target)
    blow = arm.world.strike(scenario, target)
    watch = _Watch(blow, scenario.holds_seconds)
    give_up = blow.at + scenario.holds_seconds + (scenario.expect.whole_seconds or 0.0) + GRACE_SECONDS
    try:
        while time.monotonic() < give_up and not watch.looked():
            time.sleep(LOOK_SECONDS)
    finally:
        watch.undo()
    return Strike(blow.at, blow.target, watch.detected, watch.whole)


@dataclass
class _Watch:
    """What has been seen of one fault so far."""

    blow: Blow
    holds_seconds: float
    detected: float | None = None
    whole: float | None = None
    undone: bool = False

    def looked(self) -> bool:
        """One look, and the fault taken back when its time is over; whether all is whole again."""
        if time.monotonic() >= self.blow.at + self.holds_seconds:
            self.undo()
        if self.detected is None and holds(self.blow.detected):
            self.detected = time.monotonic()
        if self.undone and holds(self.blow.whole):
            self.whole = time.monotonic()
        return self.whole is not None

    def undo(self) -> None:
        if not self.undone:
            self.blow.undo()
            self.undone = True


def _wait_for_moment(arm: Run, load: Load, target: str) -> None:
    """Which moment it is to be, the scenario says; where in it, chance."""
    moment = arm.scenario.trigger.moment
    if moment == "in_stream":
        for delay in (arm.chance.uniform(0.0, 0.5), 0.0):
            load.wait(f"{target or 'an engine'} writes an answer", lambda: load.streaming(target) > 0, 60.0)
            time.sleep(delay)
    elif moment == "in_prompt":
        due = load.next_due(arm.plan.rate, is_long)
        time.sleep(max(0.0, due - time.monotonic()) + arm.chance.uniform(0.0, 0.1))
    else:
        time.sleep(arm.chance.uniform(0.0, 1.0))


def _seconds(strike: Strike) -> str:
    times = {"detected": strike.detected, "whole": strike.whole}
    return ", ".join(f"{what} {'never' if at is None else f'{at - strike.at:.2f} s'}" for what, at in times.items())
