"""Listens to what engines say of their KV blocks, and writes it into the index (`prefix.py`). The only user of ZeroMQ.

vLLM publishes a numbered batch per step in which blocks came or went (`vllm/distributed/kv_events.py`), and answers at
a second address what it published before. A listener connects to one engine; on every connection it forgets what it
knew, asks for everything that is still remembered there, and goes on from it. A number that is missing, as when this
process fell behind and ZeroMQ dropped messages, is asked for again. While the connection is away, or the gap is not
closed, the engine counts as holding nothing: routing falls back to load. Nothing is sent or polled while nothing
happens.

What engines have in host memory and on disk they tell by the names of the blocks; tokens, which such events need not
have, are not read. Blocks of all but the first KV cache group of a hybrid model are not listened to.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from headrace_runtime.contract import Endpoint, KvEvents
from headrace_runtime.gateway.blocks import Stored, Tier
from headrace_runtime.gateway.prefix import PrefixIndex

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""Between two looks at which engines there are."""
REPLAY_SECONDS: Final = 5.0
"""An engine that does not answer within this for the next part of what it published is asked again later."""
RECONNECT_MS: Final = 200
RECONNECT_LIMIT_MS: Final = 5_000
MESSAGE_BYTES: Final = 64 * 1024**2
END: Final = (-1).to_bytes(8, "big", signed=True)
"""In place of a batch's number: all that is remembered was sent."""
TIERS: Final[dict[str | None, Tier]] = {None: "device", "GPU": "device", "CPU": "host", "STORAGE": "disk"}
"""By vLLM's name of the medium. On a CPU engine the device is called GPU too."""

Clock = Callable[[], float]


class BlockStored(msgspec.Struct, tag=True):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    medium: str | None = None
    extra_keys: list[list[object] | None] | None = None
    group_idx: int | None = None


class BlockRemoved(msgspec.Struct, tag=True):
    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True):
    pass


class Batch(msgspec.Struct, array_like=True):
    """What one step changed. `ts`: seconds since 1970 by the engine's clock."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


_DECODER: Final = msgspec.msgpack.Decoder(Batch)


def apply(index: PrefixIndex, engine: str, payload: bytes) -> None:
    """Write one batch into the index. Raises msgspec.DecodeError or ValidationError for what is none."""
    for event in _DECODER.decode(payload).events:
        if isinstance(event, AllBlocksCleared):
            index.empty(engine)
        elif not event.group_idx and (tier := TIERS.get(event.medium)) is not None:
            if isinstance(event, BlockRemoved):
                index.remove(engine, event.block_hashes, tier)
            elif tier != "device":
                if len(event.block_hashes) > 1:  # vLLM tells of one chunk at a time
                    index.chunk(event.block_hashes)
                index.refer(engine, event.block_hashes, tier)
            else:
                hashes, parent, extra = event.block_hashes, event.parent_block_hash, event.extra_keys or ()
                index.store(engine, Stored(hashes, parent, event.token_ids, event.block_size, extra))


@dataclass(frozen=True, slots=True)
class Followed:
    """A running listener, and the addresses it was started for."""

    events: KvEvents
    task: "asyncio.Task[None]"


async def follow(engines: Callable[[], Iterable[Endpoint]], index: PrefixIndex, clock: Clock = time.monotonic) -> None:
    """Keep one listener for each of the engines that publishes. Until cancelled."""
    followed: dict[str, Followed] = {}
    context = zmq.asyncio.Context()
    try:
        while True:
            wanted = {engine.name: engine.kv_events for engine in engines() if engine.kv_events}
            for name, one in list(followed.items()):
                if wanted.get(name) != one.events or one.task.done():
                    await _stop(name, followed.pop(name), index)
            for name, events in wanted.items():
                if name not in followed:
                    index.join(name)
                    listener = Listener(context, name, events, index, clock)
                    followed[name] = Followed(events, asyncio.create_task(listener.run()))
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        for name, one in followed.items():
            await _stop(name, one, index)
        context.destroy(linger=0)


async def _stop(name: str, followed: Followed, index: PrefixIndex) -> None:
    followed.task.cancel()
    (ended,) = await asyncio.gather(followed.task, return_exceptions=True)
    index.leave(name)
    if isinstance(ended, Exception):
        log.warning("%s: listening to its KV events ended, and begins anew: %r", name, ended)


class Listener:
    """One engine's events. `next` is the number of the batch that is due."""

    def __init__(
        self, context: zmq.asyncio.Context, engine: str, events: KvEvents, index: PrefixIndex, clock: Clock
    ) -> None:
        self._context = context
        self._engine = engine
        self._events = events
        self._index = index
        self._clock = clock
        self._next = 0

    async def run(self) -> None:
        """Until cancelled. Raises for batches that cannot be read, which another version of vLLM may send."""
        with self._context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.IPV6, 1)
            socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES)
            socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_LIMIT_MS)
            socket.subscribe(b"")
            with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED) as monitor:
                socket.connect(self._events.publish)
                try:
                    await self._listen(socket, monitor)
                finally:
                    socket.disable_monitor()

    async def _listen(self, socket: zmq.asyncio.Socket, monitor: zmq.asyncio.Socket) -> None:
        poller = zmq.asyncio.Poller()
        poller.register(monitor, zmq.POLLIN)
        poller.register(socket, zmq.POLLIN)
        connected = False
        while True:
            ready = dict(await poller.poll())
            if monitor in ready:
                event = parse_monitor_message(await monitor.recv_multipart())["event"]
                connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                self._index.lost(self._engine)
                self._next = 0
                if connected:
                    await self._catch_up()
            elif socket in ready:
                _, number, payload = await socket.recv_multipart()
                if connected:
                    await self._live(int.from_bytes(number, "big"), payload)

    async def _live(self, number: int, payload: bytes) -> None:
        """A batch as it was published. One that the replay gave already is skipped."""
        if number > self._next:
            await self._catch_up()
        if number == self._next:
            self._take(number, payload)
            self._index.heard(self._engine, self._clock())

    async def _catch_up(self) -> None:
        """Ask for all batches from the one that is due. What cannot be had leaves the engine late."""
        wanted = self._next
        with self._context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.IPV6, 1)
            socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._events.replay)
            await socket.send_multipart([b"", wanted.to_bytes(8, "big")])
            try:
                while True:
                    async with asyncio.timeout(REPLAY_SECONDS):
                        *_, number, payload = await socket.recv_multipart()
                    if number == END:
                        break
                    self._take(int.from_bytes(number, "big"), payload)
            except TimeoutError:
                log.warning("%s does not say which KV blocks it holds: asked again with its next event", self._engine)
                self._index.lost(self._engine)
                self._next = 0
                return
        self._index.heard(self._engine, self._clock())

    def _take(self, number: int, payload: bytes) -> None:
        """Removals may be among batches that nobody remembers any more: what was known before them does not count."""
        if number > self._next:
            self._index.clear(self._engine)
        self._next = number + 1
        apply(self._index, self._engine, payload)
