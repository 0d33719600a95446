"""The events of a *simulated* fleet, in order: requests come, prompts are computed, blocks move, answers are written,
engines start, leave and fail, and a scaler is asked. Deterministic: the same inputs and seed give the same figures.

The gateway's part is not modelled: `Affinity` and `rank` of the product choose the engines. What the scaler is told is
what gateways can measure, in windows, and nothing else.
"""

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from headrace_operator.plan.scaling import Aim, Ask, Role, Window
from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.affinity import Affinity, Placed, Reading
from headrace_runtime.gateway.blocks import Stored
from headrace_runtime.gateway.prompts import exact
from headrace_runtime.gateway.routing import Engine as Known
from headrace_runtime.gateway.routing import Need, rank
from simulator.engine import Engine, Journey
from simulator.profile import BLOCK, Profile
from simulator.request import Request
from simulator.windows import Recorder


class Scaler(Protocol):
    """What decides about sizes: the product's policy, or another to compare it with."""

    name: str
    interval: float
    """Seconds between two decisions."""

    def sizes(self, ask: Ask) -> Mapping[str, int]:
        """Engines of each role from now on."""
        ...


@dataclass(frozen=True)
class Setting:
    """Everything about a run but its requests and its scaler."""

    profile: Profile
    aim: Aim
    start: Mapping[str, int]
    """Ready engines of each role at the beginning."""
    cold_start: float = 60.0
    least: int = 1
    most: int = 64
    window: float = 30.0
    windows: int = 20
    failures: float = 0.0
    """Of an engine, an hour."""
    seed: int = 1


@dataclass(frozen=True)
class Event:
    """A change of a role's size."""

    at: float
    role: str
    before: int
    after: int


@dataclass
class Outcome:
    """Of a run, all *simulated*. Times in seconds."""

    scaler: str
    journeys: Sequence[Journey]
    replica_seconds: float
    events: Sequence[Event]
    moments: int
    """At which at least one role changed its size: a change of role is one."""
    aim: Aim

    def attained(self) -> float:
        """Share of the requests that kept every target."""
        return sum(map(self._kept, self.journeys)) / max(1, len(self.journeys))

    def _kept(self, journey: Journey) -> bool:
        if journey.first is None or journey.end is None:
            return False
        ttft, itl = self.aim.ttft, self.aim.itl
        in_time = ttft is None or journey.first - journey.request.at <= ttft.seconds
        return in_time and (itl is None or journey.gap <= itl.seconds)

    def quantile(self, share: float, of: Callable[[Journey], float]) -> float:
        """Nearest rank, of all requests that were answered; 0 of none."""
        values = sorted(of(journey) for journey in self.journeys if journey.end is not None)
        return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0

    def ttft(self, share: float) -> float:
        return self.quantile(share, lambda journey: (journey.first or 0.0) - journey.request.at)

    def itl(self, share: float) -> float:
        return self.quantile(share, lambda journey: journey.gap)


ROLES = ("prefill", "decode")


@dataclass
class Fleet:
    """One run: `Fleet(...).run(requests)`."""

    setting: Setting
    scaler: Scaler
    now: float = 0.0
    engines: list[Engine] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._made = 0
        self._turn = 0
        self._chance = random.Random(self.setting.seed)
        self._affinity = Affinity(clock=lambda: self.now)
        self._recorder = Recorder(self.setting.aim, self.setting.window, self.setting.windows)
        self._held: list[Journey] = []
        """No engine of a role is ready."""
        self._loads: dict[str, int] = {}
        self._placed: dict[Journey, list[tuple[Placed, ExitStack, Engine]]] = {}
        self._to_decode: dict[Journey, Engine] = {}
        self._known: dict[str, Known] = {}
        self._moments = 0
        self._left = 0
        for role in ROLES:
            self.sizes[role] = self.setting.start[role]
            for _ in range(self.sizes[role]):
                self._make(role, 0.0)

    def run(self, requests: Sequence[Request]) -> Outcome:
        """Until all are answered, or an hour after the last came."""
        journeys = [Journey(request) for request in requests]
        for journey in journeys:
            self._at(journey.request.at, lambda journey=journey: self._arrive(journey))  # type: ignore[misc]
        last = requests[-1].at if requests else 0.0
        self._at(self.setting.window, self._close_window)
        self._at(self.scaler.interval, self._scale)
        self._left = len(journeys)
        while self._heap and self._left and self.now < last + 3600.0:
            at, _, what = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            what()
        seconds = sum((last if e.gone is None else min(e.gone, last)) - min(e.created, last) for e in self.engines)
        return Outcome(self.scaler.name, journeys, seconds, self.events, self._moments, self.setting.aim)

    # Requests

    def _arrive(self, journey: Journey) -> None:
        self._recorder.arrived(journey)
        self._route(journey)

    def _route(self, journey: Journey) -> None:
        request = journey.request
        path = [(key, blocks * BLOCK) for key, blocks in exact(request.blocks, 1)]
        reading = Reading(path, True, request.prompt)
        engines = [
            self._known[engine.name]
            for engine in self.engines
            if engine.gone is None and not engine.leaving and engine.ready_at <= self.now
        ]
        choices = rank(Need(split=True, prompt=self._affinity.prompt(reading)), engines, "PrefixAware", self._turn)
        self._turn += 1
        if not choices or choices[0].prefill is None or choices[0].decode.role != "decode":
            self._held.append(journey)
            return
        prefill, decode = self._named(choices[0].prefill.name), self._named(choices[0].decode.name)
        for engine, fetched in ((prefill, False), (decode, True)):
            stack = ExitStack()
            placed = stack.enter_context(self._affinity.placed(reading, engine.name, fetched))
            self._placed.setdefault(journey, []).append((placed, stack, engine))
            self._load(engine, 1)
        self._to_decode[journey] = decode
        prefill.queue.append(journey)
        self._compute(prefill)

    def _compute(self, engine: Engine) -> None:
        if engine.computing or not engine.queue or engine.gone is not None:
            return
        seconds = engine.take_batch()
        self._at(self.now + seconds, lambda: self._computed(engine, engine.computing))

    def _computed(self, engine: Engine, batch: tuple[Journey, ...]) -> None:
        if engine.gone is not None:
            return
        engine.computing = ()
        for journey in batch:
            blocks = journey.request.blocks
            self._affinity.index.remove(engine.name, engine.keep(journey.request))
            if blocks:
                self._affinity.index.store(engine.name, Stored(blocks, None, blocks, 1))
                self._affinity.index.heard(engine.name, self.now)
            self._leave(journey, engine)
            profile = self.setting.profile
            moved = self.now + profile.transfer_base + profile.transfer * journey.request.prompt
            decode = self._to_decode[journey]
            self._at(moved, lambda journey=journey, decode=decode: self._moved(journey, decode))  # type: ignore[misc]
        self._compute(engine)
        self._settle(engine)

    def _moved(self, journey: Journey, engine: Engine) -> None:
        if engine.gone is not None:
            self._again(journey)
        elif engine.line or not self._begin(journey, engine):
            engine.line.append(journey)

    def _begin(self, journey: Journey, engine: Engine) -> bool:
        if not engine.join(journey, self.now):
            return False
        if journey.first is None:
            journey.first = self.now
            self._recorder.first(journey, self.now)
        for placed, _, where in self._placed.get(journey, ()):
            if where is engine:
                placed.computed()
        self._foretell(engine)
        return True

    def _foretell(self, engine: Engine) -> None:
        end, turn = engine.next_end(), engine.turn
        if end is not None:
            self._at(end, lambda: self._written(engine, turn))

    def _written(self, engine: Engine, turn: int) -> None:
        if engine.gone is not None or engine.turn != turn:
            return
        for journey in engine.ended(self.now):
            journey.end = self.now
            self._left -= 1
            self._recorder.ended(journey, self.now)
            self._leave(journey, engine)
            self._to_decode.pop(journey, None)
        while engine.line and self._begin(engine.line[0], engine):
            engine.line.popleft()
        self._foretell(engine)
        self._settle(engine)

    def _leave(self, journey: Journey, engine: Engine) -> None:
        for entry in [entry for entry in self._placed.get(journey, ()) if entry[2] is engine]:
            entry[1].close()
            self._load(engine, -1)
            self._placed[journey].remove(entry)
        if journey in self._placed and not self._placed[journey]:
            del self._placed[journey]

    def _again(self, journey: Journey) -> None:
        """An engine was lost under it: computed again elsewhere, and its stream goes on."""
        for _, _, engine in list(self._placed.get(journey, ())):
            self._leave(journey, engine)
        journey.tries += 1
        self._route(journey)

    # Engines

    def _make(self, role: str, cold_start: float) -> None:
        self._made += 1
        name = f"engine-{self._made}"
        engine = Engine(name, role, self.setting.profile, self.now, self.now + cold_start)
        self.engines.append(engine)
        self._loads[name] = 0
        self._label(engine, role)
        self._affinity.index.join(name)
        self._affinity.index.heard(name, self.now)
        if cold_start:
            self._at(engine.ready_at, self._release)
        if self.setting.failures:
            life = self._chance.expovariate(self.setting.failures / 3600.0)
            self._at(engine.ready_at + life, lambda: self._fail(engine))

    def _label(self, engine: Engine, role: str) -> None:
        engine.role = role
        endpoint = Endpoint(name=engine.name, url=f"http://{engine.name}", role=role, revision="r")
        self._known[engine.name] = Known(endpoint, True, self._loads[engine.name])

    def _load(self, engine: Engine, more: int) -> None:
        self._loads[engine.name] += more
        self._known[engine.name] = Known(self._known[engine.name].endpoint, True, self._loads[engine.name])

    def _release(self) -> None:
        held, self._held = self._held, []
        for journey in held:
            self._route(journey)

    def _fail(self, engine: Engine) -> None:
        """It is gone at once, and its successor starts."""
        if engine.gone is not None:
            return
        engine.gone = self.now
        lost = {journey: None for journey in engine.all_journeys() if journey.end is None}
        if not engine.leaving:
            self._make(engine.role, self.setting.cold_start)
        for journey in lost:
            self._again(journey)

    def _settle(self, engine: Engine) -> None:
        if engine.leaving and not engine.busy and not self._loads[engine.name] and engine.gone is None:
            engine.gone = self.now

    def _named(self, name: str) -> Engine:
        return self.engines[int(name.rpartition("-")[2]) - 1]

    # Scaling

    def _live(self, role: str) -> list[Engine]:
        return [engine for engine in self.engines if engine.role == role and engine.gone is None and not engine.leaving]

    def _close_window(self) -> None:
        ready = {role: float(sum(e.ready_at <= self.now for e in self._live(role))) for role in ROLES}
        self._recorder.close(self.now, ready)
        self._at(self.now + self.setting.window, self._close_window)

    def ask(self, windows: tuple[Window, ...]) -> Ask:
        """What the scaler is told."""
        roles = tuple(
            Role(
                name=role,
                size=self.sizes[role],
                least=self.setting.least,
                most=self.setting.most,
                ready=sum(engine.ready_at <= self.now for engine in self._live(role)),
                starting=tuple(self.now - e.created for e in self._live(role) if e.ready_at > self.now),
            )
            for role in ROLES
        )
        return Ask(self.setting.aim, roles, windows)

    def _scale(self) -> None:
        wanted = self.scaler.sizes(self.ask(self._recorder.windows(self.now)))
        changed = False
        if self.setting.aim.role_change:
            self._swap(wanted)
        for role in ROLES:
            size = wanted.get(role, self.sizes[role])
            if size != self.sizes[role]:
                self.events.append(Event(self.now, role, self.sizes[role], size))
                self.sizes[role], changed = size, True
            live = self._live(role)
            for _ in range(size - len(live)):
                self._make(role, self.setting.cold_start)
            # Those that are starting go first, then the least busy.
            spare = max(0, len(live) - size)
            for engine in sorted(live, key=lambda e: (e.ready_at <= self.now, self._loads[e.name]))[:spare]:
                engine.leaving = True
                self._settle(engine)
        self._moments += changed
        self._release()
        self._at(self.now + self.scaler.interval, self._scale)

    def _swap(self, wanted: Mapping[str, int]) -> None:
        """Engines that one role has too many of and the other too few change their label."""
        for taker, giver in (ROLES, ROLES[::-1]):
            live, spare = self._live(taker), [e for e in self._live(giver) if e.ready_at <= self.now]
            count = min(
                wanted.get(taker, len(live)) - len(live), len(self._live(giver)) - wanted.get(giver, len(spare))
            )
            for engine in sorted(spare, key=lambda e: self._loads[e.name])[: max(0, count)]:
                self._label(engine, taker)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, what))
