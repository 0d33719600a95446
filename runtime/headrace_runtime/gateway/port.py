"""The public port: listens, keeps the number of connections bounded, and ends in order.

The handlers of its `routes` answer what comes (`http.py`); each connection is a `connection.ClientConnection`. Called
by `serve.py`.
"""

import asyncio
import contextlib

from headrace_runtime.gateway import errors
from headrace_runtime.gateway.connection import ClientConnection
from headrace_runtime.gateway.http import Limits, Routes
from headrace_runtime.gateway.turns import Turns

REFUSED_CONNECTIONS = 1024
"""Above the limit, so many connections are told so; more are closed without a word."""
ROOM_SECONDS = 0.5
"""Idle connections are closed for new ones no oftener, since finding them means looking at all."""


class Server:
    """The public port. `routes` are served until `drain`."""

    def __init__(self, routes: Routes, limits: Limits | None = None) -> None:
        self.routes = routes
        self.limits = limits or Limits()
        self.draining = False
        self.held = 0
        """Bytes of bodies that are being read, wait, or are being answered."""
        self.connections: set[ClientConnection] = set()
        self._room_made = 0.0
        self.turns = Turns()
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._left = asyncio.Event()

    def joined(self, connection: ClientConnection) -> None:
        """Takes a connection, or refuses it. At the limit, a tenth of those that wait for nothing make room."""
        self.connections.add(connection)
        limit, now = self.limits.connections, asyncio.get_running_loop().time()
        if len(self.connections) <= limit:
            return
        if now - self._room_made > ROOM_SECONDS:
            self._room_made = now
            idle = sorted((one for one in self.connections - {connection} if one.idle), key=lambda one: one.since)
            for one in idle[: max(1, limit // 10)]:
                one.abort()
                self.connections.discard(one)
        if len(self.connections) > limit + REFUSED_CONNECTIONS:
            connection.abort()
        elif len(self.connections) > limit:
            connection.refuse(errors.too_many_connections(limit))

    def left(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        self._left.set()

    async def listen(self, host: str, port: int) -> int:
        """Start; gives the port, which the system chooses where `port` is 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: ClientConnection(self), host, port, backlog=4096)
        self._sweeper = asyncio.create_task(self._sweep())
        return int(self._listener.sockets[0].getsockname()[1])

    async def drain(self, seconds: float) -> int:
        """Accept nothing more, let answers end, close; gives how many were cut after `seconds`."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        with contextlib.suppress(TimeoutError):  # the deadline is an answer: those still busy are counted and cut
            async with asyncio.timeout(seconds):
                while self.connections:
                    self._left.clear()
                    await self._left.wait()
        cut = sum(connection.busy for connection in self.connections)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        return cut

    async def _sweep(self) -> None:
        """One timer for all connections costs less than one each."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            now = loop.time()
            for connection in [one for one in self.connections if one.deadline < now]:
                connection.expire()
