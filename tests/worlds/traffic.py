"""Clients of a scene, and gateways that count what they ask: engines take the times that a model says, for as many of
them as are ready."""

from dataclasses import dataclass, field
from datetime import datetime

from headrace_operator import names
from headrace_operator.plan.scaling import Model
from headrace_operator.plan.scaling.model import Load, between_tokens, first_token
from headrace_operator.testing import Scene
from headrace_runtime.contract import DemandFigures, GatewayFigures, RoleFigures, Sketch
from headrace_runtime.contract.sketch import bucket

TRUTH = Model(pace=0.087342 / 4168, startup=60.0)
"""Dynamo's H200 profile: one prefill engine for 8 requests of 4000 tokens a second, two for 18."""
LATE = 60.0
"""Seconds that a request waits where the queue only grows."""
CROWDED = 0.2
"""Seconds between tokens where an engine's batch is full."""


@dataclass
class _Counted:
    """By one gateway process. Fractions of a request are kept until they are a whole one."""

    process: str
    since: datetime
    requests: float = 0.0
    writing: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    ttft: dict[int, float] = field(default_factory=dict)
    itl: dict[int, float] = field(default_factory=dict)


class Traffic:
    """Requests a second, their prompts and answers in tokens. `flow` lets them come."""

    def __init__(self, scene: Scene, rate: float = 8.0, prompt: float = 4000.0, output: float = 150.0) -> None:
        self.scene = scene
        self.rate, self.prompt, self.output = rate, prompt, output
        self.truth = TRUTH
        self.away: set[str] = set()
        """Gateways that give no answer."""
        self._at = scene.clock
        self._counted: dict[str, _Counted] = {}
        self._processes = 0

    def flow(self) -> None:
        """Until now. What gateways answer from now on."""
        seconds = (self.scene.clock - self._at).total_seconds()
        self._at = self.scene.clock
        pods = self._gateways()
        for name, address in pods.items():
            if name not in self._counted:
                self.restart(name)
            self._count(self._counted[name], seconds, self.rate / len(pods))
            if name in self.away:
                self.scene.runtime.readings.pop(address, None)
            else:
                self.scene.runtime.readings[address] = self._reading(self._counted[name])

    def restart(self, gateway: str) -> None:
        """Another process, which has counted nothing."""
        self._processes += 1
        self._counted[gateway] = _Counted(f"process-{self._processes}", self._at)

    def _gateways(self) -> dict[str, str]:
        return {
            name: obj["status"]["podIP"]
            for (kind, _, name), obj in self.scene.cluster.objects.items()
            if kind == "Pod" and name.startswith(f"{names.gateway(self.scene.ref.name)}-") and "status" in obj
        }

    def _engines(self, role: str) -> int:
        pods = (self.scene.cluster.objects["Pod", self.scene.ref.namespace, pod] for pod in self.scene.pods(role=role))
        return sum("status" in pod for pod in pods)

    def _times(self) -> tuple[float, float, float]:
        """Usual and late time to first token, and time between tokens."""
        load = Load(self.rate, self.prompt, self.prompt, 0.0, self.output)
        prefill, decode = self._engines("prefill"), self._engines("decode")
        found = (
            first_token(self.truth, load, prefill, 0.5),
            first_token(self.truth, load, prefill, 0.95),
            between_tokens(self.truth, load, decode, 0.95),
        )
        usual, late, gap = (min(time, most) for time, most in zip(found, (LATE, LATE, CROWDED), strict=True))
        return usual, late, gap

    def _count(self, one: _Counted, seconds: float, rate: float) -> None:
        usual, late, gap = self._times()
        number = rate * seconds
        one.requests += number
        one.prompt_tokens += number * self.prompt
        one.output_tokens += number * self.output
        one.writing += number * self.output * gap
        for sketch, time, share in ((one.ttft, usual, 0.8), (one.ttft, late, 0.2), (one.itl, gap, 1.0)):
            sketch[bucket(time)] = sketch.get(bucket(time), 0.0) + number * share

    def _reading(self, one: _Counted) -> GatewayFigures:
        number = int(one.requests)
        prefill = RoleFigures(
            role="prefill", revision="r", requests=number, prompts=number,
            prompt_tokens=int(one.prompt_tokens), ttft=_whole(one.ttft),
        )  # fmt: skip
        decode = RoleFigures(
            role="decode", revision="r", requests=number, answers=number,
            output_tokens=int(one.output_tokens), itl=_whole(one.itl),
        )  # fmt: skip
        demand = DemandFigures(
            requests=number,
            prompt_tokens=int(one.prompt_tokens),
            prompts=Sketch(counts={bucket(self.prompt / 1000): number} if number else {}),
            unanswered=self._times()[1] if number else 0.0,
            writing=one.writing,
            idle=0.0 if self.rate else 60.0,
        )
        seconds = (self._at - one.since).total_seconds()
        return GatewayFigures(
            start=one.process, seconds=seconds, arrivals=number, answered=number, roles=(prefill, decode), demand=demand
        )


def _whole(counts: dict[int, float]) -> Sketch:
    return Sketch(counts={place: int(count) for place, count in sorted(counts.items()) if int(count)})
