"""The proxy of the sweep with watches that a test may cut; for tests that run whole operators behind it."""

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from sweep.proxy import Proxy


@dataclass
class CuttableProxy(Proxy):
    """One operator's way to the API server."""

    streams: set[asyncio.Task[object]] = field(default_factory=set)

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self.streams.add(task)
        try:
            return await super()._stream(request)
        finally:
            self.streams.discard(task)

    def cut_watches(self) -> None:
        """Those that are open. A watch whose client is gone would end with its next event only."""
        for task in self.streams:
            task.cancel()
