"""Which engine holds which beginning of a prompt: an index over the engines' KV blocks, fed by their own events. Pure.

A prompt is a *path*: places in it, each a `key` for everything up to there and the number of tokens up to there
(`prompts.py` makes paths). Engines are numbered, and a block knows its engines as bits of an integer for each tier
(device, host, disk). A lookup intersects these integers along the path, not engine by engine: its cost follows the
depth of the prompt (its logarithm, as a rule), hardly the number of engines.

What a block holds is told by the device's events alone: they have its tokens and all that tells it from another of the
same tokens. Those of host and disk may have neither, as when an engine finds on its disk after a restart what it wrote
before it. They say a *name*, the engine's hash of the block, which is the same for all engines of a deployment: the
index knows what it means from any engine's device, remembers names that nobody holds at the moment, and keeps blocks
whose name it does not know yet *unplaced* until it learns it. An unplaced block is not counted.

The index believes what engines say (`store`, `refer`, `remove`, `clear`) and, for `HOPE_SECONDS`, what was just decided
(`hope`): a prompt that was sent to an engine will be in its cache soon, so that equal prompts in a burst meet there.
An engine that lets such a hope about an exact path expire and says nothing is *late*: it counts as holding nothing,
so that routing falls back to load, until it speaks again. `kvevents.py` is the writer, `journey.py` the reader; both
give the time.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace_runtime.gateway.blocks import ROOT, Holdings, Name, Path, Stored, Tier, keys_of
from headrace_runtime.gateway.reach import bits, give, reach, take
from headrace_runtime.gateway.recent import Recent

HOPE_SECONDS: Final = 10.0
HOPED_BLOCKS: Final = 1_000_000
"""More is not hoped for at a time."""
BLOCKS_PER_ENGINE: Final = 1_000_000
"""Most blocks that are remembered of an engine; more are not, until it removes some."""
MEMORY: Final[tuple[Tier, ...]] = ("device", "host")
NAMES: Final = 500_000
"""Most names of blocks that are remembered while nobody holds them: about 75 MB."""


@dataclass(slots=True)
class Member:
    """One engine."""

    number: int
    names: set[Name] = field(default_factory=set)
    """Of the blocks that it holds in any tier, placed or not."""
    heard: float = float("-inf")
    """When it last spoke."""
    late: bool = True

    @property
    def bit(self) -> int:
        return 1 << self.number


@dataclass(frozen=True, slots=True)
class _Hope:
    until: float
    since: float
    member: Member
    keys: list[int]
    exact: bool


class PrefixIndex:
    """See the module. Every method is quick except `clear`, which looks at each block of its engine."""

    def __init__(self, blocks_per_engine: int = BLOCKS_PER_ENGINE) -> None:
        self.block_size = 0
        """Of the engine that stored last; 0 until one has. Engines of one deployment agree on it."""
        self._limit = blocks_per_engine
        self._tiers: dict[Tier, dict[int, int]] = {"device": {}, "host": {}, "disk": {}}
        """Who holds a block there: key → engines, as bits. No block without an engine is kept."""
        self._hoped: dict[int, int] = {}
        self._names: dict[Name, int] = {}
        """What is known of names of blocks that some engine holds: our key."""
        self._unheld: Recent[Name, int] = Recent(NAMES)
        """The same of names that nobody holds."""
        self._chunks: Recent[Name, Sequence[Name]] = Recent(NAMES)
        """Blocks that engines move together, by the name of the last, which may stand for all of them."""
        self._unplaced: dict[Tier, dict[Name, int]] = {"host": {}, "disk": {}}
        """Who holds a block there of which nothing is known but its name: engines, as bits."""
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
        member, holders = self._members[engine], self._tiers["device"]
        parent = ROOT if stored.parent is None else self._meaning(stored.parent)
        if parent is None:
            return
        self.block_size = stored.block_size
        keys = keys_of(stored.tokens, stored.block_size, parent, stored.extra)
        for name, key in zip(stored.names, keys, strict=False):
            if self._note(member, name) and self._learn(name, key):
                give(holders, key, member.bit)

    def chunk(self, names: Sequence[Name]) -> None:
        """Below the device engines have these blocks together or not at all."""
        self._chunks.keep(names[-1], names)

    def refer(self, engine: str, names: Iterable[Name], tier: Tier) -> None:
        """The engine has these blocks in host memory or on disk."""
        member = self._members[engine]
        for name in self._each(names):
            if self._note(member, name):
                key = self._known(name)
                if key is None:
                    give(self._unplaced[tier], name, member.bit)
                else:
                    give(self._tiers[tier], key, member.bit)

    def remove(self, engine: str, names: Iterable[Name], tier: Tier = "device") -> None:
        """Names that are unknown are skipped: blocks that were left out are removed by their engine all the same."""
        member = self._members[engine]
        for name in names if tier == "device" else self._each(names):
            if name not in member.names:
                continue
            if tier in self._unplaced:
                take(self._unplaced[tier], name, member.bit)
            key = self._names.get(name)
            if key is not None:
                take(self._tiers[tier], key, member.bit)
            if not self._holds(member, name, key):
                member.names.discard(name)
                self._let_go(name, key)

    def empty(self, engine: str) -> None:
        """Nothing is left on the engine's device and in its host memory."""
        names = list(self._members[engine].names)
        for tier in MEMORY:
            self.remove(engine, names, tier)

    def clear(self, engine: str) -> None:
        """The engine holds nothing, and what was hoped of it was in vain."""
        member = self._members[engine]
        names, member.names = member.names, set()
        for name in names:
            key = self._names.get(name)
            if key is None:
                for unplaced in self._unplaced.values():
                    take(unplaced, name, member.bit)
                continue
            for holders in self._tiers.values():
                take(holders, key, member.bit)
            self._let_go(name, key)
        for hope in self._hopes:
            if hope.member is member:
                self._end(hope)
        self._hopes = deque(hope for hope in self._hopes if hope.member is not member)

    # What is asked

    def held(self, path: Path, now: float) -> Holdings:
        """Tokens of the prompt that each engine need not compute, by where they lie."""
        self._expire(now)
        device, host, disk = self._tiers.values()
        near = self._reach(path, [device, self._hoped])
        if not host and not disk:
            return Holdings(near)
        middle = self._reach(path, [device, self._hoped, host]) if host else near
        far = self._reach(path, [device, self._hoped, host, disk]) if disk else middle
        return Holdings(near, _beyond(middle, near), _beyond(far, middle))

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

    # Inside: names

    def _meaning(self, name: Name) -> int | None:
        key = self._names.get(name)
        return self._unheld.get(name) if key is None else key

    def _each(self, names: Iterable[Name]) -> Iterator[Name]:
        """Of a chunk, all its blocks; those that are named themselves as well come twice, which does no harm."""
        for name in names:
            yield from self._chunks.get(name) or (name,)

    def _known(self, name: Name) -> int | None:
        """The same, for a block that an engine says it holds."""
        key = self._names.get(name)
        if key is None and (key := self._unheld.take(name)) is not None:
            self._names[name] = key
        return key

    def _learn(self, name: Name, key: int) -> bool:
        """What a name means; False where it means something else already."""
        known = self._known(name)
        if known is not None:
            return known == key
        self._names[name] = key
        for tier, unplaced in self._unplaced.items():
            if unplaced and (engines := unplaced.pop(name, 0)):
                give(self._tiers[tier], key, engines)
        return True

    def _note(self, member: Member, name: Name) -> bool:
        """The engine holds it; False where as much is remembered of it as may be."""
        if len(member.names) >= self._limit and name not in member.names:
            return False
        member.names.add(name)
        return True

    def _holds(self, member: Member, name: Name, key: int | None) -> bool:
        if key is None:
            return any(unplaced.get(name, 0) & member.bit for unplaced in self._unplaced.values())
        return any(holders.get(key, 0) & member.bit for holders in self._tiers.values())

    def _let_go(self, name: Name, key: int | None) -> None:
        """An engine holds it no more: the last one leaves the name to be remembered."""
        if key is None:
            return
        held = any(key in holders for holders in self._tiers.values())
        if not held or not any(name in member.names for member in self._members.values()):
            del self._names[name]
            self._unheld.keep(name, key)

    # Inside: lookups and hopes

    def _reach(self, path: Path, sources: Sequence[Mapping[int, int]]) -> dict[str, float]:
        """How far each engine that is not late holds the path, in any of the sources: tokens by engine."""
        names, groups = self._by_number, reach(path, sources, self._timely)
        return {names[number]: tokens for engines, tokens in groups for number in bits(engines)}

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
            take(self._hoped, key, hope.member.bit)

    def _set_late(self, member: Member, late: bool) -> None:
        member.late = late
        self._timely = self._timely & ~member.bit if late else self._timely | member.bit


def _beyond(far: Mapping[str, float], near: Mapping[str, float]) -> dict[str, float]:
    """How much further engines hold the prompt with one tier more."""
    return {engine: tokens - near.get(engine, 0.0) for engine, tokens in far.items() if tokens > near.get(engine, 0.0)}
