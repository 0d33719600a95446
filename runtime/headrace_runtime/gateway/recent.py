"""A bounded dict that forgets what was not met for long. Pure.

Two halves: when the young one is full it becomes the old one, and what was not met since is forgotten. So nothing is
ever swept, and no call takes long. Used by `prompts.py` and `prefix.py`.
"""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `limit` entries; at least the half of it that was met last."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """And remember it for longer."""
        found = self._young.get(key)
        if found is None and (found := self._old.pop(key, None)) is not None:
            self.keep(key, found)
        return found

    def keep(self, key: K, value: V) -> None:
        if len(self._young) >= self._half:
            self._young, self._old = {}, self._young
        self._young[key] = value

    def take(self, key: K) -> V | None:
        """Get it and forget it."""
        old, young = self._old.pop(key, None), self._young.pop(key, None)
        return old if young is None else young
