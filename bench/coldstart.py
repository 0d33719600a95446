"""What a start of an engine costs, and on what: an agent as a pod has it, with a real model of 135 million parameters.

The first pod of a node fetches the model over HTTP (loopback: a network would be slower), verifies, imports vLLM, loads
and computes a token. Those after it save some of that: a copy in the node's cache, files in the page cache, a warm
parent to fork from. vLLM is imported while the model is fetched and verified, so that the columns do not add up to
*all*: from the start of the agent, or the kill of the engine, to Ready. Dropped: the model's pages are taken out of the
page cache before, and looked for, so that the start has them from the disk.
"""

import hashlib
import os
import re
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.progress import Progress

from bench.programs import free_port, running
from bench.report import Options, Report, at_least, at_most, spread
from headrace_runtime.contract import Engine, Integrity, Model, ModelCache, NodeContract, NodeState, Place
from headrace_runtime.node import hashing
from local import cache
from local.engine import build, models

MODEL = "smollm2"
WEIGHTS = "model.safetensors"
LOOK_SECONDS = 0.02
READY_SECONDS = 240.0
SAMPLE_BYTES = 1 << 20
PHASES = ("fetches", "verifies", "imports", "loads", "to a token")
LOADERS = ("Streamer",)
"""Beside vLLM's own. FastSafetensors reads into a GPU's memory only."""
FIRST = "the first pod of a node"
SECOND = "the second pod of the node"
CRASHED = "its engine killed: forked from the warm parent"
COLUMNS = ("start", *(f"{phase}, s" for phase in PHASES), "all, s")
IMPORTED = re.compile(r"engine imported in ([\d.]+) s")
LOADED = re.compile(r"Loading weights took ([\d.]+) seconds")


@dataclass(frozen=True)
class Start:
    """What one start took. Seconds; None: it did not happen, or beside something else."""

    seconds: dict[str, float | None]
    fetched: int
    """Bytes."""


class Pod:
    """An agent and what it owns, at a place of its own."""

    def __init__(self, folder: Path, model: Model) -> None:
        ports = {"engine_port": free_port(), "agent_port": free_port(), "kv_transfer_port": free_port()}
        self._place = Place(name="pod", address="127.0.0.1", run_dir=str(folder / "pod"), **ports)
        contract = NodeContract(
            namespace="bench",
            deployment="bench",
            revision="bench",
            role="serve",
            model=model,
            engine=Engine(device="cpu", dtype="bfloat16", max_model_len=2048, kv_cache_bytes=256 * 1024**2),
            drain_seconds=1.0,
        )
        file = folder / "pod.json"
        file.write_text(contract.model_dump_json(by_alias=True))
        options = [f"--{key.replace('_', '-')}={value}" for key, value in self._place.model_dump().items()]
        self._argv = [str(build.python()), "-m", "headrace_runtime", "node", f"--contract={file}", *options]
        self._log = folder / "pod.log"
        """Of the agent, and through it of the engine."""
        self._life = ExitStack()

    def start(self) -> Start:
        began = time.perf_counter()
        self._program = self._life.enter_context(running(self._argv, self._log))
        return self._until_ready(began, None)

    def crash(self) -> Start:
        """Kill the engine, all of it, and wait for the next one."""
        pid = self._state().engine_pid
        if pid is None:
            raise RuntimeError("there is no engine to kill")
        began = time.perf_counter()
        os.killpg(pid, signal.SIGKILL)
        return self._until_ready(began, pid)

    def stop(self) -> None:
        self._life.close()

    def _until_ready(self, began: float, last: int | None) -> Start:
        """Watch the agent's phases until a new engine is ready. Raises RuntimeError where none comes."""
        spent: dict[str, float] = {}
        at = began
        while time.perf_counter() - began < READY_SECONDS and self._program.poll() is None:
            time.sleep(LOOK_SECONDS)
            state, now = self._answer(), time.perf_counter()
            if state is not None:
                if state.phase == "Failed":
                    raise RuntimeError(f"the agent gave up: {state.message}")
                if state.phase == "Ready" and state.engine_pid not in (None, last):
                    return self._told(state, spent, now - began, forked=last is not None)
                spent[state.phase] = spent.get(state.phase, 0.0) + now - at
            at = now
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"no engine became ready; the end of {self._log.name}:\n{tail}")

    def _told(self, state: NodeState, spent: dict[str, float], total: float, *, forked: bool) -> Start:
        seconds = {
            "fetches": spent.get("FetchingWeights"),
            "verifies": spent.get("VerifyingWeights") if not forked else None,
            "imports": None if forked else _last(IMPORTED, self._log),
            "loads": _last(LOADED, self._log),
            "to a token": state.ready_seconds,
            "all": total,
        }
        return Start(seconds, state.weights.fetched)

    def _answer(self) -> NodeState | None:
        try:
            return self._state()
        except OSError:
            return None  # it does not listen yet

    def _state(self) -> NodeState:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._place.agent_port}/state", timeout=5) as answer:
            return NodeState.model_validate_json(answer.read())


def _last(pattern: re.Pattern[str], log: Path) -> float | None:
    found = pattern.findall(log.read_text(errors="replace"))
    return float(found[-1]) if found else None


@dataclass
class Row:
    """All starts of one kind."""

    name: str
    starts: list[Start] = field(default_factory=list)

    def cells(self) -> list[str]:
        return [self.name, *(self._cell(phase) for phase in (*PHASES, "all"))]

    def seconds(self, phase: str) -> list[float]:
        return [value for start in self.starts if (value := start.seconds[phase]) is not None]

    def _cell(self, phase: str) -> str:
        values = self.seconds(phase)
        return spread(values, 2) if values else "-"


@contextmanager
def published(folder: Path) -> Iterator[str]:
    """The address that the model is served at, by a process of its own."""
    folder.mkdir()
    sums = ""
    for file in sorted((models.folder() / MODEL).iterdir()):
        (folder / file.name).symlink_to(file)
        sums += f"{_sha256(file)}  {file.name}\n"
    (folder / "SHA256SUMS").write_text(sums)
    port = free_port()
    argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
    with running(argv, folder.with_name("web.log")) as program:
        url = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 30
        while not _answers(url):
            if time.monotonic() > deadline or program.poll() is not None:
                raise RuntimeError(f"nothing answers at {url}")
            time.sleep(0.1)
        yield url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.URLError:
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def drop(folder: Path) -> float:
    """Take the folder's files out of the page cache. Returns the share of them that is still there, by samples."""
    samples = there = 0
    for path in (path for path in folder.rglob("*") if path.is_file()):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)  # pages that are not written yet stay
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, os.fstat(file).st_size, SAMPLE_BYTES):
                samples, there = samples + 1, there + _cached(file, offset)
        finally:
            os.close(file)
    return there / samples


def _cached(file: int, offset: int) -> bool:
    """Whether a page is in the page cache; asks for no read."""
    try:
        return os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


class Bench:
    """The starts, one after the other on an otherwise idle machine: side by side they would take each other's cores."""

    def __init__(self, folder: Path, url: str, step: Callable[[str], None]) -> None:
        self._folder, self._url, self._step = folder, url, step
        self._pods = 0
        self._copies = folder / "cache"
        self.rows: dict[str, Row] = {}
        self.left: list[float] = []
        """Shares of the model that were still in the page cache after it was dropped."""

    def round(self, loaders: tuple[str, ...], *, quick: bool) -> None:
        """Every kind of start once, upon a cache of its own."""
        self._copies = self._folder / f"cache-{self._pods}"
        self._start(FIRST)
        self._start(SECOND, crash=CRASHED)
        self._start("the same, page cache dropped, files trusted", dropped=True, trust=True)
        if quick:
            return
        self._start("the same, page cache dropped", dropped=True)
        self._start("the same, files trusted", trust=True)
        for loader in loaders:
            self._start(f"the same, loader {loader}", loader=loader)
            self._start(f"the same, loader {loader}, page cache dropped", loader=loader, dropped=True)

    def _start(
        self, name: str, *, loader: str = "Auto", trust: bool = False, dropped: bool = False, crash: str = ""
    ) -> None:
        self._step(name)
        self._pods += 1
        folder = self._folder / f"pod-{self._pods}"
        folder.mkdir()
        integrity = Integrity(trust_unchanged="Boot" if trust else "Never")
        kept = ModelCache(path=str(self._copies))
        described = {"source": self._url, "served_name": MODEL, "loader": loader, "integrity": integrity, "cache": kept}
        pod = Pod(folder, Model.model_validate(described))
        if dropped:
            self.left.append(drop(self._copies))
        try:
            self._row(name).starts.append(pod.start())
            if crash:
                self._step(crash)
                self._row(crash).starts.append(pod.crash())
        finally:
            pod.stop()

    def _row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row(name))

    def report(self, report: Report, rate: float) -> None:
        """`rate`: bytes that one core hashes in a second."""
        first, second, crashed = (self.rows[name] for name in (FIRST, SECOND, CRASHED))
        report.rows += [row.cells() for row in self.rows.values()]
        size = (models.folder() / MODEL / WEIGHTS).stat().st_size
        report.notes += [
            f"weights of {size / 1e6:.0f} MB; one core hashes {rate / 1e9:.2f} GB/s from the page cache",
            "loads: as vLLM tells it, which for Streamer it does not",
            "imports: beside fetches and verifies; to a token: from the order to start the engine, loads within",
        ]
        report.checks += [
            at_least("bytes fetched by the first pod of a node", min(start.fetched for start in first.starts), size),
            at_most("bytes fetched by the second", max(start.fetched for start in second.starts), 0),
            at_least("a second pod, of a crashed engine's restart", _median(second) / _median(crashed), 2.0),
            at_most("share of the model in the page cache after it was dropped", max(self.left), 0.02),
            at_least("GB/s hashed by one core", rate / 1e9, 1.0),
        ]


def _median(row: Row) -> float:
    return median(row.seconds("all"))


def run(options: Options) -> Report:
    rounds = 1 if options.quick else 3
    loaders = () if options.quick else LOADERS
    report = Report("coldstart", f"{MODEL} on CPU, {rounds} rounds of every start; median (min..max)", COLUMNS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coldstart-", dir=cache.root())))
        url = stack.enter_context(published(folder / "web"))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("starting", total=None)
        bench = Bench(folder, url, lambda what: progress.update(task, description=what))
        for _ in range(rounds):
            bench.round(loaders, quick=options.quick)
    rate = max(hashing.bytes_per_second(models.folder() / MODEL / WEIGHTS) for _ in range(5))
    bench.report(report, rate)
    return report
