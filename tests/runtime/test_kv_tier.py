"""KV blocks on disk, with a real engine: they outlive it, are those of its own model alone, and are never wrong ones.

One warm parent for the file; its engines are killed and started again in seconds.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import KvDisk, KvState, KvTiers, Place
from headrace_runtime.engine import arguments
from headrace_runtime.kv import report
from local.programs import wait_until
from tests.runtime.engines import Server, Warm, command, end, up
from tests.runtime.processes import free_port

BLOCK = 128
"""Tokens of a block on CPU."""
HOST_BYTES = 64 * 1024**2
DISK_BYTES = 256 * 1024**2
WEIGHTS = "sha256:" + "ab" * 32


@dataclass
class Bench:
    """Engines of one node: the disk is `folder / "kv"`."""

    warm: Warm
    folder: Path
    model: Path
    groups: list[int] = field(default_factory=list)

    def engine(self, weights: str = WEIGHTS, **more: Any) -> "Run":
        place = Place(name="e", address="127.0.0.1", run_dir=str(self.folder / "run"), engine_port=free_port())
        Path(place.run_dir).mkdir(exist_ok=True)
        report.clear(Path(place.run_dir))
        disk = KvDisk(path=str(self.folder / "kv"), size_bytes=DISK_BYTES)
        tiers = KvTiers(host_bytes=HOST_BYTES, disk=disk)
        launch = command(self.model, place, weights=weights, **{"kv_tiers": tiers, **more})
        server = Server(place)
        group = up(self.warm, launch, server, "engine.log")
        self.groups.append(group)
        return Run(self, group, server, Path(place.run_dir))

    def extents(self) -> list[Path]:
        return sorted(path for path in (self.folder / "kv").rglob("*") if path.is_file() and path.stat().st_size > 8192)


@dataclass
class Run:
    """One engine while it lives."""

    bench: Bench
    group: int
    server: Server
    run_dir: Path

    def state(self) -> KvState:
        wait_until("the tier says how it is", lambda: report.read(self.run_dir) is not None, 30)
        state = report.read(self.run_dir)
        assert state
        return state

    def stored(self, blocks: int) -> None:
        """Wait until so many are on disk."""
        wait_until(f"{blocks} blocks are stored, not {self.state()}", lambda: self.state().stored >= blocks, 60)

    def from_disk(self) -> float:
        return self.server.cached_tokens("disk")

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self.bench.groups.remove(self.group)
        end(self.bench.warm, self.group)


def prompt(seed: int, tokens: int = 6 * BLOCK + 40) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(10, 4000) for _ in range(tokens)]


def text(answer: dict[str, Any]) -> str:
    said: str = answer["choices"][0]["text"]
    return said


@pytest.fixture(scope="module")
def bench(
    engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("kv")
    launch = command(model("tiny"), Place(name="e", address="127.0.0.1", run_dir=str(folder / "run")))
    with ExitStack() as stack:
        warm = Warm(engine_python, folder, dict(launch.env))
        stack.callback(warm.close)
        bench = Bench(warm, folder, model("tiny"))
        yield bench
        for group in bench.groups:
            os.killpg(group, signal.SIGKILL)


def test_a_prompt_comes_from_disk_after_the_engine_was_killed(bench: Bench) -> None:
    first = bench.engine()
    said = text(first.server.complete(prompt(1), 8))
    assert first.from_disk() == 0
    first.stored(6)
    first.kill()
    second = bench.engine()
    assert second.state().blocks >= 6
    assert text(second.server.complete(prompt(1), 8)) == said
    assert second.from_disk() == 6 * BLOCK
    state = second.state()
    print(state)
    second.kill()
