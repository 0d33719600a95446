"""`headrace_runtime local`: a whole deployment as processes on one machine's loopback, for tests, benchmarks and a
first look.

Lays out places and free ports, starts the same processes that pods run (head, agents, gateway), waits until they are
ready, and ends all of them when it is told to or when one of them ends. What it started cannot outlive it: the kernel
ends it.
"""

import asyncio
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from typing import Any, Literal

import aiohttp
import click

from headrace_runtime.contract import (
    Endpoint,
    FixedDiscovery,
    GatewayContract,
    HeadContract,
    LocalContract,
    NodeContract,
    Place,
)
from headrace_runtime.engine.arguments import kv_events_of
from headrace_runtime.node.process import Children, Program

LOOPBACK = "127.0.0.1"
PORTS_PER_PLACE = 3
LOOK_SECONDS = 0.3
STOP_SECONDS = 15.0
"""Beyond the longest drain."""
LOG_LINES = 15


class FailedError(Exception):
    """The deployment did not come up, or a part of it ended."""


@dataclass(frozen=True)
class Part:
    """One process of the deployment."""

    command: Literal["head", "node", "gateway"]
    contract: HeadContract | NodeContract | GatewayContract
    place: Place

    @property
    def admin_url(self) -> str:
        port = self.contract.admin_port if isinstance(self.contract, GatewayContract) else self.place.agent_port
        return f"http://{self.place.address}:{port}"


def ports_needed(contract: LocalContract) -> int:
    """Three for each pod and the head (its control store is one of them), one more where the pods of an engine meet,
    two for the gateway."""
    pods = [node.engine.parallelism.pods for node in contract.nodes]
    places = sum(pods) + (contract.head is not None)
    return PORTS_PER_PLACE * places + sum(number > 1 for number in pods) + 2


def lay_out(contract: LocalContract, model: Path | None, ports: Sequence[int], folder: Path) -> list[Part]:
    """Every part with its place, in the order of starting. Pure.

    Ray takes any loopback address but 127.0.0.1, which it replaces by one of the machine's own: head and nodes get one
    each.
    """
    given = iter(ports)
    parts: list[Part] = []
    head_address = None
    if contract.head:
        place = _place("head", "127.0.0.2", [next(given) for _ in range(PORTS_PER_PLACE)], folder)
        update = {"gcs_path": str(folder / "gcs"), "port": place.engine_port, "token_file": None}
        parts.append(Part("head", contract.head.model_copy(update=update), place))
        head_address = f"{place.address}:{place.engine_port}"
    endpoints = []
    addresses = (f"127.0.0.{3 + number}" for number in count()) if contract.head else repeat(LOOPBACK)
    for index, node in enumerate(contract.nodes):
        ray = node.ray and node.ray.model_copy(update={"address": head_address or node.ray.address, "token_file": None})
        model_there = node.model.model_copy(update={"path": str(model)} if model else {})
        changed = node.model_copy(update={"ray": ray, "model": model_there})
        names = [f"{node.role}-{index}" + (f"-r{rank}" if rank else "") for rank in range(node.engine.parallelism.pods)]
        places = [
            _place(name, next(addresses), [next(given) for _ in range(PORTS_PER_PLACE)], folder) for name in names
        ]
        places = _as_ranks(places, given) if len(places) > 1 else places
        parts += [Part("node", changed, place) for place in places]
        place = places[0]
        url = f"http://{place.address}:{place.engine_port}"
        events = kv_events_of(place) if node.engine.kv_events else None
        endpoints.append(Endpoint(name=place.name, url=url, role=node.role, revision=node.revision, kv_events=events))
    update = {"discovery": FixedDiscovery(endpoints=tuple(endpoints)), "port": next(given), "admin_port": next(given)}
    gateway = contract.gateway.model_copy(update=update)
    parts.append(Part("gateway", gateway, Place(name="gateway", address=LOOPBACK, run_dir=str(folder / "gateway"))))
    return parts


def _place(name: str, address: str, ports: Sequence[int], folder: Path) -> Place:
    engine, agent, transfer = ports
    return Place(
        name=name,
        address=address,
        engine_port=engine,
        agent_port=agent,
        kv_transfer_port=transfer,
        run_dir=str(folder / name),
    )


def _as_ranks(places: Sequence[Place], ports: Iterator[int]) -> list[Place]:
    """The places of one engine, each told which it is, and all but the first where that one's agent is."""
    first = places[0].model_copy(update={"gang_port": next(ports)})
    leader = f"{first.address}:{first.agent_port}"
    others = [one.model_copy(update={"rank": rank, "leader": leader}) for rank, one in enumerate(places[1:], 1)]
    return [first, *others]


def _phase(part: Part, state: dict[str, Any]) -> str:
    """From what a part answers at `/state`. Raises FailedError for an agent that has given up."""
    if isinstance(part.contract, GatewayContract):
        # Each engine answers its health checks: earlier, a prompt may go to whichever does.
        return "Ready" if all(engine["healthy"] for engine in state["engines"]) else "Waiting"
    if state["phase"] == "Failed":
        raise FailedError(f"{part.place.name}: {state['message']}")
    return str(state["phase"])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def main(contract: LocalContract, model: Path | None, run_dir: Path | None) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit status: 1 if a part failed."""
    folder = run_dir or Path(tempfile.mkdtemp(prefix="headrace-"))
    folder.mkdir(parents=True, exist_ok=True)
    parts = lay_out(contract, model, free_ports(ports_needed(contract)), folder.resolve())
    return asyncio.run(Deployment(parts, folder.resolve()).run())


class Deployment:
    """The running parts."""

    def __init__(self, parts: Sequence[Part], folder: Path) -> None:
        self._parts, self._folder = parts, folder
        self._children = Children()
        self._programs: dict[str, Program] = {}
        self._phases: dict[str, str] = {}
        self._began = time.monotonic()
        self._told = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        self._children.adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._tell)
        told = asyncio.create_task(self._told.wait())
        try:
            for part in self._parts:
                self._start(part)
            up = asyncio.create_task(self._up())
            await asyncio.wait([told, up], return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if up.done() and not up.cancelled():
                up.result()
        except FailedError as error:
            click.echo(f"error: {error}", err=True)
            return 1
        finally:
            told.cancel()
            await self._stop()
        return 0

    def _tell(self) -> None:
        self._signals += 1
        self._told.set()
        if self._signals > 1:  # asked twice: no more patience for streams
            for program in self._programs.values():
                program.kill_now()

    def _start(self, part: Part) -> None:
        file = self._folder / f"{part.place.name}.json"
        file.write_text(part.contract.model_dump_json(by_alias=True, indent=2))
        options = part.place.model_dump()
        argv = [sys.executable, "-m", "headrace_runtime", part.command, f"--contract={file}"]
        argv += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        with (self._folder / f"{part.place.name}.log").open("ab") as log:
            self._programs[part.place.name] = self._children.start(argv, stdout=log.fileno(), stderr=log.fileno())

    async def _up(self) -> None:
        """Wait until everything is ready, say so, then watch until cancelled. Raises FailedError."""
        async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(3)) as session:
            said = False
            while True:
                for name, program in self._programs.items():
                    if program.ended.done():
                        raise FailedError(f"{name} {program.ended.result()}\n{self._last_lines(name)}")
                ready = [await self._look(session, part) for part in self._parts]
                if all(ready) and not said:
                    said = True
                    self._say_ready()
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, session: aiohttp.ClientSession, part: Part) -> bool:
        """Whether one part is ready; prints its phase when that has changed. Raises FailedError."""
        name = part.place.name
        try:
            async with session.get(f"{part.admin_url}/state") as answer:
                phase = _phase(part, await answer.json())
        except (aiohttp.ClientError, TimeoutError):
            phase = "Starting"  # not listening yet, or busy: its end is seen elsewhere
        if self._phases.get(name) != phase:
            self._phases[name] = phase
            click.echo(f"{time.monotonic() - self._began:6.1f} s  {name}: {phase}")
        return phase == "Ready"

    def _say_ready(self) -> None:
        gateway = self._parts[-1].contract
        assert isinstance(gateway, GatewayContract)
        url = f"http://{LOOPBACK}:{gateway.port}"
        question = {
            "model": gateway.served_name,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }
        click.echo(f"ready in {time.monotonic() - self._began:.1f} s: {url}")
        click.echo(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(question)}'")
        click.echo(f"logs are in {self._folder}; Ctrl-C ends everything, twice without waiting for answers under way")

    def _last_lines(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    async def _stop(self) -> None:
        """SIGTERM in the order in which requests flow, so that nothing is asked of what has left; then SIGKILL."""
        drains = [part.contract.drain_seconds for part in self._parts if not isinstance(part.contract, HeadContract)]
        patience = time.monotonic() + max(drains) + STOP_SECONDS
        for part in reversed(self._parts):
            if part.place.name in self._programs:
                self._programs[part.place.name].terminate()
            if part.command == "gateway" and (gateway := self._programs.get(part.place.name)):
                await asyncio.wait([gateway.ended], timeout=patience - time.monotonic())
        if self._programs:
            ended = [program.ended for program in self._programs.values()]
            await asyncio.wait(ended, timeout=max(0.0, patience - time.monotonic()))
        await asyncio.gather(*(program.kill() for program in self._programs.values()))
