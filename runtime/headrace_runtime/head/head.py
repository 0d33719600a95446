"""`headrace_runtime head`: first process of the head pod. Keeps Ray's head and the fleet running, and says how they
are.

Ray's control store (GCS) is kept on disk, so a head that comes back knows its nodes and actors again. Nothing here is
on the path of a token, and no engine stops when this process does.
"""

import asyncio
import ipaddress
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from aiohttp import web
from pydantic import ValidationError

from headrace_runtime.contract import HeadContract, Place
from headrace_runtime.head.state import FleetState, HeadPhase, HeadState
from headrace_runtime.node.keeper import Keeper
from headrace_runtime.node.preflight import installed
from headrace_runtime.node.process import Children, Program
from headrace_runtime.node.raylet import RAY, authentication

log = logging.getLogger(__name__)

SILENT_SECONDS = 45.0
"""A fleet that has not reported for this long hangs in a call to Ray; its own start takes some 5 s."""
FRESH_SECONDS = 15.0
"""A report older than this is no longer the state of things."""
FLEET_DELAY = 1.0


def head_arguments(contract: HeadContract, place: Place) -> list[str]:
    """Words after `ray` that start a head on which no work is placed."""
    return [
        "start",
        "--head",
        "--block",
        f"--node-ip-address={place.address}",
        f"--port={contract.port}",
        "--num-cpus=0",
        "--num-gpus=0",
        f"--object-store-memory={contract.object_store_bytes}",
        "--include-dashboard=false",
        "--no-monitor",
        "--include-log-monitor=false",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
    ]


def head_environment(contract: HeadContract, inherited: Mapping[str, str]) -> dict[str, str]:
    env = {name: value for name, value in inherited.items() if not name.startswith(("RAY_AUTH_", "RAY_gcs_storage"))}
    if contract.gcs == "RocksDB":
        env |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": contract.gcs_path}
    return env | authentication(contract.token_file)


def forget_last_cluster(address: str, temp: Path) -> None:
    """Remove Ray's note of the cluster it started last, if that was this one.

    With the note, and any process whose command line names the address (this program's own may), `ray start --head`
    refuses to start: "already running".
    """
    note = temp / "ray" / "ray_current_cluster"
    with suppress(FileNotFoundError):
        if note.read_text().strip() == address:
            note.unlink()


class Head:
    """Ray's head, and the fleet for as long as it runs."""

    def __init__(self, contract: HeadContract, place: Place, fleet_command: list[str], version: str | None) -> None:
        self.place, self.version = place, version
        self._children = Children()
        self._env = head_environment(contract, os.environ)
        self._fleet_command = fleet_command
        self._fleet: FleetState | None = None
        self._reported_at = float("-inf")
        self._was_ready = False
        self._ray = Keeper(
            self._children,
            "Ray's head",
            [*RAY, *head_arguments(contract, place)],
            self._env,
            before=self._before_ray,
        )
        self._ray_address = f"{place.address}:{contract.port}"
        self._gcs_path = Path(contract.gcs_path) if contract.gcs == "RocksDB" else None

    def state(self) -> HeadState:
        fresh = asyncio.get_running_loop().time() - self._reported_at <= FRESH_SECONDS
        phase: HeadPhase = "Starting"
        message = ""
        if self.version is None:
            phase, message = "Failed", "the image has no Ray; set spec.engine.image to one that carries vllm and ray"
        elif fresh:
            phase = "Ready"
        elif self._was_ready:
            phase, message = "Restarting", "Ray's head does not answer; engines serve without it"
        fleet = self._fleet if fresh else None
        restarts = self._ray.restarts
        return HeadState(
            pod=self.place.name,
            phase=phase,
            message=message,
            ray_version=self.version,
            ray_restarts=restarts,
            fleet=fleet,
        )

    async def run(self, leave: asyncio.Event) -> None:
        """Keep both until `leave` is set; then end both."""
        self._children.adopt_orphans()
        self._children.guard()
        tasks = []
        if self.version is not None:
            if self._gcs_path:
                self._gcs_path.mkdir(parents=True, exist_ok=True)
            tasks = [asyncio.create_task(self._ray.run()), asyncio.create_task(self._keep_fleet())]
        leaving = asyncio.create_task(leave.wait())
        try:
            done, _ = await asyncio.wait([leaving, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (leaving, *tasks):
                task.cancel()
            await asyncio.gather(leaving, *tasks, return_exceptions=True)
            await self._ray.stop()

    def _before_ray(self) -> None:
        forget_last_cluster(self._ray_address, Path(tempfile.gettempdir()))
        self._reported_at = float("-inf")  # what the fleet saw was Ray's head before this one

    async def _keep_fleet(self) -> None:
        while True:
            reports_in, reports_out = os.pipe()
            try:
                program = self._children.start(self._fleet_command, self._env, stdout=reports_out)
            finally:
                os.close(reports_out)
            try:
                await self._listen(program, reports_in)
            finally:
                await program.kill()
            self._reported_at = float("-inf")
            await asyncio.sleep(FLEET_DELAY)

    @staticmethod
    async def _next_line(reports: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(SILENT_SECONDS):
            return await reports.readline()

    async def _listen(self, program: Program, reports_in: int) -> None:
        """Take reports until they stop, or stay away for too long."""
        reports = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reports), os.fdopen(reports_in, "rb", 0)
        )
        try:
            while line := await self._next_line(reports):
                with suppress(ValidationError):  # Ray, too, may print a line
                    self._fleet = FleetState.model_validate_json(line)
                    self._reported_at, self._was_ready = loop.time(), True
            log.warning("the fleet %s", await program.ended)
        except TimeoutError:
            log.warning("the fleet was silent for %.0f s: Ray's control store does not answer it", SILENT_SECONDS)
        finally:
            transport.close()


def application(head: Head) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        state = head.state()
        return web.Response(text=f"{state.phase}\n", status=200 if state.phase == "Ready" else 503)

    async def state(_: web.Request) -> web.Response:
        return web.Response(text=head.state().model_dump_json(by_alias=True), content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/state", state)])
    return app


def main(contract: HeadContract, place: Place, contract_file: Path) -> None:
    """Run until SIGTERM. `contract_file` is handed to the fleet, which reads the same contract."""
    asyncio.run(_serve(contract, place, contract_file))


async def _serve(contract: HeadContract, place: Place, contract_file: Path) -> None:
    fleet = [sys.executable, "-m", "headrace_runtime", "fleet", f"--contract={contract_file}"]
    fleet += [f"--name={place.name}", f"--address={place.address}"]
    head = Head(contract, place, fleet, installed("ray"))
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)
    runner = web.AppRunner(application(head), access_log=None, handle_signals=False)
    await runner.setup()
    host = place.address if ipaddress.ip_address(place.address).is_loopback else None
    await web.TCPSite(runner, host, place.agent_port).start()
    try:
        await head.run(leave)
    finally:
        await runner.cleanup()
