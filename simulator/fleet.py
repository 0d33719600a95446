"""The events of a *simulated* fleet, in order: requests come, prompts are computed, blocks move, answers are written,
engines start, leave and fail, and a scaler is asked. Deterministic: the same inputs and seed give the same figures.

The gateway's part is not modelled: `Affinity` and `rank` of the product choose the engines, and a decode engine
computes what they give it without a prefill engine. What the scaler is told is what gateways can measure, in windows,
and nothing else.
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
from headrace_runtime.gateway.routing import Need, Policy, rank
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
    """Ready engines of each role at the beginning: of `prefill` and `decode`, or of `serve`."""
    cold_start: float = 60.0
    least: int = 1
    most: int = 64
    window: float = 30.0
    windows: int = 20
    failures: float = 0.0
    """Of an engine, an hour."""
    seed: int = 1
    routing: Policy = "PrefixAware"
    min_prompt_tokens: int = 64
    """Shorter prompts are computed where their answer is written, as by default in gateways."""


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
"""Of a fleet that is split."""


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
        self.roles = tuple(self.setting.start)
        for role in self.roles:
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
        setting = self.setting
        prompt = self._affinity.prompt(reading, setting.min_prompt_tokens)
        need = Need(split=request.prompt >= setting.min_prompt_tokens, prompt=prompt)
        choices = rank(need, engines, setting.routing, self._turn)
        self._turn += 1
        if not choices:
            self._held.append(journey)
            return
        choice = choices[0]
        decode = self._named(choice.decode.name)
        prefill = None if choice.prefill is None else self._named(choice.prefill.name)
        for engine, fetched in ((decode, False),) if prefill is None else ((prefill, False), (decode, True)):
            stack = ExitStack()
            placed = stack.enter_context(self._affinity.placed(reading, engine.name, fetched))
            self._placed.setdefault(journey, []).append((placed, stack, engine))
            self._load(engine, 1)
        self._to_decode[journey] = decode
        journey.alone, journey.lacking = prefill is None, None
        at = self.now + self.setting.profile.front
        self._at(at, lambda: self._ask(journey, prefill or decode))

    def _ask(self, journey: Journey, engine: Engine) -> None:
        if engine.gone is not None:
            self._again(journey)
            return
        engine.queue.append(journey)
        self._came(engine)

    def _came(self, engine: Engine) -> None:
        """Something new is to be done there: at once, or after the step that it is at."""
        if not engine.stepping:
            self._begin(engine)
        elif engine.interrupt(self.now):
            self._foretell(engine)

    def _begin(self, engine: Engine) -> None:
        engine.begin(self.now)
        self._foretell(engine)
        if self.setting.profile.crowding:
            self._crowd()

    def _crowd(self) -> None:
        """Those that share their machine are as slow as there are others busy."""
        busy = [engine for engine in self.engines if engine.stepping and engine.gone is None]
        times = 1 + self.setting.profile.crowding * (len(busy) - 1)
        for engine in busy:
            if engine.slow(self.now, times):
                self._foretell(engine)

    def _foretell(self, engine: Engine) -> None:
        end, turn = engine.end(), engine.turn
        if end is not None:
            self._at(end, lambda: self._stepped(engine, turn))

    def _stepped(self, engine: Engine, turn: int) -> None:
        if engine.gone is not None or engine.turn != turn:
            return
        done = engine.finish()
        for journey in done.computed:
            self._computed(journey, engine)
        for journey in done.first:
            self._wrote_first(journey, engine)
        for journey in done.ended:
            journey.end = self.now
            self._left -= 1
            self._recorder.ended(journey, self.now)
            self._leave(journey, engine)
            self._to_decode.pop(journey, None)
        self._begin(engine)
        self._settle(engine)

    def _computed(self, journey: Journey, engine: Engine) -> None:
        blocks = journey.request.blocks
        self._affinity.index.remove(engine.name, engine.keep(journey.request))
        if blocks:
            self._affinity.index.store(engine.name, Stored(blocks, None, blocks, 1))
            self._affinity.index.heard(engine.name, self.now)
        if not journey.alone:
            self._leave(journey, engine)
            decode = self._to_decode[journey]
            self._at(self.now + self.setting.profile.transfer_base, lambda: self._handed(journey, decode))

    def _handed(self, journey: Journey, engine: Engine) -> None:
        """The decode engine is asked. It looks after a step, and fetches while it takes the next ones."""
        seconds = self.setting.profile.transfer * journey.request.prompt
        self._at(engine.boundary(self.now) + seconds, lambda: self._moved(journey, engine))

    def _moved(self, journey: Journey, engine: Engine) -> None:
        if engine.gone is not None:
            self._again(journey)
            return
        engine.line.append(journey)
        self._came(engine)

    def _wrote_first(self, journey: Journey, engine: Engine) -> None:
        if journey.first is None:
            journey.first = self.now
            self._recorder.first(journey, self.now)
        for placed, _, where in self._placed.get(journey, ()):
            if where is engine:
                placed.computed()

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
        ready = {role: float(sum(e.ready_at <= self.now for e in self._live(role))) for role in self.roles}
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
            for role in self.roles
        )
        return Ask(self.setting.aim, roles, windows)

    def _scale(self) -> None:
        wanted = self.scaler.sizes(self.ask(self._recorder.windows(self.now)))
        changed = False
        if self.setting.aim.role_change and set(ROLES) <= set(self.roles):
            self._swap(wanted)
        for role in self.roles:
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
