"""What the gateway costs: requests/s and processor time per request, against the same engine asked directly.

One real vLLM engine with a tiny model on this machine's processors; client, gateway and engine share them, so that
whatever the gateway takes is missing elsewhere. The arms alternate (direct, gateway, direct, …) and each pair gives
one ratio. The last row is the gateway before a *simulated* engine: how much one gateway relays when no engine is in
its way.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.progress import Progress

from bench.load import Load, Result, completion
from bench.load import run as run_load
from bench.programs import cpu_seconds, free_port, running, wait_for
from bench.report import Options, Report, at_least, at_most, percentile, spread
from headrace_runtime.contract import Endpoint, Engine, FixedDiscovery, GatewayContract, Model, NodeContract, Place
from headrace_runtime.engine.arguments import CPU, SERVE, command
from local.engine import build, models

STREAMS = 32
PROMPT_TOKENS = 64
TOKENS = 64
SIMULATED_STREAMS = 192
SIMULATED_ITL = 0.02
MODEL = "tiny"

COLUMNS = (
    "closed loop, 64 prompt and 64 output tokens",
    "requests/s",
    "gateway ms CPU/request",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "gap p50 ms",
    "gap p99 ms",
)


@dataclass
class Arm:
    """All runs against one address."""

    name: str
    url: str
    streams: int
    gateway: int | None = None
    """Process id of the gateway in the way, if there is one."""
    results: list[Result] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def measure(self, requests: int, seed: int) -> None:
        """Raises RuntimeError where any answer is missing: a figure of half the requests is none."""
        before = cpu_seconds(self.gateway) if self.gateway else 0.0
        load = Load(self.url, self.streams, requests, completion(MODEL, PROMPT_TOKENS, TOKENS), seed=seed)
        result = run_load(load)
        if result.errors or result.answers != requests:
            raise RuntimeError(f"{self.name}: {result.answers} of {requests} answers; {result.errors[:3]}")
        if seed == WARM_UP:
            return
        self.results.append(result)
        if self.gateway:
            self.cpu_ms.append((cpu_seconds(self.gateway) - before) * 1e3 / requests)

    def row(self) -> list[str]:
        def times(of: str, share: float) -> str:
            return spread([percentile(getattr(result, of), share) * 1e3 for result in self.results])

        cpu = spread(self.cpu_ms, 2) if self.cpu_ms else "-"
        latencies = [times("ttft", 0.5), times("ttft", 0.99), times("gaps", 0.5), times("gaps", 0.99)]
        return [self.name, spread([result.rate for result in self.results]), cpu, *latencies]


WARM_UP = -1


def run(options: Options) -> Report:
    repeats, requests = (2, 96) if options.quick else (7, 480)
    report = Report("gateway", f"{repeats} alternating repeats of {requests} requests, median (min..max)", COLUMNS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("starting vLLM", total=2 * repeats + 3)
        direct = Arm(f"vLLM directly, {STREAMS} streams", stack.enter_context(engine(folder)), STREAMS)
        ours = Arm(f"through the gateway, {STREAMS} streams", *stack.enter_context(gateway(folder, direct.url)))
        for arm in (direct, ours):
            arm.measure(requests // 2, WARM_UP)
        for repeat in range(repeats):
            for arm in (direct, ours) if repeat % 2 == 0 else (ours, direct):
                progress.update(task, advance=1, description=arm.name)
                arm.measure(requests, seed=repeat)
    report.rows += [direct.row(), ours.row()]
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(ours.results, direct.results, strict=True)]
    report.notes.append(f"ratio of each pair: {spread(ratios, 3)}")
    report.checks.append(at_least("requests/s through the gateway, of direct", median(ratios), 0.95))
    report.checks.append(at_most("ms of processor time in the gateway per request", median(ours.cpu_ms), 2.0))
    report.rows.append(simulated(repeats, requests).row())
    report.notes.append(
        "*simulated*: no model; the engine sends a token every 20 ms. Client and engine share the processors."
    )
    return report


def simulated(repeats: int, requests: int) -> Arm:
    """The gateway before an engine that costs next to nothing."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        url = stack.enter_context(simulated_engine(folder))
        through, _, pid = stack.enter_context(gateway(folder, url))
        arm = Arm(
            f"*simulated* engine, through the gateway, {SIMULATED_STREAMS} streams", through, SIMULATED_STREAMS, pid
        )
        arm.measure(requests, WARM_UP)
        for repeat in range(repeats):
            arm.measure(2 * requests, seed=repeat)
    return arm


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
    with running([str(build.python()), *SERVE, *launch.argv], log, launch.env) as program:
        wait_for(f"{url}/health", program, log)
        yield url


@contextmanager
def simulated_engine(folder: Path) -> Iterator[str]:
    port = free_port()
    log = folder / "simulated.log"
    argv = [sys.executable, "-m", "headrace_runtime.engine.fake", "--port", str(port), "--model", MODEL]
    with running([*argv, "--itl", str(SIMULATED_ITL)], log) as program:
        wait_for(f"http://127.0.0.1:{port}/health", program, log)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def gateway(folder: Path, engine_url: str) -> Iterator[tuple[str, int, int]]:
    """The gateway's own process before one engine; gives URL, streams and process id."""
    contract = GatewayContract(
        namespace="bench",
        deployment="bench",
        served_name=MODEL,
        discovery=FixedDiscovery(endpoints=(Endpoint(name="engine", url=engine_url, role="serve", revision="bench"),)),
        port=free_port(),
        admin_port=free_port(),
        drain_seconds=1.0,
    )
    file, log = folder / "gateway.json", folder / "gateway.log"
    file.write_text(contract.model_dump_json(by_alias=True))
    argv = [sys.executable, "-m", "headrace_runtime", "gateway", "--contract", str(file), "--name", "bench"]
    with running([*argv, "--address", "127.0.0.1"], log) as program:
        wait_for(f"http://127.0.0.1:{contract.port}/health", program, log)
        yield f"http://127.0.0.1:{contract.port}", STREAMS, program.pid
