"""Real vLLM engines on this machine's processors, able to hand KV blocks to each other, for benchmarks and tests.

Which of them prefills and which decodes is each request's own business, so the same engines serve every arm of a
benchmark: split, aggregated, behind another router.
"""

import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headrace_runtime
from bench.programs import cores, free_port, pin, running, wait_for
from headrace_runtime.contract import (
    Endpoint,
    Engine,
    FileDiscovery,
    FixedDiscovery,
    GatewayContract,
    Model,
    NodeContract,
    Place,
    Resume,
    RoleName,
    Transfer,
)
from headrace_runtime.engine.arguments import CPU, SERVE, command
from local.engine import build, models

RUNTIME = str(Path(headrace_runtime.__file__).parents[1])
"""The engine's Python is another one, and loads our connector from here."""


@dataclass(frozen=True)
class Kind:
    """What engines are started from."""

    model: str = "tiny"
    max_model_len: int = 2048
    kv_cache_bytes: int = 256 * 1024**2
    own_core: bool = False
    """Each engine is kept on one processor, with all its processes, while there is one for each."""

    def contract(self) -> NodeContract:
        path = str(models.folder() / self.model)
        return NodeContract(
            namespace="bench",
            deployment="bench",
            revision="bench",
            role="decode",
            model=Model(source="bench", path=path, served_name=self.model),
            engine=Engine(
                device=CPU,
                max_model_len=self.max_model_len,
                kv_cache_bytes=self.kv_cache_bytes,
                transfer=Transfer(),
            ),
            drain_seconds=1.0,
        )


class Worker:
    """One engine, which may be stopped and started again at its place. Its name says nothing of its role."""

    def __init__(self, folder: Path, name: str, kind: Kind, core: int | None = None) -> None:
        ports = {"engine_port": free_port(), "kv_transfer_port": free_port()}
        self.name = name
        self.place = Place(name=name, address="127.0.0.1", run_dir=str(folder / name), **ports)
        self.url = f"http://{self.place.address}:{self.place.engine_port}"
        self._launch = command(kind.contract(), self.place)
        self._log = folder / f"{name}.log"
        self._core = core
        self._life = ExitStack()

    def start(self) -> None:
        argv, env = [str(build.python()), *SERVE, *self._launch.argv], {**self._launch.env, "PYTHONPATH": RUNTIME}
        self._program = self._life.enter_context(running(argv, self._log, env))
        if self._core is not None:
            pin(self._program.pid, frozenset({self._core}))  # before it has started anything, which then inherits it

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError where it does not."""
        wait_for(f"{self.url}/health", self._program, self._log)

    def stop(self) -> None:
        """End it and all it started."""
        self._life.close()

    def endpoint(self, role: RoleName, *, draining: bool = False) -> Endpoint:
        return Endpoint(name=self.name, url=self.url, role=role, revision="bench", draining=draining)


@contextmanager
def engines(folder: Path, count: int, kind: Kind) -> Iterator[list[Worker]]:
    """Started side by side; given once all answer. They end with the block."""
    processors = sorted(cores().all)
    placed = [processors[index % len(processors)] if kind.own_core else None for index in range(count)]
    workers = [Worker(folder, f"engine-{index}", kind, core) for index, core in enumerate(placed)]
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.stop)
            worker.start()
        for worker in workers:
            worker.wait()
        yield workers


@dataclass(frozen=True)
class Front:
    """A gateway that runs."""

    url: str
    state_url: str
    pid: int

    def state(self) -> dict[str, dict[str, Any]]:
        """Its engines by name."""
        with urllib.request.urlopen(self.state_url, timeout=5) as answer:
            return {engine["name"]: engine for engine in json.load(answer)["engines"]}


Discovery = FixedDiscovery | FileDiscovery
AS_EVER = Resume()


@contextmanager
def gateway(
    folder: Path, model: str, discovery: Discovery, engines: int, resume: Resume | None = AS_EVER
) -> Iterator[Front]:
    """The gateway's own process, once it finds so many `engines` healthy."""
    name = f"gateway-{free_port()}"
    contract = GatewayContract(
        namespace="bench",
        deployment="bench",
        served_name=model,
        discovery=discovery,
        resume=resume,
        access_log=False,
        port=free_port(),
        admin_port=free_port(),
        drain_seconds=1.0,
    )
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    file.write_text(contract.model_dump_json(by_alias=True))
    argv = [sys.executable, "-m", "headrace_runtime", "gateway", "--contract", str(file), "--name", name]
    with running([*argv, "--address", "127.0.0.1"], log) as program:
        wait_for(f"http://127.0.0.1:{contract.port}/health", program, log)
        front = Front(f"http://127.0.0.1:{contract.port}", f"http://127.0.0.1:{contract.admin_port}/state", program.pid)
        _wait_until_healthy(front, engines)
        yield front


def _wait_until_healthy(front: Front, engines: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while (healthy := sum(engine["healthy"] for engine in front.state().values())) < engines:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the gateway finds {healthy} of {engines} engines healthy")
        time.sleep(0.1)
