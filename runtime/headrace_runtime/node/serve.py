"""`headrace_runtime node`: builds the agent of one pod from its contract and runs it as the pod's first process."""

import asyncio
import logging
import signal
import sys
import time
from functools import partial
from pathlib import Path

import aiohttp

from headrace_runtime.contract import Adapter, NodeContract, Place
from headrace_runtime.engine import arguments
from headrace_runtime.models.errors import FetchError
from headrace_runtime.models.progress import Progress as Fetching
from headrace_runtime.mounted import ContractFile
from headrace_runtime.node import gang, http, preflight, sweep, weights
from headrace_runtime.node.adapters import Adapters, Files, LocateError
from headrace_runtime.node.agent import Agent, Image
from headrace_runtime.node.copies import Copies, is_fetched
from headrace_runtime.node.engine import EngineParts
from headrace_runtime.node.launch import Launcher, PlainLauncher, ZygoteLauncher
from headrace_runtime.node.lora import Routes
from headrace_runtime.node.output import Output
from headrace_runtime.node.process import Children
from headrace_runtime.node.raylet import Raylet
from headrace_runtime.node.readiness import Client, Intervals

log = logging.getLogger(__name__)


def main(contract: NodeContract, place: Place, file: ContractFile[NodeContract]) -> None:
    """Run until SIGTERM and the drain that follows; `file` is where the contract was read. Raises NotOursError,
    ClashError, StrayRankError; OSError for a port in use."""
    asyncio.run(_serve(contract, place, file))


async def _serve(contract: NodeContract, place: Place, file: ContractFile[NodeContract]) -> None:
    run_dir = Path(place.run_dir)
    spread = gang.fit(contract, place)
    contract = with_place_for_copy(contract, run_dir)
    sweep.prepare(run_dir)
    sweep.sweep()
    children = Children()
    children.adopt_orphans()
    children.guard()
    versions = preflight.found(contract)
    image = Image(versions.vllm, preflight.lacks(contract, versions))
    output = Output(run_dir / "engine.log")
    raylet = Raylet(children, contract.ray, place, versions.ray or "") if contract.ray and not image.lacks else None
    async with aiohttp.ClientSession(trust_env=False) as session:
        url = f"http://{place.address}:{place.engine_port}"
        client = Client(session, url, contract.model.served_name)
        others = _others(contract, place, session) if spread else None
        parts = EngineParts(
            partial(_command, contract, place, others),
            _launcher(contract, place, children),
            others if isinstance(others, gang.Follower) else client,
            output,
            Intervals(),
            others,
        )
        adapters = None
        if contract.engine.lora is not None:
            files = Files(
                Path(arguments.command(contract, place).env["HOME"]),
                partial(locate, Copies(contract.model) if contract.model.cache else None),
            )
            adapters = Adapters(contract.model.adapters, file, Routes(session, url), files)
        agent = Agent(contract, place, image, parts, raylet, adapters)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.drain)
        leader = others if isinstance(others, gang.Leader) else None
        runner = await http.listen(http.application(agent, leader), place)
        try:
            await agent.run()
        finally:
            await runner.cleanup()
            output.close()
    log.info("left")


def _others(contract: NodeContract, place: Place, session: aiohttp.ClientSession) -> gang.Leader | gang.Follower:
    if place.rank:
        return gang.Follower(place.rank, place.name, gang.asking(session, place.leader), time.monotonic)
    return gang.Leader(contract.engine.parallelism.pods, (place.address, place.gang_port), time.monotonic)


def _command(contract: NodeContract, place: Place, others: gang.Gang | None, weights: str | None) -> arguments.Command:
    return arguments.command(contract, place, weights, others.meeting if others else None)


def with_place_for_copy(contract: NodeContract, run_dir: Path) -> NodeContract:
    """The contract with the path that the engine finds a fetched model at, whatever its copy is called."""
    if not is_fetched(contract.model):
        return contract
    return contract.model_copy(update={"model": contract.model.model_copy(update={"path": str(run_dir / "model")})})


def locate(copies: Copies | None, adapter: Adapter, progress: weights.Progress) -> Path:
    """Where an adapter's files are; blocks while they are fetched. Raises LocateError, CancelledError."""
    if adapter.path:
        return Path(adapter.path)
    if copies is None:
        raise LocateError(f"{adapter.source} is in no folder that is mounted, and there is no cache to fetch it into")
    fetching = Fetching()
    fetching.cancelled = progress.cancelled
    try:
        return copies.fetch(adapter.source, adapter.integrity, fetching)
    except FetchError as error:
        raise LocateError(str(error)) from error


def _launcher(contract: NodeContract, place: Place, children: Children) -> Launcher:
    env = arguments.command(contract, place).env
    if contract.engine.device == arguments.CPU:
        return ZygoteLauncher(children, arguments.zygote_argv(sys.executable, contract.engine), env)
    return PlainLauncher(children, (sys.executable, *arguments.SERVE))
