"""Real engines of one node that keep KV blocks on its disk, for tests: killed, started again, asked what they hold."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtime.contract import KvDisk, KvState, KvTiers, Place, RoleName
from headrace_runtime.kv import report
from headrace_runtime.node.sweep import sweep
from local.programs import wait_until
from tests.runtime.engines import Server, Warm, command, end, up
from tests.runtime.processes import free_port

BLOCK = 128
"""Tokens of a block on CPU."""
BLOCKS = 6
"""Whole ones of a prompt."""
PROMPT = BLOCKS * BLOCK + 40
HOST_BYTES = 64 * 1024**2
WEIGHTS = "sha256:" + "ab" * 32


@dataclass
class Node:
    """`disk` is where its blocks go; `warm` forks its engines."""

    warm: Warm
    folder: Path
    model: Path
    disk: KvDisk
    groups: list[int] = field(default_factory=list)

    def start(self, role: RoleName = "serve", weights: str = WEIGHTS, **engine: Any) -> "Run":
        """An engine, once it is healthy."""
        run_dir = self.folder / role
        run_dir.mkdir(exist_ok=True)
        report.clear(run_dir)
        place = Place(
            name=role,
            address="127.0.0.1",
            run_dir=str(run_dir),
            engine_port=free_port(),
            kv_transfer_port=free_port(),
        )
        fields = {"kv_tiers": KvTiers(host_bytes=HOST_BYTES, disk=self.disk), **engine}
        # For /reset_prefix_cache, which empties an engine's memory without a restart.
        fields["env"] = {"VLLM_SERVER_DEV_MODE": "1"}
        launch, server = command(self.model, place, role, weights, **fields), Server(place)
        group = up(self.warm, launch, server, f"{role}.log")
        self.groups.append(group)
        return Run(self, group, server, place)


@dataclass
class Run:
    """One engine while it lives."""

    node: Node
    group: int
    server: Server
    place: Place
    offered: int = 0
    """Blocks that the disk was given so far, and either took or did not."""
    lost: int = 0

    def state(self) -> KvState:
        """Once the store was opened, or the tier says why it was not."""
        run_dir = Path(self.place.run_dir)
        told: list[KvState] = []

        def says() -> bool:
            told[:] = [state for state in [report.read(run_dir)] if state and (state.ready or state.reason)]
            return bool(told)

        wait_until("the tier says how it is", says, 60)
        return told[0]

    def until(self, what: str, condition: Callable[[KvState], bool], seconds: float = 90) -> KvState:
        wait_until(f"{what}; at first: {self.state()}", lambda: condition(self.state()), seconds)
        return self.state()

    def from_disk(self) -> float:
        """Tokens so far."""
        return self.server.cached_tokens("disk")

    def say(self, prompt: object, **more: Any) -> str:
        said: str = self.server.complete(prompt, 8, **more)["choices"][0]["text"]
        return said

    def keep(self, prompt: object, **more: Any) -> str:
        """Answer an unseen prompt, and see its blocks stored; again where a busy machine's disk was too slow for some.
        Every unseen prompt has to be asked this way for the count to be right."""
        offered = BLOCKS
        while True:
            said = self.say(prompt, **more)
            self.offered += offered
            state = self.until("the blocks are stored", lambda state: state.stored + state.dropped >= self.offered)
            offered, self.lost = state.dropped - self.lost, state.dropped
            if not offered:
                return said
            self.forget()

    def forget(self) -> None:
        """Nothing is left on the device and in host memory."""
        status, answer = self.server.ask("/reset_prefix_cache?reset_external=true", {})
        assert status == 200, answer

    def kill(self) -> None:
        """SIGKILL to all of it. What it leaves in shared memory is swept away, as an agent does it."""
        self.node.groups.remove(self.group)
        end(self.node.warm, self.group)
        sweep()


@contextmanager
def node(python: Path, folder: Path, model: Path, disk: KvDisk) -> Iterator[Node]:
    """Its engines end with the block."""
    launch = command(model, Place(name="e", address="127.0.0.1", run_dir=str(folder / "serve")))
    warm = Warm(python, folder, dict(launch.env))
    made = Node(warm, folder, model, disk)
    try:
        yield made
    finally:
        for group in made.groups:
            os.killpg(group, signal.SIGKILL)
        warm.close()
        sweep()


def prompt(seed: int) -> list[int]:
    """One that nobody has seen."""
    chance = random.Random(seed)
    return [chance.randrange(10, 4000) for _ in range(PROMPT)]
