"""What an agent answers over HTTP (docs/architecture.md lists the calls). Reads the agent's state, decides nothing."""

import ipaddress
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler
from pydantic import ValidationError

from headrace_runtime.contract import NodeState, Place, RankReport
from headrace_runtime.node.agent import Agent
from headrace_runtime.node.gang import Leader, StrayRankError
from headrace_runtime.node.metrics import StateCollector

STUCK_SECONDS = 30.0
"""A loop that has not turned for this long is stuck: the pod is better started anew."""


def application(agent: Agent, leader: Leader | None = None) -> web.Application:
    """`leader`: of rank 0 of an engine over several pods, whom the other ranks ask."""
    registry = CollectorRegistry()
    registry.register(StateCollector(agent.state))

    async def healthz(_: web.Request) -> web.Response:
        stuck = agent.seconds_since_step() > STUCK_SECONDS
        return web.Response(text="the agent's loop is stuck\n" if stuck else "ok\n", status=503 if stuck else 200)

    async def readyz(_: web.Request) -> web.Response:
        state = agent.state()
        ready = state.phase == "Ready" or state.staying
        return web.Response(text=f"{state.phase} {state.reason}".strip() + "\n", status=200 if ready else 503)

    async def state(_: web.Request) -> web.Response:
        return answer(agent.state())

    async def supervise(request: web.Request) -> web.Response:
        try:
            actor = (await request.json())["actor"]
        except (ValueError, KeyError, TypeError):
            actor = None
        if not isinstance(actor, str) or not 0 < len(actor) <= 64:
            return web.json_response(
                {"error": 'the body must be {"actor": ID}, ID a string of 1 to 64 characters'}, status=400
            )
        agent.supervise(actor)
        return answer(agent.state())

    async def stay(_: web.Request) -> web.Response:
        agent.stay()
        return answer(agent.state())

    app = web.Application(client_max_size=4096)
    app.add_routes([
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/state", state),
        web.post("/supervise", supervise),
        web.post("/stay", stay),
        web.get("/metrics", make_aiohttp_handler(registry=registry)),
    ])  # fmt: skip
    if leader is not None:
        app.router.add_post("/gang", _gang(leader))
    return app


def _gang(leader: Leader) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def gang(request: web.Request) -> web.Response:
        try:
            order = leader.answer(RankReport.model_validate_json(await request.read()))
        except (ValidationError, StrayRankError) as error:
            problem = str(error) if isinstance(error, StrayRankError) else "the body is no report of a rank"
            return web.json_response({"error": problem}, status=400)
        return web.Response(text=order.model_dump_json(by_alias=True), content_type="application/json")

    return gang


def answer(state: NodeState) -> web.Response:
    return web.Response(text=state.model_dump_json(by_alias=True), content_type="application/json")


async def listen(app: web.Application, place: Place) -> web.AppRunner:
    """Serve on the agent's port: on all addresses in a pod, on loopback alone where that is the place's address."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    host = place.address if ipaddress.ip_address(place.address).is_loopback else None
    await web.TCPSite(runner, host, place.agent_port).start()
    return runner
