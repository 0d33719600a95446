"""One *simulated* engine: batches of prompts one after the other, and a batch of answers that is written together.

Its role is a label, as in the product: after a change of role it finishes what it has. The two phases of such an engine
do not slow each other here.
"""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from simulator.profile import BLOCK, Profile
from simulator.request import Request


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

    @property
    def context(self) -> float:
        return self.request.prompt + self.request.output / 2

    @property
    def gap(self) -> float:
        """Mean time between tokens. Only of one that ended."""
        assert self.first is not None
        assert self.end is not None
        return (self.end - self.first) / max(1, self.request.output - 1)


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
    computing: tuple[Journey, ...] = ()
    line: deque[Journey] = field(default_factory=deque)
    """Computed prompts that its decode batch has no room for yet."""
    turn: int = 0
    """Counts the decode batch's changes: an end foretold before the last one is void."""
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _ends: list[tuple[float, int, Journey]] = field(default_factory=list)
    _written: float = 0.0
    """Tokens that a request which was there from the beginning would have by now."""
    _context: float = 0.0
    _at: float = 0.0
    _count: int = 0

    @property
    def busy(self) -> bool:
        return bool(self.queue or self.computing or self.line or self._ends)

    @property
    def writing(self) -> int:
        return len(self._ends)

    # Prefill

    def take_batch(self) -> float:
        """Begin with the next prompts; gives how long they take."""
        batch, tokens = list[Journey](), 0
        while self.queue:
            needed = self._lacking(self.queue[0].request)
            if batch and tokens + needed > self.profile.batch_tokens:
                break
            journey = self.queue.popleft()
            journey.computed += needed
            tokens += needed
            batch.append(journey)
        self.computing = tuple(batch)
        return self.profile.overhead + self.profile.pace * tokens

    def keep(self, request: Request) -> tuple[int, ...]:
        """The prompt's blocks are in the cache now; gives those that had to go."""
        for block in reversed(request.blocks):
            self.cache.pop(block, None)
            self.cache[block] = None
        gone = []
        while len(self.cache) * BLOCK > self.profile.kv_tokens:
            gone.append(self.cache.popitem(last=False)[0])
        return tuple(gone)

    def _lacking(self, request: Request) -> int:
        held = 0
        while held < len(request.blocks) and request.blocks[held] in self.cache:
            held += 1
        # The last token is always computed.
        return max(1, request.prompt - held * BLOCK)

    # Decode

    def join(self, journey: Journey, now: float) -> bool:
        """Into the batch, where there is room."""
        full = len(self._ends) >= self.profile.batch_requests
        if self._ends and (full or self._context + journey.context > self.profile.kv_tokens):
            return False
        self._advance(now)
        self._count += 1
        heapq.heappush(self._ends, (self._written + max(1, journey.request.output - 1), self._count, journey))
        self._context += journey.context
        self.turn += 1
        return True

    def next_end(self) -> float | None:
        """When the next answer is written, if nothing comes in between."""
        return self._at + (self._ends[0][0] - self._written) * self.step_seconds() if self._ends else None

    def ended(self, now: float) -> list[Journey]:
        """The answers that are written by now."""
        self._advance(now)
        found = []
        while self._ends and self._ends[0][0] <= self._written + 1e-6:
            journey = heapq.heappop(self._ends)[2]
            self._context -= journey.context
            found.append(journey)
        if found:
            self.turn += 1
        return found

    def step_seconds(self) -> float:
        profile = self.profile
        return profile.step + profile.per_request * len(self._ends) + profile.per_token * self._context

    def all_journeys(self) -> list[Journey]:
        """Everything that is lost with it."""
        return [*self.queue, *self.computing, *self.line, *(journey for _, _, journey in self._ends)]

    def _advance(self, now: float) -> None:
        if self._ends:
            self._written += (now - self._at) / self.step_seconds()
        self._at = now
