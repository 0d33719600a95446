"""The proxy between one operator and the API server: counts the operator's writes and cuts at one of them.

A write is a POST, PUT, PATCH or DELETE, of status and Events too: whatever changes something is a place to die at. An
operator that was killed gets nothing through any more, whatever its last tasks try. Called by `point.py`; never changes
what passes through it, save for the lists that it replays.
"""

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from headrace_operator import names

READS = frozenset({"GET", "HEAD", "OPTIONS"})
DEADLINE = aiohttp.ClientTimeout(total=120)
ENDS_AT_THE_PROXY = frozenset({"Host", "Connection", "Transfer-Encoding", "Content-Length", "Content-Encoding"})


class Way(StrEnum):
    """How a run is disturbed. The first four strike at a write, the last two at a pass."""

    BEFORE = "killed before"
    """The operator is killed, and the write never arrives."""
    AFTER = "killed after"
    """The write is applied, and the operator is killed before it hears of it."""
    LOST = "reply lost"
    """The write is applied, its connection breaks, and the operator lives on."""
    REFUSED = "refused"
    """The connection breaks before anything arrives, and the operator lives on."""
    OLD = "old lists"
    """All lists of one pass are those of the pass before."""
    OLDEST = "oldest lists"
    """All lists of one pass are those from before the user's first edit."""


KILLS = frozenset({Way.BEFORE, Way.AFTER})
AT_WRITES = (Way.BEFORE, Way.AFTER, Way.LOST, Way.REFUSED)
AT_PASSES = (Way.OLD, Way.OLDEST)


@dataclass(frozen=True)
class Cut:
    """One disturbance: at the `number`-th write, or in the `number`-th pass, counted from 1."""

    way: Way
    number: int

    def __str__(self) -> str:
        return f"{self.way} {'pass' if self.way in AT_PASSES else 'write'} {self.number}"


@dataclass(frozen=True)
class Write:
    """One write and the API server's answer to it. Status 0: it never arrived."""

    method: str
    path: str
    status: int
    uid: str = ""
    """Of what a DELETE was about."""

    def __str__(self) -> str:
        return f"{self.method} {self.path.partition('/namespaces/')[2].partition('/')[2]} → {self.status or 'cut'}"

    @property
    def kind(self) -> str:
        """What it was about: `pods`."""
        return self.path.partition("/namespaces/")[2].split("/")[1]

    @property
    def creates(self) -> bool:
        return self.status == 201 and self.method in {"POST", "PUT", "PATCH"}

    @property
    def deletes(self) -> bool:
        return self.status in {200, 202} and self.method == "DELETE"


@dataclass(frozen=True)
class Watches:
    """How watches are spoiled."""

    name: str
    window: float
    """Seconds for which events are held back."""
    thins: bool = False
    """Of several events about one object that are held back together, only the last is told."""

    def __str__(self) -> str:
        return self.name


HELD = Watches("watches held back", 3.0)
SUPERSEDED = Watches("superseded events dropped", 1.0, thins=True)
AT_WATCHES = (HELD, SUPERSEDED)


class Upstream:
    """The API server, as its kubeconfig says; shared by all proxies."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        context = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]))
        with tempfile.TemporaryDirectory(prefix="headrace-sweep-") as folder:
            pair = Path(folder) / "client.pem"  # the ssl module reads certificates from files only
            pair.touch(mode=0o600)
            pair.write_text(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
            context.load_cert_chain(pair)
        self._connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self.session = aiohttp.ClientSession(
            connector=self._connector, auto_decompress=False, skip_auto_headers=("User-Agent", "Accept-Encoding")
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()


@dataclass
class Proxy:
    """One operator's way to the API server."""

    upstream: Upstream
    address: str = ""
    cut: Cut | None = None
    counting: bool = False
    """Writes are counted, and cuts strike, only from the user's first edit on."""
    passes: int = 0
    watches: Watches = HELD
    spoiled: int = 0
    """Events that were held back, or left out."""
    asked: int = 0
    """All requests but watches."""
    watched: asyncio.Event = field(default_factory=asyncio.Event)
    """The operator watches."""
    listed: set[int] = field(default_factory=set)
    """Passes in which there were lists to replay."""
    seen: int = 0
    """All writes, those before the first edit too."""
    writes: list[Write] = field(default_factory=list)
    """Those that are counted."""
    struck: bool = False
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """The write to be cut is here, and waits for `go_on`."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    _lists: dict[str, list[bytes]] = field(default_factory=dict)
    """Answers to each list, one of every pass, the first from before the first edit."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Takes requests on a free port of loopback while the block runs."""
        server = web.Server(self._handle)
        runner = web.ServerRunner(server, access_log=None, shutdown_timeout=0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.address = f"http://{host}:{port}"
            yield
        finally:
            await runner.cleanup()

    def begin_pass(self) -> None:
        """The operator begins a pass: the next one of those that are counted."""
        self.passes += self.counting

    def revive(self) -> None:
        """The operator was started anew."""
        self.killed.clear()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.killed.is_set():
            return _cut_off(request)
        if "watch" in request.query:
            return await self._stream(request)
        self.asked += 1
        body = await request.read()
        if request.method in READS:
            return await self._read(request, body)
        self.seen += 1
        number = len(self.writes) + 1
        cut = self.cut if self.cut and self.cut.way in AT_WRITES and self.cut.number == number else None
        if not self.counting or cut is None or self.struck:
            return await self._write(request, body)
        self.struck = True
        self.reached.set()
        await self.go_on.wait()
        if cut.way in {Way.AFTER, Way.LOST}:
            await self._write(request, body)
        else:
            self.writes.append(Write(request.method, request.path, 0))
        if cut.way in KILLS:
            self.killed.set()
        return _cut_off(request)

    async def _write(self, request: web.BaseRequest, body: bytes) -> web.Response:
        answer = await self._forward(request, body)
        if self.counting:
            uid = json.loads(body)["preconditions"]["uid"] if request.method == "DELETE" else ""
            self.writes.append(Write(request.method, request.path, answer.status, uid))
        return answer

    async def _read(self, request: web.BaseRequest, body: bytes) -> web.Response:
        is_list = "labelSelector" in request.query
        known = self._lists.setdefault(request.path_qs, []) if is_list else []
        if is_list and self.cut and self.cut.way in AT_PASSES and self.counting and self.cut.number == self.passes:
            self.struck = True
            old = known[-1] if self.cut.way is Way.OLD else known[0]
            return web.Response(body=old, content_type="application/json")
        answer = await self._forward(request, body)
        if is_list and answer.status == 200:
            assert isinstance(answer.body, bytes)
            if self.counting:
                known.append(answer.body)
                self.listed.add(self.passes)
            else:
                known[:] = [answer.body]
        return answer

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        """A watch: its events a while later, in their order, some perhaps left out."""
        if request.path.endswith(f"/{names.PLURAL}"):  # kopf's own: by then it has its kubeconfig
            self.watched.set()
        held: list[bytes] = []
        call = self.upstream.session.get(
            self.upstream.server + request.path_qs, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**22
        )
        async with call as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            reading = asyncio.create_task(_collect(answer.content, held))
            try:
                while not reading.done() or held:
                    await asyncio.wait({reading}, timeout=self.watches.window)
                    lines, held[:] = list(held), []
                    told = _last_of_each(lines) if self.watches.thins else lines
                    self.spoiled += len(lines) - len(told) if self.watches.thins else len(lines)
                    for line in told:
                        await response.write(line)
            except ConnectionResetError:  # the operator has ended
                pass
            finally:
                reading.cancel()
        return response

    async def _forward(self, request: web.BaseRequest, body: bytes) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.title() not in ENDS_AT_THE_PROXY}
        headers["Accept-Encoding"] = "identity"
        url = self.upstream.server + request.path_qs
        call = self.upstream.session.request(request.method, url, data=body or None, headers=headers, timeout=DEADLINE)
        async with call as answer:
            kept = await answer.read()
            return web.Response(status=answer.status, body=kept, headers={"Content-Type": answer.content_type})


async def _collect(lines: aiohttp.StreamReader, held: list[bytes]) -> None:
    while line := await lines.readline():
        held.append(line)


def _last_of_each(lines: list[bytes]) -> list[bytes]:
    """The events without those that a later one about the same object supersedes."""
    last = {_about(line): number for number, line in enumerate(lines)}
    return [line for number, line in enumerate(lines) if last[_about(line)] == number]


def _about(line: bytes) -> str:
    meta = json.loads(line)["object"].get("metadata", {})
    return str(meta.get("uid", "bookmark"))


def _cut_off(request: web.BaseRequest) -> web.Response:
    """Breaks the connection; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
