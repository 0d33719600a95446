"""The way of one streamed answer from its engine to its client, or into memory: whole events, each of them kept.

Stands between `upstream.Exchange` (whose sink it is) and `http.Answer` (whose source it is), and stays there when the
engine changes. A chunk that holds whole events, as vLLM's do, passes as it is; an event that breaks off waits for its
end; one that says that the engine has failed ends the exchange and is not passed on. Used by `delivery.py`.
"""

from headrace_runtime.gateway import assemble
from headrace_runtime.gateway.http import Answer
from headrace_runtime.gateway.kept import Kept, bodies, chunk
from headrace_runtime.gateway.resume import DONE, MismatchError, Splice
from headrace_runtime.gateway.upstream import ChunkWriter, EngineError, Exchange

EVENT_BYTES = 4 * 1024 * 1024
"""What is longer and has no end is no event."""
_ERROR = b'data: {"error"'
_WHOLE_EVENTS = b"\n\n\r\n"
"""The end of a chunk that holds nothing but whole events."""


class Relay:
    """One answer. `answer` None: it is only kept. `kept` None: it is only passed on, an engine's errors included."""

    def __init__(self, answer: Answer | None, headers: list[tuple[str, str]], kept: Kept | None) -> None:
        self.mismatch: MismatchError | None = None
        """Why the continuation is none."""
        self.said_error = False
        """An engine's error event was passed on."""
        self.events = 0
        """Passed on so far: about one for each token."""
        self._answer = answer
        self._headers = headers
        self._kept = kept
        self._exchange: Exchange | None = None
        self._splice: Splice | None = None
        self._tail = b""
        self._failure: EngineError | None = None
        self._paused = False

    async def run(self, exchange: Exchange, payload: bytes, splice: Splice | None = None) -> EngineError | None:
        """Relay `payload`, which was read already, and the rest of the exchange; gives why it is not complete."""
        self._exchange, self._splice, self._tail, self._failure = exchange, splice, b"", None
        if self._paused:
            exchange.pause()
        self.write(payload)
        try:
            if self._failure is None:
                await exchange.relay(self)
        except EngineError as error:
            return self._failure or error
        finally:
            exchange.abort()
        if self._failure is None and self._tail:
            self._take(self._tail)
        if self._failure is None and self._kept is not None and not self._kept.ends_with(DONE) and not self.said_error:
            return EngineError("reset", "the stream ended before its last event")
        return self._failure

    def add(self, events: bytes) -> None:
        """Events of the gateway's own."""
        if events:
            self._send(events)

    def finish(self) -> None:
        """The client has all it will get."""
        if self._answer is None:
            return
        if self._answer.status:
            self._answer.finish()
        else:
            self._answer.send(200, self._headers, b"")

    # http.Source

    def pause(self) -> None:
        self._paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        self._paused = False
        if self._exchange is not None:
            self._exchange.resume()

    # upstream.Sink

    def write(self, data: bytes) -> None:
        """Any piece of the answer's body."""
        data = self._tail + data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            end = 0
        self._tail = data[end:]
        if len(self._tail) > EVENT_BYTES:
            self._fail(EngineError("reset", f"an event of more than {EVENT_BYTES} bytes"))
        elif end:
            self._take(data[:end])

    def chunk_writer(self) -> ChunkWriter | None:
        """For the first engine's chunks; those of a continuation are read one by one."""
        pass_on = self._answer.chunk_writer() if self._answer is not None and self._splice is None else None
        if pass_on is None:
            return None
        keep = self._kept.add if self._kept is not None else None

        def forward(chunks: bytes) -> None:
            if self._tail or not chunks.endswith(_WHOLE_EVENTS) or _ERROR in chunks:
                self.write(bodies(chunks))
                return
            if keep is not None:
                keep(chunks)
            self.events += chunks.count(b"\n\n")
            pass_on(chunks)

        return forward

    # inside

    def _take(self, events: bytes) -> None:
        """Whole events, of which one may be the engine's last word."""
        at = 0 if events.startswith(_ERROR) else events.find(b"\n\n" + _ERROR) + 2
        if at == 1:
            self._pass(events)
            return
        status, body = assemble.error_of(events[at:]) or (500, b"")
        if self._kept is None or (status < 500 and self._answer is not None):
            self.said_error = True
            self._pass(events)
            return
        if at:
            self._pass(events[:at])
        self._fail(EngineError("error_event", f"an error event in mid-stream, code {status}", status, body))

    def _pass(self, events: bytes) -> None:
        if self._splice is not None:
            try:
                events = self._splice.feed(events)
            except MismatchError as error:
                self.mismatch = error
                self._fail(EngineError("error_event", str(error)))
                return
        if events:
            self._send(events)

    def _send(self, events: bytes) -> None:
        if self._kept is not None:
            self._kept.add(chunk(events))
        self.events += events.count(b"\n\n")
        if self._answer is None:
            return
        if self._answer.status:
            self._answer.write(events)
        else:
            self._answer.start(200, self._headers, events)

    def _fail(self, error: EngineError) -> None:
        if self._failure is None:
            self._failure = error
            if self._exchange is not None:
                self._exchange.fail(error)
