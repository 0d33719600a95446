"""Real vLLM engines on this machine's processors, able to hand KV blocks to each other, for benchmarks and tests.

Which of them prefills and which decodes is each request's own business, so the same engines serve every arm of a
benchmark: split, aggregated, behind another router.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import headrace_runtime
from bench.programs import free_port, running, wait_for
from headrace_runtime.contract import Endpoint, Engine, Model, NodeContract, Place, RoleName, Transfer
from headrace_runtime.engine.arguments import CPU, SERVE, command
from local.engine import build, models

RUNTIME = str(Path(headrace_runtime.__file__).parents[1])
"""The engine's Python is another one, and loads our connector from here."""


@dataclass(frozen=True)
class Running:
    """One engine. Its name says nothing of its role."""

    name: str
    url: str
    pid: int
    kv_port: int
    """Of its side channel, where others ask how to read its memory."""

    def endpoint(self, role: RoleName) -> Endpoint:
        return Endpoint(name=self.name, url=self.url, role=role, revision="bench")


@dataclass(frozen=True)
class Kind:
    """What engines are started from."""

    model: str = "tiny"
    max_model_len: int = 2048
    kv_cache_bytes: int = 256 * 1024**2

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


@contextmanager
def engines(folder: Path, count: int, kind: Kind) -> Iterator[list[Running]]:
    """Started side by side; given once all answer. They end with the block."""
    with ExitStack() as stack:
        started = []
        for index in range(count):
            name = f"engine-{index}"
            place = Place(
                name=name,
                address="127.0.0.1",
                engine_port=free_port(),
                kv_transfer_port=free_port(),
                run_dir=str(folder / name),
            )
            launch, log = command(kind.contract(), place), folder / f"{name}.log"
            env = {**launch.env, "PYTHONPATH": RUNTIME}
            program = stack.enter_context(running([str(build.python()), *SERVE, *launch.argv], log, env))
            url = f"http://{place.address}:{place.engine_port}"
            started.append((Running(name, url, program.pid, place.kv_transfer_port), program, log))
        for engine, program, log in started:
            wait_for(f"{engine.url}/health", program, log)
        yield [engine for engine, _, _ in started]
