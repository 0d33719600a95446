"""Who wakes a deployment that sleeps: real long polls of real gateways without engines, and workers whose passes listen
to them."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import pytest

from headrace_operator import sleepers as module
from headrace_operator.cluster.fake import FakeRuntime
from headrace_operator.cluster.runtime import HttpRuntime
from headrace_operator.sleepers import Sleepers
from headrace_operator.state import Look, Ref
from headrace_operator.worker import Workers
from headrace_runtime.contract import DemandFigures, FixedDiscovery, GatewayContract, GatewayFigures, Hold
from headrace_runtime.gateway.serve import Gateway
from tests.wire.gateways import until

HERE = "127.0.0.1"
UID = "uid-of-chat"
STORM = 1000


@asynccontextmanager
async def gateway(admin_port: int = 0) -> AsyncIterator[Gateway]:
    """Without engines."""
    running = Gateway(
        GatewayContract(
            namespace="n",
            deployment="d",
            served_name="fake",
            discovery=FixedDiscovery(endpoints=()),
            hold=Hold(requests=2 * STORM, seconds=300.0),
            access_log=False,
            drain_seconds=0.1,
            port=0,
            admin_port=admin_port,
        )
    )
    async with running.running():
        await until(lambda: running.fleet.discovered)
        yield running


@dataclass
class Woken:
    uids: list[str] = field(default_factory=list)

    def __call__(self, uid: str) -> None:
        self.uids.append(uid)


async def ask(client: aiohttp.ClientSession, at: Gateway) -> None:
    url = f"http://{HERE}:{at.port}/v1/completions"
    with suppress(aiohttp.ClientError):
        async with client.post(url, json={"model": "fake", "prompt": [1, 2], "max_tokens": 1}) as answer:
            await answer.read()


async def seen_of(runtime: HttpRuntime) -> GatewayFigures:
    async with asyncio.timeout(30):
        while (told := await runtime.figures(HERE)) is None:
            pass
    return told


async def polled(at: Gateway) -> None:
    await until(lambda: len(at._polls._waiting) == 1, seconds=30)


async def test_while_nobody_asks_nobody_is_woken() -> None:
    woken = Woken()
    async with gateway() as g, HttpRuntime(gateway_port=g.admin_port) as runtime:
        sleepers = Sleepers(runtime, woken)
        sleepers.listen(UID, {HERE: await seen_of(runtime)})
        await polled(g)
        assert (woken.uids, len(sleepers)) == ([], 1)
        sleepers.listen(UID, {})  # it is awake
        await until(lambda: len(sleepers) == 0, seconds=30)
        await until(lambda: not g._polls._waiting, seconds=30)
        await sleepers.close()


async def test_a_request_wakes_and_one_that_came_before_the_poll_does_too() -> None:
    woken = Woken()
    async with gateway() as g, HttpRuntime(gateway_port=g.admin_port) as runtime, aiohttp.ClientSession() as client:
        seen = await seen_of(runtime)
        request = asyncio.create_task(ask(client, g))
        await until(lambda: g._admission.waiting == 1, seconds=30)
        sleepers = Sleepers(runtime, woken)
        sleepers.listen(UID, {HERE: seen})
        await until(lambda: woken.uids == [UID], seconds=30)
        request.cancel()
        await until(lambda: g._admission.waiting == 0, seconds=30)
        sleepers.listen(UID, {HERE: await seen_of(runtime)})
        await polled(g)
        assert woken.uids == [UID]
        await ask_and_leave(client, g)
        await until(lambda: woken.uids == [UID, UID], seconds=30)
        await sleepers.close()


async def ask_and_leave(client: aiohttp.ClientSession, at: Gateway) -> None:
    request = asyncio.create_task(ask(client, at))
    await until(lambda: at._admission.waiting == 1, seconds=30)
    request.cancel()


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of a storm are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * STORM)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("many_files")
async def test_a_storm_of_a_thousand_wakes_once_and_all_are_held() -> None:
    """The workers', whose pass finds the deployment asleep, and awake once it was woken."""
    passes: list[float] = []
    async with gateway() as g, HttpRuntime(gateway_port=g.admin_port) as runtime:

        async def make_pass(ref: Ref) -> Look:
            passes.append(asyncio.get_running_loop().time())
            seen = await seen_of(runtime)
            awake = seen.waiting > 0
            return Look(seconds=600, listen={} if awake else {HERE: seen})

        workers = Workers(make_pass, resync_seconds=600, runtime=runtime)
        workers.notice(Ref("demo", "chat", UID), 1)
        await polled(g)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            requests = [asyncio.create_task(ask(client, g)) for _ in range(STORM)]
            await until(lambda: g._admission.waiting == STORM, seconds=60)
            await until(lambda: len(passes) == 2, seconds=30)
            assert not g._polls._waiting
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        assert len(passes) == 2
        await workers.close()


async def test_another_process_in_place_of_the_gateway_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first had counted is gone, and with it what there is to compare with: the pass looks again."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    woken = Woken()
    async with gateway() as g:
        port = g.admin_port
        runtime = HttpRuntime(gateway_port=port)
        sleepers = Sleepers(runtime, woken)
        sleepers.listen(UID, {HERE: await seen_of(runtime)})
        await polled(g)
    assert woken.uids == []
    async with gateway(port):
        await until(lambda: woken.uids == [UID], seconds=30)
    await sleepers.close()
    await runtime.close()


async def test_a_gateway_that_nobody_has_heard_of_is_asked_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    woken, runtime = Woken(), FakeRuntime()
    sleepers = Sleepers(runtime, woken)
    sleepers.listen(UID, {HERE: None})
    await asyncio.sleep(0)
    assert len(sleepers) == 1
    runtime.readings[HERE] = GatewayFigures(start="a", seconds=1)
    await until(lambda: woken.uids == [UID], seconds=30)
    assert len(sleepers) == 0
    await sleepers.close()


async def test_a_gateway_that_cannot_be_waited_for_is_asked_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an older version answers at once."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    woken, runtime = Woken(), FakeRuntime()
    runtime.readings[HERE] = seen = GatewayFigures(start="a", seconds=1)
    sleepers = Sleepers(runtime, woken)
    sleepers.listen(UID, {HERE: seen})
    await asyncio.sleep(0.05)
    assert woken.uids == []
    runtime.readings[HERE] = GatewayFigures(start="a", seconds=2, demand=DemandFigures(requests=1))
    await until(lambda: woken.uids == [UID], seconds=30)
    await sleepers.close()


async def test_a_poll_that_goes_on_is_left_alone_and_one_of_a_gateway_that_is_gone_ends() -> None:
    class Silent(FakeRuntime):
        polls = 0

        async def next_request(self, address: str, seen: GatewayFigures | None) -> GatewayFigures | None:
            self.polls += 1
            await asyncio.Event().wait()
            raise AssertionError("nothing ends this but its end")

    runtime, seen = Silent(), GatewayFigures(start="a", seconds=1)
    sleepers = Sleepers(runtime, Woken())
    for _ in range(3):
        sleepers.listen(UID, {"10.0.0.1": seen, "10.0.0.2": seen})
        await asyncio.sleep(0)
    assert (runtime.polls, len(sleepers)) == (2, 2)
    sleepers.listen(UID, {"10.0.0.2": seen, "10.0.0.3": seen})
    await until(lambda: (runtime.polls, len(sleepers)) == (3, 2), seconds=30)
    await sleepers.close()
    assert len(sleepers) == 0


async def test_a_worker_that_ends_listens_to_nobody_and_one_whose_pass_failed_listens_on() -> None:
    class Silent(FakeRuntime):
        async def next_request(self, address: str, seen: GatewayFigures | None) -> GatewayFigures | None:
            await asyncio.Event().wait()
            raise AssertionError("nothing ends this but its end")

    looks = [Look(seconds=600, listen={HERE: GatewayFigures(start="a", seconds=1)}), Look(retry=True), Look(ended=True)]
    left, polling = list(looks), []

    async def make_pass(ref: Ref) -> Look:
        polling.append(len(polls))
        return left.pop(0)

    workers = Workers(make_pass, resync_seconds=600, runtime=Silent())
    polls = workers._sleepers
    assert polls is not None
    ref = Ref("demo", "chat", UID)
    workers.notice(ref, 1)
    await until(lambda: len(polls) == 1, seconds=30)
    workers.notice(ref, 2)
    await until(lambda: not left and len(polls) == 0, seconds=30)
    assert polling == [0, 1, 1]
    left.append(looks[0])
    workers.notice(ref, 3)
    await until(lambda: len(polls) == 1, seconds=30)
    workers.end(UID)
    await until(lambda: len(polls) == 0, seconds=30)
    await workers.close()
