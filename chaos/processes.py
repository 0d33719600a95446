"""The world of processes: engines and a gateway on this machine's loopback, and nothing between them.

Engines are real ones, each under the agent that owns it in a pod, or simulated ones (a program of the gateway's tests;
its figures carry the word *simulated*), which are started again here at once. Real ones compute in 32-bit floats, so
that a greedy answer is the same whoever else is in the batch: answers are then compared token for token.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.journal import Truth
from chaos.machine import children, fetch, free_ports, holds, resident
from chaos.questions import Shape
from chaos.scenario import Deployment, Scenario
from chaos.world import Blow
from headrace_runtime.contract import (
    Endpoint,
    Engine,
    FixedDiscovery,
    GatewayContract,
    Integrity,
    Model,
    NodeContract,
    NodeState,
    Place,
    RoleName,
    Transfer,
)
from local.engine import build, models
from local.programs import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
MODEL = "tiny"
VOCABULARY = 4000
KV_BYTES = 256 * 1024**2
SIMULATED_ITL = 0.02
SIMULATED_TTFT = 0.05
READY_SECONDS = 240.0
STOP_SECONDS = 20.0
AGAIN_SECONDS = 1.2
"""After an end. A real engine is away for longer; so long that some health check finds nobody there."""


class Kept:
    """A program that is started again whenever it ends, until this is closed. Output goes to `log`."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._argv, self._log, self._env = argv, log, {**os.environ, **(env or {})}
        self._closed = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End it, and everything that it started."""
        self._closed.set()
        patience = time.monotonic() + STOP_SECONDS
        while self._thread.is_alive():  # it may have started the program once more meanwhile
            self._process.send_signal(signal.SIGTERM if time.monotonic() < patience else signal.SIGKILL)
            self._thread.join(1.0)

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(self._argv, stdout=log, stderr=log, env=self._env, start_new_session=True)

    def _keep(self) -> None:
        while True:
            self._process.wait()
            _kill_session(self._process.pid)
            if self._closed.wait(AGAIN_SECONDS):
                return
            self._process = self._start()


@dataclass(frozen=True)
class Part:
    """One engine of the deployment."""

    endpoint: Endpoint
    kept: Kept
    agent_url: str | None
    """None: a simulated engine."""

    def core(self) -> int:
        """The process that holds the model."""
        server = self.server()
        return server if self.agent_url is None else max(children(server), key=resident)

    def server(self) -> int:
        """The process that answers HTTP."""
        if self.agent_url is None:
            return self.kept.pid
        pid = NodeState.model_validate(fetch(f"{self.agent_url}/state")).engine_pid
        if pid is None:
            raise RuntimeError(f"{self.endpoint.name} has no engine to strike")
        return pid


class Processes:
    """The running deployment."""

    model = MODEL
    vocabulary = VOCABULARY

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.answers: dict[Shape, list[Truth]] = {}
        self._deployment, self._folder = deployment, folder
        self._closing = ExitStack()
        self.noted = False
        self._parts: dict[str, Part] = {}
        self._ports = iter(free_ports(3 * (deployment.serve + deployment.prefill + deployment.decode) + 6))

    def open(self) -> None:
        """Start everything, and return once all of it serves."""
        roles: dict[RoleName, int] = {
            "serve": self._deployment.serve,
            "prefill": self._deployment.prefill,
            "decode": self._deployment.decode,
        }
        for role, count in roles.items():
            for index in range(count):
                part = self._engine(f"{role}-{index}", role)
                self._parts[part.endpoint.name] = part
        self._contract = GatewayContract(
            namespace="chaos",
            deployment="chaos",
            served_name=MODEL,
            discovery=FixedDiscovery(endpoints=tuple(part.endpoint for part in self._parts.values())),
            drain_seconds=1.0,
            port=next(self._ports),
            admin_port=next(self._ports),
        )
        self._start_gateway("gateway", self._contract)
        self.url = f"http://{LOOPBACK}:{self._contract.port}"
        wait_until("every engine serves", lambda: holds(lambda: self._serve(self._parts)), READY_SECONDS)

    def close(self) -> None:
        self._closing.close()

    def inside(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def targets(self, scenario: Scenario) -> list[str]:
        role = scenario.target
        return [name for name, part in self._parts.items() if part.endpoint.role == role] or [""]

    @contextmanager
    def planted(self) -> Iterator[str]:
        gives_up = {"max_retries": 0, "engine_wait_seconds": 0.0, "resume": None}
        ports = {"port": next(self._ports), "admin_port": next(self._ports)}
        contract = self._contract.model_copy(update=gives_up | ports)
        kept = self._start_gateway("planted", contract)
        try:
            admin = f"http://{LOOPBACK}:{contract.admin_port}"
            serves = functools.partial(self._serve, self._parts, admin)
            wait_until("the planted gateway serves", lambda: holds(serves), READY_SECONDS)
            yield f"http://{LOOPBACK}:{contract.port}"
        finally:
            kept.close()

    def note(self) -> str:
        self.noted = True
        return f"logs are in {self._folder}"

    # ---- faults

    def strike(self, scenario: Scenario, target: str) -> Blow:
        part = self._parts[target]
        strikes: dict[str, Callable[[Part], Callable[[], None]]] = {
            "engine_killed": lambda one: _signal(one.core(), signal.SIGKILL),
            "engine_stopped": _stop,
            "front_end_killed": lambda one: _signal(one.server(), signal.SIGKILL),
        }
        before = _lives(part)
        at = time.monotonic()
        undo = strikes[scenario.fault](part)
        return Blow(
            target,
            detected=lambda: not self._serve([target]),
            whole=lambda: (
                (scenario.fault == "engine_stopped" or _lives(part) != before)
                and self._serve([target])
                and answers(part.endpoint.url)
            ),
            at=at,
            undo=undo,
        )

    # ---- how it is done

    def _serve(self, names: Sequence[str] | Mapping[str, object], admin: str | None = None) -> bool:
        """Whether these engines get requests, in the gateway's own words."""
        state = fetch(f"{admin or self._admin}/state")
        healthy = {one["name"] for one in state["engines"] if one["healthy"]}
        return healthy.issuperset(names)

    @property
    def _admin(self) -> str:
        return f"http://{LOOPBACK}:{self._contract.admin_port}"

    def _start_gateway(self, name: str, contract: GatewayContract) -> Kept:
        file = self._write(name, contract.model_dump_json(by_alias=True))
        argv = [sys.executable, "-m", "headrace_runtime", "gateway", f"--contract={file}", f"--name={name}"]
        return self._keep([*argv, f"--address={LOOPBACK}"], name)

    def _engine(self, name: str, role: RoleName) -> Part:
        engine, agent, transfer = (next(self._ports) for _ in range(3))
        endpoint = Endpoint(name=name, url=f"http://{LOOPBACK}:{engine}", role=role, revision="r1")
        if self._deployment.engines == "simulated":
            argv = [sys.executable, "-m", "headrace_runtime.engine.fake", f"--port={engine}", f"--model={MODEL}"]
            return Part(endpoint, self._keep([*argv, f"--itl={SIMULATED_ITL}", f"--ttft={SIMULATED_TTFT}"], name), None)
        place = Place(
            name=name,
            address=LOOPBACK,
            engine_port=engine,
            agent_port=agent,
            kv_transfer_port=transfer,
            run_dir=str(self._folder / name),
        )
        contract = NodeContract(
            namespace="chaos",
            deployment="chaos",
            revision="r1",
            role=role,
            model=Model(source="chaos", path=str(models.folder() / MODEL), served_name=MODEL, integrity=Integrity()),
            engine=Engine(
                device="cpu",
                dtype="float32",
                max_model_len=2048,
                kv_cache_bytes=KV_BYTES,
                transfer=Transfer() if role != "serve" else None,
            ),
            drain_seconds=1.0,
        )
        file = self._write(name, contract.model_dump_json(by_alias=True))
        options = [f"--{key.replace('_', '-')}={value}" for key, value in place.model_dump().items()]
        argv = [str(build.python()), "-m", "headrace_runtime", "node", f"--contract={file}", *options]
        kept = self._keep(argv, name, {"PYTHONPATH": str(REPOSITORY / "runtime")})
        return Part(endpoint, kept, f"http://{LOOPBACK}:{agent}")

    def _keep(self, argv: Sequence[str], name: str, env: Mapping[str, str] | None = None) -> Kept:
        kept = Kept(argv, self._folder / f"{name}.log", env)
        self._closing.callback(kept.close)
        return kept

    def _write(self, name: str, text: str) -> Path:
        file = self._folder / f"{name}.json"
        file.write_text(text)
        return file


@contextmanager
def opened(deployment: Deployment) -> Iterator[Processes]:
    """The deployment, serving while the block runs. Its logs stay where the block fails, or asked where they are."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    world = Processes(deployment, folder)
    try:
        world.open()
        yield world
    finally:
        world.close()
    if not world.noted:
        shutil.rmtree(folder)


def answers(url: str) -> bool:
    """Whether an engine's server says that it is well. OSError: it does not answer."""
    with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
        return bool(answer.status == 200)


def _lives(part: Part) -> int:
    """Of an engine: which life of it this is. Raises OSError when the agent does not answer."""
    if part.agent_url is None:
        return part.kept.pid
    return NodeState.model_validate(fetch(f"{part.agent_url}/state")).engine_restarts


def _signal(pid: int, number: signal.Signals) -> Callable[[], None]:
    os.kill(pid, number)
    return lambda: None


def _stop(part: Part) -> Callable[[], None]:
    """Undone only where it still stands still: a real engine's agent may have ended it meanwhile."""
    pid = part.core()
    os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # ended meanwhile, which heals as well

    return go_on


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # nothing is left of it
