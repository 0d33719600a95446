"""The policy's sizes with the engine times that NVIDIA Dynamo publishes for its planner (H200, one for prefill, one for
decode, prompts of 4000 and answers of 150 tokens): 1P1D at 8 requests/s, 2P1D at 18, and the path from 12 to 36.

First the performance model alone, then the whole policy on a *simulated* fleet whose load rises and falls, which it has
to learn the times of.
"""

from itertools import pairwise
from typing import Final

from bench.report import Check, Options, Report, at_least
from headrace_operator.plan.scaling import Aim, Model, Role, Target
from headrace_operator.plan.scaling.model import Load, between_tokens, first_token, need
from simulator.fleet import Fleet, Setting
from simulator.load import Wave
from simulator.profile import H200_8B
from simulator.scalers import Product

AIM: Final = Aim(Target(0.5), Target(0.05))
"""The targets of Dynamo's own scaling test."""
PROMPT: Final = 4000
OUTPUT: Final = 150
RATES: Final = (8, 12, 18, 24, 30, 36)
EXPECTED: Final = {8: (1, 1), 18: (2, 1)}


def run(options: Options) -> Report:
    report = Report(
        "planner",
        f"sizes for prompts of {PROMPT} and answers of {OUTPUT} tokens",
        ("requests/s", "prefill", "decode", "TTFT p95 ms\n(model)", "token gap p95 ms\n(model)"),
    )
    path = [(rate, *sizes(rate)) for rate in RATES]
    for rate, prefill, decode in path:
        load = Load(rate, PROMPT, PROMPT, 0.0, OUTPUT)
        ttft, itl = first_token(_model(), load, prefill, 0.95), between_tokens(_model(), load, decode, 0.95)
        report.rows.append([f"{rate}", f"{prefill}", f"{decode}", f"{1e3 * ttft:.0f}", f"{1e3 * itl:.1f}"])
    for rate, expected in EXPECTED.items():
        got = next((prefill, decode) for at, prefill, decode in path if at == rate)
        report.checks.append(Check(f"engines at {rate}/s: {got}", float(sum(got)), f"= {expected}", got == expected))
    steps = [after[1] - before[1] for before, after in pairwise(path)]
    sane = all(0 <= step <= 1 for step in steps)
    report.checks.append(Check("prefill engines more from rate to rate, at most", max(steps), "0..1 each", sane))
    seconds = 1800.0 if options.quick else 3600.0
    wave = Wave(12, 36, period=1800, seconds=seconds, prompt=PROMPT, output=OUTPUT, spread=0.0)
    setting = Setting(H200_8B, AIM, {"prefill": 2, "decode": 1}, cold_start=60.0)
    ran = Fleet(setting, Product(startup=60.0)).run(wave.requests())
    report.notes.append(
        f"a load from 12 to 36 requests/s and back, cold start 60 s (simulated): {100 * ran.attained():.1f} % within "
        f"targets, {ran.moments} changes of size, {ran.replica_seconds:.0f} engine-seconds"
    )
    report.notes += [f"  {e.at:5.0f} s {e.role} {e.before} to {e.after} (simulated)" for e in ran.events]
    report.checks.append(at_least("share within targets on that load (simulated)", ran.attained(), 0.95))
    return report


def sizes(rate: float) -> tuple[int, int]:
    """Prefill and decode engines."""
    load = Load(rate, PROMPT, PROMPT, 0.0, OUTPUT)
    prefill, decode = (need(_model(), load, Role(name, 1, 1, 64), AIM) or 0 for name in ("prefill", "decode"))
    return prefill, decode


def _model() -> Model:
    profile = H200_8B
    return Model(profile.pace, profile.step, profile.per_request, profile.per_token, fitted=True)
