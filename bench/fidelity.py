"""Real engines beside the simulator: the same requests at the same moments, on loads that it was not fitted to.

Two vLLM engines with a model of 135 M parameters, each on a processor of its own, stand behind our gateway: one of
them, both alike, or one for prefill and one for decode. First a profile of them is taken (`engineprofile.py`: lone
prompts, even batches) and fitted (`simulator/fit.py`). Then come the loads, each of lengths and arrivals by chance, at
a share of what the profile says the engines can do; and the simulator is given the very requests that the engines had.

The error of a run is that of a mean over its requests: simulated against measured. *Load-blind* is what one gets
without simulating a load: each request as if it were alone. Gateway and clients share the processors with the engines,
so the figures are worth nothing where other programs do too: a check says how much these took.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Final
from zlib import crc32

from rich.progress import Progress

from bench.arrivals import Answer, play
from bench.engineprofile import Bench
from bench.engines import Kind, Worker, engines, gateway
from bench.programs import busy_seconds, tree_seconds
from bench.report import Options, Report, at_most, percentile, spread
from bench.scatter import scatter
from headrace_operator.plan.scaling import Aim
from headrace_runtime.contract import FixedDiscovery, RoleName
from simulator.engine import Journey
from simulator.fit import Fitted, fit
from simulator.fleet import Fleet, Setting
from simulator.load import Wave
from simulator.profile import BLOCK, Profile, write
from simulator.request import Request
from simulator.scalers import Static

KIND: Final = Kind("smollm2", max_model_len=2048, kv_cache_bytes=512 * 1024**2, own_core=True)
LONGEST_PROMPT, LONGEST_ANSWER = 1500, 400
SECONDS: Final = 60.0
QUICK_SECONDS: Final = 15.0
USUAL_BATCH: Final = 6
"""Of answers, in the estimate of what an engine can do."""
APART_SECONDS: Final = 600.0
"""No request of a load that is laid so far apart meets another one."""
E2E, TTFT, ITL = "E2E", "TTFT", "ITL"
LIMITS: Final = {E2E: 0.07, TTFT: 0.18, ITL: 0.07}
"""What BLIS reports of its simulator on 36 runs that it was not fitted to: 6.7, 17.6 and 7.1 %."""
MEASURED: Final[dict[str, Callable[[Answer], float]]] = {
    E2E: lambda a: a.e2e,
    TTFT: lambda a: a.ttft,
    ITL: lambda a: a.gap,
}
SIMULATED: Final[dict[str, Callable[[Journey], float]]] = {
    E2E: lambda j: (j.end or 0.0) - j.request.at,
    TTFT: lambda j: (j.first or 0.0) - j.request.at,
    ITL: lambda j: j.gap,
}
COLUMNS = (
    "held-out run",
    "requests",
    *(f"{name} mean {unit}\nmeasured, simulated" for name, unit in ((E2E, "s"), (TTFT, "s"), (ITL, "ms"))),
    "error of the means %\nE2E, TTFT, ITL",
    "load-blind %",
    "others' processor %",
)


@dataclass(frozen=True)
class Load:
    """Mean tokens, and the share of what the engines can do. `common`: so many beginnings of one block are shared."""

    name: str
    prompt: int
    answer: int
    share: float
    common: int = 0

    def requests(self, profile: Profile, split: bool, engines: int, seconds: float, seed: int) -> list[Request]:
        """Poisson arrivals, lengths of a wide spread."""
        rate = self.share * capacity(profile, self, split, engines)
        wave = Wave(rate, rate, seconds=seconds, prompt=self.prompt, output=self.answer)
        return [self._fitting(request, index) for index, request in enumerate(wave.requests(seed))]

    def _fitting(self, request: Request, index: int) -> Request:
        beginning = BLOCK if self.common else 0
        prompt, output = min(request.prompt, LONGEST_PROMPT - beginning), min(max(2, request.output), LONGEST_ANSWER)
        ids = (index % self.common,) if self.common else ()
        return replace(request, prompt=beginning + prompt, output=output, ids=ids)


CHAT = Load("chat", 300, 60, 0.6)
LIGHT = Load("chat, light", 300, 60, 0.3)
PROMPTS_LEAD = Load("prompts lead", 800, 24, 0.5)
ANSWERS_LEAD = Load("answers lead, half of the prompts short", 80, 150, 0.5)
IN_COMMON = Load("common beginnings", 150, 60, 0.5, common=4)
ONE: Final[tuple[RoleName, ...]] = ("serve",)
TWO: Final[tuple[RoleName, ...]] = ("serve", "serve")
SPLIT: Final[tuple[RoleName, ...]] = ("prefill", "decode")
NAMES: Final = {ONE: "one engine", TWO: "two alike", SPLIT: "1P1D"}
HELD_OUT: Final = {
    ONE: (LIGHT, CHAT, PROMPTS_LEAD, IN_COMMON),
    TWO: (CHAT, PROMPTS_LEAD, ANSWERS_LEAD),
    SPLIT: (CHAT, PROMPTS_LEAD, ANSWERS_LEAD),
}


@dataclass(frozen=True)
class Ran:
    """One load: what clients saw, and what was simulated of it, the same requests in the same order."""

    roles: tuple[RoleName, ...]
    load: Load
    answers: Sequence[Answer]
    journeys: Sequence[Journey]
    alone: Sequence[Journey]
    others: float
    """Share of the processors that other programs took."""

    def pairs(self, figure: str, of: Sequence[Journey] | None = None) -> list[tuple[float, float]]:
        """(measured, simulated) of each request that was answered."""
        both = zip(self.answers, self.journeys if of is None else of, strict=True)
        return [(MEASURED[figure](a), SIMULATED[figure](j)) for a, j in both if not a.error]

    def means(self, figure: str, of: Sequence[Journey] | None = None) -> tuple[float, float]:
        measured, simulated = zip(*self.pairs(figure, of), strict=True)
        return fmean(measured), fmean(simulated)

    def error(self, figure: str, of: Sequence[Journey] | None = None) -> float:
        """Of the mean, relative."""
        measured, simulated = self.means(figure, of)
        return abs(simulated / measured - 1)

    def error_at(self, figure: str, share: float) -> float:
        """Of a percentile, relative."""
        measured, simulated = (percentile(values, share) for values in zip(*self.pairs(figure), strict=True))
        return abs(simulated / measured - 1)

    def row(self) -> list[str]:
        def both(figure: str, times: float, digits: int) -> str:
            return ", ".join(f"{times * mean:.{digits}f}" for mean in self.means(figure))

        def errors(of: Sequence[Journey] | None = None) -> str:
            return ", ".join(f"{100 * self.error(figure, of):.1f}" for figure in LIMITS)

        return [
            f"{NAMES[self.roles]}: {self.load.name}",
            str(len(self.answers)),
            both(E2E, 1, 2),
            both(TTFT, 1, 2),
            both(ITL, 1e3, 1),
            errors(),
            errors(self.alone),
            f"{100 * self.others:.0f}",
        ]


def run(options: Options) -> Report:
    report = Report("fidelity", "the simulator against real engines, on loads that it was not fitted to", COLUMNS)
    seconds = QUICK_SECONDS if options.quick else SECONDS
    plan = {ONE: (CHAT,), SPLIT: (CHAT,)} if options.quick else HELD_OUT
    ran: list[Ran] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("starting two engines", total=1 + sum(map(len, plan.values())))
        pair = stack.enter_context(engines(folder, 2, KIND))
        progress.update(task, description="taking a profile")
        fitted = profiled(folder, pair, repeats=1 if options.quick else 4)
        _tell(report, fitted, options.profile)
        for roles, loads in plan.items():
            with _front(folder, pair, roles) as url:
                for load in loads:
                    progress.update(task, advance=1, description=f"{NAMES[roles]}: {load.name}")
                    ran.append(once(url, roles, load, fitted.profile, seconds))
    _judge(report, ran)
    if options.plot is not None:
        options.plot.write_text(plot(ran))
    return report


def profiled(folder: Path, pair: Sequence[Worker], repeats: int) -> Fitted:
    with _front(folder, pair, ONE) as alone, _front(folder, pair, SPLIT) as split:
        return fit(Bench(KIND.model, alone, split, pair[1], repeats).measure())


def once(url: str, roles: tuple[RoleName, ...], load: Load, profile: Profile, seconds: float) -> Ran:
    """One load on the engines, and then in the simulator. Raises RuntimeError where there was nothing to compare."""
    seed = crc32(f"{load.name} {roles}".encode())
    requests = load.requests(profile, roles == SPLIT, len(roles), seconds, seed)
    machine, own = busy_seconds(), tree_seconds(os.getpid())
    answers = play(url, KIND.model, requests, seed)
    took, ours = busy_seconds() - machine, tree_seconds(os.getpid()) - own
    if sum(not answer.error for answer in answers) < 2:
        raise RuntimeError(f"{load.name}: hardly an answer; {[answer.error for answer in answers][:3]}")
    lasted = max(answer.events[-1] for answer in answers if not answer.error)
    others = max(0.0, took - ours) / (lasted * (os.cpu_count() or 1))
    apart = [replace(request, at=APART_SECONDS * index) for index, request in enumerate(requests)]
    return Ran(roles, load, answers, simulated(profile, roles, requests), simulated(profile, roles, apart), others)


def simulated(profile: Profile, roles: Sequence[RoleName], requests: Sequence[Request]) -> Sequence[Journey]:
    sizes: dict[str, int] = dict(Counter(roles))
    setting = Setting(profile, Aim(), sizes, routing="LeastLoaded")
    return Fleet(setting, Static(sizes)).run(requests).journeys


def capacity(profile: Profile, load: Load, split: bool, engines: int) -> float:
    """Requests a second that keep the engines busy: an estimate, to choose a load by."""
    prompt = profile.overhead + profile.prompt_seconds(load.prompt)
    context = USUAL_BATCH * (load.prompt + BLOCK * bool(load.common) + load.answer / 2)
    answer = load.answer * profile.step_seconds(USUAL_BATCH, context) / USUAL_BATCH
    return 1 / max(prompt, answer) if split else engines / (prompt + answer)


def plot(ran: Sequence[Ran]) -> str:
    units = {E2E: "s", TTFT: "s", ITL: "s"}
    return scatter(
        {
            f"{figure}, {unit}: mean of each run": {
                name: [one.means(figure) for one in ran if one.roles == roles] for roles, name in NAMES.items()
            }
            for figure, unit in units.items()
        }
    )


@contextmanager
def _front(folder: Path, pair: Sequence[Worker], roles: Sequence[RoleName]) -> Iterator[str]:
    found = FixedDiscovery(endpoints=tuple(e.endpoint(role) for e, role in zip(pair, roles, strict=False)))
    with gateway(folder, KIND.model, found, len(roles)) as front:
        yield front.url


def _tell(report: Report, fitted: Fitted, file: Path | None) -> None:
    said = ", ".join(f"{name} {value:.4g}" for name, value in vars(fitted.profile).items())
    errors = [abs(one.error) for one in fitted.residuals]
    worst = max(fitted.residuals, key=lambda one: abs(one.error))
    report.notes += [
        f"profile: {said}",
        f"its residuals, {len(errors)} measurements: {spread([100 * error for error in errors])} %; the largest: "
        f"{worst.what}, {1e3 * worst.measured:.1f} ms measured, {1e3 * worst.fitted:.1f} ms fitted",
    ]
    if file is not None:
        write(fitted.profile, file)


def _judge(report: Report, ran: Sequence[Ran]) -> None:
    report.rows += [one.row() for one in ran]
    for figure, limit in LIMITS.items():
        errors = [one.error(figure) for one in ran]
        blind = [one.error(figure, one.alone) for one in ran]
        middle, tail = ([100 * one.error_at(figure, share) for one in ran] for share in (0.5, 0.95))
        report.notes.append(
            f"{figure}: error of the mean {spread([100 * error for error in errors])} %, of p50 {spread(middle)} %, of "
            f"p95 {spread(tail)} %; load-blind {spread([100 * error for error in blind])} %"
        )
        report.checks.append(
            at_most(f"{figure}: median error of the mean over {len(ran)} held-out runs", median(errors), limit)
        )
    lost = [answer.error for one in ran for answer in one.answers if answer.error]
    late = max(answer.sent - answer.request.at for one in ran for answer in one.answers)
    report.notes += [f"requests were sent up to {1e3 * late:.0f} ms late", *lost[:3]]
    report.checks += [
        at_most("requests without an answer", len(lost), 0),
        at_most("share of the processors that other programs took, worst run", max(one.others for one in ran), 0.05),
    ]
