"""Who waits, and whose turn it is: classes by priority, within one the keys in turn, of each key its requests in order.

So a key with a thousand requests waiting delays another's by one request, not by a thousand. Every operation costs the
same however many wait, but for finding a turn among keys of which some may not go (`next`) and finding the longest
(`last`): these look at all that wait. Pure; used by `gate.py`.
"""

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

CLASSES = 3


class Waiting(Hashable, Protocol):
    @property
    def owner(self) -> Hashable: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...


T = TypeVar("T", bound=Waiting)


class Line(Generic[T]):
    """`rank` 0 goes first, CLASSES - 1 last."""

    def __init__(self) -> None:
        self._classes: tuple[dict[Hashable, dict[T, None]], ...] = tuple({} for _ in range(CLASSES))
        self._by_age: dict[T, None] = {}
        self.size = 0
        """Of all together."""

    def __len__(self) -> int:
        return len(self._by_age)

    def __iter__(self) -> Iterator[T]:
        """In the order in which they came."""
        return iter(self._by_age)

    def __contains__(self, one: T) -> bool:
        return one in self._by_age

    def add(self, one: T) -> None:
        self._by_age[one] = None
        self.size += one.size
        self._classes[one.rank].setdefault(one.owner, {})[one] = None

    def remove(self, one: T) -> None:
        """It leaves without having had its turn; the turns of others stay as they are."""
        del self._by_age[one]
        self.size -= one.size
        keys = self._classes[one.rank]
        keys[one.owner].pop(one)
        if not keys[one.owner]:
            del keys[one.owner]

    def next(self, may_go: Callable[[T], bool]) -> T | None:
        """Whose turn it is, keys that may not go being passed over. It stays in the line."""
        for keys in self._classes:
            for waiting in keys.values():
                one = next(iter(waiting))
                if may_go(one):
                    return one
        return None

    def go(self, one: T) -> None:
        """It has its turn: out of the line, and its key goes behind the others of its class."""
        self.remove(one)
        keys = self._classes[one.rank]
        if one.owner in keys:
            keys[one.owner] = keys.pop(one.owner)

    def oldest(self) -> T | None:
        return next(iter(self._by_age), None)

    def last(self, share: Callable[[Collection[T]], int] = len) -> T:
        """Who has to go when there is too much of the line: of the last class, the newest of the key with the largest
        `share`.

        Of keys with equal ones, the key whose turn is furthest away: that is who came last.
        """
        keys = next(keys for keys in reversed(self._classes) if keys)
        longest = max(reversed(keys.values()), key=share)
        return next(reversed(longest))
