"""What deciding sizes costs the operator: one round of readings, windows and decisions for a thousand deployments, in
real processor time. No gateway is asked: what two of each told is made up, so that HTTP is not in it.
"""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from statistics import median
from typing import Final, TypeVar

from bench.report import Options, Report, at_most, spread
from headrace_operator.api.v1alpha1 import InferenceDeploymentStatus
from headrace_operator.plan.scaling import Window, decide
from headrace_operator.plan.sizes import aim_of, ask_of, sized
from headrace_operator.readings import EVERY_SECONDS, KEPT, Readings
from headrace_operator.state import Observed
from headrace_operator.testing import START, Sample
from headrace_runtime.contract import DemandFigures, GatewayFigures, RoleFigures, Sketch

Made = TypeVar("Made")

DEPLOYMENTS: Final = 1000
REQUESTS: Final = 180
"""That one gateway has in a window."""
READY: Final = {"prefill": 2, "decode": 2}
STEPS: Final = ("reading and window", "ask", "policy", "bounds")
SPEC = (
    Sample()
    .set("roles", [{"name": name, "scaling": {"min": 1, "max": 16}} for name in READY])
    .set("slo", {"ttft": {"target": "500ms"}, "itl": {"target": "50ms"}})
    .set("scaling", {"mode": "SLO"})
    .spec()
)
STATUS = InferenceDeploymentStatus.model_validate(
    {"scaling": {"sizes": [{"name": name, "size": size} for name, size in READY.items()]}}
)


def run(options: Options) -> Report:
    """The time of each step and of all, in rounds."""
    number, rounds = (100, 3) if options.quick else (DEPLOYMENTS, 9)
    readings = Readings()
    for window in range(KEPT + 1):
        for uid in range(number):
            readings.note(f"{uid}", window * EVERY_SECONDS, told(window), READY)
    taken: dict[str, list[float]] = {step: [] for step in STEPS}
    for turn in range(rounds):
        for step, seconds in _round(readings, number, KEPT + 1 + turn).items():
            taken[step].append(seconds * DEPLOYMENTS / number)
    whole = [sum(times) for times in zip(*taken.values(), strict=True)]
    decision = [sum(times) for times in zip(*(taken[step] for step in STEPS[1:]), strict=True)]
    report = Report(
        "sizing", f"processor time of a decision for {DEPLOYMENTS} deployments, two gateways each", ("step", "ms")
    )
    report.rows += [[step, spread([1e3 * time for time in times])] for step, times in taken.items()]
    report.rows.append(["all of it", spread([1e3 * time for time in whole])])
    report.notes.append(f"once in {EVERY_SECONDS:.0f} s; {KEPT} windows, {rounds} rounds of {number} deployments")
    report.checks.append(
        at_most("s of processor for a thousand decisions, without their figures", median(decision), 1.0)
    )
    return report


def told(window: int) -> Mapping[str, GatewayFigures]:
    """What both gateways of a deployment say at the end of a window: a steady load of about three prefill engines."""
    number = REQUESTS * window
    ttft = Sketch(counts=dict.fromkeys(range(-40, -20, 2), number // 10))
    itl = Sketch(counts=dict.fromkeys(range(-84, -76, 2), number // 4))
    figures = GatewayFigures(
        start="process",
        seconds=window * EVERY_SECONDS,
        arrivals=number,
        roles=(
            RoleFigures(role="prefill", revision="r", prompts=number, prompt_tokens=4000 * number, ttft=ttft),
            RoleFigures(role="decode", revision="r", answers=number, output_tokens=150 * number, itl=itl),
        ),
        demand=DemandFigures(
            requests=number, prompt_tokens=4000 * number, prompts=Sketch(counts={24: number}), writing=0.8 * number
        ),
    )
    return {"gateway-0": figures, "gateway-1": figures}


def _round(readings: Readings, number: int, window: int) -> dict[str, float]:
    """Seconds of each step, over all deployments."""
    clock, now = window * EVERY_SECONDS, START + timedelta(seconds=window * EVERY_SECONDS)
    said, aim, observed = told(window), aim_of(SPEC), Observed()
    uids = [f"{uid}" for uid in range(number)]

    def seen(uid: str) -> tuple[Window, ...]:
        readings.note(uid, clock, said, READY)
        return readings.windows(uid, clock, aim)

    windows, reading = _timed(lambda: [seen(uid) for uid in uids])
    asks, asking = _timed(lambda: [ask_of(SPEC, observed, STATUS, found, now) for found in windows])
    answers, deciding = _timed(lambda: [decide(ask) for ask in asks])
    pairs = zip(asks, answers, strict=True)
    _, bounding = _timed(lambda: [sized(SPEC, STATUS, now, ask, answer) for ask, answer in pairs])
    return dict(zip(STEPS, (reading, asking, deciding, bounding), strict=True))


def _timed(work: Callable[[], Made]) -> tuple[Made, float]:
    before = time.process_time()
    made = work()
    return made, time.process_time() - before
