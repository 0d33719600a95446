"""What *simulated* gateways measure, as the scaler is told it: windows of fixed length, newest first."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from headrace_operator.plan.scaling import Aim, Target, Window
from simulator.engine import Journey


@dataclass
class _Open:
    arrived: list[Journey] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    computed: list[Journey] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


class Recorder:
    """One for all gateways."""

    def __init__(self, aim: Aim, seconds: float, kept: int) -> None:
        """`seconds`: length of a window. `kept`: so many are told, the newest."""
        self._aim, self._seconds = aim, seconds
        self._open = _Open()
        self._closed: deque[tuple[float, Window]] = deque(maxlen=kept)
        self._waiting: dict[Journey, None] = {}
        self._ready: Mapping[str, float] = {}
        self._writing = 0
        self._written = 0.0
        self._since = 0.0

    def arrived(self, journey: Journey) -> None:
        self._open.arrived.append(journey)
        self._waiting[journey] = None

    def first(self, journey: Journey, now: float) -> None:
        self._waiting.pop(journey, None)
        self._count(now, 1)
        self._open.firsts.append(now - journey.request.at)
        self._open.computed.append(journey)

    def _count(self, now: float, more: int) -> None:
        """Answers under way, and their mean over the window."""
        self._written += self._writing * (now - self._since)
        self._since, self._writing = now, self._writing + more

    def ended(self, journey: Journey, now: float) -> None:
        self._count(now, -1)
        self._open.gaps.append(journey.gap)
        self._open.outputs.append(journey.request.output)

    def close(self, now: float, ready: Mapping[str, float]) -> None:
        """End the window that is open. Of engines its mean is told as the operator has it, from counts at both ends."""
        self._count(now, 0)
        window, aim = self._open, self._aim
        prompts = [journey.request.prompt for journey in window.arrived]
        computed, of = sum(j.computed for j in window.computed), sum(j.request.prompt for j in window.computed)
        ended = Window(
            age=0.0,
            seconds=self._seconds,
            requests=float(len(window.arrived)),
            prompt=sum(prompts) / len(prompts) if prompts else None,
            long_prompt=_quantile(prompts, aim.ttft),
            cached=max(0.0, 1 - computed / of) if of else None,
            output=sum(window.outputs) / len(window.outputs) if window.outputs else None,
            ttft=_quantile(window.firsts, aim.ttft),
            itl=_quantile(window.gaps, aim.itl),
            waiting=max((now - journey.request.at for journey in self._waiting), default=0.0),
            writing=self._written / self._seconds,
            usual_ttft=median(window.firsts) if window.firsts else None,
            engines={role: (self._ready.get(role, count) + count) / 2 for role, count in ready.items()},
        )
        self._ready = dict(ready)
        self._closed.appendleft((now, ended))
        self._open, self._written = _Open(), 0.0

    def windows(self, now: float) -> tuple[Window, ...]:
        """Those that ended, as old as they are now."""
        return tuple(replace(window, age=now - at) for at, window in self._closed)


def _quantile(values: Sequence[float], target: Target | None) -> float | None:
    if not values or target is None:
        return None
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * target.share))])
