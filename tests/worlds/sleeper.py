"""A deployment in memory that may sleep: its gateways count and hold as they are told, and time passes by hand."""

from datetime import timedelta
from typing import Any

from headrace_operator.api import conditions as c
from headrace_operator.state import Look
from headrace_operator.testing import Sample, Scene
from headrace_runtime.contract import DemandFigures, GatewayFigures

AFTER = 60.0


def sample(**fields: Any) -> Sample:
    zero = {"after": "1m", "holdRequests": 100, "holdTimeout": "2m"}
    written = Sample().split(prefill=1, decode=2).set("gateway.replicas", 2).set("scaling.toZero", zero)
    for path, value in fields.items():
        written.set(path.replace("__", "."), value)
    return written


class Gateways:
    """All gateways of a scene. They count from their start on, and hold what is `waiting`."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.born: dict[str, Any] = {}
        self.requests = self.waiting = self.running = 0
        self.last: Any = None
        """When the last request was here."""
        self.holds = 100
        self.mute: set[str] = set()

    def ask(self, *, held: bool = False) -> None:
        """One request comes to each; it leaves at once unless it is held."""
        self.requests += 1
        self.last = self.scene.clock
        self.waiting += held

    def answer(self) -> None:
        """Who waited is answered."""
        self.waiting, self.last = 0, self.scene.clock

    def tell(self) -> None:
        for (kind, _, name), pod in self.scene.cluster.objects.items():
            if kind == "Pod" and name.startswith("chat-gateway") and "status" in pod:
                address = pod["status"]["podIP"]
                self.scene.runtime.readings.pop(address, None)
                if name not in self.mute:
                    self.scene.runtime.readings[address] = self._reading(address)

    def _reading(self, address: str) -> GatewayFigures:
        now = self.scene.clock
        born = self.born.setdefault(address, now)
        last = max(born, self.last) if self.last is not None else born
        requests = self.requests if self.last is not None and self.last >= born else 0
        idle = 0.0 if self.waiting or self.running else (now - last).total_seconds()
        return GatewayFigures(
            start=address,
            seconds=(now - born).total_seconds(),
            holds=self.holds,
            waiting=self.waiting,
            running=self.running,
            oldest_wait=(now - self.last).total_seconds() if self.waiting else 0.0,
            demand=DemandFigures(requests=requests, idle=idle),
        )


async def turn(scene: Scene, gateways: Gateways, seconds: float = 1.0) -> Look:
    """Time passes, the operator looks, and what it made starts."""
    scene.clock += timedelta(seconds=seconds)
    gateways.tell()
    scene.clock -= timedelta(seconds=1)  # which a pass takes
    look = await scene.reconcile()
    scene.kubelet()
    gateways.tell()
    return look


async def awake(written: Sample | None = None) -> tuple[Scene, Gateways]:
    """A deployment that is ready, and was asked just now."""
    scene = Scene(written or sample())
    gateways = Gateways(scene)
    for _ in range(8):
        await turn(scene, gateways)
    assert scene.reason(c.READY) == "Answered"
    gateways.ask()
    return scene, gateways


async def asleep(written: Sample | None = None) -> tuple[Scene, Gateways]:
    scene, gateways = await awake(written)
    await turn(scene, gateways, AFTER)
    for _ in range(3):
        await turn(scene, gateways)
    assert scene.pods() == []
    return scene, gateways


def since(scene: Scene) -> str | None:
    found: str | None = scene.status.get("scaling", {}).get("asleepSince")
    return found


def gateway_pods(scene: Scene) -> list[str]:
    return sorted(name for kind, _, name in scene.cluster.objects if kind == "Pod" and "-gateway-" in name)


def events(scene: Scene) -> list[str]:
    return [reason for _, reason, _ in scene.cluster.events]
