"""Publishes KV events as vLLM does, without an engine: for tests and benchmarks.

The same sockets, frames and encoding as `vllm/distributed/kv_events.py`: numbered batches at one address, and what was
published before at another, to whoever asks for it by number.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import zmq
import zmq.asyncio

from headrace_runtime.contract import KvEvents
from headrace_runtime.gateway.kvevents import END, AllBlocksCleared, Batch, BlockRemoved, BlockStored

Event = BlockStored | BlockRemoved | AllBlocksCleared


class Publisher:
    """`remembers`: batches that can be asked for again."""

    def __init__(self, context: zmq.asyncio.Context, events: KvEvents, remembers: int = 10_000) -> None:
        self.answers = True
        """False: whoever asks for what was published waits in vain."""
        self.asked = 0
        self._publish = context.socket(zmq.PUB)
        self._replay = context.socket(zmq.ROUTER)
        for socket, address in ((self._publish, events.publish), (self._replay, events.replay)):
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(address)
        self._remembered: deque[tuple[bytes, bytes]] = deque(maxlen=remembers)
        self._next = 0

    async def send(self, *events: Event, lost: bool = False) -> None:
        """Publish one batch. `lost`: it is remembered, but nobody hears it."""
        number, payload = self._next.to_bytes(8, "big"), msgspec.msgpack.encode(Batch(0.0, list(events)))
        self._next += 1
        self._remembered.append((number, payload))
        if not lost:
            await self._publish.send_multipart([b"", number, payload])

    async def serve(self) -> None:
        """Answer questions for what was published. Until cancelled."""
        while True:
            asker, _, start = await self._replay.recv_multipart()
            self.asked += 1
            if self.answers:
                for number, payload in [one for one in self._remembered if one[0] >= start]:
                    await self._replay.send_multipart([asker, b"", b"", number, payload])
                await self._replay.send_multipart([asker, b"", b"", END, b""])

    def close(self) -> None:
        self._publish.close()
        self._replay.close()


@asynccontextmanager
async def publishing(events: KvEvents, remembers: int = 10_000) -> AsyncIterator[Publisher]:
    """A publisher at these addresses while the block runs."""
    context = zmq.asyncio.Context()
    publisher = Publisher(context, events, remembers)
    serving = asyncio.create_task(publisher.serve())
    try:
        yield publisher
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        publisher.close()
        context.destroy(linger=0)


def stored(names: Sequence[int], tokens: Sequence[int], block_size: int, parent: int | None = None) -> BlockStored:
    """Blocks on the device."""
    return BlockStored(list(names), parent, list(tokens), block_size, medium="GPU")
