"""A new revision on a share of the requests: which step holds, how many engines it needs, and whether it was passed.
Pure.

Called by reconcile (`judge`, before the target is chosen) and by `make_plan` (`stand`). What has to be remembered is
the step and since when it holds, in the status; what was counted since is with the gateways, which put aside what they
counted before a step began. So an operator that starts anew, and a gateway that does, lose nothing but figures.

Gateways hear first that the new revision gets nothing; then its engines are made. A step begins once every role has
the new engines that its share needs. It is judged by figures of that step alone: the new revision against the current
one, at the same time and by the same clients. Errors may end it at any time. It is passed when a gateway has held it
for the interval, all gateways have told their figures, and they do not show it to be worse; with too few requests to
compare, by time alone, which is said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple

from headrace_operator.api.v1alpha1 import Canary, CanaryStep
from headrace_operator.figures import RevisionFigures, Window, merged
from headrace_operator.plan.rollout import Bounds, Hold
from headrace_operator.state import Pod
from headrace_runtime.contract import CanaryShare, Sketch

WHOLE: Final = 100
"""The share of a canary that was passed."""
SAMPLES: Final = 100
"""Of each side, to compare a 95th percentile: it rests on the five slowest then, and of fewer on chance."""
TTFT_RATIO: Final = 1.5
"""Times as slow as the current revision. A new one begins with empty KV caches, and many prompts are slower for it."""
TTFT_SECONDS: Final = 0.05
"""And slower by so much: less is not seen by anybody."""
ITL_RATIO: Final = 1.25
"""Caches do not matter to it, and it is nearly the same from answer to answer."""
ITL_SECONDS: Final = 0.003
ERRORS: Final = 0.01
"""Share of failed requests that is nobody's fault; twice the current revision's, where that is more."""
DOUBT: Final = 1e-4
"""Chance of as many errors at that rate, below which it is not chance. Small, since it is asked at every pass."""


class Verdict(NamedTuple):
    """None: there is nothing to judge, or gateways have yet to hear of the canary. Going: not yet, or waits for what
    the message says."""

    state: Literal["None", "Going", "Passed", "Failed"]
    share: int = 0
    message: str = ""


@dataclass(frozen=True)
class Stand:
    """How a canary stands after this pass: for the contract, the planner and the status."""

    step: CanaryStep
    share: CanaryShare | None
    """What gateways are told. None: requests go where engines are."""
    holds: Mapping[str, Hold] = field(default_factory=dict)
    """By role: engines that the share needs of either side. Empty: the rollout goes on to its end."""


def told(step: CanaryStep) -> CanaryShare:
    """What gateways are told of a step. Another name of it makes them put aside what they counted before."""
    name = f"{step.step}@{int(step.since.timestamp())}" if step.since is not None else ""
    return CanaryShare(revision=step.revision, percent=step.share, step=name)


def judge(canary: Canary, step: CanaryStep, current: str, windows: Sequence[Window | None], revision: str) -> Verdict:
    """The step that holds. `windows`: of each gateway since the step began there, None where it is unknown; `revision`
    is the one that is tried, `current` the one it is compared with."""
    if step.revision != revision or step.step >= WHOLE:
        return Verdict("None")
    known = [window for window in windows if window is not None]
    found = merged(known)
    if step.share == 0:
        heard = found is not None and len(known) == len(windows)
        return Verdict("Going") if heard else Verdict("None", 0, "gateways have yet to hear that it gets no requests")
    if found is None:
        return Verdict("Going", step.share, "no gateway has told its figures of this step yet")
    new, old = found.of_revision(revision), found.of_revision(current)
    told = compared(step, new, old)
    if fails_more(new, old):
        return Verdict("Failed", step.share, f"more errors: {told}")
    if step.since is None or found.seconds < canary.interval.seconds:
        return Verdict("Going", step.share)
    if len(known) < len(windows):
        missing = f"{len(windows) - len(known)} of {len(windows)} gateways have not told their figures"
        return Verdict("Going", step.share, f"{missing}: the step waits for them")
    expected = (new.requests + old.requests) * step.share / 100
    if expected >= SAMPLES and new.requests < expected / 2:
        return Verdict("Going", step.share, "its engines take less than half of its share")
    for name, slow in (
        ("time to first token", slower(new.ttft, old.ttft, TTFT_RATIO, TTFT_SECONDS)),
        ("time between tokens", slower(new.itl, old.itl, ITL_RATIO, ITL_SECONDS)),
    ):
        if slow:
            return Verdict("Failed", step.share, f"slower, {name}: {told}")
    few = new.ttft.samples < SAMPLES or old.ttft.samples < SAMPLES
    return Verdict("Passed", step.share, f"by time, with too few streams to compare: {told}" if few else told)


def fails_more(new: RevisionFigures, old: RevisionFigures) -> bool:
    """Whether the new one's errors are more than chance makes of what is allowed."""
    allowed = max(ERRORS, 2 * (old.error_share or 0.0))
    return at_least(new.errors, new.requests, allowed) < DOUBT


def at_least(errors: int, requests: int, rate: float) -> float:
    """Chance of so many errors or more among requests that each fail at this rate (binomial). 1 where they are no more
    than one would expect."""
    if errors <= requests * rate:
        return 1.0
    chance = 0.0
    for k in range(errors, requests + 1):
        ways = math.lgamma(requests + 1) - math.lgamma(k + 1) - math.lgamma(requests - k + 1)
        term = math.exp(ways + k * math.log(rate) + (requests - k) * math.log1p(-rate))
        chance += term
        if term <= chance * 1e-9:  # each further one is less than that
            break
    return chance


def slower(new: Sketch, old: Sketch, ratio: float, seconds: float) -> bool:
    """Whether the new one's 95th percentile is worse by both, beyond what its number of samples leaves open: the value
    two standard errors of its rank below is taken. False with too few samples of either."""
    if min(new.samples, old.samples) < SAMPLES:
        return False
    low = new.quantile(0.95 - 2 * math.sqrt(0.95 * 0.05 / new.samples))
    was = old.quantile(0.95)
    return low is not None and was is not None and low > max(ratio * was, was + seconds)


def compared(step: CanaryStep, new: RevisionFigures, old: RevisionFigures) -> str:
    """The figures of both, the new revision's first."""
    parts = [
        f"{step.share} % of requests: {new.requests} asked of it, {old.requests} of the current revision",
        f"failed {_percent(new.error_share)} against {_percent(old.error_share)}",
        f"TTFT p95 {_seconds(new.ttft)} against {_seconds(old.ttft)}",
        f"ITL p95 {_seconds(new.itl)} against {_seconds(old.itl)}",
    ]
    return ", ".join(parts)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


def _seconds(sketch: Sketch) -> str:
    found = sketch.quantile(0.95)
    return "unknown" if found is None else f"{1000 * found:.0f} ms" if found >= 0.01 else f"{1000 * found:.1f} ms"


class Trial(NamedTuple):
    """What a pass knows of a canary before it plans."""

    canary: Canary | None
    """The spec's."""
    current: str | None
    """The revision that answered until now."""
    before: CanaryStep | None
    """As the status has it."""
    verdict: Verdict
    failed: bool = False
    """The rollout of the target has failed, and its engines stay."""


class Rolling(NamedTuple):
    """A rollout as `stand` needs it."""

    revision: str
    """The target's."""
    sizes: Mapping[str, int]
    bounds: Bounds
    engines: Sequence[Pod]

    def ready(self, role: str, *, but: str | None = None) -> int:
        """Ready engines of the target; with `but`, of all revisions but that."""
        engines = (pod for pod in self.engines if pod.live and pod.ready and pod.role == role)
        return sum(pod.revision == self.revision if but is None else pod.revision != but for pod in engines)


def stand(trial: Trial, rolling: Rolling, now: datetime) -> Stand | None:
    """The step that holds after this pass. None: no canary goes on, nor does one go back."""
    before, verdict = trial.before, trial.verdict
    if before is not None and (trial.failed or before.revision != rolling.revision):
        if trial.failed or not _tries(trial, rolling, None):
            return _going_back(rolling, before)
        before = None
    if trial.canary is None or trial.failed or not _tries(trial, rolling, before):
        return None
    step = before or _next(trial.canary, CanaryStep(revision=rolling.revision, step=0, share=0), "")
    if verdict.state == "Passed":
        step = _next(trial.canary, step, verdict.message)
    else:
        step = step.model_copy(update={"waits": verdict.message})
    if step.step >= WHOLE:
        return Stand(step, None)
    return _holding(rolling, step, now, heard=verdict.state != "None")


def hold(size: int, share: int, surge: int) -> Hold:
    """Engines of a role that a share needs of either side, within size and surge; one of each where that can be."""
    new = min(math.ceil(size * share / 100), max(1, size + surge - 1))
    return Hold(new, min(math.ceil(size * (100 - share) / 100), size + surge - new))


def _next(canary: Canary, step: CanaryStep, message: str) -> CanaryStep:
    """Its share stays as it was until its engines are there."""
    following = next((share for share in canary.steps if share > step.step), WHOLE)
    share = WHOLE if following == WHOLE else step.share
    return CanaryStep(revision=step.revision, step=following, share=share, message=message)


def _holding(rolling: Rolling, step: CanaryStep, now: datetime, *, heard: bool) -> Stand:
    holds = {role: hold(size, step.step, rolling.bounds.surge) for role, size in rolling.sizes.items() if size}
    alone = [role for role, both in holds.items() if not both.old]
    if alone:
        why = f"no share can be held: with maxSurge 0 the one engine of {alone[0]} is of either revision"
        return Stand(step.model_copy(update={"step": WHOLE, "share": WHOLE, "message": why}), None)
    if step.share == 0 and not heard:
        # An engine that is ready before they have heard would be given requests like any other.
        return Stand(step, told(step), {role: Hold(0, size) for role, size in rolling.sizes.items() if size})
    if step.since is None and all(rolling.ready(role) >= both.new for role, both in holds.items()):
        fits = min(100 * both.new // rolling.sizes[role] for role, both in holds.items())
        step = step.model_copy(update={"since": now.replace(microsecond=0), "share": min(step.step, fits)})
        if fits < step.step:
            why = f"{fits} % in place of {step.step} %: maxSurge allows no more engines beside the others"
            step = step.model_copy(update={"message": why})
    return Stand(step, told(step), holds)


def _tries(trial: Trial, rolling: Rolling, before: CanaryStep | None) -> bool:
    """Whether there is another revision to compare with: to begin it must serve, to go on it must be there."""
    if trial.canary is None or trial.current in (None, rolling.revision):
        return False
    others = [pod for pod in rolling.engines if pod.live and pod.revision != rolling.revision]
    wanted = [role for role, size in rolling.sizes.items() if size]
    return bool(wanted) and all(
        any(pod.role == role and (pod.ready or before is not None) for pod in others) for role in wanted
    )


def _going_back(rolling: Rolling, before: CanaryStep) -> Stand | None:
    """A canary that is wanted no more: as many of its requests go elsewhere as there are engines for, at once."""
    sizes = {role: size for role, size in rolling.sizes.items() if size}
    if not any(pod.live and pod.revision == before.revision for pod in rolling.engines):
        return None
    lacking = [math.ceil(100 * (n - rolling.ready(role, but=before.revision)) / n) for role, n in sizes.items()]
    share = min(before.share, max(0, *lacking)) if lacking else 0
    step = CanaryStep(revision=before.revision, step=before.step, share=share, message=before.message)
    return Stand(step, told(step))
