"""Agents and gateways of pods that do not run: one HTTP server that answers for every pod of a control plane with kwok.

Each pod has an address of its own in 127.0.0.0/8, so that the address at which a request arrives tells whose pod is
asked. The operator makes its real requests over real connections; only what they are answered is made up: every engine
is ready and has joined Ray, every canary was answered. What agents count of themselves jitters, as in life.

`python -m bench.hollow KUBECONFIG`, run by `scale`.
"""

import asyncio
import random
import sys
import threading
from pathlib import Path
from typing import Any

from aiohttp import web

from bench.kube import Api, watching
from headrace_operator import names
from headrace_operator.testing import agent
from headrace_runtime.contract import AGENT_PORT, GATEWAY_ADMIN_PORT

PODS = f"/api/v1/pods?labelSelector={names.DEPLOYMENT}"


class Pods:
    """Who has which address, as the API server says."""

    def __init__(self) -> None:
        self._by_address: dict[str, tuple[str, dict[str, str]]] = {}
        self._engines: dict[tuple[str, str], dict[str, str]] = {}

    def see(self, change: str, pod: Any) -> None:
        meta, address = pod["metadata"], pod.get("status", {}).get("podIP")
        if address is None:
            return
        owner = (meta["namespace"], meta["labels"][names.DEPLOYMENT])
        if change == "DELETED":
            if self._by_address.get(address, ("", {}))[0] == meta["name"]:
                del self._by_address[address]
            return
        self._by_address[address] = meta["name"], {"namespace": meta["namespace"], **meta["labels"]}
        if meta["labels"].get(names.COMPONENT) == "engine":
            self._engines.setdefault(owner, {})[meta["labels"][names.ROLE]] = meta["name"]

    async def state(self, request: web.Request) -> web.Response:
        """`GET /state` of an agent."""
        name, labels = self._asked(request)
        role, revision = labels[names.ROLE], labels[names.REVISION]
        said = agent(name, role, revision, since_seconds=random.uniform(1, 1000), engine_pid=random.randrange(1, 9999))
        return web.Response(text=said.model_dump_json(by_alias=True), content_type="application/json")

    async def canary(self, request: web.Request) -> web.Response:
        """`POST /canary` of a gateway: the revision that was asked for has answered, by both roles."""
        _, labels = self._asked(request)
        engines = self._engines.get((labels["namespace"], labels[names.DEPLOYMENT]), {})
        headers = {
            "x-headrace-revision": (await request.json())["revision"],
            "x-headrace-decode": engines.get("decode", ""),
            "x-headrace-prefill": engines.get("prefill", ""),
        }
        return web.json_response({"choices": []}, headers=headers)

    def _asked(self, request: web.Request) -> tuple[str, dict[str, str]]:
        transport = request.transport
        address = transport.get_extra_info("sockname")[0] if transport else ""
        if address not in self._by_address:
            raise web.HTTPServiceUnavailable(text=f"no pod has the address {address} by now")
        return self._by_address[address]


async def serve(kubeconfig: Path) -> None:
    """Listen at the ports of agents and of gateways, until a signal ends the process."""
    pods = Pods()
    watching(Api(kubeconfig), PODS, pods.see, threading.Event())
    app = web.Application()
    app.router.add_get("/state", pods.state)
    app.router.add_post("/canary", pods.canary)
    app.router.add_get("/healthz", _healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    for port in (AGENT_PORT, GATEWAY_ADMIN_PORT):
        await web.TCPSite(runner, "0.0.0.0", port).start()
    await asyncio.Event().wait()


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
