"""A *simulated* engine: vLLM's scheduler and prefix cache with the step times of Dynamo's mocker. Deterministic.

Continuous batching, chunked prefill, and a cache that drops the least recently used block, tails before heads. A
step's time is that of Dynamo's default polynomials (`lib/mocker/src/common/perf_model.rs` of ai-dynamo/dynamo,
Apache-2.0), so that both replays count the same seconds. `replay.py` runs several against a trace.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, Literal

from simulator import profile
from simulator.request import Request

BLOCK: Final = profile.BLOCK
"""Tokens."""
BLOCKS: Final = 4096
BATCH_TOKENS: Final = 8192
BATCH_REQUESTS: Final = 256

What = Literal["stored", "removed", "first", "end"]


@dataclass(slots=True, eq=False)
class Running:
    """A request on an engine."""

    request: Request
    context: int = 0
    """Tokens that it holds KV of, or will once its prompt is computed."""
    to_compute: int = 0
    left: int = 0
    """Output tokens."""
    named: list[int] = field(default_factory=list)
    """Blocks that others can reuse."""
    own: int = 0
    """Blocks that nobody else can: the prompt's last part, and the output."""
    reused: int = 0
    first: float | None = None
    end: float | None = None


def prefill_seconds(tokens: int) -> float:
    return (4.209989e-07 * tokens * tokens + 1.518344e-02 * tokens + 1.650142e01) / 1e3 if tokens else 0.0


def decode_seconds(context: int) -> float:
    share = min(1.0, context / (BLOCKS * BLOCK))
    return max(1.0, -25.74 * share * share + 54.01 * share + 5.74) / 1e3


class SimulatedEngine:
    """`advance` runs all steps that begin before a moment; what it did is in `happened`, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.happened: deque[tuple[float, What, Running | None, tuple[int, ...]]] = deque()
        """When · what (`stored`, `removed`, `first`, `end`) · of which request · which blocks."""
        self._used: dict[int, int] = {}
        """Blocks in use, by how many requests."""
        self._free: OrderedDict[int, None] = OrderedDict()
        """Blocks that nobody uses, the next to go first."""
        self._taken = 0
        """Blocks in use, those of one request alone too."""

    def advance(self, until: float) -> None:
        while (self.running or self.waiting) and self.now < until:
            if self.waiting or any(one.to_compute for one in self.running):
                self._step()
            else:
                self._only_decode(until)
        if not self.running and not self.waiting:
            self.now = max(self.now, until)

    def _only_decode(self, until: float) -> None:
        """Steps in which every request gets a token, until one ends or needs a block, or somebody may come."""
        running = self.running
        steps = min(min(one.left, 1 + -one.context % BLOCK) for one in running)
        context, done = sum(one.context for one in running), 0
        while done < steps and self.now < until:
            self.now += decode_seconds(context)
            context += len(running)
            done += 1
        for one in running:
            self._grow(one, done)
        self._finish()

    def _step(self) -> None:
        decoding = [one for one in self.running if not one.to_compute]
        budget, computed = BATCH_TOKENS - len(decoding), list[Running]()
        left = budget
        for one in [one for one in self.running if one.to_compute]:
            left -= self._compute(one, left, computed)
        while self.waiting and left > 0 and len(self.running) < BATCH_REQUESTS and self._admit(self.waiting[0]):
            one = self.waiting.popleft()
            self.running.append(one)
            left -= self._compute(one, left, computed)
        seconds = prefill_seconds(budget - left)
        if decoding:
            seconds += decode_seconds(sum(one.context for one in decoding))
        self.now += max(seconds, 1e-6)
        for one in decoding:
            self._grow(one, 1)
        for one in computed:
            one.first = self.now
            self.happened.append((self.now, "stored", one, one.request.blocks))
            self.happened.append((self.now, "first", one, ()))
            self._grow(one, 1)
        self._finish()

    def _compute(self, one: Running, most: int, computed: list[Running]) -> int:
        """A part of the prompt; gives its tokens."""
        tokens = min(one.to_compute, most)
        one.to_compute -= tokens
        if tokens and not one.to_compute:
            computed.append(one)
        return tokens

    def _admit(self, one: Running) -> bool:
        """Take the blocks that the prompt needs; False where there are not enough."""
        request = one.request
        hit = 0
        for block in request.blocks:
            if block not in self._used and block not in self._free:
                break
            hit += 1
        hit -= hit * BLOCK >= request.prompt  # the last token is always computed
        for block in request.blocks[:hit]:
            self._use(block)
        new = -(-request.prompt // BLOCK) - hit
        if not self._allocate(new):
            for block in reversed(request.blocks[:hit]):
                self._release(block)
            return False
        one.named, one.own = list(request.blocks[:hit]), new
        for block in request.blocks[hit:]:
            if block not in self._used and block not in self._free:
                self._used[block] = 1
                one.named.append(block)
                one.own -= 1
        one.reused, one.context, one.left = hit * BLOCK, request.prompt, request.output
        one.to_compute = request.prompt - one.reused
        return True

    def _grow(self, one: Running, tokens: int) -> None:
        before = -(-one.context // BLOCK)
        one.context += tokens
        one.left -= tokens
        if (more := -(-one.context // BLOCK) - before) and self._allocate(more):
            one.own += more

    def _finish(self) -> None:
        ended = [one for one in self.running if one.left <= 0]
        if ended:
            self.running = [one for one in self.running if one.left > 0]
        for one in ended:
            one.end = self.now
            self._taken -= one.own
            for block in reversed(one.named):
                self._release(block)
            self.happened.append((self.now, "end", one, ()))

    def _allocate(self, count: int) -> bool:
        short = count - (BLOCKS - self._taken - len(self._free))
        if short > len(self._free):
            return False
        gone = tuple(self._free.popitem(last=False)[0] for _ in range(max(0, short)))
        if gone:
            self.happened.append((self.now, "removed", None, gone))
        self._taken += count
        return True

    def _use(self, block: int) -> None:
        if block in self._free:
            del self._free[block]
            self._taken += 1
            self._used[block] = 0
        self._used[block] += 1

    def _release(self, block: int) -> None:
        self._used[block] -= 1
        if not self._used[block]:
            del self._used[block]
            self._free[block] = None
            self._taken -= 1
