"""The engines that this gateway knows: what discovery says of them, whether they answer, how busy they are.

The one place where that state changes. Written by `discovery.py` (which engines), `health.py` (whether they answer) and
`flow.py` (load, refused connections); read by `flow.py` for routing and by the admin port.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.routing import Engine

FAILURES_TO_LEAVE = 2
FAILURES_TO_GIVE_UP = 5
"""Health checks that fail in a row before requests that still wait for their first token are taken away from an engine:
a node behind a cut link closes no connection, and TCP itself would wait for minutes."""

GiveUp = Callable[[], None]


@dataclass(slots=True)
class Slot:
    """One engine. A new one takes no request before its first good health check."""

    endpoint: Endpoint
    failures: int = FAILURES_TO_LEAVE
    load: int = 0
    waiting: set[GiveUp] = field(default_factory=set)

    @property
    def healthy(self) -> bool:
        return self.failures < FAILURES_TO_LEAVE

    @property
    def routable(self) -> bool:
        return self.healthy and self.endpoint.ready and not self.endpoint.draining

    def give_up(self) -> None:
        for give_up in list(self.waiting):
            give_up()


class Fleet:
    def __init__(self) -> None:
        self.discovered = False
        """True once discovery has answered, whatever the number of engines."""
        self._slots: dict[str, Slot] = {}
        self._listeners: list[Callable[[Endpoint], None]] = []

    def on_new(self, listener: Callable[[Endpoint], None]) -> None:
        """Call `listener` for each engine that appears, or comes back at another address."""
        self._listeners.append(listener)

    def publish(self, endpoints: Iterable[Endpoint]) -> None:
        """The complete set of engines, from discovery. One that is known keeps its health and load."""
        known, self._slots = self._slots, {}
        self.discovered = True
        for endpoint in endpoints:
            slot = known.get(endpoint.name)
            if slot is not None and slot.endpoint.url == endpoint.url:
                slot.endpoint = endpoint
                self._slots[endpoint.name] = slot
                continue
            self._slots[endpoint.name] = Slot(endpoint)
            for listener in self._listeners:
                listener(endpoint)
        for slot in known.values():
            if slot is not self._slots.get(slot.endpoint.name):
                slot.give_up()

    def slots(self) -> list[Slot]:
        return list(self._slots.values())

    def engines(self) -> list[Engine]:
        return [Engine(slot.endpoint, slot.healthy, slot.load) for slot in self._slots.values()]

    def answered(self, endpoint: Endpoint) -> None:
        """A health check was good: the engine takes requests again, at once."""
        if slot := self._slot(endpoint):
            slot.failures = 0

    def failed(self, endpoint: Endpoint) -> None:
        """A health check failed."""
        if slot := self._slot(endpoint):
            slot.failures += 1
            if slot.failures >= FAILURES_TO_GIVE_UP:
                slot.give_up()

    def refused(self, endpoint: Endpoint) -> None:
        """A request found nobody listening: out until the next good health check."""
        if slot := self._slot(endpoint):
            slot.failures = max(slot.failures, FAILURES_TO_LEAVE)

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        """Count one request in flight on the engine."""
        slot = self._slots.get(endpoint.name)
        if slot is None:
            yield
            return
        slot.load += 1
        try:
            yield
        finally:
            slot.load -= 1

    @contextmanager
    def waiting(self, endpoint: Endpoint, give_up: GiveUp) -> Iterator[None]:
        """Call `give_up` should the engine fall silent while this lasts."""
        slot = self._slots.get(endpoint.name)
        if slot is None:
            yield
            return
        slot.waiting.add(give_up)
        try:
            yield
        finally:
            slot.waiting.discard(give_up)

    def _slot(self, endpoint: Endpoint) -> Slot | None:
        """None for an engine that is gone or has moved since: news of the old address is not news of the new one."""
        slot = self._slots.get(endpoint.name)
        return slot if slot is not None and slot.endpoint.url == endpoint.url else None
