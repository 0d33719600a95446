"""KV blocks between two real engines that stand in network namespaces of their own: the link is slow, is cut, comes
back; the prefill engine dies. The gateway, outside, reaches both at all times: its clients are answered in seconds.

    gateway (this process) ── veth ── prefill ══ the link ══ decode ── veth ── gateway
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract, Place, RoleName
from headrace_runtime.engine import arguments
from headrace_runtime.gateway.serve import Gateway
from local.programs import found, run, wait_until
from tests.runtime.engines import Server, command
from tests.runtime.processes import RUNTIME

if os.geteuid() != 0 or not found("ip") or not found("tc"):
    pytest.skip("network namespaces are root's, and need iproute2", allow_module_level=True)

LINK, GATEWAY = "kv0", "gateway0"
"""Devices of each engine's namespace."""
PROMPT_TOKENS = 3000
LIMIT_SECONDS = 5.0
"""For an answer whose transfer hangs; an engine alone gives none in 140 s."""


@dataclass
class Host:
    """A network namespace with one engine in it."""

    name: str
    role: RoleName
    number: int
    folder: Path

    @property
    def namespace(self) -> str:
        return f"headrace-{os.getpid()}-{self.number}"

    @property
    def cable(self) -> str:
        """This machine's end of the one to it."""
        return f"hr-{os.getpid()}-{self.number}"

    @property
    def address(self) -> str:
        """Where the gateway reaches it."""
        return f"10.213.{self.number}.2"

    @property
    def url(self) -> str:
        return f"http://{self.address}:8000"

    @property
    def server(self) -> Server:
        return Server(self.place)

    @property
    def place(self) -> Place:
        return Place(name=self.name, address=self.address, run_dir=str(self.folder / self.name))

    def inside(self, *words: str) -> str:
        return run("ip", "netns", "exec", self.namespace, *words)

    def start(self, python: Path, model: Path) -> subprocess.Popen[bytes]:
        # UCX offers all addresses that it finds, and would go round a link that is cut.
        launch = command(model, self.place, self.role, env={"UCX_NET_DEVICES": LINK})
        argv = ["ip", "netns", "exec", self.namespace, str(python), *arguments.SERVE, *launch.argv]
        with (self.folder / f"{self.name}.log").open("wb") as log:
            env = {**os.environ, **launch.env, "PYTHONPATH": str(RUNTIME)}
            return subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)


def lay_cables(prefill: Host, decode: Host) -> None:
    """Each host to this machine, and the link between the two, on which each finds the other's address."""
    for host in (prefill, decode):
        run("ip", "netns", "add", host.namespace)
        run("ip", "link", "add", host.cable, "type", "veth", "peer", "name", GATEWAY, "netns", host.namespace)
        run("ip", "addr", "add", f"10.213.{host.number}.1/30", "dev", host.cable)
        run("ip", "link", "set", host.cable, "up")
        host.inside("ip", "addr", "add", f"{host.address}/30", "dev", GATEWAY)
        for device in ("lo", GATEWAY):
            host.inside("ip", "link", "set", "dev", device, "up")
    prefill.inside("ip", "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", decode.namespace)
    for host in (prefill, decode):
        host.inside("ip", "addr", "add", f"10.213.0.{host.number}/24", "dev", LINK)
    for host, peer in ((prefill, decode), (decode, prefill)):
        connect(host, peer)


def connect(host: Host, peer: Host) -> None:
    host.inside("ip", "link", "set", "dev", LINK, "up")
    host.inside("ip", "route", "replace", peer.address, "via", f"10.213.0.{peer.number}")


@dataclass
class Pair:
    """Two engines and the link between them."""

    prefill: Host
    decode: Host
    engines: dict[str, subprocess.Popen[bytes]]

    def cut(self) -> None:
        self.prefill.inside("ip", "link", "set", "dev", LINK, "down")

    def heal(self) -> None:
        connect(self.prefill, self.decode)
        connect(self.decode, self.prefill)

    def slow(self, rate: str) -> None:
        """`rate` as tc has it, for what the prefill engine sends."""
        bucket = ("tbf", "rate", rate, "burst", "64kb", "latency", "400ms")
        self.prefill.inside("tc", "qdisc", "replace", "dev", LINK, "root", *bucket)

    def fast(self) -> None:
        self.prefill.inside("tc", "qdisc", "del", "dev", LINK, "root")

    def sent(self) -> int:
        """Bytes that the prefill engine has put on the link."""
        devices = Path(f"/proc/{self.engines['prefill'].pid}/net/dev").read_text().splitlines()
        (line,) = [line for line in devices if line.strip().startswith(f"{LINK}:")]
        return int(line.partition(":")[2].split()[8])

    def moved(self) -> float:
        """Prompt tokens that decode did not compute."""
        return self.decode.server.prompt_tokens("external_kv_transfer")


@pytest.fixture(scope="module")
def pair(engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    hosts = Host("prefill", "prefill", 1, folder), Host("decode", "decode", 2, folder)
    with ExitStack() as stack:
        for host in hosts:
            stack.callback(run, "ip", "netns", "delete", host.namespace)
        lay_cables(*hosts)
        engines = {host.name: host.start(engine_python, model("tiny")) for host in hosts}
        for engine in engines.values():
            stack.callback(_end, engine)
        for host in hosts:
            wait_until(f"{host.name} is healthy", host.server.healthy, 240)
        yield Pair(*hosts, engines)


def _end(engine: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()


@dataclass(frozen=True)
class Answer:
    prefill: str
    seconds: float


async def ask(gateway: Gateway, seed: int, tokens: int = 4) -> Answer:
    """A prompt that nobody has seen. Fails unless it is answered in full."""
    prompt = [(31 * seed + 17 * place) % 3900 + 100 for place in range(PROMPT_TOKENS)]
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    began = time.monotonic()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as client:
        async with client.post(f"http://127.0.0.1:{gateway.port}/v1/completions", json=body) as response:
            answer = await response.json()
            assert response.status == 200, answer
            assert answer["usage"]["completion_tokens"] == tokens
            return Answer(response.headers.get("x-headrace-prefill", ""), time.monotonic() - began)


async def until(what: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await what():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def before(pair: Pair) -> AsyncIterator[Gateway]:
    """A gateway before both, once it finds both healthy."""
    hosts = (pair.prefill, pair.decode)
    found = tuple(Endpoint(name=host.name, url=host.url, role=host.role, revision="r") for host in hosts)
    contract = GatewayContract(
        namespace="n",
        deployment="d",
        served_name="tiny",
        discovery=FixedDiscovery(endpoints=found),
        access_log=False,
        port=0,
        admin_port=0,
    )
    gateway = Gateway(contract)

    async def healthy() -> bool:
        return gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots())

    async with gateway.running():
        await until(healthy)
        yield gateway


async def test_blocks_cross_the_link(pair: Pair) -> None:
    async with before(pair) as gateway:
        moved = pair.moved()
        answer = await ask(gateway, 1)
        assert (answer.prefill, pair.moved() - moved) == ("prefill", PROMPT_TOKENS)


async def test_a_cut_link_costs_seconds_once_and_transfers_come_back_with_it(pair: Pair) -> None:
    async with before(pair) as gateway:
        usual = (await ask(gateway, 10)).seconds
        pair.cut()
        try:
            cut = await ask(gateway, 11)
            again = await ask(gateway, 12)
        finally:
            pair.heal()
        print(f"answered in {usual:.2f} s; link cut: {cut.seconds:.2f} s, then {again.seconds:.2f} s")
        assert (cut.prefill, again.prefill) == ("", "")
        assert cut.seconds < LIMIT_SECONDS + 5 * usual
        moved, seeds = pair.moved(), iter(range(13, 10_000))

        async def moves() -> bool:
            return (await ask(gateway, next(seeds))).prefill == "prefill" and pair.moved() > moved

        await until(moves, 120)


async def test_a_link_cut_in_the_middle_of_a_transfer_costs_seconds(pair: Pair) -> None:
    async with before(pair) as gateway:
        usual = (await ask(gateway, 20)).seconds
        pair.slow("8mbit")
        try:
            sent = pair.sent()
            asked = asyncio.create_task(ask(gateway, 21))

            async def under_way() -> bool:
                return asked.done() or pair.sent() - sent > 200_000

            await until(under_way)
            assert not asked.done()
            pair.cut()
            answer = await asked
        finally:
            pair.fast()
            pair.heal()
        print(f"answered in {usual:.2f} s; link cut in mid-transfer: {answer.seconds:.2f} s")
        assert answer.prefill == ""
        assert answer.seconds < LIMIT_SECONDS + 5 * usual


async def test_a_prefill_engine_that_dies_under_load_loses_no_request(pair: Pair) -> None:
    async with before(pair) as gateway:
        asked = [asyncio.create_task(ask(gateway, 30 + index, tokens=32)) for index in range(8)]

        async def busy() -> bool:
            return any(slot.load for slot in gateway.fleet.slots() if slot.endpoint.name == "prefill")

        await until(busy)
        os.killpg(pair.engines["prefill"].pid, signal.SIGKILL)
        answers = [*await asyncio.gather(*asked), await ask(gateway, 40)]
        print(f"longest {max(answer.seconds for answer in answers):.2f} s")
        assert answers[-1].prefill == ""
