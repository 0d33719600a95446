"""The gateway's process: wires its parts together, opens both ports, ends in order on SIGTERM.

Called by `headrace_runtime gateway` and by `headrace_runtime local`. Reading order for the rest: `flow.py` (what
happens to a request), `routing.py` and `request.py` (the decisions, pure), `http.py` and `upstream.py` (the two sides
of the relay).
"""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import resource
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import orjson
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from headrace_runtime.contract import Endpoint, FileDiscovery, FixedDiscovery, GatewayContract, GatewayFigures, Place
from headrace_runtime.gateway import errors
from headrace_runtime.gateway.admission import Admission
from headrace_runtime.gateway.affinity import Affinity
from headrace_runtime.gateway.canary import Canary
from headrace_runtime.gateway.discovery import publish_fixed, watch_file, watch_pods_in_cluster
from headrace_runtime.gateway.figures import FiguresCollector
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.flow import Flow
from headrace_runtime.gateway.health import Warden
from headrace_runtime.gateway.http import Answer, Limits, Request, Routes
from headrace_runtime.gateway.kvevents import follow
from headrace_runtime.gateway.polls import Poll, Polls
from headrace_runtime.gateway.port import Server
from headrace_runtime.gateway.reload import Live, Reloader, Result, What
from headrace_runtime.gateway.request import ROUTES
from headrace_runtime.gateway.sources import USUAL
from headrace_runtime.gateway.telemetry import FleetCollector, Telemetry, standard_output
from headrace_runtime.gateway.upstream import Pool
from headrace_runtime.mounted import ContractFile

log = logging.getLogger(__name__)

SPARE_FILES = 1024
"""Open files beside the connections: logs, the watch of the pods, the admin port, five for an engine's KV events."""


def main(contract: GatewayContract, place: Place, file: ContractFile[GatewayContract]) -> None:
    """Run until SIGTERM or SIGINT; `file` is where the contract was read. Raises OSError where a port cannot be
    had."""
    _raise_file_limit(2 * contract.max_connections + SPARE_FILES)
    uvloop.run(_until_told(contract, place, file))


async def _until_told(contract: GatewayContract, place: Place, file: ContractFile[GatewayContract]) -> None:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    gateway = Gateway(contract, _listen_on(place.address), file)
    async with gateway.running():
        log.info("gateway %s serves %s on port %d", place.name, contract.deployment, gateway.port)
        _spare_the_collector()
        await gateway.until_failed(told)


class Gateway:
    """A gateway in the running event loop. `port` and `admin_port` are the real ones where the contract says 0."""

    def __init__(
        self, contract: GatewayContract, host: str = "127.0.0.1", file: ContractFile[GatewayContract] | None = None
    ) -> None:
        self._contract = contract
        self._host = host
        self.fleet = Fleet(contract.silence_seconds)
        self.registry = CollectorRegistry()
        self.port = self.admin_port = 0
        self._heard = False
        """The engines that were there at the start were asked how they are."""
        self._pool = Pool()
        self._tasks: list[asyncio.Task[None]] = []
        self._live = Live(contract)
        self._telemetry = Telemetry(self.registry, _access_log(contract))
        self._polls = Polls()
        self._admission = Admission(self._live, self._telemetry, self._polls.tell)
        self._telemetry.queue.set_function(lambda: self._admission.waiting)
        self._telemetry.keys.set_function(lambda: len(self._live.keys))
        self._telemetry.figures.share(contract.canary)
        self.fleet.on_change(self._engines_changed)
        self._engines_changed()
        self._reloader = Reloader(self._live, file, self._reloaded)
        self._affinity = Affinity()
        self._telemetry.prefix_blocks.set_function(lambda: len(self._affinity.index))
        self._telemetry.prefix_late.set_function(lambda: self._affinity.index.late)
        self._flow = Flow(self._live, self._admission, self.fleet, self._pool, self._telemetry, affinity=self._affinity)
        self._server = Server(self._routes(), Limits(connections=contract.max_connections))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.registry.register(FleetCollector(self.fleet))
        self.registry.register(FiguresCollector(self._telemetry.figures))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the block runs, then drain."""
        self._reloader.look()
        # Who leaves a long poll leaves its place.
        admin = web.AppRunner(self._admin(), access_log=None, handler_cancellation=True)
        await admin.setup()
        try:
            site = web.TCPSite(admin, self._host, self._contract.admin_port)
            await site.start()
            self.admin_port = admin.addresses[0][1]
            self.port = await self._server.listen(self._host, self._contract.port)
            self._start(self._reloader.watch())
            self._start(self._discover())
            self._start(follow(self._publishing, self._affinity.index))
            self._start(Warden(self.fleet, self._pool, self._contract.served_name).watch())
            yield
            self._polls.close()
            # Who waits has half of the time to get its turn, so that its answer has the other half.
            asyncio.get_running_loop().call_later(self._contract.drain_seconds / 2, self._admission.turn_away)
            cut = await self._server.drain(self._contract.drain_seconds)
            if cut:
                log.warning("%d answers were cut after %s s of draining", cut, self._contract.drain_seconds)
        finally:
            self._polls.close()
            await self._server.drain(0.0)  # of which only a block that failed has left something
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._pool.close()
            await admin.cleanup()

    async def until_failed(self, told: asyncio.Event) -> None:
        """Returns when `told` is set; raises what ended discovery or the health checks, which never end by
        themselves."""
        waiter = asyncio.create_task(told.wait())
        done, _ = await asyncio.wait([waiter, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        for task in done - {waiter}:
            await task

    def _reloaded(self, what: What, result: Result) -> None:
        self._telemetry.reloaded(what, result)
        self._telemetry.access_log = _access_log(self._live.contract)
        self._telemetry.figures.share(self._live.contract.canary)
        self._admission.reload()
        self._server.routes = self._routes()

    def _engines_changed(self) -> None:
        self._admission.engines(self.fleet.serves)

    def _publishing(self) -> list[Endpoint]:
        """Engines whose KV events are of use."""
        aware = self._live.contract.routing == "PrefixAware"
        return [slot.endpoint for slot in self.fleet.slots()] if aware else []

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _discover(self) -> None:
        contract, publish = self._contract, self.fleet.publish
        if isinstance(contract.discovery, FixedDiscovery):
            await publish_fixed(contract.discovery, publish)
        elif isinstance(contract.discovery, FileDiscovery):
            await watch_file(contract.discovery, publish)
        else:
            await watch_pods_in_cluster(contract.namespace, contract.deployment, publish)

    # The public port

    def _routes(self) -> Routes:
        names = [quoted for name in self._models for quoted in {name, quote(name, safe="")}]
        return {
            **{path: {"POST": self._flow} for path in ROUTES},
            "/v1/models": {"GET": self._list},
            **{f"/v1/models/{name}": {"GET": self._model} for name in names},
            "/health": {"GET": self._health},
        }

    @property
    def _models(self) -> tuple[str, ...]:
        return self._contract.served_name, *self._live.contract.adapters

    async def _list(self, request: Request, answer: Answer) -> None:
        """Told without an engine: one tells its model's folder too, which is nobody's business."""
        self._admission.caller(request.headers)
        body = orjson.dumps({"object": "list", "data": [self._card(name) for name in self._models]})
        answer.send(200, [("content-type", "application/json")], body)

    async def _model(self, request: Request, answer: Answer) -> None:
        self._admission.caller(request.headers)
        name = unquote(request.path.removeprefix("/v1/models/"))
        answer.send(200, [("content-type", "application/json")], orjson.dumps(self._card(name)))

    def _card(self, name: str) -> dict[str, Any]:
        served = self._contract.served_name
        card = {"id": name, "object": "model", "created": 0, "owned_by": "headrace"}
        return card if name == served else {**card, "parent": served}

    async def _health(self, request: Request, answer: Answer) -> None:
        """200 while some engine can answer, or requests wait for one: whoever sends none where this says no would never
        wake a deployment that sleeps."""
        if self._live.contract.hold is None and not self.fleet.serves:
            raise errors.no_engine(None)
        answer.send(200, [], b"")

    # The admin port

    def _admin(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/state", self._state)
        app.router.add_get("/figures", self._figures)
        app.router.add_get("/metrics", self._metrics)
        canary = Canary(self._contract.served_name, self._admission.own_key, self._own_url)
        app.router.add_post("/canary", canary.answer)
        return app

    def _own_url(self) -> str:
        """The public port, as this process reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)
        return f"http://{host}:{self.port}"

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self._server.draining:
            return web.Response(status=503, text="draining\n")
        if not self.fleet.discovered:
            return web.Response(status=503, text="discovery has not answered yet\n")
        if not self._heard and self.fleet.unheard:
            return web.Response(status=503, text="no health check of the engines has ended yet\n")
        self._heard = True
        return web.Response(text="ready\n")

    async def _state(self, request: web.Request) -> web.Response:
        engines = [
            {
                **slot.endpoint.model_dump(by_alias=True),
                "healthy": slot.healthy,
                "quarantine": {"state": slot.breaker.state, "reason": slot.breaker.reason},
                "silentSeconds": round(slot.silent, 2),
                "load": slot.load,
                "kvCosts": asdict(self._affinity.rates.get(slot.endpoint.name, USUAL)),
            }
            for slot in self.fleet.slots()
        ]
        body = {
            "deployment": self._contract.deployment,
            "discovered": self.fleet.discovered,
            "admission": {"running": self._admission.running, "waiting": self._admission.waiting},
            "engines": engines,
            "linksQuarantined": self.fleet.links.quarantined(),
        }
        return web.Response(body=orjson.dumps(body), content_type="application/json")

    async def _figures(self, request: web.Request) -> web.Response:
        """At once, or, for who says what it has seen, once there is more to see (`polls.py`)."""
        try:
            poll = Poll.model_validate(dict(request.query))
        except ValidationError as error:
            return web.Response(status=400, text=f"{error.error_count()} of start, requests and wait are wrong\n")
        told = await self._polls.answer(poll, self._reading)
        return web.Response(body=told.model_dump_json(by_alias=True), content_type="application/json")

    def _reading(self) -> GatewayFigures:
        admission, hold = self._admission, self._live.contract.hold
        holds = hold.requests if hold is not None else 0
        return self._telemetry.figures.reading(admission.running, admission.waiting, admission.oldest_wait, holds)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})


def _access_log(contract: GatewayContract) -> BinaryIO | None:
    return standard_output() if contract.access_log else None


def _listen_on(address: str) -> str:
    """All addresses of the pod's family, as `kubectl port-forward` comes over loopback; or loopback alone."""
    ip = ipaddress.ip_address(address)
    if ip.is_loopback:
        return address
    return "0.0.0.0" if ip.version == 4 else "::"


def _raise_file_limit(wanted: int) -> None:
    """Each request holds two connections; the soft limit of a container is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning("the limit of open files is %d, below the %d that max_connections may need", hard, wanted)
        wanted = hard
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _spare_the_collector() -> None:
    """What exists now lives as long as the process: the garbage collector need not look at it at every full pass."""
    gc.collect()
    gc.freeze()
