"""The engines that this gateway knows: what discovery says of them, whether they answer, how busy they are.

The one place where that state changes. Written by `discovery.py` (which engines), `health.py` (checks, probes, the
clock's ticks) and `journey.py` (load, what requests ended by); read by `journey.py` for routing and by the admin port.
When an engine is out, and how long it may be silent, is decided by `quarantine.py` and `patience.py`, which are pure.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway import patience, quarantine
from headrace_runtime.gateway.links import Links
from headrace_runtime.gateway.patience import Pace
from headrace_runtime.gateway.quarantine import Breaker, Reason, Rules
from headrace_runtime.gateway.routing import Engine

log = logging.getLogger(__name__)

SILENCE_SECONDS = 3.0
HEALTH_FAILURES = 2
"""Health checks in a row without an answer that put an engine out. One that says no, or finds nobody, is enough."""


class Answering(Protocol):
    """An engine's answer under way: what the fleet sees of an `upstream.Exchange`."""

    @property
    def beats(self) -> int:
        """Grows with every part of the body."""

    @property
    def complete(self) -> bool: ...
    @property
    def paused(self) -> bool:
        """Held back by a slow client: its silence is not the engine's."""

    @property
    def status(self) -> int: ...


@dataclass(eq=False, slots=True)
class Watch:
    """One answer that an engine owes."""

    answer: Answering
    give_up: Callable[[], None]
    """Ends it from outside: the engine is gone or hung."""
    prompt_tokens: int | None = 0
    """Of the prompt that is computed first; None where nothing is computed at all."""
    seen: int = 0
    """Beats at the last tick."""
    proves: bool = True
    """What comes of it shows that the engine computes."""

    @property
    def owed(self) -> bool:
        return self.prompt_tokens is not None and not self.answer.paused and not self.answer.complete

    @property
    def writing(self) -> bool:
        return self.proves and self.seen > 0

    def moved(self) -> bool:
        """Whether a token came since the last call. A refusal is none: the front end writes it without the engine."""
        beats = self.answer.beats if self.answer.status == 200 else 0
        seen, self.seen = self.seen, beats
        return self.proves and beats != seen


@dataclass(eq=False, slots=True)
class Slot:
    """One engine. A new one takes no request before its first good health check."""

    endpoint: Endpoint
    breaker: Breaker = quarantine.NEW
    pace: Pace = patience.UNKNOWN
    load: int = 0
    checks_failed: int = 0
    silent: float = 0.0
    """Seconds for which it owed bytes and sent none."""
    watches: set[Watch] = field(default_factory=set)
    moved: bool = False
    """An answer that has ended since the last tick had moved."""
    _seen: Engine | None = None

    @property
    def healthy(self) -> bool:
        return self.breaker.state == "closed"

    @property
    def routable(self) -> bool:
        return self.healthy and self.may_serve

    @property
    def may_serve(self) -> bool:
        return self.endpoint.ready and not self.endpoint.draining

    @property
    def unheard(self) -> bool:
        """Nobody asked yet how it is."""
        return self.breaker.reason == "new" and not self.checks_failed

    @property
    def owes(self) -> bool:
        return any(watch.owed for watch in self.watches)

    @property
    def longest_prompt(self) -> int:
        """In tokens, of those that wait for their first."""
        return max((watch.prompt_tokens or 0 for watch in self.watches if watch.owed and not watch.writing), default=0)

    @property
    def writing(self) -> bool:
        return any(watch.owed and watch.writing for watch in self.watches)

    def as_seen(self, none_left: bool, last: bool) -> Engine:
        """For routing. The value is made anew only when it differs: each request looks at all engines."""
        healthy = self.breaker.state == "closed" or (none_left and self.breaker.reason != "new")
        seen = self._seen
        now = (self.load, healthy, last)
        if seen is None or (seen.load, seen.healthy, seen.last) != now or seen.endpoint is not self.endpoint:
            seen = self._seen = Engine(self.endpoint, healthy, self.load, last)
        return seen

    def take_moved(self) -> bool:
        moved, self.moved = self.moved, False
        for watch in self.watches:
            if watch.answer.beats != watch.seen:  # looked at here: there may be thousands
                moved |= watch.moved()
        return moved

    def give_up(self) -> None:
        for watch in list(self.watches):
            watch.give_up()


class Fleet:
    """`silence`: seconds an engine may owe bytes and send none, at the least; its pace and its prompts add to it."""

    def __init__(
        self,
        silence: float = SILENCE_SECONDS,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.discovered = False
        """True once discovery has answered, whatever the number of engines."""
        self.silence = silence
        self.links: Final = Links(clock)
        self.quarantined: Counter[Reason] = Counter()
        """How often an engine was put out, by reason."""
        self._rules = rules or Rules()
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        self._some_stay = False
        self._changed = asyncio.Event()
        """Set for a moment whenever an engine may have become routable."""
        self._listeners: list[Callable[[Endpoint], None]] = []
        self._on_change: list[Callable[[], None]] = []

    def on_new(self, listener: Callable[[Endpoint], None]) -> None:
        """Call `listener` for each engine that appears, or comes back at another address."""
        self._listeners.append(listener)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever an engine may have become routable, or no more be."""
        self._on_change.append(listener)

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
        self._some_stay = any(slot.endpoint.stays for slot in self._slots.values())
        gone = [slot for slot in known.values() if slot is not self._slots.get(slot.endpoint.name)]
        for slot in gone:
            slot.give_up()
        self.links.forget({slot.endpoint.name for slot in gone})
        self._tell_changed()

    def slots(self) -> list[Slot]:
        return list(self._slots.values())

    def engines(self) -> list[Engine]:
        """As routing sees them. Where all that may serve are in quarantine they are tried nevertheless: it never
        refuses everything by itself. One that never answered is no engine yet. One that drains and stays serves where
        no other of its role does."""
        slots = self._slots.values()
        none_left = not any(slot.routable for slot in slots)
        if not self._some_stay:
            return [slot.as_seen(none_left, last=False) for slot in slots]
        served = {slot.endpoint.role for slot in slots if slot.routable}
        return [slot.as_seen(none_left, slot.endpoint.stays and slot.endpoint.role not in served) for slot in slots]

    @property
    def serves(self) -> bool:
        """Some engine may be given a request."""
        return any(engine.usable for engine in self.engines())

    @property
    def unheard(self) -> bool:
        """More engines may serve than is known yet: discovery or an engine's first health check is under way."""
        return not self.discovered or any(slot.unheard and slot.may_serve for slot in self._slots.values())

    @property
    def all_out(self) -> bool:
        """No engine takes requests, but there are some that did and may again soon: one that starts anew, or hangs."""
        slots = self._slots.values()
        return not any(slot.routable for slot in slots) and any(
            slot.breaker.reason != "new" and not slot.endpoint.draining for slot in slots
        )

    async def back(self, seconds: float) -> bool:
        """Where all are out: wait for one that takes requests, so long at the most. Gives whether one came back."""
        if not self.all_out:
            return False
        try:
            async with asyncio.timeout(seconds):
                while self.all_out:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # What health checks and probes say

    def answered(self, endpoint: Endpoint) -> None:
        """A health check was good. A new engine is in; one that was out has its probe at once, if it was unwell."""
        if slot := self._slot(endpoint):
            if slot.checks_failed or slot.breaker.reason in quarantine.DISPROVED_BY_HEALTH:
                self._set(slot, quarantine.turned_healthy(slot.breaker, self._clock()))
            slot.checks_failed = 0

    def unwell(self, endpoint: Endpoint, reason: Reason) -> None:
        """A health check failed. connect: nobody listens · unhealthy: the answer is no · timeout: none came, which
        counts unless tokens do."""
        slot = self._slot(endpoint)
        if slot is None:
            return
        slot.checks_failed += 1
        if reason != "timeout":
            self._fail(slot, reason)
        elif slot.checks_failed >= HEALTH_FAILURES and not (slot.owes and slot.silent < self.silence / 2):
            self._fail(slot, "unhealthy")

    def begin_probe(self, slot: Slot) -> bool:
        """Whether a probe is due; if so, it is the caller's, who reports its end."""
        due = quarantine.probe_due(slot.breaker, self._clock())
        if due:
            slot.breaker = quarantine.probing(slot.breaker)
        return due

    def probe_failed(self, slot: Slot) -> None:
        slot.breaker = quarantine.probe_failed(slot.breaker, self._clock(), self._rules)

    def alive(self, slot: Slot) -> None:
        """It was shown to compute, if not by a token that anybody waits for."""
        slot.silent = 0.0
        self._set(slot, quarantine.succeeded(slot.breaker, self._clock()))

    # What requests say

    def gave_token(self, endpoint: Endpoint) -> None:
        if slot := self._slot(endpoint):
            slot.moved = True
            self._set(slot, quarantine.succeeded(slot.breaker, self._clock()))

    def computed(self, endpoint: Endpoint, prompt_tokens: int, seconds: float) -> None:
        """The engine gave a first token, so long after it was asked."""
        if slot := self._slot(endpoint):
            slot.pace = patience.computed(slot.pace, seconds, prompt_tokens, self._clock())

    def failed(self, endpoint: Endpoint, reason: Reason) -> None:
        """A request failed by the engine's fault."""
        if slot := self._slot(endpoint):
            self._fail(slot, reason)

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
    def watching(self, endpoint: Endpoint, watch: Watch) -> Iterator[None]:
        """The engine owes this answer while the block runs; it is given up should the engine go or hang."""
        slot = self._slots.get(endpoint.name)
        if slot is None:
            yield
            return
        slot.watches.add(watch)
        try:
            yield
        finally:
            slot.watches.discard(watch)
            slot.moved |= watch.moved()

    # What the clock says

    def tick(self, elapsed: float) -> None:
        """`elapsed` seconds passed in which this process listened: who owes bytes and sent none, and for how long."""
        now = self._clock()
        for slot in self._slots.values():
            waiting = slot.longest_prompt if slot.silent else 0
            if slot.take_moved():
                if slot.silent:
                    slot.pace = patience.silence_ended(slot.pace, slot.silent, waiting, now)
                slot.silent = 0.0
            elif slot.owes:
                slot.silent += elapsed
                if slot.silent >= self.patience(slot):
                    self._hung(slot)

    def suspects(self) -> list[Slot]:
        """Engines whose silence is worth a question."""
        return [slot for slot in self._slots.values() if slot.silent >= self.silence / 2 and slot.owes and slot.healthy]

    def patience(self, slot: Slot) -> float:
        others = (other for other in self._slots.values() if other is not slot)
        alone = not any(other.routable and other.silent < self.silence / 2 for other in others)
        return patience.patience(slot.pace, self.silence, slot.longest_prompt, slot.writing, alone)

    # inside

    def _slot(self, endpoint: Endpoint) -> Slot | None:
        """None for an engine that is gone or has moved since: news of the old address is not news of the new one."""
        slot = self._slots.get(endpoint.name)
        return slot if slot is not None and slot.endpoint.url == endpoint.url else None

    def _fail(self, slot: Slot, reason: Reason) -> None:
        self._set(slot, quarantine.failed(slot.breaker, reason, self._clock(), self._rules))

    def _hung(self, slot: Slot) -> None:
        name, owed = slot.endpoint.name, len(slot.watches)
        log.warning("%s owes %d answers and sent nothing for %.1f s", name, owed, slot.silent)
        slot.silent = 0.0
        self._fail(slot, "silent")
        slot.give_up()

    def _set(self, slot: Slot, breaker: Breaker) -> None:
        before, slot.breaker = slot.breaker, breaker
        if before.state == "closed" and breaker.state == "open":
            self.quarantined[breaker.reason] += 1
            log.warning("%s is in quarantine: %s", slot.endpoint.name, breaker.reason)
        elif before.state != "closed" and breaker.state == "closed" and before.reason != "new":
            log.info("%s answers again", slot.endpoint.name)
        if before.state != breaker.state:
            self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed.clear()
        for listener in self._on_change:
            listener()
