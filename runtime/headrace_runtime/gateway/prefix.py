"""Which engine holds which beginning of a prompt: an index over the engines' KV blocks, fed by their own events. Pure.

A prompt is a *path*: places in it, each a `key` for everything up to there and the number of tokens up to there
(`prompts.py` makes paths). Engines are numbered, and a block knows its engines as bits of an integer for each tier
(device, host, disk). A lookup intersects these integers along the path, not engine by engine: its cost follows the
depth of the prompt (its logarithm, as a rule), hardly the number of engines.

The index believes what engines say (`store`, `remove`, `clear`) and, for `HOPE_SECONDS`, what was just decided
(`hope`): a prompt that was sent to an engine will be in its cache soon, so that equal prompts in a burst meet there.
An engine that lets such a hope about an exact path expire and says nothing is *late*: it counts as holding nothing,
so that routing falls back to load, until it speaks again. `kvevents.py` is the writer, `journey.py` the reader; both
give the time.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Tier = Literal["device", "host", "disk"]
Name = int | bytes
"""What an engine calls a block: the hash that vLLM gives it."""
Path = Sequence[tuple[int, int]]
"""`(key, tokens)` of places in a prompt, in order. Equal keys: equal prompts up to there."""

ROOT: Final = 0
HOPE_SECONDS: Final = 10.0
HOPED_BLOCKS: Final = 1_000_000
"""More is not hoped for at a time."""
TIER_WEIGHTS: Final[Mapping[Tier, float]] = {"device": 1.0, "host": 0.8, "disk": 0.5}
"""How much of a token's computation is saved where it lies in a tier: from the others it has to be copied first."""
BLOCKS_PER_ENGINE: Final = 1_000_000
"""Most blocks that are remembered of an engine; more are not, until it removes some."""


@dataclass(slots=True)
class Member:
    """One engine."""

    number: int
    names: dict[Name, int] = field(default_factory=dict)
    """Its own names of the blocks it holds, and our keys."""
    heard: float = float("-inf")
    """When it last spoke."""
    late: bool = True

    @property
    def bit(self) -> int:
        return 1 << self.number


@dataclass(frozen=True, slots=True)
class Stored:
    """An engine has these blocks now, one after the other, the first after block `parent`."""

    names: Sequence[Name]
    parent: Name | None
    tokens: Sequence[int]
    block_size: int
    tier: Tier = "device"
    extra: Sequence[object] = ()
    """What else tells a block from another of the same tokens (adapter, image, salt), one entry per block or none."""


@dataclass(frozen=True, slots=True)
class _Hope:
    until: float
    since: float
    member: Member
    keys: list[int]
    exact: bool


def keys_of(tokens: Sequence[int], block_size: int, parent: int = ROOT, extra: Sequence[object] = ()) -> list[int]:
    """The key of each full block of `tokens`, which follow on `parent`.

    Raises OverflowError for what is no token id. Keys hold within one process only: Python's hash is salted, so that
    nobody can make two prompts meet on purpose. Where two do, a request goes to an engine that has to compute its
    prompt after all.
    """
    data, width = array("I", tokens).tobytes(), 4 * block_size
    keys: list[int] = []
    if not extra or not any(extra):
        for start in range(0, len(data) - width + 1, width):
            parent = hash((parent, data[start : start + width]))
            keys.append(parent)
        return keys
    for index, start in enumerate(range(0, len(data) - width + 1, width)):
        parent = hash((parent, data[start : start + width], repr(extra[index]) if extra[index] else ""))
        keys.append(parent)
    return keys


class PrefixIndex:
    """See the module. Every method is quick except `clear`, which looks at each block of its engine."""

    def __init__(self, blocks_per_engine: int = BLOCKS_PER_ENGINE) -> None:
        self.block_size = 0
        """Of the engine that stored last; 0 until one has. Engines of one deployment agree on it."""
        self._limit = blocks_per_engine
        self._tiers: dict[Tier, dict[int, int]] = {"device": {}, "host": {}, "disk": {}}
        """Who holds a block there: key → engines, as bits. No block without an engine is kept."""
        self._hoped: dict[int, int] = {}
        self._members: dict[str, Member] = {}
        self._by_number: dict[int, str] = {}
        self._timely = 0
        """Engines that are not late, as bits."""
        self._hopes: deque[_Hope] = deque()

    def __len__(self) -> int:
        """Blocks that some engine holds on its device."""
        return len(self._tiers["device"])

    # What engines say

    def join(self, engine: str) -> None:
        """Know of an engine, which is late until it is `heard`."""
        if engine not in self._members:
            number = next(number for number in range(len(self._by_number) + 1) if number not in self._by_number)
            self._members[engine] = Member(number)
            self._by_number[number] = engine

    def leave(self, engine: str) -> None:
        """Forget an engine and all it held."""
        if engine in self._members:
            self.lost(engine)
            del self._by_number[self._members.pop(engine).number]

    def heard(self, engine: str, now: float) -> None:
        """The engine's events are complete up to `now`."""
        if member := self._members.get(engine):
            member.heard = now
            self._set_late(member, False)

    def lost(self, engine: str) -> None:
        """Its events cannot be had: what it holds is not known any more."""
        if member := self._members.get(engine):
            self.clear(engine)
            self._set_late(member, True)

    def store(self, engine: str, stored: Stored) -> None:
        """Blocks of which the parent is unknown are left out: nothing can be said of what comes before them."""
        member, holders = self._members[engine], self._tiers[stored.tier]
        parent = ROOT if stored.parent is None else member.names.get(stored.parent)
        if parent is None:
            return
        self.block_size = stored.block_size
        keys = keys_of(stored.tokens, stored.block_size, parent, stored.extra)
        for name, key in zip(stored.names, keys, strict=False):
            if len(member.names) >= self._limit and name not in member.names:
                return
            member.names[name] = key
            holders[key] = holders.get(key, 0) | member.bit

    def remove(self, engine: str, names: Iterable[Name], tier: Tier = "device") -> None:
        """Names that are unknown are skipped: blocks that were left out are removed by their engine all the same."""
        member = self._members[engine]
        for name in names:
            key = member.names.get(name)
            if key is None:
                continue
            _take(self._tiers[tier], key, member.bit)
            if not any(holders.get(key, 0) & member.bit for holders in self._tiers.values()):
                del member.names[name]

    def clear(self, engine: str) -> None:
        """The engine holds nothing, and what was hoped of it was in vain."""
        member = self._members[engine]
        for key in member.names.values():
            for holders in self._tiers.values():
                _take(holders, key, member.bit)
        member.names.clear()
        for hope in self._hopes:
            if hope.member is member:
                self._end(hope)
        self._hopes = deque(hope for hope in self._hopes if hope.member is not member)

    # What is asked

    def held(self, path: Path, now: float) -> dict[str, float]:
        """Tokens of the prompt that each engine need not compute, weighted by tier; engines with none are left out."""
        self._expire(now)
        device, host, disk = self._tiers.values()
        found = self._reach(path, [device, self._hoped])
        if not host and not disk:
            return found
        on_host, on_disk = (self._reach(path, [device, self._hoped, host, *rest]) for rest in ((), (disk,)))
        return {
            engine: _weighed(found.get(engine, 0.0), on_host.get(engine, 0.0), tokens)
            for engine, tokens in on_disk.items()
        }

    def hope(self, engine: str, path: Path, now: float, exact: bool) -> None:
        """The prompt was sent to the engine. `exact`: its keys are those of blocks, so that events can confirm it."""
        member = self._members.get(engine)
        if member is None or member.late or not path or len(self._hoped) >= HOPED_BLOCKS:
            return
        keys, hoped, bit = [key for key, _ in path], self._hoped, member.bit
        for key in keys:
            hoped[key] = hoped.get(key, 0) | bit
        self._hopes.append(_Hope(now + HOPE_SECONDS, now, member, keys, exact))

    @property
    def late(self) -> int:
        """How many engines are late."""
        return sum(member.late for member in self._members.values())

    def timely(self, engine: str) -> bool:
        """Whether the engine's events are believed at the moment."""
        member = self._members.get(engine)
        return member is not None and not member.late

    # Inside

    def _reach(self, path: Path, sources: Sequence[Mapping[int, int]]) -> dict[str, float]:
        """How far each engine holds the path, in any of the sources: tokens by engine.

        Steps that double, and halving where engines fell behind in one: engines drop a prompt's blocks from its end, so
        that one which holds a place holds those before it. Where it does not, it is taken to hold more than it does.
        """

        def holders(place: int) -> int:
            key, held = path[place][0], 0
            for source in sources:
                held |= source.get(key, 0)
            return held

        reached: dict[str, float] = {}
        names = self._by_number

        def note(engines: int, tokens: int) -> None:
            while engines:
                lowest = engines & -engines
                reached[names[lowest.bit_length() - 1]] = tokens
                engines ^= lowest

        def settle(low: int, high: int, engines: int) -> None:
            """Engines that hold place `low` and not `high`."""
            while engines and high - low > 1:
                middle = (low + high) // 2
                beyond = engines & holders(middle)
                settle(middle, high, beyond)
                engines, high = engines & ~beyond, middle
            if low >= 0:
                note(engines, path[low][1])

        alive, low, step, last = self._timely, -1, 1, len(path) - 1
        while alive and low < last:
            high = min(low + step, last)
            beyond = alive & holders(high)
            settle(low, high, alive & ~beyond)
            alive, low, step = beyond, high, 2 * step
        if low >= 0:
            note(alive, path[low][1])
        return reached

    def _expire(self, now: float) -> None:
        """Give up hopes that are due. An engine that said nothing since an exact one is late."""
        while self._hopes and self._hopes[0].until <= now:
            hope = self._hopes.popleft()
            member = hope.member
            confirmed = self._tiers["device"].get(hope.keys[-1], 0) & member.bit
            if hope.exact and not confirmed and member.heard <= hope.since:
                self._set_late(member, True)
            self._end(hope)

    def _end(self, hope: _Hope) -> None:
        for key in hope.keys:
            _take(self._hoped, key, hope.member.bit)

    def _set_late(self, member: Member, late: bool) -> None:
        member.late = late
        self._timely = self._timely & ~member.bit if late else self._timely | member.bit


def _weighed(device: float, host: float, disk: float) -> float:
    """Tokens on the device, and further down to those in host memory and on disk, as tokens that are not computed."""
    weights = TIER_WEIGHTS
    return device * weights["device"] + (host - device) * weights["host"] + (disk - host) * weights["disk"]


def _take(holders: dict[int, int], key: int, bit: int) -> None:
    """This engine has the block no longer."""
    left = holders.get(key, 0) & ~bit
    if left:
        holders[key] = left
    else:
        holders.pop(key, None)
