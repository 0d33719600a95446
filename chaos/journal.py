"""What one request of the load met, from its client's side: the only evidence that the oracles are given.

Times are seconds of the machine's monotonic clock, which all its processes share.
"""

from dataclasses import dataclass

SILENCE_SECONDS = 0.25
"""Shorter waits for the next token are not written down."""

Silence = tuple[float, float]
"""From the last sign of life (or the moment the request was due) to the next one, or to the request's end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request, ended."""

    id: str
    """Sent as X-Request-Id."""
    question: int
    """Which one of the load's questions."""
    scheduled: float
    """When it was due: an open-loop load waits for nobody."""
    end: float
    status: int
    """Of HTTP; 0: no answer at all."""
    engine: str
    """The engine that began the answer, in the gateway's words; empty if none did."""
    first: float | None = None
    """When the first piece of the answer came."""
    text: str = ""
    token_ids: tuple[int, ...] | None = None
    """None: not asked for."""
    finishes: int = 0
    """Finish reasons that came. A complete answer has one."""
    ends: int = 0
    """Last lines of the stream that came (`[DONE]`), or whole JSON answers. A complete answer has one."""
    error: str = ""
    """What ended it early: an error event, a broken connection, the client's own deadline."""
    tries: int = 1
    silences: tuple[Silence, ...] = ()

    @property
    def complete(self) -> bool:
        return self.status == 200 and not self.error and self.finishes > 0 and self.ends > 0


@dataclass(frozen=True, slots=True)
class Truth:
    """The answer to one question when nothing was wrong."""

    text: str
    token_ids: tuple[int, ...] | None
    first_seconds: float = 0.0
    """From its way out to its first piece; of an answer that is not streamed, all of it."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault, as it happened."""

    at: float
    target: str
    """The engine, pod or node that was struck."""
    detected: float | None = None
    """When the system first said of its own that something is wrong."""
    whole: float | None = None
    """When everything that was struck served again."""
