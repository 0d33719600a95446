"""One *simulated* engine: steps as vLLM takes them, with prompts cut to what a step has room for (chunked prefill).

A step with prompt tokens in it holds up the answers that are written by as much. What comes during a step waits for its
end. Its role is a label, as in the product: whether a prompt's answer is written here is said by each journey.

Steps that only write are not counted one by one: they are a *stretch* that lasts until an answer ends, and is cut short
at the end of a step where something comes. Whoever calls (`fleet.py`) asks when a stretch ends, and comes back then.
"""

import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from simulator.profile import BLOCK, Profile
from simulator.request import Request

ALMOST: Final = 1e-6
"""Of a step: less is a rounding error."""


@dataclass(slots=True, eq=False)
class Journey:
    """A request on its way. Times since the beginning; None: not yet."""

    request: Request
    computed: int = 0
    """Prompt tokens that had to be computed."""
    first: float | None = None
    end: float | None = None
    tries: int = 0
    """How often an engine was lost under it."""
    alone: bool = True
    """The engine that computes its prompt writes its answer."""
    lacking: int | None = None
    """Prompt tokens that its engine has yet to compute. None: it has not begun."""

    @property
    def context(self) -> float:
        return self.request.prompt + self.request.output / 2

    @property
    def gap(self) -> float:
        """Mean time between tokens. Only of one that ended."""
        assert self.first is not None
        assert self.end is not None
        return (self.end - self.first) / max(1, self.request.output - 1)


@dataclass(slots=True)
class Done:
    """What a stretch has brought."""

    computed: list[Journey]
    """Their prompts are computed now."""
    first: list[Journey]
    """They have their first token now."""
    ended: list[Journey]


@dataclass(slots=True, eq=False)
class Engine:
    """See the module. `ready_at` in the future: it is starting."""

    name: str
    role: str
    profile: Profile
    created: float
    ready_at: float
    leaving: bool = False
    gone: float | None = None
    queue: deque[Journey] = field(default_factory=deque)
    """Prompts to compute, of which the first may be partly done."""
    line: deque[Journey] = field(default_factory=deque)
    """Prompts whose blocks came from elsewhere, and which no step has had room for yet."""
    turn: int = 0
    """Counts stretches and their changes: an end foretold before the last one is void."""
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    slowed: float = 1.0
    """So many times as long as alone on its machine."""
    _ends: list[tuple[float, int, Journey]] = field(default_factory=list)
    """Answers being written, by how many tokens `_written` will count then."""
    _written: float = 0.0
    """Tokens that a request which was there from the beginning would have."""
    _reserved: float = 0.0
    """Context that requests here have room for."""
    _held: float = 0.0
    """Context of the answers being written."""
    _count: int = 0
    _steps: int = 0
    """Of the stretch under way. 0: there is none."""
    _each: float = 0.0
    """Seconds of one of them."""
    _at: float = 0.0
    _taken: float = 0.0
    """How many of them were taken by then."""
    _computing: list[Journey] = field(default_factory=list)
    """Their prompts end with this step."""
    _joined: list[Journey] = field(default_factory=list)
    """They get their first token with this step."""

    @property
    def stepping(self) -> bool:
        return self._steps > 0

    @property
    def busy(self) -> bool:
        return bool(self.queue or self.line or self._ends or self._steps)

    def begin(self, now: float) -> None:
        """The next stretch, where there is something to do."""
        while self.line and self._room(self.line[0]):
            self._joined.append(self.line.popleft())
            self._write(self._joined[-1], self._joined[-1].request.output)
        seconds, writing = self._take_prompts(), len(self._ends)
        if seconds is None and not writing:
            return
        one = seconds is not None or self._joined
        self._steps = 1 if one else max(1, math.ceil(self._ends[0][0] - self._written - ALMOST))
        held = self._held + writing * (self._steps - 1) / 2
        itself = self.profile.step_seconds(writing, held) if writing else self.profile.overhead
        self._each = (itself + (seconds or 0.0)) * self.slowed
        self._at, self._taken = now, 0.0
        self.turn += 1

    def end(self) -> float | None:
        """When the stretch ends. None: there is none."""
        return self._at + (self._steps - self._taken) * self._each if self._steps else None

    def boundary(self, now: float) -> float:
        """When the step ends that is being taken."""
        if not self._steps:
            return now
        return max(now, self._at + (math.ceil(self._progress(now) - ALMOST) - self._taken) * self._each)

    def interrupt(self, now: float) -> bool:
        """Something came: the stretch shall end with its step. False: it does so anyway, or there is none."""
        steps = max(1, math.ceil(self._progress(now) - ALMOST)) if self._steps else 0
        if steps >= self._steps:
            return False
        self._steps = steps
        self.turn += 1
        return True

    def slow(self, now: float, times: float) -> bool:
        """From now on all takes so many times as long as alone. False: as it did."""
        if not self._steps or abs(times - self.slowed) < ALMOST:
            return False
        self._at, self._taken = now, self._progress(now)
        self._each *= times / self.slowed
        self.slowed = times
        self.turn += 1
        return True

    def finish(self) -> Done:
        """The stretch has ended."""
        self._written += self._steps if self._ends else 0
        self._held += self._steps * len(self._ends)
        self._steps = 0
        done = Done(self._computing, self._joined, [])
        self._computing, self._joined = [], []
        while self._ends and self._ends[0][0] <= self._written + ALMOST:
            journey = heapq.heappop(self._ends)[2]
            self._reserved -= journey.context
            self._held -= journey.request.prompt + max(1, journey.request.output)
            done.ended.append(journey)
        for journey in [journey for journey in done.computed if journey.alone]:
            done.first.append(journey)
            self._reserved -= journey.context
            if journey.request.output > 1:
                self._write(journey, journey.request.output - 1)
                self._held += 1
            else:
                done.ended.append(journey)
        return done

    def all_journeys(self) -> list[Journey]:
        """Everything that is lost with it."""
        return [*self.queue, *self._computing, *self.line, *(journey for _, _, journey in self._ends)]

    def keep(self, request: Request) -> tuple[int, ...]:
        """The prompt's blocks are in the cache now; gives those that had to go."""
        for block in reversed(request.blocks):
            self.cache.pop(block, None)
            self.cache[block] = None
        gone = []
        while len(self.cache) * BLOCK > self.profile.kv_tokens:
            gone.append(self.cache.popitem(last=False)[0])
        return tuple(gone)

    def _progress(self, now: float) -> float:
        """Steps of the stretch that are taken by now, with the part of one."""
        return min(self._steps, self._taken + (now - self._at) / self._each) if self._each else self._steps

    def _write(self, journey: Journey, tokens: int) -> None:
        self._count += 1
        heapq.heappush(self._ends, (self._written + max(1, tokens), self._count, journey))
        self._reserved += journey.context
        self._held += journey.request.prompt

    def _room(self, journey: Journey) -> bool:
        full = len(self._ends) >= self.profile.batch_requests
        return not self._reserved or not (full or self._reserved + journey.context > self.profile.kv_tokens)

    def _take_prompts(self) -> float | None:
        """Prompts into the step, the last of them cut; gives the seconds that they add. None: there is none."""
        seconds, room = None, max(1, self.profile.batch_tokens - len(self._ends))
        while self.queue and room > 0:
            journey = self.queue[0]
            if journey.lacking is None and not self._admit(journey):
                break
            assert journey.lacking is not None
            tokens = min(room, journey.lacking)
            before = journey.request.prompt - journey.lacking
            seconds = (seconds or 0.0) + self.profile.prompt_seconds(tokens, before)
            journey.lacking -= tokens
            room -= tokens
            if not journey.lacking:
                self._computing.append(self.queue.popleft())
        return seconds

    def _admit(self, journey: Journey) -> bool:
        """Begin with a prompt, where there is room for its answer too if that is written here."""
        if journey.alone:
            if not self._room(journey):
                return False
            self._reserved += journey.context
        request, held = journey.request, 0
        while held < len(request.blocks) and request.blocks[held] in self.cache:
            held += 1
        # The last token is always computed.
        journey.lacking = max(1, request.prompt - held * BLOCK)
        journey.computed += journey.lacking
        return True
