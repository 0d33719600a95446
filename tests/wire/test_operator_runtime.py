"""The runtime's HTTP as the operator asks it: every wrong answer is an answer, and none takes long."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from headrace_operator.cluster import runtime as door
from headrace_operator.cluster.runtime import HttpRuntime
from headrace_operator.state import Canary
from headrace_operator.testing import agent
from headrace_runtime.contract import GatewayFigures, RoleFigures

QUESTION = Canary("r1", 40, split=True)
GOOD = {"x-headrace-revision": "r1", "x-headrace-decode": "d-0", "x-headrace-prefill": "p-0"}


class Peer:
    """An agent and a gateway that answer as they are told."""

    def __init__(self) -> None:
        self.answer = web.Response()
        self.silent = False
        self.over = asyncio.Event()
        self.seen: list[web.Request] = []
        self.bodies: list[dict[str, object]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        if request.can_read_body:
            self.bodies.append(await request.json())
        if self.silent:
            await self.over.wait()
        return self.answer


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", peer.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    peer.port = runner.addresses[0][1]
    yield peer
    peer.over.set()
    await runner.cleanup()


@pytest.fixture
async def runtime(peer: Peer) -> AsyncIterator[HttpRuntime]:
    async with HttpRuntime(agent_port=peer.port, gateway_port=peer.port) as runtime:
        yield runtime


async def test_reads_what_an_agent_says(peer: Peer, runtime: HttpRuntime) -> None:
    state = agent("chat-decode-r1-0", "decode", "r1")
    peer.answer = web.Response(text=state.model_dump_json(by_alias=True))
    assert await runtime.node_state("127.0.0.1") == state
    assert peer.seen[0].path == "/state"


@pytest.mark.parametrize("answer", [web.Response(status=500), web.Response(text="{}"), web.Response(text="not json")])
async def test_an_agent_that_makes_no_sense_has_no_state(
    peer: Peer, runtime: HttpRuntime, answer: web.Response
) -> None:
    peer.answer = answer
    assert await runtime.node_state("127.0.0.1") is None


async def test_an_agent_that_is_not_there_or_silent_has_no_state(
    peer: Peer, runtime: HttpRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "STATE_SECONDS", 0.05)
    peer.silent = True
    assert await runtime.node_state("127.0.0.1") is None
    assert await runtime.node_state("127.0.0.2") is None


async def test_has_a_gateway_ask_the_revision_that_shall_answer(peer: Peer, runtime: HttpRuntime) -> None:
    peer.answer = web.Response(text="{}", headers=GOOD)
    answer = await runtime.canary("127.0.0.1", QUESTION)
    assert (answer.decode, answer.prefill, answer.failure) == ("d-0", "p-0", None)
    assert [request.path for request in peer.seen] == ["/canary"]
    assert peer.bodies == [{"revision": "r1", "words": 40}]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({**GOOD, "x-headrace-revision": "r0"}, "revision r0 answered instead of r1"),
        ({"x-headrace-revision": "r1", "x-headrace-decode": "d-0"}, "without any prefill engine"),
        ({}, "revision unknown"),
    ],
)
async def test_an_answer_of_others_is_a_failure(
    peer: Peer, runtime: HttpRuntime, headers: dict[str, str], words: str
) -> None:
    peer.answer = web.Response(text="{}", headers=headers)
    answer = await runtime.canary("127.0.0.1", QUESTION)
    assert words in (answer.failure or "")


async def test_what_the_gateway_says_is_passed_on(peer: Peer, runtime: HttpRuntime) -> None:
    peer.answer = web.json_response({"error": {"message": "no engine of revision r1"}}, status=503)
    answer = await runtime.canary("127.0.0.1", QUESTION)
    assert answer.failure == "the gateway answered 503: no engine of revision r1"


async def test_a_gateway_that_is_not_there_or_silent_is_a_failure(
    peer: Peer, runtime: HttpRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "CANARY_SECONDS", 0.05)
    assert "not reached" in ((await runtime.canary("127.0.0.2", QUESTION)).failure or "")
    peer.silent = True
    assert "no answer" in ((await runtime.canary("127.0.0.1", QUESTION)).failure or "")


async def test_reads_what_a_gateway_has_counted(peer: Peer, runtime: HttpRuntime) -> None:
    told = GatewayFigures(start="a", seconds=2.5, arrivals=3, roles=(RoleFigures(role="decode", revision="r1"),))
    peer.answer = web.Response(text=told.model_dump_json(by_alias=True))
    assert await runtime.figures("127.0.0.1") == told
    assert peer.seen[0].path == "/figures"


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=404),
        web.Response(text="no JSON"),
        web.Response(text='{"start": "a", "seconds": NaN}'),
        web.Response(text='{"start": "a", "seconds": 1, "arrivals": -1}'),
    ],
)
async def test_a_gateway_that_says_nonsense_has_told_nothing(
    peer: Peer, runtime: HttpRuntime, answer: web.Response
) -> None:
    peer.answer = answer
    assert await runtime.figures("127.0.0.1") is None


async def test_a_gateway_that_says_nothing_is_not_waited_for(
    peer: Peer, runtime: HttpRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "FIGURES_SECONDS", 0.05)
    peer.silent = True
    assert await runtime.figures("127.0.0.1") is None


async def test_an_agent_is_asked_to_stay_and_one_that_cannot_be_is_no_error(peer: Peer, runtime: HttpRuntime) -> None:
    await runtime.stay("127.0.0.1")
    assert (peer.seen[0].method, peer.seen[0].path) == ("POST", "/stay")
    peer.answer = web.Response(status=404)  # one of an earlier version
    await runtime.stay("127.0.0.1")
    async with HttpRuntime(agent_port=1) as nowhere:
        await nowhere.stay("127.0.0.1")
