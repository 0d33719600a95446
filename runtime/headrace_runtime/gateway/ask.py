"""Ask one engine, up to its first token: an error of its own, a whole answer, or the begin of a stream.

What an engine owes is watched (`fleet.py`), so that a question ends when its engine goes or hangs. Tries nothing again
but a connection that the engine closed while it was idle. Called by `journey.py`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway import assemble
from headrace_runtime.gateway.fleet import Fleet, Watch
from headrace_runtime.gateway.request import Facts, Headers
from headrace_runtime.gateway.upstream import Cause, EngineError, Exchange, Pool


@dataclass(frozen=True, slots=True)
class First:
    """An engine's answer up to its first token: an error (4xx), a whole answer, or (`streaming`) the begin of one."""

    exchange: Exchange
    status: int
    payload: bytes
    streaming: bool


@dataclass(frozen=True, slots=True)
class Question:
    """One request as engines are asked it; each may get a body of its own."""

    facts: Facts
    fleet: Fleet
    pool: Pool
    headers: Headers

    async def ask(self, engine: Endpoint, body: bytes, streamed: bool) -> First:
        """Raises EngineError. The engine may close an idle connection just as we write on it: that says nothing of
        the engine."""
        path = self.facts.path
        exchange = await self.pool.post(engine.url, path, body, self.headers)
        try:
            return await self._begin(engine, exchange, streamed)
        except EngineError as error:
            if not exchange.reused or exchange.status or error.cause != "reset":
                raise
        return await self._begin(
            engine, await self.pool.post(engine.url, path, body, self.headers, fresh=True), streamed
        )

    async def collect(self, engine: Endpoint, first: First) -> First:
        """The rest of a streamed answer, as the one piece that the client asked for. Raises EngineError."""
        if not first.streaming:
            return first
        try:
            with self._guarded(engine, first.exchange):
                stream = first.payload + await first.exchange.whole()
            return First(first.exchange, 200, assemble.one_answer(self.facts.path, stream), streaming=False)
        except ValueError as error:
            raise EngineError("error_event", str(error)) from error

    def watched(self, engine: Endpoint, exchange: Exchange, proves: bool) -> AbstractContextManager[None]:
        """The engine owes the answer while the block runs. `proves`: what it sends shows that it computes."""
        silent = EngineError("silent", f"{engine.name} is gone, or owed an answer and sent nothing")
        tokens = self.facts.prompt_tokens if self.facts.computed else None
        watch = Watch(exchange, lambda: exchange.fail(silent), tokens, exchange.beats, proves)
        return self.fleet.watching(engine, watch)

    async def _begin(self, engine: Endpoint, exchange: Exchange, streamed: bool) -> First:
        with self._guarded(engine, exchange):
            await exchange.head()
            if exchange.status == 404 and self.facts.adapter:
                await exchange.whole()
                raise EngineError("status", f"{engine.name} has not loaded {self.facts.adapter}", 404)
            if exchange.status != 200 or not streamed:
                return _whole(exchange, exchange.status, await exchange.whole())
            payload = await exchange.first_event()
            while not (exchange.complete or assemble.begun(self.facts.path, payload)):
                payload += await exchange.first_event()
            error = assemble.error_of(payload)
            if error is None:
                return First(exchange, 200, payload, streaming=True)
            exchange.abort()
            return _whole(exchange, *error, cause="error_event")

    @contextmanager
    def _guarded(self, engine: Endpoint, exchange: Exchange) -> Iterator[None]:
        """Close the exchange when this ends badly; end it when the engine goes or hangs."""
        try:
            with self.watched(engine, exchange, self.facts.begun_by_engine):
                yield
        except BaseException:
            exchange.abort()
            raise


def _whole(exchange: Exchange, status: int, payload: bytes, cause: Cause = "status") -> First:
    """An answer in one piece. Raises EngineError for 5xx: another engine may do better."""
    if status >= 500:
        raise EngineError(cause, f"HTTP {status}", status, payload)
    return First(exchange, status, payload, streaming=False)
