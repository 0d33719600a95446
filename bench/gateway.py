"""What the gateway costs: beside the same engine asked directly, and beside vllm-router before that engine.

First a real vLLM engine with a tiny model, which shares the processors with relay and clients, so that whatever a
relay takes is missing elsewhere. Then a *simulated* engine, which costs next to nothing, with each relay on one core
and all else on the others: at a quiet pace for the time that a relay adds, and flat out for what it can do. The arms
alternate, the order turning from repeat to repeat, and each repeat gives one ratio. Many streams at once are
`bench/streams.py`.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.progress import Progress

from bench.engines import RUNTIME, gateway
from bench.load import Load, Result, completion
from bench.load import run as run_load
from bench.peers import vllm_router
from bench.programs import cores, cpu_seconds, free_port, pin, running, wait_for
from bench.report import Options, Report, at_least, at_most, percentile, spread
from headrace_runtime.contract import Endpoint, Engine, FixedDiscovery, Model, NodeContract, Place
from headrace_runtime.engine.arguments import CPU, SERVE, command
from local.engine import build, models

MODEL = "tiny"
PROMPT_TOKENS, TOKENS, TOKENS_SPREAD = 64, 64, 32
RAMP_SECONDS = 0.5
DIRECT, OURS, ROUTER = "direct", "Headrace", "vllm-router"

COLUMNS = (
    "closed loop",
    "requests/s",
    "CPU ms/request",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "gap p50 ms",
    "gap p99 ms",
)


@dataclass(frozen=True)
class Scene:
    """One engine and how it is asked. `interval` and `first` in seconds, of a simulated engine; 0: a real one."""

    name: str
    streams: int
    requests: int
    interval: float = 0.0
    first: float = 0.0

    @property
    def simulated(self) -> bool:
        return self.interval > 0


REAL = Scene("vLLM, 32 streams", 32, 480)
QUIET = Scene("*simulated*, 32 streams, 10 ms a token", 32, 480, interval=0.01, first=0.02)
FLAT_OUT = Scene("*simulated*, 128 streams, 1 ms a token", 128, 2560, interval=0.001)


@dataclass
class Arm:
    """All runs against one address."""

    name: str
    url: str
    relay: int | None = None
    """Process id of what stands before the engine."""
    results: list[Result] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def measure(self, scene: Scene, requests: int, seed: int) -> None:
        """Raises RuntimeError where any answer is missing: a figure of half the requests is none."""
        before = cpu_seconds(self.relay) if self.relay else 0.0
        body = completion(MODEL, PROMPT_TOKENS, TOKENS, spread=TOKENS_SPREAD)
        result = run_load(Load(self.url, scene.streams, requests, body, seed=seed, ramp=RAMP_SECONDS))
        if result.errors or result.answers != requests:
            raise RuntimeError(f"{self.name}: {result.answers} of {requests} answers; {result.errors[:3]}")
        if seed == WARM_UP:
            return
        self.results.append(result)
        if self.relay:
            self.cpu_ms.append((cpu_seconds(self.relay) - before) * 1e3 / requests)

    def times(self, of: str, share: float) -> list[float]:
        """Of each repeat, in milliseconds."""
        return [percentile(getattr(result, of), share) * 1e3 for result in self.results]

    def row(self, scene: Scene) -> list[str]:
        cpu = spread(self.cpu_ms, 2) if self.cpu_ms else "-"
        latencies = [spread(self.times(of, share)) for of in ("ttft", "gaps") for share in (0.5, 0.99)]
        rates = spread([result.rate for result in self.results])
        return [f"{scene.name}: {self.name}", rates, cpu, *latencies]


WARM_UP = -1


def run(options: Options) -> Report:
    repeats = 2 if options.quick else 7
    scenes = (REAL, QUIET, FLAT_OUT)
    report = Report("gateway", f"{repeats} alternating repeats, median (min..max)", COLUMNS)
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(scenes) * (3 * repeats + 3))
        for scene in scenes:
            progress.update(task, description=scene.name)
            with arms_of(scene) as arms:
                for _ in alternating(arms, scene, repeats, options.quick):
                    progress.update(task, advance=1)
            report.rows += [arm.row(scene) for arm in arms]
            judge(report, scene, arms)
    report.notes += [
        f"{PROMPT_TOKENS} prompt and {TOKENS} ± {TOKENS_SPREAD} output tokens; CPU is the relay's, all threads.",
        "*simulated*: no model behind it; each relay runs on one core, engine and clients on the others.",
    ]
    return report


def alternating(arms: Sequence[Arm], scene: Scene, repeats: int, quick: bool) -> Iterator[Arm]:
    """Measure the arms in turns; gives each after its run."""
    requests = scene.requests // (4 if quick else 1)
    for repeat in range(WARM_UP, repeats):
        for arm in arms if repeat % 2 == 0 else arms[::-1]:
            arm.measure(scene, requests // 2 if repeat == WARM_UP else requests, seed=repeat)
            yield arm


def judge(report: Report, scene: Scene, arms: Sequence[Arm]) -> None:
    direct, ours, router = arms
    rates = [mine.rate / theirs.rate for mine, theirs in zip(ours.results, router.results, strict=True)]
    cpu = [mine / theirs for mine, theirs in zip(ours.cpu_ms, router.cpu_ms, strict=True)]
    report.notes.append(f"{scene.name}: requests/s of {ROUTER}'s {spread(rates, 3)}, CPU of its {spread(cpu, 3)}")
    report.checks.append(at_least(f"{scene.name}: requests/s, of {ROUTER}'s", median(rates), 1.0))
    report.checks.append(at_most(f"{scene.name}: CPU per request, of {ROUTER}'s", median(cpu), 1.0))
    if scene is FLAT_OUT:
        return
    for arm in (ours, router):
        added = [mine - bare for mine, bare in zip(arm.times("ttft", 0.99), direct.times("ttft", 0.99), strict=True)]
        report.notes.append(f"{scene.name}: TTFT p99 added by {arm.name}: {spread(added)} ms")
        if arm is ours:
            report.checks.append(at_most(f"{scene.name}: TTFT p99 added, ms", median(added), 5.0))


@contextmanager
def arms_of(scene: Scene) -> Iterator[list[Arm]]:
    """The engine, and both relays before it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        if scene.simulated:
            stack.enter_context(away_from_relays())
        url = stack.enter_context(simulated_engine(folder, scene) if scene.simulated else engine(folder))
        endpoint = Endpoint(name="engine", url=url, role="serve", revision="bench")
        ours = stack.enter_context(gateway(folder, MODEL, FixedDiscovery(endpoints=(endpoint,)), engines=1))
        router = stack.enter_context(vllm_router(folder, ["--worker-urls", url, "--policy", "round_robin"]))
        for relay in (ours, router):
            pin(relay.pid, cores().relay if scene.simulated else cores().all)
        yield [Arm(DIRECT, url), Arm(OURS, ours.url, ours.pid), Arm(ROUTER, router.url, router.pid)]


@contextmanager
def away_from_relays() -> Iterator[None]:
    """This process, its clients and what it starts leave one core to the relay."""
    pin(0, cores().others)
    try:
        yield
    finally:
        pin(0, cores().all)


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """A real vLLM engine on CPU, started as an agent would; gives its URL once it is ready."""
    place = Place(name="bench", address="127.0.0.1", engine_port=free_port(), run_dir=str(folder))
    contract = NodeContract(
        namespace="bench",
        deployment="bench",
        revision="bench",
        role="serve",
        model=Model(source="bench", path=str(models.folder() / MODEL), served_name=MODEL),
        engine=Engine(device=CPU, max_model_len=2048, kv_cache_bytes=256 * 1024**2),
        drain_seconds=1.0,
    )
    launch = command(contract, place)
    log = folder / "engine.log"
    url = f"http://127.0.0.1:{place.engine_port}"
    with running([str(build.python()), *SERVE, *launch.argv], log, {**launch.env, "PYTHONPATH": RUNTIME}) as program:
        wait_for(f"{url}/health", program, log)
        yield url


@contextmanager
def simulated_engine(folder: Path, scene: Scene) -> Iterator[str]:
    port, log = free_port(), folder / "simulated.log"
    argv = [sys.executable, "-m", "bench.simulated", "--port", str(port)]
    with running([*argv, "--interval", str(scene.interval), "--first", str(scene.first)], log) as program:
        wait_for(f"http://127.0.0.1:{port}/health", program, log)
        yield f"http://127.0.0.1:{port}"
